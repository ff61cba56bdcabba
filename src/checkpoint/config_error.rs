//! Errors of a `config.json`, and the checks that every architecture's configuration shares.

use std::fmt::Display;

use super::json::JsonError;

/// Maximum of every size, of the number of layers and of the vocabulary.
pub(super) const MAX_SIZE: usize = 1 << 24;

/// Error of a `config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: String,
        /// serde's error, with the path to the field.
        source: JsonError,
    },
    /// A field has a value that is not supported.
    #[error("{file}: `{field}` is {found}; {expected}")]
    Field {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What is supported.
        expected: String,
    },
}

/// Refuses values of one file's fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checker<'a> {
    /// Name of the file in messages.
    pub file: &'a str,
    /// Path of the object that has the fields: empty, or `text_config.`.
    pub path: &'a str,
}

impl Checker<'_> {
    /// Returns the error for a value that is not supported.
    pub fn refuse(
        &self,
        field: &str,
        found: &dyn Display,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Field {
            file: self.file.to_owned(),
            field: format!("{}{field}", self.path),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// Checks that a size is at least 1 and not absurd.
    pub fn size(&self, field: &str, value: usize) -> Result<usize, ConfigError> {
        if value == 0 || value > MAX_SIZE {
            let expected = format!("expected 1 to {MAX_SIZE}");
            return Err(self.refuse(field, &value, expected));
        }
        Ok(value)
    }

    /// Checks an epsilon, which the kernels use as f32.
    pub fn epsilon(&self, field: &str, value: f64, published: &str) -> Result<f64, ConfigError> {
        if (value as f32) > 0.0 && value <= 1.0 {
            return Ok(value);
        }
        let expected =
            format!("expected a number above 0, up to 1 ({published} in the published models)");
        Err(self.refuse(field, &value, expected))
    }

    /// Checks that a number is above 0 as f32 too, and finite.
    pub fn positive(&self, field: &str, value: f64) -> Result<f64, ConfigError> {
        if (value as f32) > 0.0 && (value as f32).is_finite() {
            return Ok(value);
        }
        Err(self.refuse(field, &value, "expected a number above 0"))
    }
}
