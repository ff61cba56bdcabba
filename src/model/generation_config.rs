//! The defaults a model asks for, from its `generation_config.json`.

use serde::Deserialize;

use super::config::TokenIds;
use crate::request::SamplingDefaults;

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
    eos_token_id: Option<TokenIds>,
}

impl GenerationConfig {
    /// Reads the file's content.
    ///
    /// # Errors
    /// If it is not JSON or a field has the wrong type.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
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
        }
    }

    /// The tokens that end a text, where the file names them.
    #[must_use]
    pub fn end_of_text(&self) -> Option<Vec<u32>> {
        self.eos_token_id.clone().map(TokenIds::into_vec)
    }
}
