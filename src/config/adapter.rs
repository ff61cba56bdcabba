//! Adapters in settings: `NAME=PATH_OR_ID`.

use std::fmt;
use std::str::FromStr;

/// An adapter to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterSetting {
    /// Its name for clients.
    pub name: String,
    /// Its directory or hub id.
    pub source: String,
}

/// The text is not `NAME=PATH_OR_ID`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an adapter; write NAME=DIRECTORY or NAME=ORG/ID, such as pirate=./adapters/pirate"
)]
pub struct InvalidAdapter(String);

impl FromStr for AdapterSetting {
    type Err = InvalidAdapter;

    fn from_str(text: &str) -> Result<Self, InvalidAdapter> {
        match text.split_once('=') {
            Some((name, source)) if !name.is_empty() && !source.is_empty() => Ok(Self {
                name: name.to_owned(),
                source: source.to_owned(),
            }),
            _ => Err(InvalidAdapter(text.to_owned())),
        }
    }
}

impl fmt::Display for AdapterSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.source)
    }
}
