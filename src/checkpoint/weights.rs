//! The tensors of a checkpoint, by the names of the Hugging Face layout, in memory-mapped safetensors files.
//!
//! Nothing is copied or converted here: a [`TensorView`] points into the mapped file (or the binary
//! itself, for the built-in model). Names are without the prefix of the class that saved them
//! (`transformer.`, `model.`, ...); tensors that the model does not use (`attn.bias`,
//! `vision_tower...`) are ignored.

mod error;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

pub use self::error::WeightsError;
use super::config::ModelConfig;
use super::finite::{NotFinite, first_not_finite};
use super::gguf::{Gguf, GgufError, RowOrder, gguf_name};
use super::mapped::{FileBytes, WeightFile};
pub use super::tensor::TensorView;
use crate::kernels::stored::{StoredType, widen};
use crate::regular_file;

/// Maximum size of `model.safetensors.index.json`, in bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// What the names of a model's tensors may begin with, by the class that saved them. The longer ones are first.
const PREFIXES: [&str; 5] = [
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "transformer.",
    "model.",
];

#[derive(Clone)]
struct Entry {
    file: usize,
    /// The type of its values, or the name of one that is not supported.
    dtype: Result<StoredType, String>,
    shape: Vec<usize>,
    range: Range<usize>,
    /// The order of its rows, where it is not that of the Hugging Face layout.
    rows: Option<RowOrder>,
}

/// All tensors of a model's files.
pub struct Checkpoint {
    files: Vec<WeightFile>,
    /// Tensors by name without prefix.
    tensors: HashMap<String, Entry>,
    /// The architecture, if the files are GGUF.
    gguf: Option<&'static str>,
}

impl Checkpoint {
    /// Maps `model.safetensors` of a directory, or all shards named by its index.
    ///
    /// # Errors
    /// [`WeightsError`] with the file.
    pub fn open(directory: &Path) -> Result<Self, WeightsError> {
        let index = directory.join("model.safetensors.index.json");
        let single = directory.join("model.safetensors");
        let names = if !single.exists() && index.exists() {
            shards(&index)?
        } else {
            vec!["model.safetensors".to_owned()]
        };
        let files = names
            .iter()
            .map(|name| map(&directory.join(name)))
            .collect::<Result<_, _>>()?;
        Self::from_files(files)
    }

    /// Adds the content of all files to a hash.
    pub fn hash_into(&self, hash: &mut blake3::Hasher) {
        for file in &self.files {
            let bytes = file.bytes.as_ref();
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
    }

    /// Reads a file that is embedded in the binary; `name` appears in messages.
    ///
    /// # Errors
    /// [`WeightsError`] if it is not a safetensors file.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, WeightsError> {
        Self::from_files(vec![WeightFile {
            name: name.to_owned(),
            bytes: FileBytes::Embedded(bytes),
        }])
    }

    fn from_files(files: Vec<WeightFile>) -> Result<Self, WeightsError> {
        let mut tensors = HashMap::new();
        for (file, WeightFile { name, bytes }) in files.iter().enumerate() {
            let bytes = bytes.as_ref();
            let format = |error: safetensors::SafeTensorError| WeightsError::Format {
                file: name.clone(),
                bytes: bytes.len(),
                reason: error.to_string(),
            };
            // The header's length, the header, then the data that offsets count from.
            let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(format)?;
            SafeTensors::deserialize(bytes).map_err(format)?;
            let data = header + size_of::<u64>();
            for (tensor, info) in metadata.tensors() {
                let name = without_prefix(&tensor);
                let entry = Entry {
                    file,
                    dtype: supported(info.dtype),
                    shape: info.shape.clone(),
                    range: data + info.data_offsets.0..data + info.data_offsets.1,
                    rows: None,
                };
                if tensors.insert(name.to_owned(), entry).is_some() {
                    return Err(WeightsError::Twice {
                        file: files[file].name.clone(),
                        tensor: name.to_owned(),
                    });
                }
            }
        }
        Ok(Self {
            files,
            tensors,
            gguf: None,
        })
    }

    /// Takes over the tensors of a GGUF file by their names in the Hugging Face layout.
    ///
    /// # Errors
    /// [`GgufError`] if the architecture can't be served.
    pub fn from_gguf(gguf: Gguf, config: &ModelConfig) -> Result<Self, GgufError> {
        let architecture = gguf.architecture()?;
        let tensors = gguf.entries(architecture, config.heads());
        let tensors = tensors.map(|(name, file, tensor, rows)| {
            let entry = Entry {
                file,
                dtype: tensor.dtype.clone(),
                shape: tensor.shape.clone(),
                range: tensor.range.clone(),
                rows,
            };
            (name, entry)
        });
        let tensors = tensors.collect();
        Ok(Self {
            tensors,
            files: gguf.into_files(),
            gguf: Some(architecture),
        })
    }

    /// Returns whether the weights of Gemma's norms include the 1 that the model adds to them elsewhere.
    #[must_use]
    pub fn norms_include_one(&self) -> bool {
        self.gguf.is_some()
    }

