//! LoRA adapters as the Python package peft saves them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! An adapter adds `scale * B A` to matrices of a model (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>). Which
//! matrices it adapts is said by its tensors; anything else that a configuration asks for is refused, so that no
//! adapter runs as something it is not.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::hub::{self, HubError, HubSettings};
use super::json::{JsonError, from_json};
use super::weights::{Checkpoint, TensorView, WeightsError};
use crate::regular_file;

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// Maximum size of `adapter_config.json`, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Error of an adapter's files.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The source is nothing that exists.
    #[error("{0:?} is neither an existing directory nor a valid hub id")]
    Source(String),
    /// It can't be fetched from the hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file is missing or can't be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The directory has no weights.
    #[error("{place} has neither adapter_model.safetensors nor adapter_model.bin")]
    NoWeights {
        /// The directory.
        place: String,
    },
    /// `adapter_config.json` is not valid.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: JsonError,
    },
    /// The configuration asks for something that can't be served.
    #[error("{file}: `{field}` is {value}; {expected}")]
    Config {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// What can be served.
        expected: &'static str,
    },
    /// The weights can't be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tensor belongs to nothing that can be adapted.
    #[error(
        "{place}: the tensor `{tensor}` does not adapt c_attn, c_proj or c_fc of the model's {layers} layers"
    )]
    Tensor {
        /// The directory.
        place: String,
        /// The tensor.
        tensor: String,
        /// Number of layers of the model.
        layers: usize,
    },
    /// The model's architecture takes no adapters.
    #[error("adapters can be served with GPT-2 models, not with {architecture}")]
    Architecture {
        /// The model's.
        architecture: &'static str,
    },
    /// The backend could not prepare the weights.
    #[error("the adapter's weights could not be prepared: {0}")]
    Backend(#[from] candle_core::Error),
}

/// The fields of `adapter_config.json`, unchecked.
#[derive(Deserialize)]
struct Raw {
    peft_type: String,
    #[serde(default = "default_alpha")]
    lora_alpha: f64,
    #[serde(default)]
    alpha_pattern: Patterns,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    init_lora_weights: Option<Value>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Fields that do not change what a trained adapter computes, or whose effect is in its tensors.
const WITHOUT_EFFECT: [&str; 20] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Values of `alpha` by patterns of names, in the file's order: the first that matches counts.
#[derive(Debug, Clone, Default)]
struct Patterns(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Patterns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns, A::Error> {
                let mut patterns = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    patterns.push(entry);
                }
                Ok(Patterns(patterns))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

fn default_alpha() -> f64 {
    8.0
}

/// The files of an adapter, and how its matrices are scaled.
pub struct AdapterFiles {
    place: String,
    alpha: f64,
    alpha_pattern: Patterns,
    /// Whether the scale is divided by the root of the rank instead of the rank (rsLoRA).
    by_root: bool,
    weights: Checkpoint,
    /// Hash of everything that the adapter computes with.
    digest: [u8; 32],
}

/// The two matrices that are added to one of the model.
pub struct LowRank<'a> {
    /// `[rank, in]`
    pub a: TensorView<'a>,
    /// `[out, rank]`, scaled.
    pub b: Vec<f32>,
    /// Their common dimension.
    pub rank: usize,
}

impl AdapterFiles {
    /// Opens a directory, or fetches an adapter from the hub: `org/name`, `org/name@revision`. Blocks.
    ///
    /// # Errors
    /// [`AdapterError`].
    pub fn fetch(source: &str) -> Result<Self, AdapterError> {
        let path = Path::new(source);
        if path.is_dir() {
            return Self::open(path);
        }
        let (id, revision) = match source.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (source, None),
        };
        if !hub::is_id(id) || !revision.is_none_or(hub::is_revision) {
            return Err(AdapterError::Source(source.to_owned()));
        }
        Self::open(&HubSettings::from_env().pull_adapter(id, revision)?)
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// [`AdapterError`] with the file or field.
    pub fn open(directory: &Path) -> Result<Self, AdapterError> {
        let path = directory.join(CONFIG);
        let file = path.display().to_string();
        let bytes =
            regular_file::read(&path, MAX_CONFIG_BYTES).map_err(|source| AdapterError::Io {
                file: file.clone(),
                source,
            })?;
        let raw: Raw = from_json(&bytes).map_err(|source| AdapterError::Json {
            file: file.clone(),
            source,
        })?;
        raw.check(&file)?;
        let place = directory.display().to_string();
        let weights = WEIGHTS.iter().map(|name| directory.join(name));
        let weights = weights.clone().find(|path| path.exists());
        let weights = weights.ok_or_else(|| AdapterError::NoWeights {
            place: place.clone(),
        })?;
        let weights = Checkpoint::open_file(&weights)?;
        let mut hash = blake3::Hasher::new_derive_key("skald 2026-11 adapter");
        hash.update(&bytes);
        weights.hash_into(&mut hash);
        Ok(Self {
            place,
            alpha: raw.lora_alpha,
            alpha_pattern: raw.alpha_pattern,
            by_root: raw.use_rslora,
            weights,
            digest: *hash.finalize().as_bytes(),
        })
    }

