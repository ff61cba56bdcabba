//! The tensors of a checkpoint, by GPT-2's names, in memory-mapped safetensors files.
//!
//! Nothing is copied or converted here: a [`TensorView`] points into the mapped file (or the binary
//! itself, for the built-in model). Names are accepted with and without the `transformer.` prefix;
//! tensors that the model does not use (`attn.bias`, ...) are ignored.

mod error;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};

pub use self::error::WeightsError;
use super::finite::{NotFinite, first_not_finite};
use super::gpt2_config::Gpt2Config;
pub use super::tensor::TensorView;
use crate::kernels::widen::widen;
use crate::regular_file;

/// Maximum size of `model.safetensors.index.json`, in bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The bytes of a file.
#[derive(Clone)]
enum FileBytes {
    Mapped(Arc<Mmap>),
    Embedded(&'static [u8]),
}

impl AsRef<[u8]> for FileBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped,
            Self::Embedded(bytes) => bytes,
        }
    }
}

struct WeightFile {
    name: String,
    bytes: FileBytes,
}

#[derive(Clone)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// All tensors of a model's safetensors files.
pub struct Checkpoint {
    files: Vec<WeightFile>,
    /// Tensors by name without the `transformer.` prefix.
    tensors: HashMap<String, Entry>,
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
                let name = tensor.strip_prefix("transformer.").unwrap_or(&tensor);
                let entry = Entry {
                    file,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    range: data + info.data_offsets.0..data + info.data_offsets.1,
                };
                if tensors.insert(name.to_owned(), entry).is_some() {
                    return Err(WeightsError::Twice {
                        file: files[file].name.clone(),
                        tensor: name.to_owned(),
                    });
                }
            }
        }
        Ok(Self { files, tensors })
    }

    /// Returns the stored type of the token embeddings, which most of the model shares.
    #[must_use]
    pub fn dtype(&self) -> Option<DType> {
        let entry = self.tensors.get("wte.weight")?;
        supported(entry.dtype)
    }

    /// Returns a tensor by its name without prefix.
    ///
    /// # Errors
    /// [`WeightsError`] if it is missing, or has a different shape or an unsupported type.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, WeightsError> {
        let (entry, dtype) = self.find(name, shape)?;
        let bytes = self.files[entry.file].bytes.as_ref();
        Ok(TensorView {
            bytes: &bytes[entry.range.clone()],
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
            tensor: name.to_owned(),
            value,
            index,
        })
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(&Entry, DType), WeightsError> {
        let Some(entry) = self.tensors.get(name) else {
            let files: Vec<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
            return Err(WeightsError::Missing {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                files: files.join(", "),
            });
        };
        let file = || self.files[entry.file].name.clone();
        if entry.shape != shape {
            return Err(WeightsError::Shape {
                file: file(),
                tensor: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        match supported(entry.dtype) {
            Some(dtype) => Ok((entry, dtype)),
            None => Err(WeightsError::Type {
                file: file(),
                tensor: name.to_owned(),
                found: format!("{:?}", entry.dtype),
            }),
        }
    }

    /// Returns the output projection `[vocab_size, n_embd]`: a separate one if the checkpoint has it,
    /// else the token embeddings.
    ///
    /// # Errors
    /// As [`finite_tensor`](Self::finite_tensor).
    pub fn lm_head(&self, config: &Gpt2Config) -> Result<TensorView<'_>, WeightsError> {
        self.finite_tensor(
            self.lm_head_name(config),
            &[config.vocab_size, config.n_embd],
        )
    }

    fn lm_head_name(&self, config: &Gpt2Config) -> &'static str {
        if self.has_separate_lm_head(config) {
            "lm_head.weight"
        } else {
            "wte.weight"
        }
    }

    /// Drops the mapped pages that were read so far; later reads load them from the file again.
    pub fn release_pages(&self) {
        for file in &self.files {
            if let FileBytes::Mapped(mapped) = &file.bytes {
                // SAFETY: the mapping of the file is read-only, so this only drops pages that are
                // read from the file again on access.
                #[allow(unsafe_code)]
                let released = unsafe { mapped.unchecked_advise(UncheckedAdvice::DontNeed) };
                if let Err(error) = released {
                    tracing::debug!(%error, file = file.name, "pages of mapped weights not released");
                }
            }
        }
    }

    /// Returns the token embeddings, unless they are tied to the output projection.
    ///
    /// # Errors
    /// As [`finite_tensor`](Self::finite_tensor).
    pub fn separate_embedding(
        &self,
        config: &Gpt2Config,
    ) -> Result<Option<Embedding>, WeightsError> {
        if !self.has_separate_lm_head(config) {
            return Ok(None);
        }
        let shape = [config.vocab_size, config.n_embd];
        self.finite_tensor("wte.weight", &shape)?;
        let (entry, dtype) = self.find("wte.weight", &shape)?;
        Ok(Some(Embedding {
            bytes: self.files[entry.file].bytes.clone(),
            range: entry.range.clone(),
            dtype,
            n_embd: config.n_embd,
            vocab_size: config.vocab_size,
        }))
    }

    fn has_separate_lm_head(&self, config: &Gpt2Config) -> bool {
        self.tensors.contains_key("lm_head.weight") || !config.tie_word_embeddings
    }

    /// Checks that every tensor of the model exists with its shape, and that no tensor belongs to a
    /// layer beyond `n_layer`.
    ///
    /// # Errors
    /// The first [`WeightsError`] of [`tensor`](Self::tensor), or [`WeightsError::FurtherLayer`].
    pub fn validate(&self, config: &Gpt2Config) -> Result<(), WeightsError> {
        let (n, inner) = (config.n_embd, config.n_inner);
        self.tensor("wte.weight", &[config.vocab_size, n])?;
        self.tensor("wpe.weight", &[config.n_positions, n])?;
        for i in 0..config.n_layer {
            for (name, shape) in [
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
            ] {
                self.tensor(&format!("h.{i}.{name}"), &shape)?;
            }
        }
        self.tensor("ln_f.weight", &[n])?;
        self.tensor("ln_f.bias", &[n])?;
        self.tensor(self.lm_head_name(config), &[config.vocab_size, n])?;
        self.check_layers(config.n_layer)
    }

    /// Checks that no tensor belongs to a layer beyond `n_layer`: such a model would run without
    /// its last layers.
    fn check_layers(&self, n_layer: usize) -> Result<(), WeightsError> {
        let layer = |name: &str| {
            let (layer, _) = name.strip_prefix("h.")?.split_once('.')?;
            layer.parse::<usize>().ok()
        };
        let layers = self.tensors.iter();
        let further = layers
            .filter_map(|(name, entry)| Some((layer(name)?, name, entry)))
            .filter(|(layer, ..)| *layer >= n_layer)
            .min_by_key(|(layer, name, _)| (*layer, *name));
        match further {
            None => Ok(()),
            Some((layer, name, entry)) => Err(WeightsError::FurtherLayer {
                file: self.files[entry.file].name.clone(),
                tensor: name.clone(),
                layer,
                n_layer,
            }),
        }
    }
}

