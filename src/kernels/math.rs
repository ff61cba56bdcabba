//! Element-wise functions: `exp`, `tanh`, GELU in its forms, `SiLU`, `ReLU`, soft caps, and rounding to integers and
//! to bf16.
//!
//! Each is one sequence of IEEE operations (with fused multiply-adds named as such), so that the
//! bits are the same on every instruction set, and for a value alone or in a row. They must never
//! call the platform's `libm` for anything but a fused multiply-add: its `exp` differs from machine
//! to machine.
//!
//! On processors without a fused multiply-add they are exact but slow (some 30 ns an element): the
//! platform library emulates it.

#![allow(clippy::inline_always)] // the functions must be compiled with their caller's features
#![allow(clippy::many_single_char_names)] // the letters of the formulas

use super::lanes::per_isa;

/// The greatest f32 whose exponential is finite: above it, `exp` is infinite.
const EXP_HIGHEST: f32 = 88.722_83;
/// The least f32 whose exponential is not subnormal: below it, `exp` is 0.
const EXP_LOWEST: f32 = -87.336_54;
/// `1.5 * 2^23`: added to a number of magnitude below 2^22, it rounds the number to the nearest
/// integer, ties to even, and the low bits of the sum hold that integer.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first (355 / 512) so short that its product with an exponent is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// `exp(r) = 1 + r + r^2 P(r)` for `|r| <= ln(2) / 2`, highest power first; from Cephes'
/// `expf.c` (Moshier 1989, <https://www.netlib.org/cephes/>).
const EXP_POLYNOMIAL: [f32; 6] = [
    1.987_569_2e-4,
    1.398_2e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];

/// `tanh(x) = x + x^3 P(x^2)` for `|x| < 0.625`, highest power first; from Cephes' `tanhf.c`
/// (Moshier 1989, <https://www.netlib.org/cephes/>).
const TANH_POLYNOMIAL: [f32; 5] = [
    -5.704_988_7e-3,
    2.063_909e-2,
    -5.373_971_6e-2,
    1.333_144_2e-1,
    -3.333_328e-1,
];
/// The magnitude below which `tanh` is a polynomial: above it, `1 - 2 / (e^2x + 1)` does not cancel.
const TANH_SMALL: f32 = 0.625;

/// `-2 sqrt(2 / pi)`.
const GELU_LINEAR: f32 = -1.595_769_2;
/// `-2 sqrt(2 / pi) 0.044715`.
const GELU_CUBIC: f32 = -7.135_481_6e-2;

/// `1 - erf(x) = P(t) e^(-x^2)` for `x >= 0` and `t = 1 / (1 + 0.3275911 x)`, highest power first, with an absolute
/// error below 1.5e-7; from Abramowitz and Stegun 1964, 7.1.26.
const ERFC_POLYNOMIAL: [f32; 5] = [
    1.061_405_4,
    -1.453_152,
    1.421_413_7,
    -0.284_496_74,
    0.254_829_6,
];
/// `0.3275911 / sqrt(2)`.
const ERFC_SCALE: f32 = 0.231_641_89;
/// The factor of [`gelu_sigmoid`], as its authors have it.
const GELU_SIGMOID: f32 = 1.702;

/// Returns e^x with a relative error below 2e-7. Infinite above 88.72283, 0 below -87.33654 (results
/// are never subnormal), NaN for NaN.
#[must_use]
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n ln 2 + r, e^x = 2^n e^r.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = EXP_POLYNOMIAL[0];
    p = p.mul_add(r, EXP_POLYNOMIAL[1]);
    p = p.mul_add(r, EXP_POLYNOMIAL[2]);
    p = p.mul_add(r, EXP_POLYNOMIAL[3]);
    p = p.mul_add(r, EXP_POLYNOMIAL[4]);
    p = p.mul_add(r, EXP_POLYNOMIAL[5]);
    let p = p.mul_add(r * r, r) + 1.0;
    // The low bits of `shifted` are n: moved up, they add n to the exponent.
    let y = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    let y = if x > EXP_HIGHEST { f32::INFINITY } else { y };
    let y = if x < EXP_LOWEST { 0.0 } else { y };
    if x.is_nan() { x } else { y }
}

