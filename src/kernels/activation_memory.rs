//! The memory of activations: every operation allocates its result and frees its operands, so the
//! whole process runs on an allocator that does not contend between threads, and that reuses the
//! memory of the last step instead of returning it to the system.

use std::sync::Once;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Time that freed memory is kept for the next step, in milliseconds: longer than a busy server
/// pauses between two.
const KEPT_FOR: std::ffi::c_long = 1000;
/// `mi_option_purge_delay` of mimalloc 2 and 3.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Makes the allocator keep the memory of activations from step to step. (By default it keeps it for
/// 10 ms, and a prompt's step spends a fifth of its time on zeroed pages.)
pub fn keep_between_steps() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the call stores a number that the allocator reads with atomic operations.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, KEPT_FOR) };
    });
}
