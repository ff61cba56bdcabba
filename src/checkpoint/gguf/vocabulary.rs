//! What a GGUF file has beside the model: the vocabulary, the chat template, sampling defaults, and the tokens
//! that end a text.

use serde_json::{Map, Value as Json, json};

use super::value::Value;
use super::{Gguf, GgufError};
use crate::checkpoint::GenerationConfig;
use crate::checkpoint::json::JsonError;
use crate::text::VocabularyArrays;
use crate::text::template::TemplateSource;

const EOS: &str = "tokenizer.ggml.eos_token_id";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const TEMPLATE: &str = "tokenizer.chat_template";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// Sampling defaults, and the keys that converters write them to from a `generation_config.json`.
const SAMPLING: [(&str, &str); 5] = [
    ("temperature", "general.sampling.temp"),
    ("top_k", "general.sampling.top_k"),
    ("top_p", "general.sampling.top_p"),
    ("min_p", "general.sampling.min_p"),
    ("repetition_penalty", "general.sampling.penalty_repeat"),
];

impl Gguf {
    /// Returns the tokenizer's arrays and flags.
    ///
    /// # Errors
    /// [`GgufError`] if the tokens are missing, or a key has the wrong type.
    pub fn vocabulary(&self) -> Result<VocabularyArrays, GgufError> {
        let tokens = self.texts(TOKENS)?;
        if tokens.is_empty() {
            return Err(self.key_error(TOKENS, "is missing or empty"));
        }
        let scores = self.floats("tokenizer.ggml.scores")?;
        let types = self.integers(TYPES)?;
        let types = types.map(|types| types.map(|kind| i32::try_from(kind).unwrap_or_default()));
        let token_types: Vec<i32> = types.map(Iterator::collect).unwrap_or_default();
        let token = |key: &str| self.token(key, tokens.len());
        Ok(VocabularyArrays {
            model: self
                .required("tokenizer.ggml.model", Self::text)?
                .to_owned(),
            pre: self.text("tokenizer.ggml.pre")?.map(str::to_owned),
            merges: self.texts("tokenizer.ggml.merges")?,
            add_bos: self.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: self.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: self.bool("tokenizer.ggml.add_space_prefix")?,
            bos: token(BOS)?,
            eos: token(EOS)?,
            unknown: token("tokenizer.ggml.unknown_token_id")?,
            tokens,
            scores,
            token_types,
        })
    }

    /// Returns a token id, if the key is there.
    fn token(&self, key: &str, tokens: usize) -> Result<Option<u32>, GgufError> {
        let Some(id) = self.size(key)? else {
            return Ok(None);
        };
        // Files have this id where the model has no such token.
        if id == u32::MAX as usize {
            return Ok(None);
        }
        if id >= tokens {
            let problem = format!("is {id}, but there are {tokens} tokens");
            return Err(self.key_error(key, problem));
        }
        Ok(u32::try_from(id).ok())
    }

    /// Returns the tokens that the file names as ends of a text, a turn or a message.
    pub(super) fn end_of_text(&self) -> Result<Vec<u32>, GgufError> {
        let tokens = self.keys.get(TOKENS);
        let count = tokens.and_then(Value::elements).unwrap_or_default();
        let mut ends = Vec::new();
        for key in [EOS, EOT, "tokenizer.ggml.eom_token_id"] {
            let end = self.token(key, count)?;
            ends.extend(end.filter(|end| !ends.contains(end)));
        }
        Ok(ends)
    }

    /// Returns the sampling defaults that the file suggests.
    ///
    /// # Errors
    /// [`GgufError`] if a value is not one that a request may have.
    pub fn generation_config(&self) -> Result<GenerationConfig, GgufError> {
        let mut fields = Map::new();
        for (field, key) in SAMPLING {
            let Some(value) = self.number(key)? else {
                continue;
            };
            let value = match field {
                // Negative for all tokens, which is 0 here.
                "top_k" => json!(self.integer(key)?.map(|k| u32::try_from(k).unwrap_or(0))),
                _ => json!(value),
            };
            fields.insert(field.to_owned(), value);
        }
        let json = Json::Object(fields).to_string();
        let config = GenerationConfig::from_json(json.as_bytes());
        config.map_err(|error: JsonError| {
            let problem = format!("the sampling defaults (`general.sampling.*`): {error}");
            GgufError::file(self.file(), problem)
        })
    }

    /// Returns the chat template, if the file has one.
    ///
    /// # Errors
    /// [`GgufError`] if it is not text.
    pub fn chat_template(&self) -> Result<Option<TemplateSource>, GgufError> {
        let template = self.text(TEMPLATE)?;
        Ok(template.map(|text| TemplateSource {
            origin: format!("{} `{TEMPLATE}`", self.file()),
            text: text.to_owned(),
        }))
    }
}