fn supported(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

fn map(path: &Path) -> Result<WeightFile, WeightsError> {
    let name = path.display().to_string();
    let io = |source| WeightsError::Io {
        file: name.clone(),
        source,
    };
    let file = regular_file::open(path).map_err(io)?;
    // SAFETY: the mapping is read-only. The operator must not modify or truncate the file while the
    // server runs; every loader of mapped checkpoints relies on it.
    #[allow(unsafe_code)]
    let bytes = unsafe { Mmap::map(&file) }.map_err(io)?;
    Ok(WeightFile {
        bytes: FileBytes::Mapped(Arc::new(bytes)),
        name,
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

/// `wte` of a model whose output projection is separate. Rows are read from the mapped file, so
/// only the pages of tokens in use become resident.
pub struct Embedding {
    bytes: FileBytes,
    range: Range<usize>,
    dtype: DType,
    n_embd: usize,
    vocab_size: usize,
}

impl Embedding {
    /// Adds the embeddings of `ids` to `x`, `[ids, n_embd]`.
    ///
    /// # Errors
    /// [`WeightsError::TokenId`] if an id is outside the vocabulary.
    pub fn add_rows(&self, ids: &[u32], x: &mut [f32]) -> Result<(), WeightsError> {
        let row = self.n_embd * self.dtype.size_in_bytes();
        let mut embedding = vec![0.0; self.n_embd];
        for (&id, x) in ids.iter().zip(x.chunks_exact_mut(self.n_embd)) {
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
