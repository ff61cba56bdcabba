//! The shape of a model of the Llama family, from `config.json` in the Hugging Face layout: `llama` (Llama 2
//! and 3, `SmolLM2`: Touvron et al. 2023, <https://arxiv.org/abs/2307.09288>), `qwen2` and `qwen3` (dense).

use super::config_error::{Checker, ConfigError};
use super::decoder_fields::{DecoderFields, DecoderShape, Defaults, TensorShape};
use super::rope::Rope;

/// A member of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `llama`.
    Llama,
    /// `qwen2`: biases of queries, keys and values.
    Qwen2,
    /// `qwen3`: norms of queries and keys.
    Qwen3,
}

/// The shape of a model of the Llama family.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// The member of the family.
    pub family: Family,
    /// Sizes, and kinds of layers.
    pub shape: DecoderShape,
    /// Rotary parameters of all layers.
    pub rope: Rope,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    pub out_bias: bool,
    /// Whether the matrices of the feed-forward network have biases.
    pub mlp_bias: bool,
}

impl LlamaConfig {
    /// Checks the fields of a file; what they leave out is transformers' default.
    pub(super) fn from_fields(
        check: Checker<'_>,
        family: Family,
        fields: &DecoderFields,
    ) -> Result<Self, ConfigError> {
        let activation = fields.hidden_act.as_deref().unwrap_or("silu");
        if !["silu", "swish"].contains(&activation) {
            return Err(check.refuse("hidden_act", &activation, "only silu can be served"));
        }
        let has_window =
            fields.use_sliding_window == Some(true) && fields.sliding_window != Some(None);
        let slides = family != Family::Llama && has_window;
        if fields.lists_sliding_layers() && !slides {
            let expected = "with layers of `sliding_attention` it must be true";
            return Err(check.refuse("use_sliding_window", &false, expected));
        }
        let first_sliding = fields.max_window_layers.unwrap_or(28);
        let shape = fields.shape(check, &family.defaults(), |layer| {
            slides && layer >= first_sliding
        })?;
        let attention_bias = fields.attention_bias.unwrap_or(false);
        Ok(Self {
            rope: fields.rope(check, 10_000.0)?,
            qkv_bias: attention_bias || family == Family::Qwen2,
            out_bias: attention_bias && family != Family::Qwen2,
            mlp_bias: family == Family::Llama && fields.mlp_bias.unwrap_or(false),
            family,
            shape,
        })
    }

    /// Returns whether queries and keys are normalized.
    #[must_use]
    pub fn has_qk_norms(&self) -> bool {
        self.family == Family::Qwen3
    }

    /// Returns the tensors of a layer.
    pub(super) fn layer_tensors(&self, layer: usize) -> Vec<TensorShape> {
        let norm = |name| {
            let name = format!("layers.{layer}.{name}.weight");
            (name, vec![self.shape.hidden_size])
        };
        let norms = ["input_layernorm", "post_attention_layernorm"];
        let mut tensors: Vec<TensorShape> = norms.into_iter().map(norm).collect();
        let biases = [
            self.qkv_bias,
            self.qkv_bias,
            self.qkv_bias,
            self.out_bias,
            self.mlp_bias,
            self.mlp_bias,
            self.mlp_bias,
        ];
        for ((name, shape), has_bias) in self.shape.matrices(layer).into_iter().zip(biases) {
            if has_bias {
                tensors.push((format!("{name}.bias"), vec![shape[0]]));
            }
            tensors.push((format!("{name}.weight"), shape.into()));
        }
        if self.has_qk_norms() {
            tensors.extend(self.shape.qk_norms(layer));
        }
        tensors
    }
}

impl Family {
    /// Returns the name of the architecture: `model_type`.
    #[must_use]
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn defaults(self) -> Defaults {
        let llama = Defaults {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            layers: 32,
            heads: 32,
            kv_heads: None,
            head_dim: None,
            context_length: 2048,
            tie_word_embeddings: false,
            sliding_window: 4096,
        };
        let qwen = Defaults {
            vocab_size: 151_936,
            intermediate_size: 22_016,
            kv_heads: Some(32),
            context_length: 32_768,
            ..llama
        };
        match self {
            Self::Llama => llama,
            Self::Qwen2 => qwen,
            Self::Qwen3 => Defaults {
                head_dim: Some(128),
                ..qwen
            },
        }
    }
}
