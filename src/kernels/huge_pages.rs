//! Asks the system to back large memory with huge pages (2 MiB instead of 4 KiB): a step reads
//! all weights and the KV cache of every sequence, and would otherwise look up, and once fault
//! in, each page of them.

/// A huge page, in bytes.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages within `bytes` bytes from `start` on, which belong to the caller. Only advice:
/// without effect where the system has no huge pages.
pub(super) fn advise(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    advise_whole_pages(start, bytes, rustix::mm::Advice::LinuxHugepage);
}

/// Asks for huge pages for zeros from the allocator, and drops the pages that it has touched: it may
/// have zeroed memory that it had used before.
///
/// # Safety
/// The range is the caller's alone, all zero, and in private anonymous memory.
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
    // SAFETY: the range is the caller's, and its content does not change: pages dropped from private
    // anonymous memory are zeros again, as the caller has them.
    let advised = unsafe { rustix::mm::madvise(start.add(skipped).cast(), whole, advice) };
    if let Err(error) = advised {
        tracing::debug!(%error, "huge pages unavailable");
    }
}