/// Returns GELU in its tanh form, as GPT-2 uses it (`gelu_new`; Hendrycks and Gimpel 2016,
/// <https://arxiv.org/abs/1606.08415>): `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`,
/// with an absolute error below `1e-6 max(1, |x|)`. NaN for NaN and, as in that formula, for
/// negative infinity.
#[must_use]
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    // (1 + tanh u) / 2 = 1 / (1 + e^(-2 u)), which does not cancel where tanh nears -1.
    let minus_2_u = x * (x * x).mul_add(GELU_CUBIC, GELU_LINEAR);
    x / (1.0 + exp(minus_2_u))
}

/// Returns GELU in its exact form (`gelu`; Hendrycks and Gimpel 2016, <https://arxiv.org/abs/1606.08415>):
/// `x (1 + erf(x / sqrt(2))) / 2`, with an absolute error below `1e-6 max(1, |x|)`. NaN for NaN and, as in that
/// formula, for negative infinity.
#[must_use]
#[inline(always)]
pub fn gelu_erf(x: f32) -> f32 {
    // The tail of the normal distribution beyond |x|, which does not cancel.
    let magnitude = x.abs();
    let t = 1.0 / magnitude.mul_add(ERFC_SCALE, 1.0);
    let mut p = ERFC_POLYNOMIAL[0];
    p = p.mul_add(t, ERFC_POLYNOMIAL[1]);
    p = p.mul_add(t, ERFC_POLYNOMIAL[2]);
    p = p.mul_add(t, ERFC_POLYNOMIAL[3]);
    p = p.mul_add(t, ERFC_POLYNOMIAL[4]);
    let tail = 0.5 * p * t * exp(-0.5 * (x * x));
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    x * below
}

/// Returns the approximation of GELU by a sigmoid (`quick_gelu`; Hendrycks and Gimpel 2016, section 2):
/// `x / (1 + e^(-1.702 x))`, with an absolute error below `1e-6 max(1, |x|)`. NaN for NaN and, as in that formula,
/// for negative infinity.
#[must_use]
#[inline(always)]
pub fn gelu_sigmoid(x: f32) -> f32 {
    x / (1.0 + exp(-GELU_SIGMOID * x))
}

/// Returns `max(x, 0)`. NaN for NaN.
#[must_use]
#[inline(always)]
pub fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// Returns `SiLU`, `x / (1 + e^-x)` (Elfwing, Uchibe and Doya 2017, <https://arxiv.org/abs/1702.03118>),
/// with an absolute error below `1e-6 max(1, |x|)`. NaN for NaN and, as in that formula, for
/// negative infinity.
#[must_use]
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Returns the hyperbolic tangent with a relative error below 4e-7. NaN for NaN.
#[must_use]
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = TANH_POLYNOMIAL[0];
    p = p.mul_add(square, TANH_POLYNOMIAL[1]);
    p = p.mul_add(square, TANH_POLYNOMIAL[2]);
    p = p.mul_add(square, TANH_POLYNOMIAL[3]);
    p = p.mul_add(square, TANH_POLYNOMIAL[4]);
    let small = (p * square).mul_add(x, x);
    let magnitude = x.abs();
    let large = 1.0 - 2.0 / (exp(magnitude + magnitude) + 1.0);
    let y = if magnitude < TANH_SMALL { small } else { large };
    y.copysign(x)
}

/// Returns `cap * tanh(x / cap)`: about `x` near 0, never beyond `cap` (Gemma 2, Gemma Team 2024,
/// <https://arxiv.org/abs/2408.00118>, section 2).
#[must_use]
#[inline(always)]
pub fn soft_cap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// Returns the nearest integer, ties to even, of a number of magnitude below 2^22.
#[inline(always)]
pub(crate) fn round_to_integer(x: f32) -> i32 {
    (x + ROUND)
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .cast_signed()
}

/// Rounds an f32 to bf16, to nearest even, and returns its bits in the low 16 bits.
#[inline(always)]
pub(crate) fn round_to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    // A NaN must not be rounded to infinity.
    if value.is_nan() {
        (bits >> 16) | 0x40
    } else {
        rounded
    }
}

