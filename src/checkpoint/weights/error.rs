//! Why a checkpoint is not used: messages for the person who chose it.

/// Why a checkpoint's weights can't be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file can't be opened or mapped.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not in the safetensors format, or is cut short.
    #[error("{file} is not a complete safetensors file ({bytes} bytes): {reason}")]
    Format {
        /// The file.
        file: String,
        /// Its length.
        bytes: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// `model.safetensors.index.json` can't be understood.
    #[error("{file} is not an index of safetensors shards: {reason}")]
    Index {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor the model needs is in none of the files.
    #[error("the tensor `{tensor}` of shape {expected:?} is missing from {files}")]
    Missing {
        /// The tensor, by its name without prefix.
        tensor: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The files that were searched.
        files: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{file}: the tensor `{tensor}` has the shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file it is in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor has a type that is not supported.
    #[error("{file}: the tensor `{tensor}` has type {found}; expected F32, F16 or BF16")]
    Type {
        /// The file it is in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// There are more layers than the configuration says.
    #[error(
        "{file}: the tensor `{tensor}` belongs to layer {layer}, but `n_layer` in config.json is {n_layer} \
         (layers 0 to {}): the files belong to different models", n_layer - 1
    )]
    FurtherLayer {
        /// The file it is in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its layer, from 0.
        layer: usize,
        /// Layers that the configuration says.
        n_layer: usize,
    },
    /// The same tensor twice.
    #[error("{file}: duplicate tensor `{tensor}` (with and without a prefix, or in two shards)")]
    Twice {
        /// The file it is in the second time.
        file: String,
        /// The tensor, by its name without prefix.
        tensor: String,
    },
    /// A tensor has NaN or infinity in it.
    #[error(
        "{file}: the tensor `{tensor}` is {value} at {index:?}; weights must be finite numbers"
    )]
    NotFinite {
        /// The file it is in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its first such value.
        value: String,
        /// Where that is, in each dimension.
        index: Vec<usize>,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary ({vocab_size} tokens)")]
    TokenId {
        /// The id.
        id: u32,
        /// Ids are below this.
        vocab_size: usize,
    },
}
