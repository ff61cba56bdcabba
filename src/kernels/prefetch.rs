//! Prefetching: fetches memory into the cache before it is needed.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Prefetches a line into the second-level cache, if the processor has an instruction for it. The
/// first level has too few line fill buffers to keep memory busy. Any address is valid.
#[inline(always)]
pub(super) fn prefetch<T>(line: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: prefetching has no effect that a program can observe, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Prefetches a line into the first-level cache, for a stream that is about to be read.
#[inline(always)]
pub(super) fn prefetch_near<T>(line: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// A range of addresses to be read later. It is only prefetched from, so the memory may have been
/// freed.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryRange {
    pub(super) address: usize,
    pub(super) bytes: usize,
}

impl MemoryRange {
    /// Returns the range of a slice.
    #[must_use]
    pub fn of<T>(memory: &[T]) -> Self {
        Self {
            address: memory.as_ptr().addr(),
            bytes: size_of_val(memory),
        }
    }
}

/// Prefetches all lines of a range of addresses.
#[inline(always)]
pub(super) fn prefetch_range(addresses: std::ops::Range<usize>) {
    for line in addresses.step_by(LINE) {
        prefetch(std::ptr::without_provenance::<u8>(line));
    }
}
