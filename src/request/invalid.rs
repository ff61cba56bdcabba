//! Errors of requests that are refused before they reach the engine, and the format of numbers in
//! messages.

use std::fmt;
use std::ops::RangeInclusive;

/// Error of a request that is refused before it reaches the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidRequest {
    /// The field at fault, by the dialect's name.
    pub field: String,
    /// Message for the client with the field, its value and the limit.
    pub message: String,
    /// Whether prompt and completion together exceed the model's window.
    pub context_length_exceeded: bool,
}

impl InvalidRequest {
    /// Creates the error of one field.
    #[must_use]
    pub fn new(field: &str, message: String) -> Self {
        Self {
            field: field.to_owned(),
            message,
            context_length_exceeded: false,
        }
    }

    /// Creates the error of a request that does not fit the model's window.
    #[must_use]
    pub fn context_length(field: &str, message: String) -> Self {
        Self {
            context_length_exceeded: true,
            ..Self::new(field, message)
        }
    }

    /// Returns the error for the `n`-th element of the field, which is a list.
    #[must_use]
    pub fn of_element(self, n: usize) -> Self {
        let element = format!("{}[{n}]", self.field);
        self.renamed(element)
    }

    /// Returns the error with another name for the field.
    #[must_use]
    pub fn renamed(self, field: String) -> Self {
        let (old, new) = (format!("`{}`", self.field), format!("`{field}`"));
        Self {
            message: self.message.replace(&old, &new),
            field,
            ..self
        }
    }
}

/// Checks that a number is in a range; the message has field, value and range.
///
/// # Errors
/// [`InvalidRequest`] if it is out of range or NaN.
pub fn in_range<T: PartialOrd + fmt::Debug>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, InvalidRequest> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(InvalidRequest::new(
        field,
        format!(
            "`{field}` must be {} to {}, got {}",
            short(range.start()),
            short(range.end()),
            short(value)
        ),
    ))
}

/// Formats a number for messages: `0.5`, `2`, `1e-300`. Without an exponent, floats can take
/// hundreds of digits.
#[must_use]
pub fn short<T: fmt::Debug>(number: T) -> String {
    let mut text = format!("{number:?}");
    if text.ends_with(".0") {
        text.truncate(text.len() - 2);
    }
    text
}
