//! Memory for activations. Every operation allocates its result and frees its operands, so the
//! whole process uses an allocator whose threads do not contend, and which reuses the last step's
//! memory instead of returning it to the system.

use std::sync::Once;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Time that freed memory is kept for the next step, in milliseconds: longer than the pause between
/// two steps of a busy server.
const KEPT_FOR: std::ffi::c_long = 1000;
/// `mi_option_purge_delay` of mimalloc 2 and 3.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Makes the allocator keep the memory of activations from step to step. (Its default is 10 ms,
/// with which a prefill step spends a fifth of its time faulting in zeroed pages.)
pub fn keep_between_steps() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the call stores a number that the allocator reads with atomic operations.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, KEPT_FOR) };
    });
}
