//! The shape of a GPT-2 model, from `config.json` in the Hugging Face layout.

use serde::Deserialize;

use super::config_error::{Checker, ConfigError};
use super::decoder_fields::TensorShape;
use super::json::{TokenIds, from_json};
use crate::kernels::linear::Activation;

/// The shape of a GPT-2 model. Field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Context length: number of position embeddings.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Number of attention heads; divides `n_embd`.
    pub n_head: usize,
    /// Width of the feed-forward network's inner layer.
    pub n_inner: usize,
    /// Function of the feed-forward network's neurons, from `activation_function`.
    pub activation: Activation,
    /// Factor of attention scores: `scale_attn_weights` and `scale_attn_by_inverse_layer_idx`.
    pub attention_scale: AttentionScale,
    /// Epsilon of all layer norms.
    pub layer_norm_epsilon: f64,
    /// Tokens that end a text, from `eos_token_id` (one, several or none).
    pub end_of_text: Vec<u32>,
    /// Whether the output projection is `wte`; a `lm_head.weight` in the checkpoint that differs takes precedence.
    pub tie_word_embeddings: bool,
}

/// How attention scores are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionScale {
    /// They are divided by the square root of a head's width.
    pub by_width: bool,
    /// They are divided by the layer's number, from 1, as Mistral's GPT-2 models have it
    /// (<https://github.com/stanford-crfm/mistral>).
    pub by_layer: bool,
}

fn default_epsilon() -> f64 {
    1e-5
}

fn default_activation() -> String {
    "gelu_new".to_owned()
}

fn default_true() -> bool {
    true
}

/// The fields of the file, unchecked.
#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    #[serde(default = "default_activation")]
    activation_function: String,
    #[serde(default = "default_epsilon")]
    layer_norm_epsilon: f64,
    eos_token_id: Option<TokenIds>,
    #[serde(default = "default_true")]
    tie_word_embeddings: bool,
    #[serde(default = "default_true")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
}

impl Gpt2Config {
    /// Parses a configuration; `file` is its name in messages.
    ///
    /// # Errors
    /// [`ConfigError`] with file, field, value and expected value.
    pub fn from_json(file: &str, bytes: &[u8]) -> Result<Self, ConfigError> {
        let raw: Raw = from_json(bytes).map_err(|source| ConfigError::Json {
            file: file.to_owned(),
            source,
        })?;
        raw.check(file)?;
        Ok(Self {
            vocab_size: raw.vocab_size,
            n_positions: raw.n_positions,
            n_embd: raw.n_embd,
            n_layer: raw.n_layer,
            n_head: raw.n_head,
            n_inner: raw.n_inner.unwrap_or(4 * raw.n_embd),
            activation: raw.activation(file)?,
            attention_scale: AttentionScale {
                by_width: raw.scale_attn_weights,
                by_layer: raw.scale_attn_by_inverse_layer_idx,
            },
            layer_norm_epsilon: raw.layer_norm_epsilon,
            end_of_text: raw.eos_token_id.map(TokenIds::into_vec).unwrap_or_default(),
            tie_word_embeddings: raw.tie_word_embeddings,
        })
    }

    /// Returns the width of one attention head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// Returns the factor of attention scores in a layer, from 0.
    #[must_use]
    pub fn score_scale(&self, layer: usize) -> f32 {
        let AttentionScale { by_width, by_layer } = self.attention_scale;
        let width = if by_width { self.head_dim() } else { 1 };
        let layer = if by_layer { layer + 1 } else { 1 };
        1.0 / ((width as f32).sqrt() * layer as f32)
    }

    /// Returns the tensors outside the layers.
    pub(super) fn outer_tensors(&self) -> Vec<TensorShape> {
        let n = self.n_embd;
        let mut tensors = vec![
            ("wte.weight", vec![self.vocab_size, n]),
            ("wpe.weight", vec![self.n_positions, n]),
            ("ln_f.weight", vec![n]),
            ("ln_f.bias", vec![n]),
        ];
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight", vec![self.vocab_size, n]));
        }
        let named = |(name, shape): (&str, _)| (name.to_owned(), shape);
        tensors.into_iter().map(named).collect()
    }

    /// Returns the tensors of a layer.
    pub(super) fn layer_tensors(&self, layer: usize) -> Vec<TensorShape> {
        let (n, inner) = (self.n_embd, self.n_inner);
        let tensors = [
            ("ln_1.weight", vec![n]),
            ("ln_1.bias", vec![n]),
            ("attn.c_attn.weight", vec![n, 3 * n]),
            ("attn.c_attn.bias", vec![3 * n]),
            ("attn.c_proj.weight", vec![n, n]),
            ("attn.c_proj.bias", vec![n]),
            ("ln_2.weight", vec![n]),
            ("ln_2.bias", vec![n]),
            ("mlp.c_fc.weight", vec![n, inner]),
            ("mlp.c_fc.bias", vec![inner]),
            ("mlp.c_proj.weight", vec![inner, n]),
            ("mlp.c_proj.bias", vec![n]),
        ];
        let named = |(name, shape)| (format!("h.{layer}.{name}"), shape);
        tensors.into_iter().map(named).collect()
    }
}

