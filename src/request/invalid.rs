//! Why a request is refused before it reaches the engine, and how messages write numbers.

use std::fmt;
use std::ops::RangeInclusive;

/// Why a request was refused before it reached the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidRequest {
    /// The field at fault, by the dialect's name.
    pub field: String,
    /// Names the field, its value and the limit, for the person who sent the request.
    pub message: String,
    /// Whether prompt and completion together exceed the model's window.
    pub context_length_exceeded: bool,
}

impl InvalidRequest {
    /// Creates a refusal that concerns one field.
    #[must_use]
    pub fn new(field: &str, message: String) -> Self {
        Self {
            field: field.to_owned(),
            message,
            context_length_exceeded: false,
        }
    }

    /// Creates a refusal of what does not fit the model's window.
    pub(super) fn context_length(field: &str, message: String) -> Self {
        Self {
            context_length_exceeded: true,
            ..Self::new(field, message)
        }
    }

    /// Returns the refusal of the `n`-th element, where the field is a list.
    #[must_use]
    pub fn of_element(self, n: usize) -> Self {
        let element = format!("{}[{n}]", self.field);
        self.renamed(element)
    }

    /// Returns the refusal with the field called by another name.
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

/// Checks that a number lies in a range; the message names field, value and range.
///
/// # Errors
/// [`InvalidRequest`] if it does not, or is not a number.
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

/// Returns a number as errors show it: `0.5`, `2`, `1e-300`. Without an exponent, floats can take
/// hundreds of digits.
#[must_use]
pub fn short<T: fmt::Debug>(number: T) -> String {
    let mut text = format!("{number:?}");
    if text.ends_with(".0") {
        text.truncate(text.len() - 2);
    }
    text
}
