//! What Gemma and the Llama family have in common in a `config.json`: the sizes, the kinds of layers, and how
//! the fields are read.
//!
//! Defaults are those of transformers and differ by `model_type`, so a field that is absent, null or set are
//! three different things.

use serde::{Deserialize, Deserializer};

use super::config_error::{Checker, ConfigError};
use super::json::TokenIds;
use super::rope::{Rope, RopeFields};

/// A matrix or vector of a checkpoint: its name without prefix, and its shape.
pub type TensorShape = (String, Vec<usize>);

/// Which positions a layer's attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// All positions up to its own.
    Global,
    /// The last `sliding_window` positions, its own included.
    Sliding,
}

/// The sizes of a decoder with rotary positions and gated feed-forward networks.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderShape {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of neurons of a layer's feed-forward network.
    pub intermediate_size: usize,
    /// Kind of each layer.
    pub layer_kinds: Vec<LayerKind>,
    /// Positions that a sliding layer sees; 0 without such layers.
    pub sliding_window: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even, and independent of `hidden_size`.
    pub head_dim: usize,
    /// Epsilon of all norms.
    pub rms_norm_eps: f64,
    /// Context length in tokens.
    pub context_length: usize,
    /// Whether the output projection is the matrix of token embeddings.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text, from `eos_token_id`.
    pub end_of_text: Vec<u32>,
}

impl DecoderShape {
    /// Returns the number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layer_kinds.len()
    }

    /// Returns the number of positions that a layer sees; `None` for all up to its own.
    #[must_use]
    pub fn window(&self, layer: usize) -> Option<usize> {
        match self.layer_kinds.get(layer) {
            Some(LayerKind::Sliding) => Some(self.sliding_window),
            _ => None,
        }
    }

    /// Returns the tensors outside the layers.
    pub(super) fn outer_tensors(&self) -> Vec<TensorShape> {
        let matrix = vec![self.vocab_size, self.hidden_size];
        let mut tensors = vec![
            ("embed_tokens.weight".to_owned(), matrix.clone()),
            ("norm.weight".to_owned(), vec![self.hidden_size]),
        ];
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), matrix));
        }
        tensors
    }

    /// Returns the matrices of a layer, with the name that their weight and their bias share:
    /// `[out, in]` each.
    #[must_use]
    pub fn matrices(&self, layer: usize) -> [(String, [usize; 2]); 7] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let queries = self.heads * self.head_dim;
        let keys = self.kv_heads * self.head_dim;
        [
            ("self_attn.q_proj", [queries, hidden]),
            ("self_attn.k_proj", [keys, hidden]),
            ("self_attn.v_proj", [keys, hidden]),
            ("self_attn.o_proj", [hidden, queries]),
            ("mlp.gate_proj", [inner, hidden]),
            ("mlp.up_proj", [inner, hidden]),
            ("mlp.down_proj", [hidden, inner]),
        ]
        .map(|(name, shape)| (format!("layers.{layer}.{name}"), shape))
    }

    /// Returns the norms over a head's queries and keys.
    pub(super) fn qk_norms(&self, layer: usize) -> [TensorShape; 2] {
        ["q_norm", "k_norm"].map(|norm| {
            let name = format!("layers.{layer}.self_attn.{norm}.weight");
            (name, vec![self.head_dim])
        })
    }
}

/// A field that can be absent, null (`Some(None)`) or set.
type Nullable<T> = Option<Option<T>>;

/// Reads a field that is in the file: null is `Some(None)`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Nullable<T>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// The fields of the file, unchecked.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct DecoderFields {
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    #[serde(deserialize_with = "present")]
    num_key_value_heads: Nullable<usize>,
    #[serde(deserialize_with = "present")]
    head_dim: Nullable<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    pub eos_token_id: Option<TokenIds>,
    tie_word_embeddings: Option<bool>,
    pub hidden_act: Option<String>,
    pub hidden_activation: Option<String>,
    pub attention_bias: Option<bool>,
    pub mlp_bias: Option<bool>,
    pub use_bidirectional_attention: Option<bool>,
    pub query_pre_attn_scalar: Option<f64>,
    #[serde(deserialize_with = "present")]
    pub attn_logit_softcapping: Nullable<f64>,
    #[serde(deserialize_with = "present")]
    pub final_logit_softcapping: Nullable<f64>,
    layer_types: Option<Vec<String>>,
    #[serde(deserialize_with = "present")]
    pub sliding_window: Nullable<usize>,
    pub sliding_window_pattern: Option<usize>,
    /// The name of `sliding_window_pattern` where transformers 5 keeps it beside `layer_types`.
    #[serde(rename = "_sliding_window_pattern")]
    pub private_sliding_window_pattern: Option<usize>,
    pub use_sliding_window: Option<bool>,
    pub max_window_layers: Option<usize>,
    pub rope_theta: Option<f64>,
    pub rope_local_base_freq: Option<f64>,
    pub rope_scaling: Option<RopeFields>,
    pub rope_parameters: Option<RopeFields>,
}

/// The values that transformers gives fields that are absent, and what it lets them be.
pub(super) struct Defaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    /// `None` for as many as query heads, which null means too.
    pub kv_heads: Option<usize>,
    /// `None` for `hidden_size / heads`, which null means too.
    pub head_dim: Option<usize>,
    pub context_length: usize,
    pub tie_word_embeddings: bool,
    pub sliding_window: usize,
}

