//! LoRA adapters as the Python package peft saves them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! An adapter adds `scale * B A` to matrices of a model (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>). Which
//! matrices it adapts is said by its tensors; anything else that a configuration asks for is refused, so that no
//! adapter runs as something it is not.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
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
    /// There are no weights.
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
        field: &'static str,
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
    alpha_pattern: BTreeMap<String, f64>,
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
    trainable_token_indices: Option<Value>,
    #[serde(default)]
    layer_replication: Option<Value>,
    #[serde(default)]
    init_lora_weights: Option<Value>,
}

fn default_alpha() -> f64 {
    8.0
}

/// The files of an adapter, and how its matrices are scaled.
pub struct AdapterFiles {
    place: String,
    alpha: f64,
    alpha_pattern: BTreeMap<String, f64>,
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
    /// `[out, rank]`
    pub b: TensorView<'a>,
    /// Factor of their product.
    pub scale: f64,
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
        let Some(rank) = rank(&a, 0).or_else(|| rank(&b, 1)) else {
            return Ok(None);
        };
        let divisor = if self.by_root {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        Ok(Some(LowRank {
            a: self.weights.finite_tensor(&a, &[rank, inputs])?,
            b: self.weights.finite_tensor(&b, &[outputs, rank])?,
            scale: self.alpha(module) / divisor,
            rank,
        }))
    }

    /// Returns `alpha` of a module: that of a pattern its name ends with, else that of all.
    fn alpha(&self, module: &str) -> f64 {
        let is_its = |pattern: &str| {
            // The patterns are of the names in transformers, where the blocks are in `transformer`.
            let name = format!("transformer.{module}");
            let rest = name.strip_suffix(pattern);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let mut patterns = self.alpha_pattern.iter();
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
        let refuse = |field, value: String, expected| {
            Err(AdapterError::Config {
                file: file.to_owned(),
                field,
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
        for (field, value) in [
            ("trainable_token_indices", &self.trainable_token_indices),
            ("layer_replication", &self.layer_replication),
        ] {
            if let Some(value) = value {
                return refuse(field, value.to_string(), "it must be null");
            }
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
        let mut patterns = self.alpha_pattern.keys();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._".contains(c);
        if let Some(pattern) = patterns.find(|pattern| !pattern.chars().all(plain)) {
            let expected = "only names of modules can be served, not regular expressions";
            return refuse("alpha_pattern", pattern.clone(), expected);
        }
        Ok(())
    }
}
