//! Sixteen 32-bit lanes, as each instruction set has them, and the cache's element types.
//!
//! Every operation but the products of bf16 is one IEEE operation per lane, so all
//! implementations give the same bits. The methods are inlined into functions compiled for the
//! instruction set and must be called from nowhere else.

use half::bf16;

use crate::kernels::kv::BLOCK_SIZE;
use crate::kernels::pack::round_to_bf16;
use crate::kernels::{lanes, math};

/// Sixteen f32 lanes.
///
/// # Safety
/// Of all methods: the processor must have the implementation's instruction set, and pointers
/// must be valid for the lanes read or written. No alignment is needed.
pub(in crate::kernels) trait Vector: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// The greater of each two lanes, if neither is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// `self * factor + addend` with one rounding.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn exp(self) -> Self;
    /// `self + a . b`, where each lane of `a` and `b` is a word of two bf16.
    unsafe fn dot_bf16(self, a: Self, b: Self) -> Self;
    /// Rounds these lanes and those of `next` to 32 bf16 in 16 words, in order.
    unsafe fn pack_bf16(self, next: Self) -> Self;
    /// Clears the upper 16 bits of each lane.
    unsafe fn keep_low_half(self) -> Self;
    /// The greatest lane, if no lane is NaN.
    unsafe fn reduce_max(self) -> f32;

    /// The sum of the lanes, folded as [`lanes::fold`] does.
    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        let mut lanes = [0.0; BLOCK_SIZE];
        // SAFETY: 16 lanes are stored into an array of 16.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes::fold(lanes, |a, b| a + b)
    }

    /// The first `n` lanes from memory, the others 0.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; BLOCK_SIZE];
        // SAFETY: the caller has `n` lanes at `p`, and `n` is at most 16.
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
        // SAFETY: the caller has room for `n` lanes at `p`, and `n` is at most 16.
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
pub(in crate::kernels) trait Element: Copy + Sync {
    /// Values in a word.
    const PER_WORD: usize;
    /// `sum + a . b`, word by word.
    unsafe fn dot<V: Vector>(sum: V, a: V, b: V) -> V;
}

impl Element for f32 {
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn dot<V: Vector>(sum: V, a: V, b: V) -> V {
        // SAFETY: the caller's.
        unsafe { a.mul_add(b, sum) }
    }
}

impl Element for bf16 {
    const PER_WORD: usize = 2;

    #[inline(always)]
    unsafe fn dot<V: Vector>(sum: V, a: V, b: V) -> V {
        // SAFETY: the caller's.
        unsafe { sum.dot_bf16(a, b) }
    }
}

/// The lanes in plain Rust.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Portable([f32; BLOCK_SIZE]);

impl Portable {
    #[inline(always)]
    fn zip(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        self
    }
}

impl Vector for Portable {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; BLOCK_SIZE])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller has 16 lanes at `p`.
        Self(unsafe { p.cast::<[f32; BLOCK_SIZE]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller has room for 16 lanes at `p`.
        unsafe { p.cast::<[f32; BLOCK_SIZE]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, f32::max)
    }

    #[inline(always)]
    unsafe fn mul_add(mut self, factor: Self, addend: Self) -> Self {
        for i in 0..BLOCK_SIZE {
            self.0[i] = self.0[i].mul_add(factor.0[i], addend.0[i]);
        }
        self
    }

    #[inline(always)]
    unsafe fn exp(mut self) -> Self {
        for lane in &mut self.0 {
            *lane = math::exp(*lane);
        }
        self
    }

    #[inline(always)]
    unsafe fn dot_bf16(mut self, a: Self, b: Self) -> Self {
        let even = |x: f32| f32::from_bits(x.to_bits() << 16);
        let odd = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
        for (sum, (&a, &b)) in self.0.iter_mut().zip(a.0.iter().zip(&b.0)) {
            *sum = even(a).mul_add(even(b), *sum);
            *sum = odd(a).mul_add(odd(b), *sum);
        }
        self
    }

    #[inline(always)]
    unsafe fn pack_bf16(self, next: Self) -> Self {
        let mut words = [0.0; BLOCK_SIZE];
        let pairs = self.0.as_chunks::<2>().0.iter();
        let pairs = pairs.chain(next.0.as_chunks::<2>().0);
        for (word, [low, high]) in words.iter_mut().zip(pairs) {
            *word = f32::from_bits(round_to_bf16(*low) | round_to_bf16(*high) << 16);
        }
        Self(words)
    }

    #[inline(always)]
    unsafe fn keep_low_half(mut self) -> Self {
        for lane in &mut self.0 {
            *lane = f32::from_bits(lane.to_bits() & 0xffff);
        }
        self
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        lanes::fold(self.0, f32::max)
    }
}