#[inline(always)]
fn exp_each(x: &mut [f32]) {
    for x in x {
        *x = exp(*x);
    }
}

#[inline(always)]
fn gelu_each(x: &mut [f32]) {
    for x in x {
        *x = gelu(*x);
    }
}

#[inline(always)]
fn tanh_each(x: &mut [f32]) {
    for x in x {
        *x = tanh(*x);
    }
}

#[inline(always)]
fn silu_each(x: &mut [f32]) {
    for x in x {
        *x = silu(*x);
    }
}

#[inline(always)]
fn gelu_erf_each(x: &mut [f32]) {
    for x in x {
        *x = gelu_erf(*x);
    }
}

#[inline(always)]
fn gelu_sigmoid_each(x: &mut [f32]) {
    for x in x {
        *x = gelu_sigmoid(*x);
    }
}

#[inline(always)]
fn relu_each(x: &mut [f32]) {
    for x in x {
        *x = relu(*x);
    }
}

per_isa! {
    /// Replaces every element by its [`gelu_erf`].
    pub fn gelu_erf_in_place(x: &mut [f32]) => gelu_erf_each;
}

per_isa! {
    /// Replaces every element by its [`gelu_sigmoid`].
    pub fn gelu_sigmoid_in_place(x: &mut [f32]) => gelu_sigmoid_each;
}

per_isa! {
    /// Replaces every element by its [`relu`].
    pub fn relu_in_place(x: &mut [f32]) => relu_each;
}

per_isa! {
    /// Replaces every element by its [`tanh`].
    pub fn tanh_in_place(x: &mut [f32]) => tanh_each;
}

per_isa! {
    /// Replaces every element by its [`silu`].
    pub fn silu_in_place(x: &mut [f32]) => silu_each;
}

per_isa! {
    /// Replaces every element by its [`exp`].
    pub fn exp_in_place(x: &mut [f32]) => exp_each;
}

per_isa! {
    /// Replaces every element by its [`gelu`].
    pub fn gelu_in_place(x: &mut [f32]) => gelu_each;
}

/// Returns [`exp`] of 16 elements.
///
/// # Safety
/// The processor must have AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn exp_avx512(x: std::arch::x86_64::__m512) -> std::arch::x86_64::__m512 {
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;
    let c = _mm512_set1_ps;
    let shifted = _mm512_fmadd_ps(x, c(std::f32::consts::LOG2_E), c(ROUND));
    let n = _mm512_sub_ps(shifted, c(ROUND));
    let r = _mm512_fmadd_ps(n, c(-LN_2_HIGH), x);
    let r = _mm512_fmadd_ps(n, c(-LN_2_LOW), r);
    let mut p = c(EXP_POLYNOMIAL[0]);
    for &coefficient in &EXP_POLYNOMIAL[1..] {
        p = _mm512_fmadd_ps(p, r, c(coefficient));
    }
    let p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), c(1.0));
    let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    let y = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
    let too_high = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, c(EXP_HIGHEST));
    let y = _mm512_mask_mov_ps(y, too_high, c(f32::INFINITY));
    let too_low = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, c(EXP_LOWEST));
    let y = _mm512_mask_mov_ps(y, too_low, c(0.0));
    _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), x)
}

/// Returns [`exp`] of 8 elements.
///
/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn exp_avx2(x: std::arch::x86_64::__m256) -> std::arch::x86_64::__m256 {
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;
    let c = _mm256_set1_ps;
    let shifted = _mm256_fmadd_ps(x, c(std::f32::consts::LOG2_E), c(ROUND));
    let n = _mm256_sub_ps(shifted, c(ROUND));
    let r = _mm256_fmadd_ps(n, c(-LN_2_HIGH), x);
    let r = _mm256_fmadd_ps(n, c(-LN_2_LOW), r);
    let mut p = c(EXP_POLYNOMIAL[0]);
    for &coefficient in &EXP_POLYNOMIAL[1..] {
        p = _mm256_fmadd_ps(p, r, c(coefficient));
    }
    let p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), c(1.0));
    let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
    let y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    let too_high = _mm256_cmp_ps::<_CMP_GT_OQ>(x, c(EXP_HIGHEST));
    let y = _mm256_blendv_ps(y, c(f32::INFINITY), too_high);
    let too_low = _mm256_cmp_ps::<_CMP_LT_OQ>(x, c(EXP_LOWEST));
    let y = _mm256_blendv_ps(y, c(0.0), too_low);
    _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x))
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // exact results are what is tested
mod tests {
    use super::super::Isa;
    use super::*;

