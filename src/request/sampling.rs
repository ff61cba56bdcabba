//! Sampling parameters: optional fields, and the complete parameters of a request.
//!
//! [`SamplingOverrides`] is read from a model's `generation_config.json`, reported at `/info`, given to
//! `skald generate` as flags, and made by every dialect from its own fields. The dialects' wire types
//! declare those fields themselves: their names, ranges and defaults differ, and serde reads a flattened
//! struct through a buffer, after which an error no longer names the field.

use clap::Args;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::invalid::{InvalidRequest, in_range, short};

/// The sampling defaults of the model's `generation_config.json`, which requests override; null where the
/// model sets none and the endpoint's own default applies.
// Requests, flags and the model's file share the descriptions of fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Args, Serialize, Deserialize, ToSchema)]
#[schema(as = SamplingFacts)]
pub struct SamplingOverrides {
    /// Whether tokens are sampled; false always takes the most likely token.
    #[arg(skip)]
    pub do_sample: Option<bool>,
    /// Divides the logits; 0 always takes the most likely token.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Number of most likely tokens to sample from; 0 is all.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Probability mass of the most likely tokens to sample from; 1 is all.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Minimum probability of a token relative to the most likely one; 0 is all.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Probability mass kept by locally typical sampling (Meister et al. 2022); 1 is all.
    #[arg(skip)]
    pub typical_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the output (Keskar et al.
    /// 2019); 1 is none.
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Maximum tokens to generate.
    #[arg(skip)]
    pub max_new_tokens: Option<usize>,
}

/// A dialect's sampling if neither the request nor the model's defaults set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplingStyle {
    /// Samples at temperature 1, like OpenAI.
    Sample,
    /// Takes the most likely token, like TGI.
    Greedy,
}

/// The parameters for sampling the next token from the logits. [`crate::engine::sampler`] specifies
/// the order of the steps and the random generator.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Number of most likely tokens to sample from; 0 is all.
    pub top_k: usize,
    /// Probability mass of the most likely tokens to sample from; 1 is all.
    pub top_p: f32,
    /// Minimum probability of a token relative to the most likely one; 0 is all.
    pub min_p: f32,
    /// Probability mass kept by locally typical sampling (Meister et al. 2022); 1 is all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output (Keskar et
    /// al. 2019); 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens already generated.
    pub presence_penalty: f32,
    /// Subtracted from the logits of generated tokens as many times as they occurred.
    pub frequency_penalty: f32,
    /// Token ids with the values added to their logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers, which depend on nothing else.
    pub seed: u64,
}

impl SamplingOverrides {
    /// Checks every field that is set against its valid range.
    ///
    /// # Errors
    /// [`InvalidRequest`] with the field, its value and the range.
    pub fn check(&self) -> Result<(), InvalidRequest> {
        if let Some(temperature) = self.temperature {
            finite_at_least_zero("temperature", temperature)?;
        }
        check_share("top_p", self.top_p)?;
        if let Some(min_p) = self.min_p {
            in_range("min_p", min_p, 0.0..=1.0)?;
        }
        check_share("typical_p", self.typical_p)?;
        match self.repetition_penalty {
            Some(penalty) if !(penalty.is_finite() && penalty > 0.0) => Err(InvalidRequest::new(
                "repetition_penalty",
                format!(
                    "`repetition_penalty` must be above 0, got {}",
                    short(penalty)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Fills in missing fields from the model's defaults, then from the dialect's style. Fields
    /// that a model can't set (presence and frequency penalty, bias, seed) are 0.
    pub(super) fn over(&self, defaults: &Self, style: SamplingStyle) -> SamplingParams {
        let sampled = match self.do_sample {
            Some(sampled) => sampled,
            None if self.asks_for_sampling() => true,
            None => defaults.do_sample.unwrap_or(style == SamplingStyle::Sample),
        };
        let temperature = if sampled {
            self.temperature.or(defaults.temperature).unwrap_or(1.0)
        } else {
            0.0
        };
        let repetition_penalty = self.repetition_penalty.or(defaults.repetition_penalty);
        SamplingParams {
            temperature: effective_temperature(temperature),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(0),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            typical_p: self.typical_p.or(defaults.typical_p).unwrap_or(1.0),
            repetition_penalty: repetition_penalty.unwrap_or(1.0),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }

    /// Returns whether a field is set that only affects sampling.
    fn asks_for_sampling(&self) -> bool {
        self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some()
            || self.typical_p.is_some()
    }
}

fn finite_at_least_zero(field: &str, value: f32) -> Result<(), InvalidRequest> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(InvalidRequest::new(
        field,
        format!("`{field}` must be at least 0, got {}", short(value)),
    ))
}

/// Checks a probability mass.
fn check_share(field: &str, value: Option<f32>) -> Result<(), InvalidRequest> {
    match value {
        Some(share) if !(share > 0.0 && share <= 1.0) => Err(InvalidRequest::new(
            field,
            format!(
                "`{field}` must be above 0 and at most 1, got {}",
                short(share)
            ),
        )),
        _ => Ok(()),
    }
}

/// Returns 0 for a temperature that is too small to divide by (below 3e-39): with all weight on the
/// highest logit it is the same as greedy decoding.
fn effective_temperature(temperature: f32) -> f32 {
    if temperature.recip().is_finite() {
        temperature
    } else {
        0.0
    }
}

/// Returns a random seed of 53 bits, which every JSON parser preserves exactly.
pub(super) fn random_seed() -> u64 {
    (uuid::Uuid::new_v4().as_u64_pair().0 >> 11).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_request_wins_over_the_models_and_the_models_over_the_dialects() {
        let model = SamplingOverrides {
            temperature: Some(0.5),
            top_k: Some(40),
            ..SamplingOverrides::default()
        };
        let given = SamplingOverrides {
            temperature: Some(0.7),
            ..SamplingOverrides::default()
        };
        let both = given.over(&model, SamplingStyle::Greedy);
        assert_eq!((both.temperature, both.top_k), (0.7, 40));
        let left_out = SamplingOverrides::default();
        let greedy = left_out.over(&model, SamplingStyle::Greedy);
        assert_eq!((greedy.temperature, greedy.top_k), (0.0, 40));
        let sampled = left_out.over(&model, SamplingStyle::Sample);
        assert_eq!(sampled.temperature, 0.5);
        let without = left_out.over(&left_out, SamplingStyle::Sample);
        assert_eq!((without.temperature, without.top_k), (1.0, 0));
    }

    #[test]
    fn do_sample_decides_before_everything_else() {
        let given = SamplingOverrides {
            do_sample: Some(false),
            temperature: Some(0.7),
            ..SamplingOverrides::default()
        };
        let none = SamplingOverrides::default();
        assert_eq!(given.over(&none, SamplingStyle::Sample).temperature, 0.0);
        let model = SamplingOverrides {
            do_sample: Some(true),
            ..none
        };
        assert_eq!(none.over(&model, SamplingStyle::Greedy).temperature, 1.0);
    }
}