    /// Returns whether GPT-2's matrices are `[out, in]`, as those of all other architectures, and not
    /// `[in, out]` as `Conv1D` has them.
    #[must_use]
    pub fn matrices_out_in(&self) -> bool {
        self.gguf.is_some()
    }

    /// Returns the stored type of the token embeddings, which most of the model shares.
    #[must_use]
    pub fn dtype(&self) -> Option<StoredType> {
        let embeddings = ["wte.weight", "embed_tokens.weight"];
        let entry = embeddings.iter().find_map(|name| self.tensors.get(*name))?;
        entry.dtype.clone().ok()
    }

    /// Returns a tensor by its name without prefix.
    ///
    /// # Errors
    /// [`WeightsError`] if it is missing, or has a different shape or an unsupported type.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, WeightsError> {
        let (entry, dtype) = self.find(name, shape)?;
        let bytes = &self.files[entry.file].bytes.as_ref()[entry.range.clone()];
        let bytes = match entry.rows {
            None => Cow::Borrowed(bytes),
            Some(rows) => {
                let count = entry.shape.first().copied().unwrap_or_default();
                let restored = rows.restored(bytes, count);
                let restored = restored.ok_or_else(|| WeightsError::Rows {
                    file: self.files[entry.file].name.clone(),
                    tensor: self.shown(name),
                    heads: rows.heads,
                })?;
                Cow::Owned(restored)
            }
        };
        Ok(TensorView {
            bytes,
            dtype,
            shape: entry.shape.clone(),
        })
    }

    /// Returns a tensor after checking that all its values are finite.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), or [`WeightsError::NotFinite`].
    pub fn finite_tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<TensorView<'_>, WeightsError> {
        let tensor = self.tensor(name, shape)?;
        let Some(NotFinite { index, value }) = first_not_finite(&tensor) else {
            return Ok(tensor);
        };
        let (entry, _) = self.find(name, shape)?;
        Err(WeightsError::NotFinite {
            file: self.files[entry.file].name.clone(),
            tensor: self.shown(name),
            value,
            index,
        })
    }

    /// Returns the name of a tensor in its file.
    fn shown(&self, name: &str) -> String {
        let gguf = self.gguf.and_then(|gguf| gguf_name(gguf, name));
        gguf.unwrap_or_else(|| name.to_owned())
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(&Entry, StoredType), WeightsError> {
        let Some(entry) = self.tensors.get(name) else {
            let files: Vec<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
            return Err(WeightsError::Missing {
                tensor: self.shown(name),
                expected: shape.to_vec(),
                files: files.join(", "),
            });
        };
        let file = || self.files[entry.file].name.clone();
        if entry.shape != shape {
            return Err(WeightsError::Shape {
                file: file(),
                tensor: self.shown(name),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        match &entry.dtype {
            Ok(dtype) => Ok((entry, *dtype)),
            Err(found) => Err(WeightsError::Type {
                file: file(),
                tensor: self.shown(name),
                found: found.clone(),
            }),
        }
    }

    /// Returns the output projection `[vocab_size, hidden_width]`: a separate one if the model has it, else the
    /// token embeddings.
    ///
    /// # Errors
    /// As [`finite_tensor`](Self::finite_tensor).
    pub fn lm_head(&self, config: &ModelConfig) -> Result<TensorView<'_>, WeightsError> {
        let name = if self.has_separate_lm_head(config) {
            "lm_head.weight"
        } else {
            config.embedding_name()
        };
        self.finite_tensor(name, &config.embedding_shape())
    }

    /// Drops the mapped pages that were read so far; later reads load them from the file again.
    pub fn release_pages(&self) {
        for file in &self.files {
            file.release_pages();
        }
    }

    /// Returns the token embeddings, unless they are tied to the output projection.
    ///
    /// # Errors
    /// As [`finite_tensor`](Self::finite_tensor).
    pub fn separate_embedding(
        &self,
        config: &ModelConfig,
    ) -> Result<Option<Embedding>, WeightsError> {
        if !self.has_separate_lm_head(config) {
            return Ok(None);
        }
        let (name, shape) = (config.embedding_name(), config.embedding_shape());
        self.finite_tensor(name, &shape)?;
        let (entry, dtype) = self.find(name, &shape)?;
        let [vocab_size, width] = shape;
        Ok(Some(Embedding {
            bytes: self.files[entry.file].bytes.clone(),
            range: entry.range.clone(),
            dtype,
            width,
            vocab_size,
        }))
    }

    /// GPT-2 with a `lm_head.weight` is not tied whatever its configuration says.
    fn has_separate_lm_head(&self, config: &ModelConfig) -> bool {
        let has_own = || {
            matches!(config, ModelConfig::Gpt2(_)) && self.tensors.contains_key("lm_head.weight")
        };
        !config.tie_word_embeddings() || has_own()
    }

    /// Checks that every tensor of the model exists with its shape, and that no tensor belongs to a
    /// layer beyond the configuration's.
    ///
    /// # Errors
    /// The first [`WeightsError`] of [`tensor`](Self::tensor), or [`WeightsError::FurtherLayer`].
    pub fn validate(&self, config: &ModelConfig) -> Result<(), WeightsError> {
        let layers = (0..config.layers()).flat_map(|layer| config.layer_tensors(layer));
        for (name, mut shape) in config.outer_tensors().into_iter().chain(layers) {
            if self.matrices_out_in() && config.is_conv1d(&name) {
                shape.reverse();
            }
            self.tensor(&name, &shape)?;
        }
        if self.has_separate_lm_head(config) {
            self.tensor("lm_head.weight", &config.embedding_shape())?;
        }
        self.check_layers(config)
    }

    /// Checks that no tensor belongs to a layer beyond the configuration's: such a model would run without
    /// its last layers.
    fn check_layers(&self, config: &ModelConfig) -> Result<(), WeightsError> {
        let (prefix, field) = match config {
            ModelConfig::Gpt2(_) => ("h.", "n_layer"),
            ModelConfig::Gemma(_) | ModelConfig::Llama(_) => ("layers.", "num_hidden_layers"),
        };
        let layer = |name: &str| {
            let (layer, _) = name.strip_prefix(prefix)?.split_once('.')?;
            layer.parse::<usize>().ok()
        };
        let layers = self.tensors.iter();
        let further = layers
            .filter_map(|(name, entry)| Some((layer(name)?, name, entry)))
            .filter(|(layer, ..)| *layer >= config.layers())
            .min_by_key(|(layer, name, _)| (*layer, *name));
        match further {
            None => Ok(()),
            Some((layer, name, entry)) => Err(WeightsError::FurtherLayer {
                file: self.files[entry.file].name.clone(),
                tensor: self.shown(name),
                layer,
                field,
                layers: config.layers(),
            }),
        }
    }
}

/// Returns a tensor's name without the prefix of the class that saved it.
fn without_prefix(name: &str) -> &str {
    let mut prefixes = PREFIXES.iter();
    let rest = prefixes.find_map(|prefix| name.strip_prefix(prefix));
    rest.unwrap_or(name)
}

fn supported(dtype: Dtype) -> Result<StoredType, String> {
    match dtype {
        Dtype::F32 => Ok(StoredType::F32),
        Dtype::F16 => Ok(StoredType::F16),
        Dtype::BF16 => Ok(StoredType::Bf16),
        other => Err(format!("{other:?}")),
    }
}

fn map(path: &Path) -> Result<WeightFile, WeightsError> {
    WeightFile::map(path).map_err(|source| WeightsError::Io {
        file: path.display().to_string(),
        source,
    })
}

/// Returns the distinct shard names of an index, in order; at least one.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, WeightsError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let file = index.display().to_string();
    let bytes = regular_file::read(index, MAX_INDEX_BYTES).map_err(|source| WeightsError::Io {
        file: file.clone(),
        source,
    })?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| WeightsError::Index {
        file: file.clone(),
        reason: e.to_string(),
    })?;
    let names: std::collections::BTreeSet<String> = index.weight_map.into_values().collect();
    let is_shard = |name: &String| name.ends_with(".safetensors") && !name.contains(['/', '\\']);
    if let Some(other) = names.iter().find(|name| !is_shard(name)) {
        return Err(WeightsError::Index {
            file,
            reason: format!("{other:?} is not a safetensors file in the same directory"),
        });
    }
    if names.is_empty() {
        return Err(WeightsError::Index {
            file,
            reason: "it does not name any shards".to_owned(),
        });
    }
    Ok(names.into_iter().collect())
}

