//! The metadata of a GGUF file as a `config.json`, so that both formats are checked by the same code.
//!
//! A key that is absent means the architecture's own value, which is the default of the field; the format has
//! no key at all for some fields: the query scale, tied embeddings. The keys are those of llama.cpp's
//! `convert_hf_to_gguf.py`, what their absence means that of its `llama-model.cpp`.

use serde_json::{Map, Value as Json, json};

use super::error::short;
use super::{EMBEDDINGS, Gguf, GgufError};
use crate::checkpoint::config::{ConfigError, ModelConfig};
use crate::checkpoint::rope::RopeScaling;
use crate::kernels::stored::{StoredType, widen};

/// Maximum number of layers of which lists are read.
const MAX_LAYERS: usize = 4096;

/// Fields of a `config.json`, and the keys that they are read from: after the architecture's name if they begin
/// with a dot.
const DECODER_FIELDS: [(&str, &str); 15] = [
    ("model_type", "general.architecture"),
    ("hidden_size", ".embedding_length"),
    ("num_hidden_layers", ".block_count"),
    ("intermediate_size", ".feed_forward_length"),
    ("num_attention_heads", ".attention.head_count"),
    ("num_key_value_heads", ".attention.head_count_kv"),
    ("head_dim", ".attention.key_length"),
    ("max_position_embeddings", ".context_length"),
    ("rms_norm_eps", ".attention.layer_norm_rms_epsilon"),
    ("rope_theta", ".rope.freq_base"),
    ("rope_local_base_freq", ".rope.freq_base_swa"),
    ("sliding_window", ".attention.sliding_window"),
    (
        "sliding_window_pattern",
        ".attention.sliding_window_pattern",
    ),
    ("attn_logit_softcapping", ".attn_logit_softcapping"),
    ("final_logit_softcapping", ".final_logit_softcapping"),
];
const GPT2_FIELDS: [(&str, &str); 6] = [
    ("n_embd", ".embedding_length"),
    ("n_layer", ".block_count"),
    ("n_inner", ".feed_forward_length"),
    ("n_head", ".attention.head_count"),
    ("n_positions", ".context_length"),
    ("layer_norm_epsilon", ".attention.layer_norm_epsilon"),
];
/// Fields that are read or made otherwise, for messages.
const OTHER_FIELDS: [(&str, &str); 5] = [
    ("rope_scaling.rope_type", ".rope.scaling.type"),
    ("rope_scaling.factor", ".rope.scaling.factor"),
    ("layer_types", ".attention.sliding_window_pattern"),
    ("vocab_size", "the rows of the tensor `token_embd.weight`"),
    ("eos_token_id", "tokenizer.ggml.eos_token_id"),
];

/// Error of a model's shape in GGUF.
#[derive(Debug, thiserror::Error)]
pub enum GgufConfigError {
    /// A key or tensor is missing, or of the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A value is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Gguf {
    /// Returns the shape of the model.
    ///
    /// # Errors
    /// [`GgufConfigError`] with the key or tensor, its value and what is supported.
    pub fn config(&self) -> Result<ModelConfig, GgufConfigError> {
        let architecture = self.architecture()?;
        let fields = match architecture {
            "gpt2" => self.gpt2_fields()?,
            _ => self.decoder_fields(architecture)?,
        };
        let json = Json::Object(fields).to_string();
        let config = ModelConfig::from_json(self.file(), json.as_bytes());
        let mut config = config.map_err(|error| named_by_keys(architecture, error))?;
        if let ModelConfig::Llama(llama) = &mut config {
            llama.qkv_bias |= self.has_bias("attn_q");
            llama.out_bias = self.has_bias("attn_output");
            llama.mlp_bias = self.has_bias("ffn_down");
            let pairs = llama.shape.head_dim / 2;
            if let Some(divisors) = self.rope_divisors(pairs)? {
                llama.rope.scaling = RopeScaling::Divisors(divisors);
            }
        }
        Ok(config)
    }

    fn gpt2_fields(&self) -> Result<Map<String, Json>, GgufError> {
        let mut fields = self.fields("gpt2", &GPT2_FIELDS)?;
        fields.insert("model_type".to_owned(), json!("gpt2"));
        self.add_vocabulary(&mut fields)?;
        Ok(fields)
    }

