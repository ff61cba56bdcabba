//! Messages of the database client's errors.

use std::error::Error as _;

use tokio_postgres::Error;

/// Formats an error with its source.
pub(super) fn message(error: &Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
