//! The defaults a model asks for, from its `generation_config.json`.

use serde::Deserialize;
use serde_path_to_error::Track;

use super::json::{JsonError, TokenIds, from_json};
use crate::request::{SamplingDefaults, short};

/// The fields of `generation_config.json` that Skald honours; all others are ignored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
    max_new_tokens: Option<usize>,
    eos_token_id: Option<TokenIds>,
}

impl GenerationConfig {
    /// Reads the file's content.
    ///
    /// # Errors
    /// If it is not JSON, or a field has the wrong type or a value that no request may have.
    pub fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        let config: Self = from_json(bytes)?;
        let checked = config.check().map_err(serde::de::Error::custom);
        checked.map_err(|error| JsonError::new(Track::new().path(), error))?;
        Ok(config)
    }

    /// Checks the ranges that a request's own fields have.
    fn check(&self) -> Result<(), String> {
        let share = |x: f32| x > 0.0 && x <= 1.0;
        let check = |field: &str, value: Option<f32>, allowed: fn(f32) -> bool, range: &str| {
            value
                .filter(|&value| !allowed(value))
                .map_or(Ok(()), |value| {
                    Err(format!("`{field}` must be {range}, is {}", short(value)))
                })
        };
        let positive = |x: f32| x.is_finite() && x > 0.0;
        check(
            "temperature",
            self.temperature,
            |t| t.is_finite() && t >= 0.0,
            "at least 0",
        )?;
        check("top_p", self.top_p, share, "above 0, up to 1")?;
        check("min_p", self.min_p, |p| (0.0..=1.0).contains(&p), "0 to 1")?;
        check("typical_p", self.typical_p, share, "above 0, up to 1")?;
        check(
            "repetition_penalty",
            self.repetition_penalty,
            positive,
            "above 0",
        )?;
        Ok(())
    }

    /// What stands in for sampling fields a request leaves out.
    #[must_use]
    pub fn sampling(&self) -> SamplingDefaults {
        SamplingDefaults {
            do_sample: self.do_sample,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            max_tokens: self.max_new_tokens,
        }
    }

    /// The tokens that end a text, where the file names them.
    #[must_use]
    pub fn end_of_text(&self) -> Option<Vec<u32>> {
        self.eos_token_id.clone().map(TokenIds::into_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_ignored_and_bad_values_refused() {
        let config = GenerationConfig::from_json(
            br#"{"_from_model_config": true, "top_k": 50, "max_new_tokens": 30, "eos_token_id": 7}"#,
        )
        .unwrap();
        assert_eq!(config.sampling().top_k, Some(50));
        assert_eq!(config.sampling().max_tokens, Some(30));
        assert_eq!(config.end_of_text(), Some(vec![7]));
        for (json, word) in [
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"top_k": "many"}"#, "many"),
            ("{", "EOF"),
        ] {
            let error = GenerationConfig::from_json(json.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