    fn decoder_fields(&self, architecture: &str) -> Result<Map<String, Json>, GgufError> {
        let mut fields = self.fields(architecture, &DECODER_FIELDS)?;
        let key = |key: &str| format!("{architecture}.{key}");
        let needed = |name: &str| self.required(&key(name), Self::uniform);
        let (width, heads) = (needed("embedding_length")?, needed("attention.head_count")?);
        let layers = needed("block_count")?;
        for name in ["feed_forward_length", "context_length"] {
            needed(name)?;
        }
        self.required(&key("attention.layer_norm_rms_epsilon"), Self::number)?;
        fields.remove("model_type");
        let model_type = match architecture {
            "gemma3" => "gemma3_text",
            other => other,
        };
        fields.insert("model_type".to_owned(), json!(model_type));
        self.add_vocabulary(&mut fields)?;
        self.add_head_dim(architecture, heads, &mut fields)?;
        // Absent, it is the number of query heads in every architecture.
        fields.entry("num_key_value_heads").or_insert(json!(heads));
        self.add_pattern(architecture, layers, &mut fields)?;
        self.add_scaling(architecture, &mut fields)?;
        let head_dim = fields.get("head_dim").and_then(Json::as_u64);
        if let Some(scalar) = query_scalar(architecture, layers, width, heads) {
            fields.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
        } else if let Some(head_dim) = head_dim {
            fields.insert("query_pre_attn_scalar".to_owned(), json!(head_dim));
        }
        // Files of Qwen have a window that its models do not use.
        if !architecture.starts_with("gemma") {
            fields.remove("sliding_window");
        }
        Ok(fields)
    }

    /// Returns the fields of a table whose keys are there. Sizes that are lists, one for each layer, must be
    /// uniform.
    fn fields(
        &self,
        architecture: &str,
        table: &[(&str, &str)],
    ) -> Result<Map<String, Json>, GgufError> {
        let mut fields = Map::new();
        for (field, key) in table.iter().filter(|(_, key)| key.starts_with('.')) {
            let key = format!("{architecture}{key}");
            let is_float = ["epsilon", "freq_base", "freq_base_swa", "softcapping"]
                .iter()
                .any(|end| key.ends_with(end));
            let value = if *field == "sliding_window_pattern" {
                continue;
            } else if is_float {
                self.number(&key)?.map(|number| json!(number))
            } else {
                self.uniform(&key)?.map(|size| json!(size))
            };
            if let Some(value) = value {
                fields.insert((*field).to_owned(), value);
            }
        }
        Ok(fields)
    }

    /// Returns a size that may be a list with the same value for each layer.
    fn uniform(&self, key: &str) -> Result<Option<usize>, GgufError> {
        let Some(mut values) = self.integers(key)? else {
            return Ok(None);
        };
        let Some(first) = values.next() else {
            return Err(self.key_error(key, "is an empty list"));
        };
        if let Some(other) = values.find(|value| *value != first) {
            let problem =
                format!("has {first} and {other}: only layers of the same shape can be served");
            return Err(self.key_error(key, problem));
        }
        self.to_size(key, first).map(Some)
    }

    /// Adds the fields that follow from the vocabulary: its size, the head, the tokens that end a text.
    fn add_vocabulary(&self, fields: &mut Map<String, Json>) -> Result<(), GgufError> {
        let missing = || GgufError::tensor(self.file(), EMBEDDINGS, "is missing");
        let embeddings = self.tensor(EMBEDDINGS).ok_or_else(missing)?;
        let rows = embeddings.shape.first().copied().unwrap_or_default();
        fields.insert("vocab_size".to_owned(), json!(rows));
        let tied = self.tensor("output.weight").is_none();
        fields.insert("tie_word_embeddings".to_owned(), json!(tied));
        fields.insert("eos_token_id".to_owned(), json!(self.end_of_text()?));
        Ok(())
    }

    /// Adds the width of heads: that of the key, else of the matrix of queries.
    fn add_head_dim(
        &self,
        architecture: &str,
        heads: usize,
        fields: &mut Map<String, Json>,
    ) -> Result<(), GgufError> {
        let key = |name: &str| format!("{architecture}.{name}");
        let queries = self.tensor("blk.0.attn_q.weight");
        let rows = queries.and_then(|tensor| tensor.shape.first().copied());
        let rows = rows.filter(|rows| heads > 0 && rows.is_multiple_of(heads));
        let own = self.uniform(&key("attention.key_length"))?;
        let Some(head_dim) = own.or(rows.map(|rows| rows / heads)) else {
            return Ok(());
        };
        fields.insert("head_dim".to_owned(), json!(head_dim));
        for name in ["attention.value_length", "rope.dimension_count"] {
            let key = key(name);
            if let Some(other) = self.uniform(&key)?.filter(|other| *other != head_dim) {
                let problem = format!(
                    "is {other}; only heads whose keys, values and rotated part have the same width ({head_dim}) \
                     can be served"
                );
                return Err(self.key_error(&key, problem));
            }
        }
        Ok(())
    }

