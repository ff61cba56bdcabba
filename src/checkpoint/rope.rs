//! Rotary position embeddings (Su et al. 2021, <https://arxiv.org/abs/2104.09864>): their parameters in a
//! `config.json`, in both spellings of transformers, and the frequencies that follow from them.

use std::f64::consts::PI;

use serde::Deserialize;

use super::config_error::{Checker, ConfigError};

/// The rotary parameters of some of a model's layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies (`rope_theta`).
    pub base: f64,
    /// How frequencies are changed for contexts longer than in training.
    pub scaling: RopeScaling,
}

/// How the frequencies of rotary positions are scaled.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3's: low frequencies are divided by the factor, high ones stay, those between are mixed of both.
    Llama3(Llama3Scaling),
    /// Each frequency has its divisor, `[head_dim / 2]`: `rope_freqs.weight` of a GGUF file.
    Divisors(Vec<f32>),
}

/// The parameters of Llama 3's scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// Divisor of low frequencies.
    pub factor: f64,
    /// Wavelengths above `original_context / low_freq_factor` are low frequencies.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_context / high_freq_factor` are high frequencies.
    pub high_freq_factor: f64,
    /// Context length before scaling, in tokens.
    pub original_context: f64,
}

impl Rope {
    /// Returns rotary positions without scaling.
    #[must_use]
    pub fn unscaled(base: f64) -> Self {
        Self {
            base,
            scaling: RopeScaling::None,
        }
    }

    /// Returns the angle per position of every pair of a head's values, `[head_dim / 2]`:
    /// `base^(-2i / head_dim)`, scaled. In f32 and in the order of transformers'
    /// `modeling_rope_utils.py`, so that angles far from 0 agree too.
    #[must_use]
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = f64::from(self.base as f32);
        let pairs = 0..head_dim / 2;
        let unscaled = pairs.map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / (base.powf(f64::from(exponent)) as f32)
        });
        match &self.scaling {
            RopeScaling::None => unscaled.collect(),
            RopeScaling::Linear { factor } => unscaled.map(|f| f / *factor as f32).collect(),
            RopeScaling::Llama3(scaling) => unscaled.map(|f| scaling.scale(f)).collect(),
            RopeScaling::Divisors(divisors) => unscaled.zip(divisors).map(|(f, d)| f / d).collect(),
        }
    }
}

impl Llama3Scaling {
    fn scale(&self, frequency: f32) -> f32 {
        let Self {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context,
        } = *self;
        let wavelength = (2.0 * PI) as f32 / frequency;
        if wavelength < (original_context / high) as f32 {
            return frequency;
        }
        if wavelength > (original_context / low) as f32 {
            return frequency / factor as f32;
        }
        let smooth = (original_context as f32 / wavelength - low as f32) / (high - low) as f32;
        (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
    }
}

/// The value of `rope_scaling` (classic), or of `rope_parameters` (transformers 5), unchecked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RopeFields {
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    /// The parameters of global layers, where those of sliding layers differ.
    pub full_attention: Option<Box<RopeFields>>,
    /// The parameters of sliding layers.
    pub sliding_attention: Option<Box<RopeFields>>,
}

impl RopeFields {
    /// Returns the checked parameters; `field` is the path to these fields, `base` the base if they have none.
    pub fn rope(&self, check: Checker<'_>, field: &str, base: f64) -> Result<Rope, ConfigError> {
        let name = |part: &str| format!("{field}.{part}");
        let base = match self.rope_theta {
            Some(own) => check.positive(&name("rope_theta"), own)?,
            None => base,
        };
        if let Some(part) = self.partial_rotary_factor.filter(|&part| part != 1.0) {
            let expected = "only heads that are rotated whole can be served";
            return Err(check.refuse(&name("partial_rotary_factor"), &part, expected));
        }
        let needed = |part: &str, value: Option<f64>| match value {
            Some(value) => check.positive(&name(part), value),
            None => Err(check.refuse(&name(part), &"missing", "the type of scaling needs it")),
        };
        let kind = self.rope_type.as_deref().or(self.old_type.as_deref());
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: needed("factor", self.factor)?,
            },
            "llama3" => {
                let low = needed("low_freq_factor", self.low_freq_factor)?;
                let high = needed("high_freq_factor", self.high_freq_factor)?;
                if high <= low {
                    let expected = format!("expected more than `low_freq_factor` ({low})");
                    return Err(check.refuse(&name("high_freq_factor"), &high, expected));
                }
                RopeScaling::Llama3(Llama3Scaling {
                    factor: needed("factor", self.factor)?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context: needed(
                        "original_max_position_embeddings",
                        self.original_max_position_embeddings,
                    )?,
                })
            }
            other => {
                let expected = "only `default`, `linear` and `llama3` can be served";
                return Err(check.refuse(&name("rope_type"), &other, expected));
            }
        };
        Ok(Rope { base, scaling })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_scaling_divides_and_llama_3_leaves_high_frequencies() {
        let rope = |scaling| Rope {
            base: 10_000.0,
            scaling,
        };
        let plain = rope(RopeScaling::None).frequencies(8);
        assert_eq!(plain, [1.0, 0.1, 0.01, 0.001]);
        let linear = rope(RopeScaling::Linear { factor: 4.0 }).frequencies(8);
        assert_eq!(linear, [0.25, 0.025, 0.0025, 0.001 / 4.0]);
        let divisors = RopeScaling::Divisors(vec![1.0, 1.0, 2.0, 8.0]);
        assert_eq!(
            rope(divisors).frequencies(8),
            [1.0, 0.1, 0.005, 0.001 / 8.0]
        );
        // Wavelengths 6.3, 63, 628 and 6,283; 128 and 512 are the bounds.
        let llama = rope(RopeScaling::Llama3(Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 512.0,
        }));
        let found = llama.frequencies(8);
        assert_eq!(found[..2], plain[..2]);
        assert_eq!(found[2..], [0.01 / 8.0, 0.001 / 8.0]);
        // A wavelength of 251, between the bounds: 512 / 251.3 = 2.0372.
        let between = rope(llama.scaling).scaling;
        let RopeScaling::Llama3(between) = between else {
            unreachable!("it is Llama 3's")
        };
        let smooth = (2.037_183 - 1.0) / 3.0;
        let expected = (1.0 - smooth) * 0.025 / 8.0 + smooth * 0.025;
        assert!((f64::from(between.scale(0.025)) - expected).abs() < 1e-8);
    }
}
