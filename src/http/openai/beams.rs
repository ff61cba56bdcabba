//! The fields of a beam search, which are vLLM's.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::request::{BeamParams, EarlyStopping, in_range, short};

/// How much length may count.
const LENGTH_PENALTY: std::ops::RangeInclusive<f64> = -10.0..=10.0;

/// When a search that has as many finished beams as it is wide ends: `true` at once, `false` when
/// the best unfinished beam would be no better if it ended now, `"never"` when no beam can become
/// better. Default: `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum EarlyStoppingField {
    /// `true` or `false`.
    Flag(bool),
    /// `"never"`.
    Word(NeverField),
}

/// The one word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum NeverField {
    /// When no beam can become better.
    Never,
}

impl<'de> Deserialize<'de> for EarlyStoppingField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FlagOrWord;
        impl Visitor<'_> for FlagOrWord {
            type Value = EarlyStoppingField;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("true, false or \"never\"")
            }
            fn visit_bool<E: Error>(self, flag: bool) -> Result<EarlyStoppingField, E> {
                Ok(EarlyStoppingField::Flag(flag))
            }
            fn visit_str<E: Error>(self, word: &str) -> Result<EarlyStoppingField, E> {
                match word {
                    "never" => Ok(EarlyStoppingField::Word(NeverField::Never)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(FlagOrWord)
    }
}

impl From<EarlyStoppingField> for EarlyStopping {
    fn from(field: EarlyStoppingField) -> Self {
        match field {
            EarlyStoppingField::Flag(true) => Self::Always,
            EarlyStoppingField::Flag(false) => Self::Heuristic,
            EarlyStoppingField::Word(NeverField::Never) => Self::Never,
        }
    }
}

/// A completion request's fields that concern beam search alone.
pub(super) struct BeamFields {
    pub use_beam_search: bool,
    pub length_penalty: Option<f64>,
    pub early_stopping: Option<EarlyStoppingField>,
    pub stream: bool,
}

impl BeamFields {
    /// Returns the requested search of `width` beams, if any. What does not go with it beside
    /// these fields is for [`Limits::admit`](crate::request::Limits::admit) to say.
    ///
    /// # Errors
    /// A field out of its range, or that is of no use without `use_beam_search`, or `stream`.
    pub(super) fn checked(
        self,
        width: usize,
        returned: usize,
    ) -> Result<Option<BeamParams>, ApiError> {
        let length_penalty = self.length_penalty.unwrap_or(1.0);
        let length_penalty = in_range("length_penalty", length_penalty, LENGTH_PENALTY)?;
        let early_stopping = self
            .early_stopping
            .map(EarlyStopping::from)
            .unwrap_or_default();
        if self.use_beam_search {
            if self.stream {
                return Err(ApiError::invalid(
                    "stream",
                    "`stream` is not possible with `use_beam_search`: the best beams are only known at the end",
                ));
            }
            return Ok(Some(BeamParams {
                width,
                returned,
                length_penalty,
                early_stopping,
            }));
        }
        #[expect(
            clippy::float_cmp,
            reason = "1 is the exact value that changes nothing"
        )]
        if length_penalty != 1.0 {
            return Err(ApiError::invalid(
                "length_penalty",
                format!(
                    "`length_penalty` must be 1 or left out without `use_beam_search`, got {}",
                    short(length_penalty)
                ),
            ));
        }
        if early_stopping != EarlyStopping::Heuristic {
            return Err(ApiError::invalid(
                "early_stopping",
                "`early_stopping` must be false or left out without `use_beam_search`",
            ));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_stopping_is_a_flag_or_never() {
        let parse = |json: &str| {
            serde_json::from_str::<EarlyStoppingField>(json)
                .map(EarlyStopping::from)
                .map_err(|error| error.to_string())
        };
        assert_eq!(parse("true"), Ok(EarlyStopping::Always));
        assert_eq!(parse("false"), Ok(EarlyStopping::Heuristic));
        assert_eq!(parse("\"never\""), Ok(EarlyStopping::Never));
        for (json, part) in [("\"always\"", "\"always\""), ("1", "`1`")] {
            let message = parse(json).unwrap_err();
            assert!(
                message.contains(part) && message.contains("never"),
                "{message}"
            );
        }
    }
}