    /// Adds which layers slide: a number, or a bool for each layer.
    fn add_pattern(
        &self,
        architecture: &str,
        layers: usize,
        fields: &mut Map<String, Json>,
    ) -> Result<(), GgufError> {
        let key = format!("{architecture}.attention.sliding_window_pattern");
        let Some(value) = self.keys.get(&key) else {
            return Ok(());
        };
        if value.elements().is_none() {
            let pattern = self.size(&key)?;
            fields.insert("sliding_window_pattern".to_owned(), json!(pattern));
            return Ok(());
        }
        let Some(slides) = self.integers(&key)? else {
            return Ok(());
        };
        let kind = |slides: i128| match slides {
            0 => "full_attention",
            _ => "sliding_attention",
        };
        // No more than can be layers: the check of the fields reports the length.
        let types: Vec<&str> = slides.map(kind).take(layers.min(MAX_LAYERS) + 1).collect();
        fields.insert("layer_types".to_owned(), json!(types));
        Ok(())
    }

    /// Adds the scaling of rotary positions.
    fn add_scaling(
        &self,
        architecture: &str,
        fields: &mut Map<String, Json>,
    ) -> Result<(), GgufError> {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let kind = self.text(&key("scaling.type"))?;
        let factor = match self.number(&key("scaling.factor"))? {
            Some(factor) => Some(factor),
            None => self.number(&key("scale_linear"))?,
        };
        // 0 is written for none.
        let factor = factor.filter(|&factor| factor != 0.0 && factor != 1.0);
        let scaling = match (kind, factor) {
            (Some("none"), _) | (None | Some("linear"), None) => return Ok(()),
            (None | Some("linear"), Some(factor)) => {
                json!({"rope_type": "linear", "factor": factor})
            }
            (Some(other), _) => json!({"rope_type": short(other)}),
        };
        fields.insert("rope_scaling".to_owned(), scaling);
        Ok(())
    }

    fn has_bias(&self, matrix: &str) -> bool {
        self.tensor(&format!("blk.0.{matrix}.bias")).is_some()
    }

    /// Returns the divisors of the frequencies, for Llama 3's scaling: `[head_dim / 2]`.
    fn rope_divisors(&self, pairs: usize) -> Result<Option<Vec<f32>>, GgufError> {
        const NAME: &str = "rope_freqs.weight";
        let Some((file, tensor)) = self.tensors.get(NAME) else {
            return Ok(None);
        };
        let refuse = |problem: String| Err(GgufError::tensor(self.file(), NAME, problem));
        if tensor.dtype != Ok(StoredType::F32) || tensor.shape != [pairs] {
            let shape = &tensor.shape;
            return refuse(format!(
                "has the shape {shape:?}; expected [{pairs}] of F32"
            ));
        }
        let bytes = self.files.get(*file).map(|file| file.bytes.as_ref());
        let bytes = bytes.and_then(|bytes| bytes.get(tensor.range.clone()));
        let mut divisors = vec![0.0; pairs];
        widen(bytes.unwrap_or_default(), StoredType::F32, &mut divisors);
        match divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
            Some(bad) => refuse(format!("has the divisor {bad}; expected numbers above 0")),
            None => Ok(Some(divisors)),
        }
    }
}

/// Returns the square of the divisor of attention scores where it is not the width of a head. The format has no
/// key for it, so llama.cpp knows the two models by their number of layers: the 27B of Gemma 2 and 3.
fn query_scalar(architecture: &str, layers: usize, width: usize, heads: usize) -> Option<f64> {
    let is_27b = matches!((architecture, layers), ("gemma2", 46) | ("gemma3", 62));
    (is_27b && heads > 0).then(|| width as f64 / heads as f64)
}

/// Returns an error with the key in place of the field that was made of it.
fn named_by_keys(architecture: &str, error: ConfigError) -> ConfigError {
    let ConfigError::Field {
        file,
        field,
        found,
        expected,
    } = error
    else {
        return error;
    };
    let tables = DECODER_FIELDS.iter().chain(&GPT2_FIELDS);
    let mut tables = tables.chain(&OTHER_FIELDS);
    let key = tables.find(|(known, _)| *known == field);
    let field = match key {
        Some((_, key)) if key.starts_with('.') => format!("{architecture}{key}"),
        Some((_, key)) => (*key).to_owned(),
        None => field,
    };
    ConfigError::Field {
        file,
        field,
        found,
        expected,
    }
}
