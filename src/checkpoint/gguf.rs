//! Models in GGUF, the format of llama.cpp: one file, or several parts, with metadata, tokenizer and weights.
//!
//! A file is not trusted: [`header`] checks all of it before anything is used. Files are memory-mapped; tensors
//! and arrays are views into them. This module reads and translates; it never computes with weights.
//!
//! | module | what it is for |
//! |---|---|
//! | `cursor`, `header`, `value` | the container: bytes, metadata and the table of tensors |
//! | `types` | the types of tensors |
//! | `config` | metadata as a `config.json` |
//! | `names` | names of tensors, and the rows that a converter moved |
//! | `vocabulary` | tokenizer, chat template, sampling defaults |
//! | `parts`, `choice` | which files of a directory or repository are one model, and which one is wanted |

pub(super) mod choice;
mod config;
mod cursor;
mod error;
mod header;
mod names;
mod parts;
mod types;
mod value;
mod vocabulary;

use std::collections::HashMap;
use std::path::Path;

pub use self::choice::{ChoiceError, GgufChoice};
pub use self::config::GgufConfigError;
pub use self::error::GgufError;
use self::error::short;
pub use self::header::GgufTensor;
use self::header::Header;
pub(super) use self::names::{RowOrder, gguf_name};
use self::value::Value;
use super::mapped::WeightFile;

/// The architectures that can be served.
const ARCHITECTURES: [&str; 7] = [
    "gpt2", "gemma", "gemma2", "gemma3", "llama", "qwen2", "qwen3",
];

/// Name of the token embeddings.
const EMBEDDINGS: &str = "token_embd.weight";

/// A model in GGUF: the metadata of its first file, and the tensors of all.
pub struct Gguf {
    files: Vec<WeightFile>,
    keys: HashMap<String, Value>,
    /// Number of the file and place in it, by name.
    tensors: HashMap<String, (usize, GgufTensor)>,
}

