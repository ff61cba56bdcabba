//! The header of one GGUF file: metadata and the table of tensors.
//!
//! The format is ggml's (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), versions 2 and 3, little
//! endian. Every length, count, offset, type and depth is checked against the file before it is used. What is
//! allocated is bounded by the limits below and by the length of the file.

use std::collections::HashMap;
use std::ops::Range;

use super::cursor::Cursor;
use super::error::GgufError;
use super::types::stored_type;
use super::value::Value;
use crate::kernels::stored::StoredType;

const MAGIC: &[u8; 4] = b"GGUF";
/// Maximum number of metadata keys; published files have about 50.
const MAX_KEYS: u64 = 1 << 14;
/// Maximum number of tensors; published files have up to about 2,000.
const MAX_TENSORS: u64 = 1 << 17;
/// Maximum length of a key, in bytes, of the format itself.
const MAX_KEY: u64 = (1 << 16) - 1;
/// Maximum length of a tensor's name, in bytes; ggml's is 64.
const MAX_NAME: u64 = 256;
/// Maximum number of a tensor's dimensions, of ggml.
const MAX_DIMENSIONS: u32 = 4;
/// Maximum number of a tensor's values.
const MAX_ELEMENTS: usize = 1 << 40;
/// Alignment of tensors if the file does not set one, in bytes.
const ALIGNMENT: i128 = 32;
const MAX_ALIGNMENT: i128 = 1 << 16;

/// A tensor in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// The type of its values, or the name of one that is not supported.
    pub dtype: Result<StoredType, String>,
    /// Its shape, the innermost dimension last: `[out, in]`.
    pub shape: Vec<usize>,
    /// Its bytes in the file; empty if the type is not supported.
    pub range: Range<usize>,
}

/// The header of a file.
#[derive(Debug)]
pub(super) struct Header {
    pub keys: HashMap<String, Value>,
    /// In the order of the file.
    pub tensors: Vec<(String, GgufTensor)>,
}

