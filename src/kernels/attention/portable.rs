//! Sixteen lanes in plain Rust.

use super::kernel::attend;
use super::unit::UnitJob;
use super::vector::{Element, Vector};
use crate::kernels::kv::BLOCK_SIZE;
use crate::kernels::lanes;
use crate::kernels::math::{self, round_to_bf16};

/// Runs a unit in plain Rust.
///
/// # Safety
/// See [`UnitJob`].
pub(super) unsafe fn attend_portable<E: Element>(job: &UnitJob<'_>) {
    // SAFETY: guaranteed by the caller; plain Rust runs on every processor.
    unsafe { attend::<Portable, E, 1, 2>(job) }
}

#[derive(Clone, Copy)]
struct Portable([f32; BLOCK_SIZE]);

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
        // SAFETY: the caller guarantees 16 readable lanes at `p`.
        Self(unsafe { p.cast::<[f32; BLOCK_SIZE]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller guarantees room for 16 lanes at `p`.
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
