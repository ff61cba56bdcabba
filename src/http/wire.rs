//! Fields that both dialects share, as they are sent.
//!
//! Deserialized by hand where serde's untagged enums would only report "did not match any variant".

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{
    DeserializeOwned, Error, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::request::{InvalidRequest, in_range};

/// Deserializes an enum from a string, for `#[serde(deserialize_with)]`. Deserialized directly, a number
/// in its place would be reported as broken JSON by `serde_json`.
pub(super) fn word<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

/// An enum deserialized from a string by [`word`].
#[derive(Debug)]
pub(super) struct Word<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer).map(Self)
    }
}

/// Deserializes like [`word`], for a field that may be left out or null.
pub(super) fn optional_word<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    Ok(Option::<Word<T>>::deserialize(deserializer)?.map(|Word(value)| value))
}

/// One stop string, or a list of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, ToSchema, Serialize)]
#[serde(untagged)]
pub(super) enum StopStrings {
    /// No stop strings.
    #[default]
    #[serde(skip)]
    None,
    /// One stop string.
    One(String),
    /// A list of stop strings; each ends the generation.
    Many(Vec<String>),
}

impl StopStrings {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::One(stop) => vec![stop],
            Self::Many(stops) => stops,
        }
    }
}

impl<'de> Deserialize<'de> for StopStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = StopStrings;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_unit<E: Error>(self) -> Result<StopStrings, E> {
                Ok(StopStrings::None)
            }
            fn visit_str<E: Error>(self, stop: &str) -> Result<StopStrings, E> {
                Ok(StopStrings::One(stop.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<StopStrings, A::Error> {
                let mut stops = Vec::new();
                while let Some(stop) = seq.next_element()? {
                    stops.push(stop);
                }
                Ok(StopStrings::Many(stops))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// Biases added to the logits of tokens: a map from token ids to numbers from -100 to 100, or a list
/// of pairs `[id, number]`.
#[derive(Debug, Clone, Default, PartialEq, ToSchema)]
#[schema(value_type = BTreeMap<String, f64>, example = json!({"257": -100, "318": 2.5}))]
pub(super) struct LogitBias(BTreeMap<u32, f64>);

impl LogitBias {
    /// Returns ids and biases, lowest id first.
    pub(super) fn checked(self) -> Result<Vec<(u32, f32)>, InvalidRequest> {
        let check = |(id, bias)| {
            in_range(&format!("logit_bias.{id}"), bias, -100.0..=100.0)?;
            #[expect(clippy::cast_possible_truncation, reason = "at most 100")]
            Ok((id, bias as f32))
        };
        self.0.into_iter().map(check).collect()
    }
}

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapOrPairs;
        impl<'de> Visitor<'de> for MapOrPairs {
            type Value = LogitBias;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from token ids to numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LogitBias, A::Error> {
                let mut biases = BTreeMap::new();
                while let Some((key, bias)) = map.next_entry::<String, f64>()? {
                    let id = key.trim().parse().map_err(|_| {
                        A::Error::invalid_value(Unexpected::Str(&key), &"a token id as the key")
                    })?;
                    biases.insert(id, bias);
                }
                Ok(LogitBias(biases))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<LogitBias, A::Error> {
                let mut biases = BTreeMap::new();
                while let Some((id, bias)) = seq.next_element::<(u32, f64)>()? {
                    biases.insert(id, bias);
                }
                Ok(LogitBias(biases))
            }
        }
        deserializer.deserialize_any(MapOrPairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_is_a_string_or_strings() {
        let parse = |json: &str| serde_json::from_str::<StopStrings>(json);
        assert_eq!(parse(r#""a""#).unwrap().into_vec(), ["a"]);
        assert_eq!(parse(r#"["a","b"]"#).unwrap().into_vec(), ["a", "b"]);
        assert!(parse("[]").unwrap().into_vec().is_empty());
        let message = parse("3").unwrap_err().to_string();
        assert!(
            message.contains("a string or a list of strings"),
            "{message}"
        );
        let message = parse("[3]").unwrap_err().to_string();
        assert!(message.contains("expected a string"), "{message}");
    }

    #[test]
    fn logit_bias_is_a_map_or_pairs_within_its_range() {
        let parse = |json: &str| serde_json::from_str::<LogitBias>(json);
        let expected = vec![(3, -100.0), (15, 1.5)];
        assert_eq!(
            parse(r#"{"15": 1.5, "3": -100}"#)
                .unwrap()
                .checked()
                .unwrap(),
            expected
        );
        assert_eq!(
            parse("[[15, 1.5], [3, -100]]").unwrap().checked().unwrap(),
            expected
        );
        let message = parse(r#"{"x": 1}"#).unwrap_err().to_string();
        assert!(message.contains("\"x\""), "{message}");
        let refused = parse(r#"{"7": 101}"#).unwrap().checked().unwrap_err();
        assert_eq!(
            refused.message,
            "`logit_bias.7` must be -100 to 100, got 101"
        );
    }
}