    /// Returns a hash of the files: two adapters with the same one compute the same.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Returns the matrices for a module, such as `h.0.attn.c_attn`, of `inputs` features and `outputs` outputs;
    /// `None` if it is not adapted.
    ///
    /// # Errors
    /// [`AdapterError::Weights`] if one of the two is missing, or does not fit the model.
    pub fn low_rank(
        &self,
        module: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Option<LowRank<'_>>, AdapterError> {
        let [a, b] = ["lora_A", "lora_B"].map(|part| format!("{module}.{part}.weight"));
        let rank = |name: &str, dimension: usize| {
            let shape = self.weights.shape(name)?;
            shape.get(dimension).copied()
        };
        if [&a, &b]
            .iter()
            .all(|name| self.weights.shape(name).is_none())
        {
            return Ok(None);
        }
        // Of matrices that can't be read, neither has one.
        let rank = rank(&a, 0).or_else(|| rank(&b, 1)).unwrap_or(1);
        if rank == 0 {
            return Err(self.refuse("r", "0".to_owned(), "it must be at least 1"));
        }
        let divisor = if self.by_root {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        let (a, b) = (
            self.weights.finite_tensor(&a, &[rank, inputs])?,
            self.weights.finite_tensor(&b, &[outputs, rank])?,
        );
        let alpha = self.alpha(module);
        let scale = alpha / divisor;
        let scaled = b.to_f32().into_iter();
        let scaled = scaled.map(|value| (f64::from(value) * scale) as f32);
        let scaled: Vec<f32> = scaled.collect();
        if !scaled.iter().all(|value| value.is_finite()) {
            let expected = "`lora_B` times it must be finite";
            return Err(self.refuse("lora_alpha", alpha.to_string(), expected));
        }
        Ok(Some(LowRank { a, b: scaled, rank }))
    }

    fn refuse(&self, field: &str, value: String, expected: &'static str) -> AdapterError {
        AdapterError::Config {
            file: Path::new(&self.place).join(CONFIG).display().to_string(),
            field: field.to_owned(),
            value,
            expected,
        }
    }

    /// Returns `alpha` of a module: that of a pattern its name ends with, else that of all.
    fn alpha(&self, module: &str) -> f64 {
        let is_its = |pattern: &str| {
            // The patterns are of the names in transformers, where the blocks are in `transformer`.
            let name = format!("transformer.{module}");
            let rest = name.strip_suffix(pattern);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let mut patterns = self.alpha_pattern.0.iter();
        let own = patterns.find(|(pattern, _)| is_its(pattern));
        own.map_or(self.alpha, |(_, alpha)| *alpha)
    }

    /// Checks that all tensors belong to one of these modules.
    ///
    /// # Errors
    /// [`AdapterError::Tensor`].
    pub fn check_modules(&self, modules: &[String], layers: usize) -> Result<(), AdapterError> {
        let is_known = |tensor: &str| {
            let module = tensor
                .strip_suffix(".lora_A.weight")
                .or_else(|| tensor.strip_suffix(".lora_B.weight"));
            module.is_some_and(|module| modules.iter().any(|known| known == module))
        };
        match self.weights.names().filter(|name| !is_known(name)).min() {
            None => Ok(()),
            Some(tensor) => Err(AdapterError::Tensor {
                place: self.place.clone(),
                tensor: tensor.to_owned(),
                layers,
            }),
        }
    }
}

impl Raw {
    fn check(&self, file: &str) -> Result<(), AdapterError> {
        let refuse = |field: &str, value: String, expected| {
            Err(AdapterError::Config {
                file: file.to_owned(),
                field: field.to_owned(),
                value,
                expected,
            })
        };
        if self.peft_type != "LORA" {
            let expected = "only adapters of type LORA can be served";
            return refuse("peft_type", self.peft_type.clone(), expected);
        }
        if self.use_dora {
            return refuse(
                "use_dora",
                "true".to_owned(),
                "only plain LoRA can be served",
            );
        }
        if self.lora_bias {
            return refuse(
                "lora_bias",
                "true".to_owned(),
                "adapters must have no biases",
            );
        }
        match self.bias.as_deref() {
            None | Some("none") => (),
            Some(bias) => {
                let expected = "the model's own biases must stay as they are (none)";
                return refuse("bias", bias.to_owned(), expected);
            }
        }
        if let Some(modules) = self.modules_to_save.as_ref().filter(|m| !m.is_empty()) {
            let expected = "adapters must not replace parts of the model";
            return refuse("modules_to_save", format!("{modules:?}"), expected);
        }
        let has_effect = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            Value::Bool(true) | Value::Number(_) => true,
        };
        let mut others = self.others.iter();
        let other = others
            .find(|(field, value)| !WITHOUT_EFFECT.contains(&field.as_str()) && has_effect(value));
        if let Some((field, value)) = other {
            let expected = "only plain LoRA can be served, and this field may ask for more";
            return refuse(field, value.to_string(), expected);
        }
        if let Some(Value::String(init)) = &self.init_lora_weights
            && ["pissa", "olora", "corda", "loftq"]
                .iter()
                .any(|name| init.starts_with(name))
        {
            let expected = "such an adapter belongs to changed weights of the model; convert it with peft's \
                 path_initial_model_for_weight_conversion";
            return refuse("init_lora_weights", init.clone(), expected);
        }
        if !self.lora_alpha.is_finite() {
            return refuse(
                "lora_alpha",
                self.lora_alpha.to_string(),
                "it must be a number",
            );
        }
        let mut patterns = self.alpha_pattern.0.iter().map(|(pattern, _)| pattern);
        let plain = |c: char| c.is_ascii_alphanumeric() || "._".contains(c);
        if let Some(pattern) = patterns.find(|pattern| !pattern.chars().all(plain)) {
            let expected = "only names of modules can be served, not regular expressions";
            return refuse("alpha_pattern", pattern.clone(), expected);
        }
        Ok(())
    }
}