impl Gguf {
    /// Maps a file, and the other parts of its model if there are several.
    ///
    /// # Errors
    /// [`GgufError`] with file, and key or tensor.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let files = parts::of_file(path);
        let map = |path: &std::path::PathBuf| {
            WeightFile::map(path).map_err(|source| GgufError::Io {
                file: path.display().to_string(),
                source,
            })
        };
        Self::from_files(files.iter().map(map).collect::<Result<_, _>>()?)
    }

    /// Reads the parts of a model, in order.
    pub(super) fn from_files(files: Vec<WeightFile>) -> Result<Self, GgufError> {
        let mut keys = HashMap::new();
        let mut tensors = HashMap::new();
        for (n, file) in files.iter().enumerate() {
            let header = Header::read(&file.name, file.bytes.as_ref())?;
            for (name, tensor) in header.tensors {
                if tensors.contains_key(&name) {
                    let problem = "is in another part of the model too";
                    return Err(GgufError::tensor(&file.name, &name, problem));
                }
                tensors.insert(name, (n, tensor));
            }
            if n == 0 {
                keys = header.keys;
            }
        }
        let gguf = Self {
            files,
            keys,
            tensors,
        };
        gguf.check_parts()?;
        Ok(gguf)
    }

    /// Checks that all parts of the model are there.
    fn check_parts(&self) -> Result<(), GgufError> {
        let split = |key: &str, found: usize| {
            match self.size(key)? {
            Some(expected) if expected != found => Err(self.key_error(
                key,
                format!("is {expected}, but {found} were found: all parts must have the names they were made with"),
            )),
            _ => Ok(()),
        }
        };
        split("split.count", self.files.len())?;
        split("split.tensors.count", self.tensors.len())
    }

    /// Returns the name of the (first) file, for messages.
    #[must_use]
    pub fn file(&self) -> &str {
        self.files.first().map_or("", |file| &file.name)
    }

    /// Returns the architecture, one of those that can be served.
    ///
    /// # Errors
    /// [`GgufError`] if it is missing or is another one.
    pub fn architecture(&self) -> Result<&'static str, GgufError> {
        const KEY: &str = "general.architecture";
        let found = self.required(KEY, Self::text)?;
        let known = ARCHITECTURES.into_iter().find(|known| *known == found);
        known.ok_or_else(|| {
            let known = ARCHITECTURES.join(", ");
            self.key_error(
                KEY,
                format!("is `{}`; only {known} can be served", short(found)),
            )
        })
    }

    /// Returns the tensors and their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &GgufTensor)> {
        self.tensors.iter().map(|(name, (_, t))| (name.as_str(), t))
    }

    /// Returns the tensors that models of an architecture use: name in the Hugging Face layout, number of the
    /// file, tensor, and the order of its rows. `heads` are the numbers of query heads, and of key and value
    /// heads.
    pub(super) fn entries(
        &self,
        architecture: &'static str,
        (heads, kv_heads): (usize, usize),
    ) -> impl Iterator<Item = (String, usize, &GgufTensor, Option<RowOrder>)> {
        self.tensors
            .iter()
            .filter_map(move |(name, (file, tensor))| {
                let name = names::hugging_face_name(architecture, name)?;
                let rows = RowOrder::of(architecture, &name, heads, kv_heads);
                Some((name, *file, tensor, rows))
            })
    }

    /// Returns the mapped files.
    pub(super) fn into_files(self) -> Vec<WeightFile> {
        self.files
    }

    fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name).map(|(_, tensor)| tensor)
    }

    fn first_bytes(&self) -> &[u8] {
        self.files.first().map_or(&[], |file| file.bytes.as_ref())
    }

    fn key_error(&self, key: &str, problem: impl Into<String>) -> GgufError {
        GgufError::key(self.file(), key, problem)
    }

    /// Reads a value, if the key is there, with a function that returns `None` for another type.
    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value, &'a [u8]) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.keys.get(key) else {
            return Ok(None);
        };
        let found = read(value, self.first_bytes());
        found.map(Some).ok_or_else(|| {
            self.key_error(
                key,
                format!("is of type {}; expected {expected}", value.type_name()),
            )
        })
    }

    /// Returns what a reader finds under a key that must be there.
    fn required<'a, T>(
        &'a self,
        key: &str,
        read: impl Fn(&'a Self, &str) -> Result<Option<T>, GgufError>,
    ) -> Result<T, GgufError> {
        read(self, key)?.ok_or_else(|| self.key_error(key, "is missing"))
    }

    fn integer(&self, key: &str) -> Result<Option<i128>, GgufError> {
        self.read(key, "an integer", Value::integer)
    }

    /// Returns a size or a token id.
    fn size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        let integer = self.integer(key)?;
        integer.map(|value| self.to_size(key, value)).transpose()
    }

    fn to_size(&self, key: &str, value: i128) -> Result<usize, GgufError> {
        let size = u32::try_from(value).ok();
        size.map(|size| size as usize)
            .ok_or_else(|| self.key_error(key, format!("is {value}; expected 0 to {}", u32::MAX)))
    }

    /// Returns a number.
    fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        let number = self.read(key, "a number", Value::number)?;
        match number {
            Some(number) if !number.is_finite() => {
                Err(self.key_error(key, format!("is {number}; expected a finite number")))
            }
            number => Ok(number),
        }
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.read(key, "bool", Value::bool)
    }

    fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        let Some(bytes) = self.read(key, "string", |value, file| value.string(file))? else {
            return Ok(None);
        };
        let text = str::from_utf8(bytes);
        text.map(Some)
            .map_err(|_| self.key_error(key, "is not UTF-8"))
    }

    /// Returns an array of strings; empty if the key is missing.
    fn texts(&self, key: &str) -> Result<Vec<String>, GgufError> {
        let expected = "array of string";
        let Some(strings) = self.read(key, expected, |value, file| value.strings(file))? else {
            return Ok(Vec::new());
        };
        let text = |(n, bytes): (usize, &[u8])| match str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.key_error(key, format!("has element {n}, which is not UTF-8"))),
        };
        strings.enumerate().map(text).collect()
    }

    /// Returns an array of floats; empty if the key is missing.
    fn floats(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        let floats = self.read(key, "array of f32", |value, file| {
            value.floats(file).map(Iterator::collect)
        })?;
        Ok(floats.unwrap_or_default())
    }

    /// Returns the elements of an array of integers or bools, or a single one.
    fn integers(&self, key: &str) -> Result<Option<impl Iterator<Item = i128>>, GgufError> {
        self.read(key, "integers", |value, file| value.integers(file))
    }
}

#[cfg(test)]
mod tests;