impl Raw {
    fn check(&self, file: &str) -> Result<(), ConfigError> {
        let check = Checker { file, path: "" };
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("n_inner", self.n_inner.unwrap_or(1)),
        ] {
            check.size(field, value)?;
        }
        check.epsilon("layer_norm_epsilon", self.layer_norm_epsilon, "1e-5")?;
        if !self.n_embd.is_multiple_of(self.n_head) {
            let expected = format!("it must divide `n_embd` ({})", self.n_embd);
            return Err(check.refuse("n_head", &self.n_head, expected));
        }
        Ok(())
    }

    /// Returns the activation by its name in transformers.
    fn activation(&self, file: &str) -> Result<Activation, ConfigError> {
        match self.activation_function.as_str() {
            // The second is the same formula with its factors in another order.
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "gelu" | "gelu_python" => Ok(Activation::GeluErf),
            "quick_gelu" => Ok(Activation::GeluSigmoid),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            "tanh" => Ok(Activation::Tanh),
            other => {
                let check = Checker { file, path: "" };
                let expected = "it must be gelu, gelu_fast, gelu_new, gelu_pytorch_tanh, gelu_python, quick_gelu, \
                     relu, silu, swish or tanh";
                Err(check.refuse("activation_function", &other, expected))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::ModelConfig;
    use crate::checkpoint::config_error::MAX_SIZE;

    fn parse(changes: &[(&str, serde_json::Value)]) -> Result<Gpt2Config, String> {
        let mut json = serde_json::json!({
            "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768,
            "n_layer": 12, "n_head": 12, "eos_token_id": 50256,
        });
        for (field, value) in changes {
            json[field] = value.clone();
        }
        Gpt2Config::from_json("config.json", json.to_string().as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_published_shapes_have_the_published_numbers_of_parameters() {
        for (n_layer, n_head, n_embd, parameters) in [
            (6, 12, 768, 81_912_576),
            (12, 12, 768, 124_439_808),
            (24, 16, 1024, 354_823_168),
            (36, 20, 1280, 774_030_080),
            (48, 25, 1600, 1_557_611_200),
        ] {
            let config = parse(&[
                ("n_layer", n_layer.into()),
                ("n_head", n_head.into()),
                ("n_embd", n_embd.into()),
            ]);
            assert_eq!(ModelConfig::Gpt2(config.unwrap()).parameters(), parameters);
        }
    }

    #[test]
    fn the_parameters_of_the_largest_shape_are_counted() {
        let largest = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_inner"];
        let config = parse(&largest.map(|field| (field, MAX_SIZE.into()))).unwrap_err();
        assert!(config.contains("`n_head`"), "{config}");
        let shape = largest.map(|field| (field, MAX_SIZE.into()));
        let shape = [&shape[..], &[("n_head", 1.into())]].concat();
        let largest = ModelConfig::Gpt2(parse(&shape).unwrap());
        assert_eq!(largest.parameters(), usize::MAX);
    }

    #[test]
    fn an_epsilon_that_is_not_json_is_refused_by_name() {
        let json = |epsilon: &str| {
            format!(
                r#"{{"model_type": "gpt2", "vocab_size": 8, "n_positions": 8, "n_embd": 4,
                    "n_layer": 1, "n_head": 1, "layer_norm_epsilon": {epsilon}}}"#
            )
        };
        let parse = |text: String| Gpt2Config::from_json("config.json", text.as_bytes());
        assert!(parse(json("1e-5")).is_ok());
        for epsilon in ["NaN", "Infinity", "1e400", "null"] {
            let error = parse(json(epsilon)).unwrap_err().to_string();
            let name = "config.json: layer_norm_epsilon: ";
            assert!(error.starts_with(name), "{epsilon}: {error}");
        }
        let error = parse(json("1e-5") + "}").unwrap_err().to_string();
        assert!(error.starts_with("config.json: trailing"), "{error}");
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        for (field, value, words) in [
            ("n_head", 7.into(), "must divide `n_embd` (768)"),
            ("n_layer", 0.into(), "`n_layer` is 0"),
            (
                "activation_function",
                "mish".into(),
                "must be gelu, gelu_fast",
            ),
            (
                "vocab_size",
                "many".into(),
                "config.json: vocab_size: invalid type",
            ),
            (
                "n_layer",
                (-1).into(),
                "config.json: n_layer: invalid value: integer `-1`",
            ),
            ("n_embd", (1_u64 << 40).into(), "expected 1 to 16777216"),
            (
                "layer_norm_epsilon",
                (-1e-5).into(),
                "`layer_norm_epsilon` is -0.00001; expected a number above 0",
            ),
            (
                "layer_norm_epsilon",
                1e-60.into(),
                "`layer_norm_epsilon` is 0.000",
            ),
            (
                "layer_norm_epsilon",
                2.0.into(),
                "`layer_norm_epsilon` is 2;",
            ),
        ] {
            let error = parse(&[(field, value)]).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