impl Header {
    /// Reads the header of a file; `file` is its name in messages.
    pub fn read(file: &str, bytes: &[u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(bytes);
        let whole = |problem: String| GgufError::file(file, format!("the header {problem}"));
        check_magic(file, bytes)?;
        cursor.skip(MAGIC.len()).map_err(whole)?;
        check_version(file, cursor.u32().map_err(whole)?)?;
        // A tensor is a name, a number of dimensions, one of them, a type and an offset; a key a name, a type
        // and a value.
        let tensors = cursor.count("tensors", 8 + 4 + 8 + 4 + 8, MAX_TENSORS);
        let tensors = tensors.map_err(whole)?;
        let keys = cursor.count("keys", 8 + 4 + 1, MAX_KEYS).map_err(whole)?;
        let keys = read_keys(file, &mut cursor, keys)?;
        let alignment = alignment(file, bytes, &keys)?;
        let tensors = read_tensors(file, &mut cursor, tensors)?;
        // The data begins at the next aligned offset; without tensors there may be none.
        let data = cursor.at().next_multiple_of(alignment);
        let place = |(name, tensor): (String, Description)| {
            let placed = tensor.place(data, alignment, bytes.len());
            let error = |problem| GgufError::tensor(file, &name, problem);
            Ok((name.clone(), placed.map_err(error)?))
        };
        Ok(Self {
            keys,
            tensors: tensors.into_iter().map(place).collect::<Result<_, _>>()?,
        })
    }
}

fn check_magic(file: &str, bytes: &[u8]) -> Result<(), GgufError> {
    if bytes.starts_with(MAGIC) {
        return Ok(());
    }
    let problem = if bytes.starts_with(b"version https://git-lfs") {
        "it is a Git LFS pointer, not the model: fetch the file itself (`git lfs pull`)".to_owned()
    } else {
        let start = bytes.get(..MAGIC.len()).unwrap_or(bytes);
        format!(
            "it is not a GGUF file: it begins with {start:02x?}, expected {MAGIC:02x?} (`GGUF`)"
        )
    };
    Err(GgufError::file(file, problem))
}

fn check_version(file: &str, version: u32) -> Result<(), GgufError> {
    let problem = match version {
        2 | 3 => return Ok(()),
        version if matches!(version.swap_bytes(), 1..=3) => {
            "the file is big-endian; only little-endian files can be read".to_owned()
        }
        version => format!("the file has version {version} of the format; expected 2 or 3"),
    };
    Err(GgufError::file(file, problem))
}

fn read_keys(
    file: &str,
    cursor: &mut Cursor<'_>,
    count: usize,
) -> Result<HashMap<String, Value>, GgufError> {
    let mut keys = HashMap::new();
    for n in 0..count {
        let name = cursor.name(MAX_KEY);
        let name = name.map_err(|p| GgufError::file(file, format!("key {n} of {count} {p}")))?;
        let value = Value::read(cursor).map_err(|problem| GgufError::key(file, name, problem))?;
        if keys.insert(name.to_owned(), value).is_some() {
            return Err(GgufError::key(file, name, "is there twice"));
        }
    }
    Ok(keys)
}

fn alignment(file: &str, bytes: &[u8], keys: &HashMap<String, Value>) -> Result<usize, GgufError> {
    const KEY: &str = "general.alignment";
    let alignment = match keys.get(KEY) {
        None => ALIGNMENT,
        Some(value) => value.integer(bytes).unwrap_or(0),
    };
    match usize::try_from(alignment) {
        Ok(valid) if valid.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(valid),
        _ => Err(GgufError::key(
            file,
            KEY,
            format!("is {alignment}; expected a power of two up to {MAX_ALIGNMENT}"),
        )),
    }
}

/// A tensor as the table has it.
struct Description {
    /// The innermost dimension first.
    dimensions: Vec<u64>,
    dtype: Result<StoredType, String>,
    /// From the beginning of the data.
    offset: u64,
}

fn read_tensors(
    file: &str,
    cursor: &mut Cursor<'_>,
    count: usize,
) -> Result<Vec<(String, Description)>, GgufError> {
    let mut tensors = Vec::new();
    let mut names = std::collections::HashSet::new();
    for n in 0..count {
        let name = cursor.name(MAX_NAME);
        let name = name.map_err(|p| GgufError::file(file, format!("tensor {n} of {count} {p}")))?;
        let error = |problem: String| GgufError::tensor(file, name, problem);
        let tensor = Description::read(cursor).map_err(error)?;
        if !names.insert(name) {
            return Err(error("is there twice".to_owned()));
        }
        tensors.push((name.to_owned(), tensor));
    }
    Ok(tensors)
}

impl Description {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let count = cursor.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&count) {
            return Err(format!(
                "has {count} dimensions; expected 1 to {MAX_DIMENSIONS}"
            ));
        }
        let dimensions = (0..count).map(|_| cursor.u64());
        Ok(Self {
            dimensions: dimensions.collect::<Result<_, _>>()?,
            dtype: stored_type(cursor.u32()?),
            offset: cursor.u64()?,
        })
    }

    /// Returns where the tensor is in a file of `length` bytes whose data begins at `data`.
    fn place(self, data: usize, alignment: usize, length: usize) -> Result<GgufTensor, String> {
        let sizes = &self.dimensions;
        let absurd =
            || format!("has the dimensions {sizes:?}; expected 1 to {MAX_ELEMENTS} values");
        let sizes = sizes.iter().map(|&size| usize::try_from(size).ok());
        let mut shape: Vec<usize> = sizes.collect::<Option<_>>().ok_or_else(absurd)?;
        let elements = shape
            .iter()
            .try_fold(1, |product: usize, &size| product.checked_mul(size));
        let elements = elements.filter(|&count| (1..=MAX_ELEMENTS).contains(&count));
        let elements = elements.ok_or_else(absurd)?;
        let row = shape.first().copied().unwrap_or(1);
        shape.reverse();
        let Ok(dtype) = self.dtype else {
            return Ok(GgufTensor {
                dtype: self.dtype,
                shape,
                range: 0..0,
            });
        };
        if !row.is_multiple_of(dtype.block_len()) {
            return Err(format!(
                "has rows of {row} values of type {}, whose blocks have {}",
                dtype.name(),
                dtype.block_len()
            ));
        }
        let offset = usize::try_from(self.offset).unwrap_or(usize::MAX);
        if !offset.is_multiple_of(alignment) {
            return Err(format!(
                "has the offset {offset}, which is not a multiple of the alignment ({alignment})"
            ));
        }
        let bytes = dtype.bytes_of(elements);
        let start = data.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= length => Ok(GgufTensor {
                dtype: Ok(dtype),
                shape,
                range: start..end,
            }),
            _ => Err(format!(
                "of {bytes} bytes at offset {offset} of the data, which begins at {data}, is not within the \
                 file, which ends at {length}: is the download complete?"
            )),
        }
    }
}
