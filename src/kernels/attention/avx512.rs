//! Sixteen lanes in one AVX-512 register.

use std::arch::x86_64::{
    __m512, __m512bh, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_max_ps,
    _mm512_mul_ps, _mm512_reduce_max_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
    _mm512_sub_ps,
};

use super::kernel::attend;
use super::unit::UnitJob;
use super::vector::{Element, Vector};
use crate::kernels::math;

/// Runs a unit.
///
/// # Safety
/// The processor must have AVX-512 F, BW, DQ, VL and BF16; for the unit see [`UnitJob`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn attend_avx512<E: Element>(job: &UnitJob<'_>) {
    // 4 rows by 4 vectors: 16 sums, 4 loads and a broadcast fit the 32 registers. SAFETY: the
    // caller's.
    unsafe { attend::<Lanes, E, 4, 4>(job) }
}

#[derive(Clone, Copy)]
struct Lanes(__m512);

// SAFETY, for all methods: the caller guarantees the processor features and the memory that the
// trait requires.
impl Vector for Lanes {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { math::exp_avx512(self.0) })
    }

    #[inline(always)]
    unsafe fn dot_bf16(self, a: Self, b: Self) -> Self {
        // SAFETY: see above; the types differ in name only, 512 bits each.
        unsafe {
            let bf16 = |words| std::mem::transmute::<__m512, __m512bh>(words);
            Self(_mm512_dpbf16_ps(self.0, bf16(a.0), bf16(b.0)))
        }
    }

    #[inline(always)]
    unsafe fn pack_bf16(self, next: Self) -> Self {
        // SAFETY: as above.
        unsafe {
            let words = _mm512_cvtne2ps_pbh(next.0, self.0);
            Self(std::mem::transmute::<__m512bh, __m512>(words))
        }
    }

    #[inline(always)]
    unsafe fn keep_low_half(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let words = _mm512_castps_si512(self.0);
            let low = _mm512_and_si512(words, _mm512_set1_epi32(0xffff));
            Self(_mm512_castsi512_ps(low))
        }
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}
