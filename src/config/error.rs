//! Why settings can't be used.

use std::path::PathBuf;

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("the configuration file {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {}: {reason}", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// The parser's message, with the line.
        reason: String,
    },
    /// The file has a key that is not a setting.
    #[error("the configuration file {}, line {line}: unknown setting `{key}`{}", file.display(), suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// Line of the key.
        line: usize,
        /// The key.
        key: String,
        /// The setting with the most similar name.
        nearest: Option<String>,
    },
    /// A value in the file has the wrong type or form.
    #[error("the configuration file {}, line {line}: `{key}` is {value}; {expected}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// Line of the key.
        line: usize,
        /// The setting.
        key: String,
        /// Its value, unless it can contain a password.
        value: String,
        /// What to write instead.
        expected: String,
    },
    /// A batch would not fit into a step.
    #[error(
        "`max-batch` is {max_batch}, more than `max-step-tokens` ({max_step_tokens}): lower the one or raise the other"
    )]
    BatchExceedsStep {
        /// The setting `max-batch`.
        max_batch: usize,
        /// The setting `max-step-tokens`.
        max_step_tokens: usize,
    },
    /// A setting has no effect without another.
    #[error("`{given}` is set but `{missing}` is not; set both or neither")]
    Incomplete {
        /// The setting that has a value.
        given: &'static str,
        /// The setting that needs a value too.
        missing: &'static str,
    },
    /// The settings can't be read back from their text, which was checked before.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}
