//! Errors of checkpoints, with messages for the operator.

use crate::checkpoint::gguf::GgufError;
use crate::kernels::stored::StoredType;

/// Error of a checkpoint's weights.
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
    /// A file is not in the safetensors format, or is truncated.
    #[error("{file} is not a complete safetensors file ({bytes} bytes): {reason}")]
    Format {
        /// The file.
        file: String,
        /// Its length.
        bytes: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of PyTorch can't be read.
    #[error("{file} can't be read as weights of PyTorch: {reason}")]
    Torch {
        /// The file.
        file: String,
        /// What is wrong with it, or what would help.
        reason: String,
    },
    /// An index of shards is not valid.
    #[error("{file} is not an index of shards: {reason}")]
    Index {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A required tensor is missing from all files.
    #[error("the tensor `{tensor}` of shape {expected:?} is missing from {files}")]
    Missing {
        /// Name of the tensor, without prefix.
        tensor: String,
        /// Expected shape.
        expected: Vec<usize>,
        /// The files that were searched.
        files: String,
    },
    /// The shape of a tensor does not match the configuration.
    #[error("{file}: the tensor `{tensor}` has the shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file it is in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// Shape required by the configuration.
        expected: Vec<usize>,
    },
    /// A GGUF file is not valid.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The rows of a tensor are not those of its heads.
    #[error(
        "{file}: the rows of the tensor `{tensor}` can't be divided into those of {heads} heads"
    )]
    Rows {
        /// The file it is in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Number of heads.
        heads: usize,
    },
    /// A tensor has a type that is not supported.
    #[error(
        "{file}: the tensor `{tensor}` has type {found}; expected F32, F16 or BF16, or in GGUF {}",
        quantized()
    )]
    Type {
        /// The file it is in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// The checkpoint has more layers than the configuration.
    #[error(
        "{file}: the tensor `{tensor}` belongs to layer {layer}, but `{field}` in config.json is {layers} \
         (layers 0 to {}): the files belong to different models", layers - 1
    )]
    FurtherLayer {
        /// The file it is in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its layer, from 0.
        layer: usize,
        /// The configuration's field of the number of layers.
        field: &'static str,
        /// Number of layers in the configuration.
        layers: usize,
    },
    /// A tensor occurs twice.
    #[error("{file}: duplicate tensor `{tensor}` (with and without a prefix, or in two shards)")]
    Twice {
        /// File of the second occurrence.
        file: String,
        /// Name of the tensor, without prefix.
        tensor: String,
    },
    /// A tensor contains NaN or infinity.
    #[error(
        "{file}: the tensor `{tensor}` is {value} at {index:?}; weights must be finite numbers"
    )]
    NotFinite {
        /// The file it is in.
        file: String,
        /// The tensor.
        tensor: String,
        /// The first value that is not finite.
        value: String,
        /// Index of that value in each dimension.
        index: Vec<usize>,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary ({vocab_size} tokens)")]
    TokenId {
        /// The id.
        id: u32,
        /// Number of token ids.
        vocab_size: usize,
    },
}

/// Returns the names of the quantized types.
fn quantized() -> String {
    let types = StoredType::ALL
        .iter()
        .filter(|stored| stored.is_quantized());
    let names: Vec<&str> = types.map(|stored| stored.name()).collect();
    names.join(", ")
}
