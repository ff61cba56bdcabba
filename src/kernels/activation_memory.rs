//! Where activations lie: every operation allocates its result and frees its operands, so the
//! whole process runs on an allocator that does not contend between threads, and that hands the
//! memory of the last step to the next instead of to the system and back.

use std::sync::Once;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long freed memory is kept for the next step, in milliseconds: longer than a busy server
/// rests between two.
const KEPT_FOR: std::ffi::c_long = 1000;
/// `mi_option_purge_delay` of mimalloc 2 and 3.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Makes the allocator keep the memory of activations from step to step. (It keeps it for 10 ms
/// otherwise, and a prompt's step spends a fifth of its time on getting zeroed pages.)
pub fn keep_between_steps() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: sets a number, which the allocator reads with atomic operations.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, KEPT_FOR) };
    });
}
