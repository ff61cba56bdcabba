//! Distributions of the lengths of prompts and outputs: `64`, `32..128` or `normal:64,16`.

use std::f64::consts::TAU;
use std::fmt;
use std::str::FromStr;

use rand_chacha::rand_core::Rng;
use thiserror::Error;

/// Maximum length in tokens: far beyond any model's context, and exact as an `f64`.
const MAX_TOKENS: usize = 10_000_000;

/// A distribution of lengths in tokens, all at least 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Lengths {
    /// A constant length.
    Fixed(usize),
    /// A uniform distribution between two lengths, both included.
    Uniform(usize, usize),
    /// A normal distribution, rounded and clamped to at least 1.
    Normal {
        /// Mean in tokens.
        mean: f64,
        /// Standard deviation in tokens.
        deviation: f64,
    },
}

/// Why a text is not a valid distribution of lengths.
#[derive(Debug, Error, PartialEq)]
pub(super) enum LengthsError {
    /// The text has none of the three forms.
    #[error("expected a number of tokens (64), a range (32..128) or normal:MEAN,DEVIATION")]
    Form,
    /// A length is out of range.
    #[error("lengths must be from 1 to {MAX_TOKENS}")]
    OutOfRange,
    /// The end of the range is before its start.
    #[error("the range ends before it starts")]
    Backwards,
}

impl Lengths {
    /// Draws a length.
    pub fn draw(self, rng: &mut impl Rng) -> usize {
        match self {
            Self::Fixed(tokens) => tokens,
            Self::Uniform(low, high) => low + below(rng, high - low + 1),
            Self::Normal { mean, deviation } => {
                let drawn = (mean + deviation * standard_normal(rng)).round();
                #[expect(clippy::cast_sign_loss, reason = "clamped")]
                let tokens = drawn.clamp(1.0, MAX_TOKENS as f64) as usize;
                tokens
            }
        }
    }
}

impl FromStr for Lengths {
    type Err = LengthsError;

    fn from_str(text: &str) -> Result<Self, LengthsError> {
        if let Some(parameters) = text.strip_prefix("normal:") {
            let (mean, deviation) = parameters.split_once(',').ok_or(LengthsError::Form)?;
            let number = |text: &str| text.trim().parse::<f64>().map_err(|_| LengthsError::Form);
            let (mean, deviation) = (number(mean)?, number(deviation)?);
            let max = MAX_TOKENS as f64;
            if !(1.0..=max).contains(&mean) || !(0.0..=max).contains(&deviation) {
                return Err(LengthsError::OutOfRange);
            }
            return Ok(Self::Normal { mean, deviation });
        }
        if let Some((low, high)) = text.split_once("..") {
            let (low, high) = (tokens(low)?, tokens(high)?);
            if low > high {
                return Err(LengthsError::Backwards);
            }
            return Ok(Self::Uniform(low, high));
        }
        tokens(text).map(Self::Fixed)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "{tokens}"),
            Self::Uniform(low, high) => write!(f, "{low}..{high}"),
            Self::Normal { mean, deviation } => write!(f, "normal:{mean},{deviation}"),
        }
    }
}

fn tokens(text: &str) -> Result<usize, LengthsError> {
    match text.trim().parse() {
        Ok(tokens) if (1..=MAX_TOKENS).contains(&tokens) => Ok(tokens),
        Ok(_) => Err(LengthsError::OutOfRange),
        Err(_) => Err(LengthsError::Form),
    }
}

/// Draws uniformly from `0..n`, with a bias of `n` in 2^64.
pub(super) fn below(rng: &mut impl Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// Draws uniformly from (0, 1], so that the logarithm is finite.
pub(super) fn above_zero(rng: &mut impl Rng) -> f64 {
    ((rng.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

/// Draws from the standard normal distribution with the Box–Muller transform, discarding its second value.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * above_zero(rng).ln()).sqrt();
    radius * (TAU * above_zero(rng)).cos()
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn drawn(lengths: &str) -> Vec<usize> {
        let lengths: Lengths = lengths.parse().expect("a distribution");
        let mut rng = ChaCha20Rng::seed_from_u64(7);
        (0..20_000).map(|_| lengths.draw(&mut rng)).collect()
    }

    #[test]
    fn every_form_is_parsed_and_displayed_unchanged() {
        for form in ["64", "32..128", "5..5", "normal:64,16", "normal:64.5,0.5"] {
            assert_eq!(form.parse::<Lengths>().unwrap().to_string(), form);
        }
    }

    #[test]
    fn an_invalid_distribution_is_refused() {
        let error = |form: &str| form.parse::<Lengths>().unwrap_err();
        for form in ["", "many", "-3", "1.5", "normal:3", "normal:a,b", "3..=4"] {
            assert_eq!(error(form), LengthsError::Form, "{form}");
        }
        for form in [
            "0",
            "0..5",
            "normal:0,1",
            "normal:NaN,1",
            "normal:9,-1",
            "99999999",
        ] {
            assert_eq!(error(form), LengthsError::OutOfRange, "{form}");
        }
        assert_eq!(error("9..8"), LengthsError::Backwards);
    }

    #[test]
    fn a_range_is_uniform_and_includes_both_ends() {
        let drawn = drawn("3..6");
        for length in 3..=6 {
            let count = drawn.iter().filter(|&&drawn| drawn == length).count();
            assert!((4_750..5_250).contains(&count), "{length}: {count}");
        }
        assert!(drawn.iter().all(|length| (3..=6).contains(length)));
    }

    #[test]
    fn a_normal_distribution_has_its_mean_and_deviation() {
        let drawn = drawn("normal:64,16");
        let n = drawn.len() as f64;
        let mean = drawn.iter().sum::<usize>() as f64 / n;
        let variance = drawn
            .iter()
            .map(|&x| (x as f64 - mean).powi(2))
            .sum::<f64>()
            / n;
        assert!((mean - 64.0).abs() < 0.5, "{mean}");
        assert!((variance.sqrt() - 16.0).abs() < 0.5, "{variance}");
    }

    #[test]
    fn no_length_is_below_one() {
        assert_eq!(drawn("normal:2,50").into_iter().min(), Some(1));
    }
}
