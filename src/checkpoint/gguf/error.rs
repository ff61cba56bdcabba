//! Errors of GGUF files.

/// Error of a GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file can't be opened or mapped.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not in the format, or is truncated.
    #[error("{file}: {problem}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A metadata key is missing, or its value can't be used.
    #[error("{file}: the key `{key}` {problem}")]
    Key {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// The description of a tensor is not valid.
    #[error("{file}: the tensor `{tensor}` {problem}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
}

impl GgufError {
    /// Returns the error of a file as a whole.
    pub(super) fn file(file: &str, problem: impl Into<String>) -> Self {
        Self::File {
            file: file.to_owned(),
            problem: problem.into(),
        }
    }

    /// Returns the error of a metadata key.
    pub(super) fn key(file: &str, key: &str, problem: impl Into<String>) -> Self {
        Self::Key {
            file: file.to_owned(),
            key: short(key),
            problem: problem.into(),
        }
    }

    /// Returns the error of a tensor.
    pub(super) fn tensor(file: &str, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor {
            file: file.to_owned(),
            tensor: short(tensor),
            problem: problem.into(),
        }
    }
}

/// Returns a name, or its beginning if it is long, because a name in a damaged file may be anything.
pub(super) fn short(name: &str) -> String {
    const SHOWN: usize = 80;
    if name.chars().count() <= SHOWN {
        return name.to_owned();
    }
    let mut shown: String = name.chars().take(SHOWN).collect();
    shown.push('…');
    shown
}