impl DecoderFields {
    /// Returns the checked shape; `slides` tells which layers slide where the file has no `layer_types`.
    pub fn shape(
        &self,
        check: Checker<'_>,
        defaults: &Defaults,
        slides: impl Fn(usize) -> bool,
    ) -> Result<DecoderShape, ConfigError> {
        let size = |field: &str, value: Option<usize>, default| {
            check.size(field, value.unwrap_or(default))
        };
        let hidden_size = size("hidden_size", self.hidden_size, defaults.hidden_size)?;
        let heads = size(
            "num_attention_heads",
            self.num_attention_heads,
            defaults.heads,
        )?;
        let kv_heads = self.num_key_value_heads.unwrap_or(defaults.kv_heads);
        let kv_heads = check.size("num_key_value_heads", kv_heads.unwrap_or(heads))?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("it must divide `num_attention_heads` ({heads})");
            return Err(check.refuse("num_key_value_heads", &kv_heads, expected));
        }
        let layers = size("num_hidden_layers", self.num_hidden_layers, defaults.layers)?;
        let layer_kinds = self.layer_kinds(check, layers, slides)?;
        let sliding_window = if layer_kinds.contains(&LayerKind::Sliding) {
            let window = self.sliding_window.flatten();
            size("sliding_window", window, defaults.sliding_window)?
        } else {
            0
        };
        Ok(DecoderShape {
            vocab_size: size("vocab_size", self.vocab_size, defaults.vocab_size)?,
            hidden_size,
            intermediate_size: size(
                "intermediate_size",
                self.intermediate_size,
                defaults.intermediate_size,
            )?,
            layer_kinds,
            sliding_window,
            heads,
            kv_heads,
            head_dim: self.head_dim(check, defaults, hidden_size, heads)?,
            rms_norm_eps: check.epsilon(
                "rms_norm_eps",
                self.rms_norm_eps.unwrap_or(1e-6),
                "1e-6 or 1e-5",
            )?,
            context_length: size(
                "max_position_embeddings",
                self.max_position_embeddings,
                defaults.context_length,
            )?,
            tie_word_embeddings: self
                .tie_word_embeddings
                .unwrap_or(defaults.tie_word_embeddings),
            end_of_text: self
                .eos_token_id
                .clone()
                .map(TokenIds::into_vec)
                .unwrap_or_default(),
        })
    }

    fn head_dim(
        &self,
        check: Checker<'_>,
        defaults: &Defaults,
        hidden_size: usize,
        heads: usize,
    ) -> Result<usize, ConfigError> {
        let head_dim = match self.head_dim.unwrap_or(defaults.head_dim) {
            Some(head_dim) => check.size("head_dim", head_dim)?,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let expected =
                    format!("without `head_dim` it must divide `hidden_size` ({hidden_size})");
                return Err(check.refuse("num_attention_heads", &heads, expected));
            }
        };
        if !head_dim.is_multiple_of(2) {
            let expected = "rotary positions need an even width";
            return Err(check.refuse("head_dim", &head_dim, expected));
        }
        Ok(head_dim)
    }

    /// Returns the kind of every layer: `layer_types` if the file has it, else as `slides` tells.
    fn layer_kinds(
        &self,
        check: Checker<'_>,
        layers: usize,
        slides: impl Fn(usize) -> bool,
    ) -> Result<Vec<LayerKind>, ConfigError> {
        let Some(types) = &self.layer_types else {
            let kind = |layer| {
                if slides(layer) {
                    LayerKind::Sliding
                } else {
                    LayerKind::Global
                }
            };
            return Ok((0..layers).map(kind).collect());
        };
        if types.len() != layers {
            let found = format!("a list of {}", types.len());
            let expected = format!("expected one for each of `num_hidden_layers` ({layers})");
            return Err(check.refuse("layer_types", &found, expected));
        }
        let kind = |(layer, kind): (usize, &String)| match kind.as_str() {
            "full_attention" => Ok(LayerKind::Global),
            "sliding_attention" => Ok(LayerKind::Sliding),
            other => Err(check.refuse(
                &format!("layer_types[{layer}]"),
                &other,
                "only `full_attention` and `sliding_attention` can be served",
            )),
        };
        types.iter().enumerate().map(kind).collect()
    }

    /// Returns whether the file lists sliding layers itself.
    pub fn lists_sliding_layers(&self) -> bool {
        let types = self.layer_types.iter().flatten();
        types.into_iter().any(|kind| kind == "sliding_attention")
    }

    /// Returns the rotary parameters of global layers. In the classic spelling they are `rope_theta` and
    /// `rope_scaling`, in that of transformers 5 `rope_parameters`, which may have them by kind of layer.
    pub fn rope(&self, check: Checker<'_>, default_base: f64) -> Result<Rope, ConfigError> {
        let base = match self.rope_theta {
            Some(base) => check.positive("rope_theta", base)?,
            None => default_base,
        };
        match (&self.rope_scaling, &self.rope_parameters) {
            (Some(scaling), _) => scaling.rope(check, "rope_scaling", base),
            (None, Some(parameters)) => match &parameters.full_attention {
                Some(own) => own.rope(check, "rope_parameters.full_attention", base),
                None => parameters.rope(check, "rope_parameters", base),
            },
            (None, None) => Ok(Rope::unscaled(base)),
        }
    }

    /// Returns the rotary parameters of sliding layers, where they have their own: `rope_local_base_freq`,
    /// which is never scaled, or `rope_parameters.sliding_attention`.
    pub fn local_rope(&self, check: Checker<'_>, default_base: f64) -> Result<Rope, ConfigError> {
        let base = match self.rope_local_base_freq {
            Some(base) => check.positive("rope_local_base_freq", base)?,
            None => default_base,
        };
        let parameters = self.rope_parameters.as_ref();
        match parameters.and_then(|parameters| parameters.sliding_attention.as_ref()) {
            Some(own) => own.rope(check, "rope_parameters.sliding_attention", base),
            None => Ok(Rope::unscaled(base)),
        }
    }
}
