//! The defaults that a model sets in its `generation_config.json`.

use serde::Deserialize;
use serde_path_to_error::Track;

use super::json::{JsonError, TokenIds, from_json};
use crate::request::SamplingOverrides;

/// The fields of `generation_config.json` that Skald honours; all others are ignored.
#[derive(Debug, Clone, Default)]
pub struct GenerationConfig {
    sampling: SamplingOverrides,
    end_of_text: Option<Vec<u32>>,
}

/// The fields that are not about sampling.
#[derive(Deserialize)]
struct EndOfText {
    #[serde(default)]
    eos_token_id: Option<TokenIds>,
}

impl GenerationConfig {
    /// Reads the content of the file.
    ///
    /// # Errors
    /// If it is not JSON, or a field has the wrong type or a value that no request may have.
    pub fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        // Read twice, because the error of a flattened field would not name it.
        let sampling: SamplingOverrides = from_json(bytes)?;
        let EndOfText { eos_token_id } = from_json(bytes)?;
        let checked = sampling.check().map_err(serde::de::Error::custom);
        checked.map_err(|error| JsonError::new(Track::new().path(), error))?;
        Ok(Self {
            sampling,
            end_of_text: eos_token_id.map(TokenIds::into_vec),
        })
    }

    /// Returns the defaults of the sampling fields that a request leaves out.
    #[must_use]
    pub fn sampling(&self) -> SamplingOverrides {
        self.sampling
    }

    /// Returns the tokens that end a text, if the file sets them.
    #[must_use]
    pub fn end_of_text(&self) -> Option<Vec<u32>> {
        self.end_of_text.clone()
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
        assert_eq!(config.sampling().max_new_tokens, Some(30));
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
