//! `config.json`: the shape of a model of any architecture.

use serde::Deserialize;

use super::config_error::Checker;
pub use super::config_error::ConfigError;
use super::decoder_fields::{DecoderFields, DecoderShape, TensorShape};
use super::gemma_config::{GemmaConfig, Generation};
use super::gpt2_config::Gpt2Config;
use super::json::{TokenIds, from_json};
use super::llama_config::{Family, LlamaConfig};

/// The shape of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// Gemma 1, 2 and 3.
    Gemma(GemmaConfig),
    /// Llama 2 and 3, Qwen 2 and 3.
    Llama(LlamaConfig),
}

/// The part of a configuration that has the sizes.
enum Sizes<'a> {
    Gpt2(&'a Gpt2Config),
    Decoder(&'a DecoderShape),
}

/// The field that says which architecture it is.
#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
}

/// The configuration of a multimodal model, of which the text model is served.
#[derive(Deserialize)]
struct Multimodal {
    text_config: DecoderFields,
    eos_token_id: Option<TokenIds>,
}

impl ModelConfig {
    /// Parses a configuration; `file` is its name in messages.
    ///
    /// # Errors
    /// [`ConfigError`] with file, field, value and expected value.
    pub fn from_json(file: &str, bytes: &[u8]) -> Result<Self, ConfigError> {
        let json = |source| ConfigError::Json {
            file: file.to_owned(),
            source,
        };
        let Kind { model_type } = from_json(bytes).map_err(json)?;
        let check = Checker { file, path: "" };
        let gemma = |generation| {
            let fields = from_json(bytes).map_err(json)?;
            GemmaConfig::from_fields(check, generation, &fields).map(Self::Gemma)
        };
        let llama = |family| {
            let fields = from_json(bytes).map_err(json)?;
            LlamaConfig::from_fields(check, family, &fields).map(Self::Llama)
        };
        match model_type.as_deref() {
            Some("gpt2") => Gpt2Config::from_json(file, bytes).map(Self::Gpt2),
            Some("gemma") => gemma(Generation::One),
            Some("gemma2") => gemma(Generation::Two),
            Some("gemma3_text") => gemma(Generation::Three),
            Some("gemma3") => {
                let path = "text_config.";
                let model: Multimodal = from_json(bytes).map_err(json)?;
                let mut fields = model.text_config;
                fields.eos_token_id = model.eos_token_id.or(fields.eos_token_id);
                let check = Checker { file, path };
                GemmaConfig::from_fields(check, Generation::Three, &fields).map(Self::Gemma)
            }
            Some("llama") => llama(Family::Llama),
            Some("qwen2") => llama(Family::Qwen2),
            Some("qwen3") => llama(Family::Qwen3),
            other => Err(check.refuse(
                "model_type",
                &other.unwrap_or("missing"),
                "only \"gpt2\", \"gemma\", \"gemma2\", \"gemma3_text\", \"gemma3\", \"llama\", \"qwen2\" and \
                 \"qwen3\" can be served",
            )),
        }
    }

