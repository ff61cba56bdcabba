//! Checks single fields against the ranges of their dialect.
//!
//! Every message names the field, the value and the range. Conditions on several fields or on the model
//! are checked by [`Limits::admit`](crate::request::Limits::admit), not here.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::ApiError;
use crate::request::{Deadline, InvalidRequest, in_range, short};

/// Returns a number in a range that includes its ends.
pub(super) fn number(
    field: &str,
    value: Option<f64>,
    range: RangeInclusive<f64>,
) -> Result<Option<f32>, InvalidRequest> {
    value
        .map(|value| in_range(field, value, range).map(narrow))
        .transpose()
}

/// Returns a number above 0, up to and including `most`.
pub(super) fn above_zero(
    field: &str,
    value: Option<f64>,
    most: f64,
) -> Result<Option<f32>, InvalidRequest> {
    value
        .map(|value| {
            if value > 0.0 && value <= most {
                Ok(narrow(value).max(f32::MIN_POSITIVE))
            } else {
                Err(InvalidRequest::new(
                    field,
                    format!(
                        "`{field}` must be above 0 and at most {}, got {}",
                        short(most),
                        short(value)
                    ),
                ))
            }
        })
        .transpose()
}

/// Returns an integer in a range as a count.
pub(super) fn integer(
    field: &str,
    value: Option<i64>,
    range: RangeInclusive<usize>,
) -> Result<Option<usize>, InvalidRequest> {
    let Some(value) = value else { return Ok(None) };
    usize::try_from(value)
        .ok()
        .filter(|count| range.contains(count))
        .map(Some)
        .ok_or_else(|| {
            InvalidRequest::new(
                field,
                format!(
                    "`{field}` must be an integer from {} to {}, got {value}",
                    range.start(),
                    range.end()
                ),
            )
        })
}

/// Returns an integer that is at least `least`; the model or the server sets the upper limit later.
pub(super) fn at_least(
    field: &str,
    value: Option<i64>,
    least: usize,
) -> Result<Option<usize>, InvalidRequest> {
    let Some(value) = value else { return Ok(None) };
    usize::try_from(value)
        .ok()
        .filter(|&count| count >= least)
        .map(Some)
        .ok_or_else(|| {
            InvalidRequest::new(
                field,
                format!("`{field}` must be an integer of at least {least}, got {value}"),
            )
        })
}

/// Range of `priority`.
const PRIORITIES: RangeInclusive<i64> = -1000..=1000;

/// Returns the value of `priority`; 0 if it is left out.
pub(super) fn priority(given: Option<i64>) -> Result<i32, InvalidRequest> {
    let priority = in_range("priority", given.unwrap_or(0), PRIORITIES)?;
    #[expect(clippy::cast_possible_truncation, reason = "in a small range")]
    Ok(priority as i32)
}

/// Range of `timeout` in seconds: from a millisecond to a day.
const TIMEOUTS: RangeInclusive<f64> = 0.001..=86_400.0;

/// Returns the deadline for a `timeout` in seconds, counted from now.
pub(super) fn deadline(timeout: Option<f64>) -> Result<Option<Deadline>, InvalidRequest> {
    let Some(seconds) = timeout else {
        return Ok(None);
    };
    if TIMEOUTS.contains(&seconds) {
        return Ok(Some(Deadline::after(Duration::from_secs_f64(seconds))));
    }
    Err(InvalidRequest::new(
        "timeout",
        format!(
            "`timeout` must be {} to {} seconds, got {}",
            short(TIMEOUTS.start()),
            short(TIMEOUTS.end()),
            short(seconds)
        ),
    ))
}

/// Returns the error for a feature of other servers that is not supported.
pub(super) fn unsupported(field: &str, value: impl Display, why: &str) -> ApiError {
    ApiError::invalid(
        field,
        format!("`{field}` is not supported: {why} (got {value})"),
    )
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "parameters arrive as f64 and are used as f32"
)]
fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_and_name_field_value_and_limit() {
        assert_eq!(number("temperature", Some(2.0), 0.0..=2.0), Ok(Some(2.0)));
        assert_eq!(number("temperature", None, 0.0..=2.0), Ok(None));
        let message = |result: Result<Option<f32>, InvalidRequest>| result.unwrap_err().message;
        assert_eq!(
            message(number("temperature", Some(2.5), 0.0..=2.0)),
            "`temperature` must be 0 to 2, got 2.5"
        );
        assert_eq!(
            message(above_zero("top_p", Some(0.0), 1.0)),
            "`top_p` must be above 0 and at most 1, got 0"
        );
        assert_eq!(above_zero("top_p", Some(1.0), 1.0), Ok(Some(1.0)));
        assert_eq!(
            message(number("temperature", Some(-1e-300), 0.0..=2.0)),
            "`temperature` must be 0 to 2, got -1e-300"
        );
        assert_eq!(
            message(above_zero("top_p", Some(1e300), 1.0)),
            "`top_p` must be above 0 and at most 1, got 1e300"
        );
        assert!(above_zero("top_p", Some(1e-60), 1.0).unwrap().unwrap() > 0.0);
    }

    #[test]
    fn a_timeout_is_a_positive_number_of_seconds() {
        assert_eq!(deadline(None), Ok(None));
        let half = deadline(Some(0.5)).unwrap().expect("a deadline");
        assert_eq!(half.timeout(), Duration::from_millis(500));
        assert!(!half.has_passed());
        let message = deadline(Some(1e-300)).unwrap_err().message;
        assert_eq!(
            message,
            "`timeout` must be 0.001 to 86400 seconds, got 1e-300"
        );
        for wrong in [0.0, 1e-10, -1.0, 86_401.0, f64::NAN] {
            let message = deadline(Some(wrong)).unwrap_err().message;
            assert!(
                message.starts_with("`timeout` must be 0.001 to 86400"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_priority_is_an_integer_in_a_small_range() {
        assert_eq!(priority(None), Ok(0));
        assert_eq!(priority(Some(-1000)), Ok(-1000));
        let message = priority(Some(1001)).unwrap_err().message;
        assert_eq!(message, "`priority` must be -1000 to 1000, got 1001");
    }

    #[test]
    fn integers_hold_and_name_field_value_and_limit() {
        assert_eq!(integer("n", Some(128), 1..=128), Ok(Some(128)));
        assert_eq!(
            integer("n", Some(-1), 1..=128).unwrap_err().message,
            "`n` must be an integer from 1 to 128, got -1"
        );
        assert_eq!(
            at_least("max_tokens", Some(-1), 0).unwrap_err().message,
            "`max_tokens` must be an integer of at least 0, got -1"
        );
    }
}
