//! Sine and cosine of angles in f32, by f64 arithmetic that is the same on every machine.

/// `1.5 * 2^52`: added to a number of magnitude below 2^51, it rounds the number to the nearest
/// integer, ties to even, and the low bits of the sum hold that integer.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// What `FRAC_PI_2` lacks of pi / 2.
const FRAC_PI_2_LOW: f64 = 6.123_233_995_736_766e-17;
/// `sin(r) = r + r^3 P(r^2)` and `cos(r) = 1 - r^2 / 2 + r^4 Q(r^2)` for `|r| <= pi / 4`, highest power
/// first; from Cephes' `sin.c` (Moshier 1989, <https://www.netlib.org/cephes/>).
const SINE_POLYNOMIAL: [f64; 6] = [
    1.589_623_015_765_465_7e-10,
    -2.505_074_776_285_780_7e-8,
    2.755_731_362_138_572_5e-6,
    -1.984_126_982_958_954e-4,
    8.333_333_333_322_119e-3,
    -1.666_666_666_666_663e-1,
];
const COSINE_POLYNOMIAL: [f64; 6] = [
    -1.135_853_652_138_768_2e-11,
    2.087_570_084_197_473e-9,
    -2.755_731_417_929_674e-7,
    2.480_158_728_885_170_5e-5,
    -1.388_888_888_887_305_6e-3,
    4.166_666_666_666_659_3e-2,
];

/// Returns sine and cosine of an angle in radians of magnitude below 2^31, rounded from f64 values whose
/// error is below 1e-15.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the precision of the result"
)]
pub(super) fn sin_cos(angle: f32) -> (f32, f32) {
    let x = f64::from(angle);
    // x = n pi/2 + r
    let shifted = x.mul_add(std::f64::consts::FRAC_2_PI, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-std::f64::consts::FRAC_PI_2, x);
    let r = n.mul_add(-FRAC_PI_2_LOW, r);
    let square = r * r;
    let sine = polynomial(&SINE_POLYNOMIAL, square).mul_add(square * r, r);
    let cosine =
        polynomial(&COSINE_POLYNOMIAL, square).mul_add(square * square, square.mul_add(-0.5, 1.0));
    // The low bits of `shifted` are n: every quarter turn swaps sine and cosine.
    let quarters = shifted.to_bits();
    let swapped = quarters & 1 != 0;
    let (first, second) = if swapped {
        (cosine, sine)
    } else {
        (sine, cosine)
    };
    let sign = |negative: bool| if negative { -1.0 } else { 1.0 };
    let sine = first * sign(quarters & 2 != 0);
    let cosine = second * sign(quarters.wrapping_add(1) & 2 != 0);
    (sine as f32, cosine as f32)
}

#[inline(always)]
fn polynomial(coefficients: &[f64; 6], x: f64) -> f64 {
    let mut p = coefficients[0];
    p = p.mul_add(x, coefficients[1]);
    p = p.mul_add(x, coefficients[2]);
    p = p.mul_add(x, coefficients[3]);
    p = p.mul_add(x, coefficients[4]);
    p.mul_add(x, coefficients[5])
}

#[cfg(test)]
mod tests {
    use super::sin_cos;

    #[test]
    fn sine_and_cosine_are_those_of_f64_rounded_to_f32() {
        let mut differences = 0;
        for i in 0..400_000u32 {
            // Angles up to 160,000: beyond any position times the highest frequency, 1.
            let angle = match i % 4 {
                0 => i as f32,
                1 => i as f32 * 0.4,
                2 => i as f32 * 1.234_567e-3,
                _ => -(i as f32) * 7.7e-6,
            };
            let (sine, cosine) = sin_cos(angle);
            let truth = f64::from(angle).sin_cos();
            for (found, truth) in [(sine, truth.0), (cosine, truth.1)] {
                let error = (f64::from(found) - truth).abs();
                assert!(
                    error <= 0.500_001 * ulp(found) + 1e-15,
                    "{angle}: {found} {truth}"
                );
                differences += u32::from(found.to_bits() != (truth as f32).to_bits());
            }
        }
        assert!(differences <= 2, "{differences}");
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }

    /// Returns the distance from a number to the next of greater magnitude.
    fn ulp(x: f32) -> f64 {
        let magnitude = x.abs();
        f64::from(magnitude.next_up()) - f64::from(magnitude)
    }
}