    fn sizes(&self) -> Sizes<'_> {
        match self {
            Self::Gpt2(config) => Sizes::Gpt2(config),
            Self::Gemma(config) => Sizes::Decoder(&config.shape),
            Self::Llama(config) => Sizes::Decoder(&config.shape),
        }
    }

    /// Returns the name of the architecture.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        match self {
            Self::Gpt2(_) => "gpt2",
            Self::Gemma(config) => config.generation.architecture(),
            Self::Llama(config) => config.family.architecture(),
        }
    }

    /// Returns the number of token ids.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        match self.sizes() {
            Sizes::Gpt2(config) => config.vocab_size,
            Sizes::Decoder(shape) => shape.vocab_size,
        }
    }

    /// Returns the context length in tokens.
    #[must_use]
    pub fn context_length(&self) -> usize {
        match self.sizes() {
            Sizes::Gpt2(config) => config.n_positions,
            Sizes::Decoder(shape) => shape.context_length,
        }
    }

    /// Returns the number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        match self.sizes() {
            Sizes::Gpt2(config) => config.n_layer,
            Sizes::Decoder(shape) => shape.layers(),
        }
    }

    /// Returns the numbers of query heads, and of key and value heads.
    pub(super) fn heads(&self) -> (usize, usize) {
        match self {
            Self::Gpt2(config) => (config.n_head, config.n_head),
            Self::Gemma(GemmaConfig { shape, .. }) | Self::Llama(LlamaConfig { shape, .. }) => {
                (shape.heads, shape.kv_heads)
            }
        }
    }

    /// Returns the epsilon of all norms.
    #[must_use]
    pub fn norm_epsilon(&self) -> f64 {
        match self.sizes() {
            Sizes::Gpt2(config) => config.layer_norm_epsilon,
            Sizes::Decoder(shape) => shape.rms_norm_eps,
        }
    }

    /// Returns the tokens that end a text; empty if the file has none.
    #[must_use]
    pub fn end_of_text(&self) -> &[u32] {
        match self.sizes() {
            Sizes::Gpt2(config) => &config.end_of_text,
            Sizes::Decoder(shape) => &shape.end_of_text,
        }
    }

    /// Returns whether a model can do without a tensor: GPT-2's biases, which nanoGPT can leave out.
    #[must_use]
    pub fn is_optional(&self, name: &str) -> bool {
        matches!(self, Self::Gpt2(_)) && name.rsplit('.').next() == Some("bias")
    }

    /// Returns whether the output projection is the matrix of token embeddings. A `lm_head.weight` in the
    /// checkpoint that differs takes precedence.
    #[must_use]
    pub fn tie_word_embeddings(&self) -> bool {
        match self.sizes() {
            Sizes::Gpt2(config) => config.tie_word_embeddings,
            Sizes::Decoder(shape) => shape.tie_word_embeddings,
        }
    }

    /// Returns the number of weights, tied ones counted once; saturates at `usize::MAX`.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let count = |tensors: Vec<TensorShape>| -> u128 {
            let sizes = tensors.into_iter().map(|(_, shape)| {
                let sizes = shape.into_iter().map(|size| size as u128);
                sizes.product::<u128>()
            });
            sizes.sum()
        };
        let layers = self.layers() as u128;
        let all = count(self.outer_tensors()) + layers * count(self.layer_tensors(0));
        usize::try_from(all).unwrap_or(usize::MAX)
    }

    /// Returns the name of the token embeddings, `[vocab_size, hidden_width]`.
    pub(super) fn embedding_name(&self) -> &'static str {
        match self {
            Self::Gpt2(_) => "wte.weight",
            Self::Gemma(_) | Self::Llama(_) => "embed_tokens.weight",
        }
    }

    /// Returns the shape of the token embeddings and of the output projection.
    pub(super) fn embedding_shape(&self) -> [usize; 2] {
        match self.sizes() {
            Sizes::Gpt2(config) => [config.vocab_size, config.n_embd],
            Sizes::Decoder(shape) => [shape.vocab_size, shape.hidden_size],
        }
    }

    /// Returns whether a tensor is a matrix of GPT-2's `Conv1D`: `[in, out]`.
    pub(super) fn is_conv1d(&self, name: &str) -> bool {
        let is_layer = name.starts_with("h.") && name.ends_with(".weight");
        matches!(self, Self::Gpt2(_)) && is_layer && !name.contains(".ln_")
    }

    /// Returns the tensors outside the layers.
    pub(super) fn outer_tensors(&self) -> Vec<TensorShape> {
        match self.sizes() {
            Sizes::Gpt2(config) => config.outer_tensors(),
            Sizes::Decoder(shape) => shape.outer_tensors(),
        }
    }

    /// Returns the tensors of a layer.
    pub(super) fn layer_tensors(&self, layer: usize) -> Vec<TensorShape> {
        match self {
            Self::Gpt2(config) => config.layer_tensors(layer),
            Self::Gemma(config) => config.layer_tensors(layer),
            Self::Llama(config) => config.layer_tensors(layer),
        }
    }
}

#[cfg(test)]
mod tests;
