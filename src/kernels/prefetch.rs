//! Prefetching: memory is fetched into the cache before it is needed.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Prefetches a line into the second level of cache, where the processor has an instruction for it.
/// The first level has too few places for lines under way to keep memory busy. Any address is valid.
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

/// Prefetches a line into the first level of cache: for a stream that is read at once.
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

/// Addresses that are going to be read. They are only ever prefetched from, so the memory need not
/// exist any more.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryRange {
    pub(super) address: usize,
    pub(super) bytes: usize,
}

impl MemoryRange {
    /// Returns the memory of a slice.
    #[must_use]
    pub fn of<T>(memory: &[T]) -> Self {
        Self {
            address: memory.as_ptr().addr(),
            bytes: size_of_val(memory),
        }
    }
}

/// Prefetches the lines of some addresses.
#[inline(always)]
pub(super) fn prefetch_range(addresses: std::ops::Range<usize>) {
    for line in addresses.step_by(LINE) {
        prefetch(std::ptr::without_provenance::<u8>(line));
    }
}
