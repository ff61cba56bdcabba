//! The interface of an instruction set, sixteen 32-bit lanes, and the cache's element types.
//!
//! Every operation except the products of bf16 is one IEEE operation per lane, so all
//! implementations give the same bits. The methods are inlined into functions compiled for the
//! instruction set and must not be called from any other function.

use half::bf16;

use crate::kernels::kv::BLOCK_SIZE;
use crate::kernels::lanes;

/// Sixteen f32 lanes.
///
/// # Safety
/// For all methods: the processor must support the implementation's instruction set, and pointers
/// must be valid for the lanes read or written. They need not be aligned.
pub(super) trait Vector: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// Returns the lane-wise maximum; unspecified for NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// Returns `self * factor + addend` with one rounding.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn exp(self) -> Self;
    /// Returns `self + a . b`, where each lane of `a` and `b` is a word of two bf16.
    unsafe fn dot_bf16(self, a: Self, b: Self) -> Self;
    /// Rounds these lanes and those of `next` to 32 bf16 in 16 words, in order.
    unsafe fn pack_bf16(self, next: Self) -> Self;
    /// Clears the upper 16 bits of each lane.
    unsafe fn keep_low_half(self) -> Self;
    /// Returns the greatest lane; unspecified if a lane is NaN.
    unsafe fn reduce_max(self) -> f32;

    /// Returns the sum of the lanes, folded as [`lanes::fold`] does.
    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        let mut lanes = [0.0; BLOCK_SIZE];
        // SAFETY: 16 lanes are stored into an array of 16.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes::fold(lanes, |a, b| a + b)
    }

    /// Loads the first `n` lanes from memory; the others are 0.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; BLOCK_SIZE];
        // SAFETY: the caller guarantees `n` lanes at `p`, and `n` is at most 16.
        unsafe {
            for (i, lane) in lanes.iter_mut().take(n).enumerate() {
                *lane = *p.add(i);
            }
            Self::load(lanes.as_ptr())
        }
    }

    /// Writes the first `n` lanes to memory.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        let mut lanes = [0.0; BLOCK_SIZE];
        // SAFETY: the caller guarantees room for `n` lanes at `p`, and `n` is at most 16.
        unsafe {
            self.store(lanes.as_mut_ptr());
            for (i, lane) in lanes.iter().take(n).enumerate() {
                *p.add(i) = *lane;
            }
        }
    }
}

/// An element type of the KV cache, multiplied in words of 32 bits.
///
/// # Safety
/// As for [`Vector`].
pub(super) trait Element: Copy + Sync {
    /// Values in a word.
    const PER_WORD: usize;
    /// Returns `sum + a . b`, word by word.
    unsafe fn dot<V: Vector>(sum: V, a: V, b: V) -> V;
}

impl Element for f32 {
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn dot<V: Vector>(sum: V, a: V, b: V) -> V {
        // SAFETY: guaranteed by the caller.
        unsafe { a.mul_add(b, sum) }
    }
}

impl Element for bf16 {
    const PER_WORD: usize = 2;

    #[inline(always)]
    unsafe fn dot<V: Vector>(sum: V, a: V, b: V) -> V {
        // SAFETY: guaranteed by the caller.
        unsafe { sum.dot_bf16(a, b) }
    }
}
