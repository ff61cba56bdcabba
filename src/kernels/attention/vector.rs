//! Sixteen f32 lanes, as each instruction set has them, and the cache's element types.
//!
//! Every operation is one IEEE operation per lane, so all implementations give the same bits.
//! The methods are inlined into functions compiled for the instruction set and must be called
//! from nowhere else.

use half::bf16;

use crate::kernels::kv::BLOCK_SIZE;
use crate::kernels::{lanes, math};

/// Sixteen f32 lanes.
///
/// # Safety
/// Of all methods: the processor must have the implementation's instruction set, and pointers
/// must be valid for the lanes read or written. No alignment is needed.
pub(in crate::kernels) trait Vector: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_bf16(p: *const bf16) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend` with one rounding.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn exp(self) -> Self;
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

/// An element type of the KV cache.
///
/// # Safety
/// As for [`Vector`].
pub(in crate::kernels) trait Element: Copy + Sync {
    unsafe fn load<V: Vector>(p: *const Self) -> V;
    /// The first `n` lanes, the others 0.
    unsafe fn load_first<V: Vector>(p: *const Self, n: usize) -> V;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's.
        unsafe { V::load(p) }
    }

    #[inline(always)]
    unsafe fn load_first<V: Vector>(p: *const Self, n: usize) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_first(p, n) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_bf16(p) }
    }

    #[inline(always)]
    unsafe fn load_first<V: Vector>(p: *const Self, n: usize) -> V {
        let mut lanes = [0.0; BLOCK_SIZE];
        // SAFETY: the caller has `n` lanes at `p`, and `n` is at most 16.
        unsafe {
            for (i, lane) in lanes.iter_mut().take(n).enumerate() {
                *lane = widen(*p.add(i));
            }
            V::load(lanes.as_ptr())
        }
    }
}

/// The same number in f32: its upper 16 bits are those of the bfloat16.
#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
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
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the caller has 16 lanes at `p`.
        Self(unsafe { p.cast::<[bf16; BLOCK_SIZE]>().read_unaligned() }.map(widen))
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
    unsafe fn reduce_max(self) -> f32 {
        lanes::fold(self.0, f32::max)
    }
}
