//! Sixteen lanes in two AVX2 registers.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_UNORD_Q, _mm_cvtss_f32, _mm_max_ps, _mm_max_ss, _mm_movehdup_ps,
    _mm_movehl_ps, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256,
    _mm256_blendv_epi8, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_cmp_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps,
    _mm256_mul_ps, _mm256_or_si256, _mm256_packus_epi32, _mm256_permute4x64_epi64,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_ps,
    _mm256_sub_ps,
};

use super::kernel::attend;
use super::unit::UnitJob;
use super::vector::{Element, Vector};
use crate::kernels::math;

/// Runs a unit.
///
/// # Safety
/// The processor must have AVX2 and FMA; for the unit see [`UnitJob`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn attend_avx2<E: Element>(job: &UnitJob<'_>) {
    // 4 rows by 1 vector of two registers: 8 sums, 2 loads and a broadcast fit the 16 registers.
    // SAFETY: guaranteed by the caller.
    unsafe { attend::<Lanes, E, 4, 1>(job) }
}

/// Lanes 0 to 7, lanes 8 to 15.
#[derive(Clone, Copy)]
struct Lanes(__m256, __m256);

// SAFETY, for all methods: the caller guarantees the processor features and the memory that the
// trait requires.
impl Vector for Lanes {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see above.
        let x = unsafe { _mm256_set1_ps(x) };
        Self(x, x)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_add_ps(self.0, other.0),
                _mm256_add_ps(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_sub_ps(self.0, other.0),
                _mm256_sub_ps(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_mul_ps(self.0, other.0),
                _mm256_mul_ps(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_max_ps(self.0, other.0),
                _mm256_max_ps(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, factor.0, addend.0),
                _mm256_fmadd_ps(self.1, factor.1, addend.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: see above.
        unsafe { Self(math::exp_avx2(self.0), math::exp_avx2(self.1)) }
    }

    #[inline(always)]
    unsafe fn dot_bf16(self, a: Self, b: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(dot_bf16(self.0, a.0, b.0), dot_bf16(self.1, a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn pack_bf16(self, next: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(pack_bf16(self.0, self.1), pack_bf16(next.0, next.1)) }
    }

    #[inline(always)]
    unsafe fn keep_low_half(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff));
            Self(_mm256_and_ps(self.0, mask), _mm256_and_ps(self.1, mask))
        }
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_max_ps(self.0, self.1);
            let four = _mm_max_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

/// Adds two products per lane to `sum`: that of the lower halves, then that of the upper halves.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dot_bf16(sum: __m256, a: __m256, b: __m256) -> __m256 {
    let even = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(x)));
    let odd = |x| _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(-0x1_0000)));
    let sum = _mm256_fmadd_ps(even(a), even(b), sum);
    _mm256_fmadd_ps(odd(a), odd(b), sum)
}

/// Rounds sixteen values to bf16, in order.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn pack_bf16(low: __m256, high: __m256) -> __m256 {
    let words = _mm256_packus_epi32(round_to_bf16(low), round_to_bf16(high));
    // `packus` works within each half of the register, so the middle quarters have to be swapped.
    _mm256_castsi256_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(words))
}

/// Rounds to nearest even; the result is in the lower half of each lane.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn round_to_bf16(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let upper = _mm256_srli_epi32::<16>(bits);
    let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    let rounding = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, rounding));
    // A NaN must not be rounded to infinity.
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    _mm256_blendv_epi8(rounded, quiet, nan)
}