    /// Returns every 2,503rd f32, and the edge cases.
    fn samples() -> Vec<f32> {
        let edges = [
            0.0,
            1.0,
            f32::MIN_POSITIVE,
            f32::MAX,
            f32::INFINITY,
            f32::NAN,
            f32::from_bits(1),
            EXP_HIGHEST,
            EXP_HIGHEST.next_up(),
            EXP_LOWEST.abs(),
            EXP_LOWEST.abs().next_up(),
        ];
        (0..=u32::MAX)
            .step_by(2503)
            .map(f32::from_bits)
            .chain(edges.iter().flat_map(|&x| [x, -x]))
            .collect()
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn exp_is_within_2e_7_of_the_true_value() {
        for x in samples()
            .into_iter()
            .chain((-8800..8800).map(|i| i as f32 / 100.0))
        {
            let (y, truth) = (exp(x), f64::from(x).exp());
            if x.is_nan() {
                assert!(y.is_nan());
            } else if x > EXP_HIGHEST {
                assert_eq!(y, f32::INFINITY, "exp({x})");
                assert!(truth > f64::from(f32::MAX), "exp({x})");
            } else if x < EXP_LOWEST {
                assert_eq!(y.to_bits(), 0, "exp({x})");
                assert!(truth < 1.0001 * f64::from(f32::MIN_POSITIVE), "exp({x})");
            } else {
                let error = (f64::from(y) - truth).abs() / truth;
                assert!(error < 2e-7, "exp({x}) = {y}, off by {error}");
                assert!(y.is_normal());
            }
        }
        assert_eq!(exp(0.0).to_bits(), 1f32.to_bits());
    }

    #[test]
    fn gelu_is_within_1e_6_of_the_formula() {
        for x in samples()
            .into_iter()
            .chain((-8000..8000).map(|i| i as f32 / 500.0))
        {
            let wide = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let truth = 0.5 * wide * (1.0 + u.tanh());
            let y = f64::from(gelu(x));
            if truth.is_finite() {
                let error = (y - truth).abs();
                assert!(
                    error <= 1e-6 * wide.abs().max(1.0),
                    "gelu({x}) = {y}, off by {error}"
                );
            } else {
                assert!(
                    y.is_nan() == truth.is_nan() && (y.is_nan() || y == truth),
                    "gelu({x})"
                );
            }
        }
    }

    #[test]
    fn silu_is_within_1e_6_of_the_formula() {
        for x in samples()
            .into_iter()
            .chain((-8000..8000).map(|i| i as f32 / 500.0))
        {
            let wide = f64::from(x);
            let (y, truth) = (f64::from(silu(x)), wide / (1.0 + (-wide).exp()));
            if x.is_finite() {
                let error = (y - truth).abs();
                assert!(
                    error <= 1e-6 * wide.abs().max(1.0),
                    "silu({x}) = {y}, off by {error}"
                );
            } else {
                assert!(y == truth || y.is_nan() && truth.is_nan(), "silu({x})");
            }
        }
    }

    /// erf in f64 by its Taylor series, to 1e-12 for `|x| < 5`; beyond that it is 1 to 1e-11.
    fn erf(x: f64) -> f64 {
        if x.abs() >= 5.0 {
            return x.signum();
        }
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-16 * sum.abs() {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn the_other_forms_of_gelu_are_within_1e_6_of_their_formulas() {
        let exact = |x: f64| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2));
        let sigmoid = |x: f64| x / (1.0 + (-1.702 * x).exp());
        for x in samples()
            .into_iter()
            .chain((-8000..8000).map(|i| i as f32 / 500.0))
        {
            let wide = f64::from(x);
            let pairs = [
                (gelu_erf(x), exact(wide)),
                (gelu_sigmoid(x), sigmoid(wide)),
                (relu(x), wide.max(0.0)),
            ];
            for (y, truth) in pairs {
                let error = (f64::from(y) - truth).abs();
                let allowed = 1e-6 * wide.abs().max(1.0);
                if x.is_finite() {
                    assert!(error <= allowed, "f({x}) = {y}, off by {error}");
                }
            }
        }
        for function in [gelu_erf, gelu_sigmoid, relu] {
            assert!(function(f32::NAN).is_nan());
            assert_eq!(function(f32::INFINITY), f32::INFINITY);
        }
    }

    #[test]
    fn tanh_is_within_4e_7_of_the_true_value() {
        for x in samples()
            .into_iter()
            .chain((-8000..8000).map(|i| i as f32 / 500.0))
        {
            let (y, truth) = (f64::from(tanh(x)), f64::from(x).tanh());
            if x.is_nan() {
                assert!(y.is_nan());
                continue;
            }
            let error = (y - truth).abs();
            let allowed = 4e-7 * truth.abs() + f64::from(f32::MIN_POSITIVE);
            assert!(error <= allowed, "tanh({x}) = {y}, off by {error}");
            assert_eq!(tanh(-x).to_bits(), (-tanh(x)).to_bits());
            assert!(soft_cap(x, 30.0).abs() <= 30.0);
        }
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert!((soft_cap(60.0, 50.0) - 41.682_73).abs() < 1e-4);
    }

    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        for bits in (0..u32::MAX).step_by(65_521) {
            let value = f32::from_bits(bits);
            let expected = half::bf16::from_f32(value);
            let found = half::bf16::from_bits(round_to_bf16(value) as u16);
            assert_eq!(expected.is_nan(), found.is_nan());
            if !expected.is_nan() {
                assert_eq!(expected.to_bits(), found.to_bits(), "{value}");
            }
        }
    }

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        let x = samples();
        for (function, name, each) in [
            (
                exp as fn(f32) -> f32,
                "exp",
                exp_in_place as fn(Isa, &mut [f32]),
            ),
            (gelu, "gelu", gelu_in_place),
            (gelu_erf, "gelu_erf", gelu_erf_in_place),
            (gelu_sigmoid, "gelu_sigmoid", gelu_sigmoid_in_place),
            (relu, "relu", relu_in_place),
            (silu, "silu", silu_in_place),
            (tanh, "tanh", tanh_in_place),
        ] {
            let alone = bits(&x.iter().map(|&x| function(x)).collect::<Vec<_>>());
            for isa in Isa::available() {
                let mut row = x.clone();
                each(isa, &mut row);
                assert!(bits(&row) == alone, "{name} on {}", isa.name());
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_vector_forms_of_exp_give_the_same_bits() {
        #[allow(clippy::wildcard_imports)]
        use std::arch::x86_64::*;
        #[target_feature(enable = "avx512f")]
        fn sixteen(x: &[f32; 16]) -> [f32; 16] {
            let mut y = [0.0; 16];
            // SAFETY: both arrays hold 16 elements, and the caller has AVX-512 F.
            unsafe { _mm512_storeu_ps(y.as_mut_ptr(), exp_avx512(_mm512_loadu_ps(x.as_ptr()))) };
            y
        }
        #[target_feature(enable = "avx2,fma")]
        fn eight(x: &[f32; 8]) -> [f32; 8] {
            let mut y = [0.0; 8];
            // SAFETY: both arrays hold 8 elements, and the caller has AVX2 and FMA.
            unsafe { _mm256_storeu_ps(y.as_mut_ptr(), exp_avx2(_mm256_loadu_ps(x.as_ptr()))) };
            y
        }
        let x = samples();
        if Isa::detect() >= Isa::Avx512 {
            for chunk in x.as_chunks::<16>().0 {
                // SAFETY: the processor has AVX-512.
                assert_eq!(bits(&unsafe { sixteen(chunk) }), bits(&chunk.map(exp)));
            }
        }
        if Isa::detect() >= Isa::Avx2 {
            for chunk in x.as_chunks::<8>().0 {
                // SAFETY: the processor has AVX2 and FMA.
                assert_eq!(bits(&unsafe { eight(chunk) }), bits(&chunk.map(exp)));
            }
        }
    }
}
