//! Fetching memory before it is needed.

/// Has a line fetched into the second level of cache, where the processor can be told to. The
/// first level has too few places for lines under way to keep memory busy. Any address will do.
#[inline(always)]
pub(super) fn prefetch<T>(line: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: prefetching does not access memory as far as a program can tell.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
