//! The tensors of a checkpoint, by the names of the Hugging Face layout, in memory-mapped files: safetensors,
//! PyTorch's, GGUF.
//!
//! Nothing is converted here: a [`TensorView`] points into the mapped file (or the binary itself, for the
//! built-in model). Names are without the prefixes of the wrappers and the class that saved them
//! (`module.`, `transformer.`, `model.`, ...); tensors that the model does not use (`attn.bias`,
//! `vision_tower...`) are ignored.

mod error;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use safetensors::{Dtype, SafeTensors};

pub use self::error::WeightsError;
use super::config::ModelConfig;
use super::finite::{NotFinite, first_not_finite};
use super::gguf::{Gguf, GgufError, RowOrder, gguf_name};
use super::mapped::{FileBytes, WeightFile};
use super::shards::{StoredWeights, WeightsFormat};
pub use super::tensor::TensorView;
use super::torch::{self, Values};
use crate::kernels::stored::{StoredType, widen};

/// What wrappers put before the names of a model's tensors: `torch.compile`, data-parallel training, peft.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "module.", "base_model.model."];

/// What the names of a model's tensors may begin with, by the class that saved them. The longer ones are first.
const PREFIXES: [&str; 5] = [
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "transformer.",
    "model.",
];

/// The output projection's name.
const LM_HEAD: &str = "lm_head.weight";

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
    /// Whether token embeddings and output projection are one matrix, once that is known.
    tied: OnceLock<bool>,
}

impl Checkpoint {
    /// Maps `model.safetensors` of a directory, or all shards named by its index; without them, those of
    /// `pytorch_model.bin`.
    ///
    /// # Errors
    /// [`WeightsError`] with the file.
    pub fn open(directory: &Path) -> Result<Self, WeightsError> {
        let weights = StoredWeights::find(|file| directory.join(file).exists());
        let weights = weights.unwrap_or(StoredWeights::SAFETENSORS);
        let paths = weights.parts(directory)?.into_iter();
        let mut paths = paths.map(|name| directory.join(name));
        match weights.format {
            WeightsFormat::Safetensors => {
                let files = paths.map(|path| map(&path)).collect::<Result<_, _>>()?;
                Self::from_files(files)
            }
            WeightsFormat::Torch => {
                let mut all = Self::empty();
                paths.try_for_each(|path| all.add_torch(&path))?;
                Ok(all)
            }
        }
    }

    /// Maps one file of safetensors or, by its extension `bin`, of PyTorch.
    ///
    /// # Errors
    /// [`WeightsError`] with the file.
    pub fn open_file(path: &Path) -> Result<Self, WeightsError> {
        if path.extension().is_some_and(|extension| extension == "bin") {
            let mut all = Self::empty();
            all.add_torch(path)?;
            Ok(all)
        } else {
            Self::from_files(vec![map(path)?])
        }
    }

