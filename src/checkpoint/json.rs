//! JSON files of a checkpoint, with errors that name the field.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Track;

/// Error of a JSON file, with the path to the field.
pub type JsonError = serde_path_to_error::Error<serde_json::Error>;

/// Parses the content of a JSON file.
///
/// # Errors
/// [`JsonError`] if the content is not JSON or does not have the fields of `T`.
pub(super) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json)?;
    json.end()
        .map_err(|error| JsonError::new(Track::new().path(), error))?;
    Ok(value)
}

/// The value of `eos_token_id`: one token id, or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}