/// The token embeddings of a model whose output projection is separate. Rows are read from the mapped file, so
/// only the pages of tokens in use become resident.
pub struct Embedding {
    bytes: FileBytes,
    range: Range<usize>,
    dtype: StoredType,
    width: usize,
    vocab_size: usize,
}

impl Embedding {
    /// Adds the embeddings of `ids` to `x`, `[ids, width]`.
    ///
    /// # Errors
    /// [`WeightsError::TokenId`] if an id is outside the vocabulary.
    pub fn add_rows(&self, ids: &[u32], x: &mut [f32]) -> Result<(), WeightsError> {
        let row = self.dtype.bytes_of(self.width);
        let mut embedding = vec![0.0; self.width];
        for (&id, x) in ids.iter().zip(x.chunks_exact_mut(self.width)) {
            let start = self.range.start + id as usize * row;
            let bytes = self.bytes.as_ref().get(start..start + row);
            let Some(bytes) = bytes.filter(|_| (id as usize) < self.vocab_size) else {
                return Err(WeightsError::TokenId {
                    id,
                    vocab_size: self.vocab_size,
                });
            };
            widen(bytes, self.dtype, &mut embedding);
            for (x, e) in x.iter_mut().zip(&embedding) {
                *x += e;
            }
        }
        Ok(())
    }
}
