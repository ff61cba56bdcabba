//! The shape of a Gemma model, from `config.json` in the Hugging Face layout: `gemma` (Gemma Team 2024,
//! <https://arxiv.org/abs/2403.08295>), `gemma2` (<https://arxiv.org/abs/2408.00118>) and `gemma3_text`
//! (<https://arxiv.org/abs/2503.19786>), also as the `text_config` of a multimodal `gemma3`.

use super::config_error::{Checker, ConfigError};
use super::decoder_fields::{DecoderFields, DecoderShape, Defaults, TensorShape};
use super::rope::Rope;

/// A generation of Gemma.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    /// `gemma`.
    One,
    /// `gemma2`: sliding layers, soft caps, norms after attention and feed-forward network too.
    Two,
    /// `gemma3_text`: norms of queries and keys instead of the cap on scores; two rotary bases.
    Three,
}

/// The shape of a Gemma model.
#[derive(Debug, Clone, PartialEq)]
pub struct GemmaConfig {
    /// The generation.
    pub generation: Generation,
    /// Sizes, and kinds of layers.
    pub shape: DecoderShape,
    /// Factor of attention scores: `1 / sqrt(query_pre_attn_scalar)`, in Gemma 1 `1 / sqrt(head_dim)`.
    pub query_scale: f64,
    /// Soft cap of attention scores: `cap * tanh(score / cap)`.
    pub attn_soft_cap: Option<f64>,
    /// Soft cap of logits.
    pub final_soft_cap: Option<f64>,
    /// Rotary parameters of global layers.
    pub rope_global: Rope,
    /// Rotary parameters of sliding layers.
    pub rope_local: Rope,
}

impl GemmaConfig {
    /// Checks the fields of a file; what they leave out is transformers' default.
    pub(super) fn from_fields(
        check: Checker<'_>,
        generation: Generation,
        fields: &DecoderFields,
    ) -> Result<Self, ConfigError> {
        check_served(check, generation, fields)?;
        let pattern = match generation {
            Generation::Two => 2,
            Generation::One | Generation::Three => 6,
        };
        let own = fields.sliding_window_pattern;
        let own = own.or(fields.private_sliding_window_pattern);
        let pattern = own.unwrap_or(pattern);
        let pattern = check.size("sliding_window_pattern", pattern)?;
        let shape = fields.shape(check, &generation.defaults(), |layer| {
            generation != Generation::One && !(layer + 1).is_multiple_of(pattern)
        })?;
        let scalar = match (generation, fields.query_pre_attn_scalar) {
            (Generation::One, _) => shape.head_dim as f64,
            (_, scalar) => check.positive("query_pre_attn_scalar", scalar.unwrap_or(256.0))?,
        };
        let cap =
            |field: &str, cap: Option<f64>| cap.map(|cap| check.positive(field, cap)).transpose();
        // Gemma 3 has the field too, and does not use it.
        let attn_soft_cap = match generation {
            Generation::Two => fields.attn_logit_softcapping.unwrap_or(Some(50.0)),
            Generation::One | Generation::Three => None,
        };
        let final_soft_cap = match generation {
            Generation::One => None,
            Generation::Two => fields.final_logit_softcapping.unwrap_or(Some(30.0)),
            Generation::Three => fields.final_logit_softcapping.unwrap_or(None),
        };
        let (rope_global, rope_local) = match generation {
            Generation::One | Generation::Two => {
                let rope = fields.rope(check, 10_000.0)?;
                (rope.clone(), rope)
            }
            Generation::Three => (
                fields.rope(check, 1_000_000.0)?,
                fields.local_rope(check, 10_000.0)?,
            ),
        };
        Ok(Self {
            generation,
            shape,
            query_scale: scalar.powf(-0.5),
            attn_soft_cap: cap("attn_logit_softcapping", attn_soft_cap)?,
            final_soft_cap: cap("final_logit_softcapping", final_soft_cap)?,
            rope_global,
            rope_local,
        })
    }

    /// Returns whether attention and feed-forward network have a norm after them too.
    #[must_use]
    pub fn has_post_norms(&self) -> bool {
        self.generation >= Generation::Two
    }

    /// Returns whether queries and keys are normalized.
    #[must_use]
    pub fn has_qk_norms(&self) -> bool {
        self.generation >= Generation::Three
    }

    /// Returns the tensors of a layer.
    pub(super) fn layer_tensors(&self, layer: usize) -> Vec<TensorShape> {
        let mut norms = vec!["input_layernorm", "post_attention_layernorm"];
        if self.has_post_norms() {
            norms.extend(["pre_feedforward_layernorm", "post_feedforward_layernorm"]);
        }
        let norm = |name| {
            let name = format!("layers.{layer}.{name}.weight");
            (name, vec![self.shape.hidden_size])
        };
        let mut tensors: Vec<TensorShape> = norms.into_iter().map(norm).collect();
        for (name, shape) in self.shape.matrices(layer) {
            tensors.push((format!("{name}.weight"), shape.into()));
        }
        if self.has_qk_norms() {
            tensors.extend(self.shape.qk_norms(layer));
        }
        tensors
    }
}

impl Generation {
    /// Returns the name of the architecture: `model_type`, of a text model.
    #[must_use]
    pub fn architecture(self) -> &'static str {
        match self {
            Self::One => "gemma",
            Self::Two => "gemma2",
            Self::Three => "gemma3",
        }
    }

    fn defaults(self) -> Defaults {
        let common = Defaults {
            vocab_size: 256_000,
            hidden_size: 2304,
            intermediate_size: 9216,
            layers: 26,
            heads: 8,
            kv_heads: Some(4),
            head_dim: Some(256),
            context_length: 8192,
            tie_word_embeddings: true,
            sliding_window: 4096,
        };
        match self {
            Self::One => Defaults {
                hidden_size: 3072,
                intermediate_size: 24_576,
                layers: 28,
                heads: 16,
                kv_heads: Some(16),
                ..common
            },
            Self::Two => common,
            Self::Three => Defaults {
                vocab_size: 262_208,
                context_length: 131_072,
                ..common
            },
        }
    }
}

/// Refuses what Gemma's published models do not have.
fn check_served(
    check: Checker<'_>,
    generation: Generation,
    fields: &DecoderFields,
) -> Result<(), ConfigError> {
    let (field, activation) = match (&fields.hidden_activation, &fields.hidden_act) {
        (Some(activation), _) => ("hidden_activation", activation.as_str()),
        // Gemma 1's first files say `gelu` and mean its tanh form.
        (None, Some(old)) if generation == Generation::One && old != "gelu" => {
            ("hidden_act", old.as_str())
        }
        _ => ("hidden_activation", "gelu_pytorch_tanh"),
    };
    if !["gelu_pytorch_tanh", "gelu_new"].contains(&activation) {
        return Err(check.refuse(field, &activation, "only gelu_pytorch_tanh can be served"));
    }
    if fields.attention_bias == Some(true) {
        let expected = "Gemma with biases is not supported";
        return Err(check.refuse("attention_bias", &true, expected));
    }
    if fields.use_bidirectional_attention == Some(true) {
        let expected = "only models that read from left to right can be served";
        return Err(check.refuse("use_bidirectional_attention", &true, expected));
    }
    Ok(())
}
