//! Asks the system to back large allocations with huge pages (2 MiB instead of 4 KiB): a step reads
//! all weights and the KV cache of every sequence, and with small pages would spend time on TLB
//! misses and page faults.

/// Size of a huge page, in bytes.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages for `bytes` bytes from `start` on, which belong to the caller. This is only
/// advice, without effect where huge pages are unavailable.
pub(super) fn advise(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    advise_whole_pages(start, bytes, rustix::mm::Advice::LinuxHugepage);
}

/// Asks for huge pages for zeroed memory from the allocator, and drops the pages already touched,
/// since the allocator may have zeroed memory that was in use before.
///
/// # Safety
/// The range must belong to the caller exclusively, be all zero, and lie in private anonymous
/// memory.
pub(super) unsafe fn advise_untouched(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    advise_whole_pages(start, bytes, rustix::mm::Advice::LinuxDontNeed);
    advise(start, bytes);
}

#[cfg(target_os = "linux")]
fn advise_whole_pages(start: *mut u8, bytes: usize, advice: rustix::mm::Advice) {
    let skipped = start.align_offset(HUGE_PAGE).min(bytes);
    let whole = (bytes - skipped) / HUGE_PAGE * HUGE_PAGE;
    if whole == 0 {
        return;
    }
    // SAFETY: the range belongs to the caller, and its content does not change: pages dropped from
    // private anonymous memory read as zeros again.
    let advised = unsafe { rustix::mm::madvise(start.add(skipped).cast(), whole, advice) };
    if let Err(error) = advised {
        tracing::debug!(%error, "huge pages unavailable");
    }
}