    /// Returns the names of all tensors, without prefixes, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the shape of a tensor, if it is there.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    fn empty() -> Self {
        Self {
            files: Vec::new(),
            tensors: HashMap::new(),
            gguf: None,
            tied: OnceLock::new(),
        }
    }

    /// Adds the tensors of a file of PyTorch.
    fn add_torch(&mut self, path: &Path) -> Result<(), WeightsError> {
        let (file, tensors) = torch::open(path)?;
        let name = file.name.clone();
        let whole = self.files.len();
        self.files.push(file);
        for tensor in tensors {
            let (file, range) = match tensor.values {
                Values::Stored(range) => (whole, range),
                Values::Copied(bytes) => {
                    let range = 0..bytes.as_ref().len();
                    let name = name.clone();
                    self.files.push(WeightFile { name, bytes });
                    (self.files.len() - 1, range)
                }
            };
            let entry = Entry {
                file,
                dtype: tensor.dtype,
                shape: tensor.shape,
                range,
                rows: None,
            };
            self.add(&tensor.name, entry)?;
        }
        Ok(())
    }

    /// Adds a tensor under its name without prefixes.
    fn add(&mut self, name: &str, entry: Entry) -> Result<(), WeightsError> {
        let (name, file) = (without_prefixes(name), entry.file);
        match self.tensors.insert(name.to_owned(), entry) {
            None => Ok(()),
            Some(_) => Err(WeightsError::Twice {
                file: self.files[file].name.clone(),
                tensor: name.to_owned(),
            }),
        }
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
        let mut all = Self {
            files,
            ..Self::empty()
        };
        for file in 0..all.files.len() {
            // A clone shares the mapping.
            let WeightFile { name, bytes } = all.files[file].clone();
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
                let entry = Entry {
                    file,
                    dtype: supported(info.dtype),
                    shape: info.shape.clone(),
                    range: data + info.data_offsets.0..data + info.data_offsets.1,
                    rows: None,
                };
                all.add(&tensor, entry)?;
            }
        }
        Ok(all)
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
            ..Self::empty()
        })
    }

    /// Returns whether the weights of Gemma's norms include the 1 that the model adds to them elsewhere.
    #[must_use]
    pub fn norms_include_one(&self) -> bool {
        self.gguf.is_some()
    }

    /// Returns whether GPT-2's matrices are `[out, in]`, as those of all other architectures and of nanoGPT, and
    /// not `[in, out]` as `Conv1D` has them. The matrix of queries, keys and values is the one whose shape
    /// tells, whatever the sizes are.
    #[must_use]
    pub fn matrices_out_in(&self) -> bool {
        let first = self.tensors.get("h.0.attn.c_attn.weight");
        let is_out_in = |entry: &Entry| matches!(entry.shape[..], [outputs, inputs] if outputs == inputs.saturating_mul(3));
        self.gguf.is_some() || first.is_some_and(is_out_in)
    }

    /// Returns whether the layers of a GPT-2 have biases: nanoGPT can do without. (`attn.bias` is not one, but
    /// the mask of causal attention.)
    #[must_use]
    pub fn has_biases(&self) -> bool {
        let mut names = self.tensors.keys();
        names.any(|name| {
            let mut parts = name.rsplit('.');
            parts.next() == Some("bias") && parts.next() != Some("attn")
        })
    }

    /// Returns what is unusual about the files of a GPT-2 and how they are read, for the log.
    #[must_use]
    pub fn peculiarities(&self, config: &ModelConfig) -> Vec<&'static str> {
        let ModelConfig::Gpt2(_) = config else {
            return Vec::new();
        };
        let both = [config.embedding_name(), LM_HEAD].map(|name| self.tensors.contains_key(name));
        let tied = config.tie_word_embeddings();
        let all = [
            (
                self.gguf.is_none() && self.matrices_out_in(),
                "the matrices are [out, in], as nanoGPT saves them, and are read so",
            ),
            (
                !self.has_biases(),
                "there are no biases, as in nanoGPT models trained without them; they are taken as 0",
            ),
            (
                tied && both == [true, true] && !self.is_tied(config),
                "`lm_head.weight` differs from `wte.weight` although `tie_word_embeddings` is true in \
                 config.json: `lm_head.weight` is used for the logits",
            ),
            (
                tied && both == [false, true],
                "there is no `wte.weight`: `lm_head.weight` is used for it, as `tie_word_embeddings` says",
            ),
        ];
        let present = all.into_iter().filter(|(is_so, _)| *is_so);
        present.map(|(_, what)| what).collect()
    }

    /// Returns the stored type of the token embeddings, which most of the model shares.
    #[must_use]
    pub fn dtype(&self) -> Option<StoredType> {
        let embeddings = ["wte.weight", "embed_tokens.weight", LM_HEAD];
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
        let dtype = entry.dtype.clone().map_err(|found| WeightsError::Type {
            file: file(),
            tensor: self.shown(name),
            found,
        })?;
        if entry.shape != shape {
            return Err(WeightsError::Shape {
                file: file(),
                tensor: self.shown(name),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok((entry, dtype))
    }

    /// Returns the output projection `[vocab_size, hidden_width]`: a separate one if the model has it, else the
    /// token embeddings.
    ///
    /// # Errors
    /// As [`finite_tensor`](Self::finite_tensor).
    pub fn lm_head(&self, config: &ModelConfig) -> Result<TensorView<'_>, WeightsError> {
        let name = if self.is_tied(config) {
            self.embedding_name(config)
        } else {
            LM_HEAD
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
        if self.is_tied(config) {
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

    /// Returns the name of the token embeddings: that of the output projection, if the files have only that and
    /// the two are tied.
    fn embedding_name(&self, config: &ModelConfig) -> &'static str {
        let name = config.embedding_name();
        let has = |name: &str| self.tensors.contains_key(name);
        if config.tie_word_embeddings() && !has(name) && has(LM_HEAD) {
            LM_HEAD
        } else {
            name
        }
    }

    /// Returns whether the output projection is the matrix of token embeddings: if the configuration says so,
    /// and the files do not have two that differ. Then both are used, as transformers 5 does.
    fn is_tied(&self, config: &ModelConfig) -> bool {
        *self.tied.get_or_init(|| {
            let stored = |name: &str| {
                let entry = self.tensors.get(name)?;
                let bytes = &self.files[entry.file].bytes.as_ref()[entry.range.clone()];
                Some((&entry.shape, &entry.dtype, bytes))
            };
            let both = stored(config.embedding_name()).zip(stored(LM_HEAD));
            config.tie_word_embeddings() && both.is_none_or(|(embedding, head)| embedding == head)
        })
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
            if name == config.embedding_name() {
                self.tensor(self.embedding_name(config), &shape)?;
            } else if !config.is_optional(&name) || self.has_biases() {
                self.tensor(&name, &shape)?;
            }
        }
        if !self.is_tied(config) {
            self.tensor(LM_HEAD, &config.embedding_shape())?;
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

/// Returns a tensor's name without the prefixes of wrappers and of the class that saved it.
fn without_prefixes(name: &str) -> &str {
    let mut name = name;
    while let Some(rest) = WRAPPERS
        .iter()
        .find_map(|wrapper| name.strip_prefix(wrapper))
    {
        name = rest;
    }
    let mut prefixes = PREFIXES.iter();
    let rest = prefixes.find_map(|prefix| name.strip_prefix(prefix));
    // A wrapper may be inside, around the model that has the prefix.
    let Some(rest) = rest else {
        return name;
    };
    let inner = WRAPPERS
        .iter()
        .find_map(|wrapper| rest.strip_prefix(wrapper));
    inner.unwrap_or(rest)
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
