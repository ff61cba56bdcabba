//! The content of a `tokenizer.json`, read without copying its texts: those of large vocabularies
//! have 30 MB.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::added::AddedToken;

/// A `tokenizer.json`.
#[derive(Deserialize)]
pub(super) struct TokenizerFile<'f> {
    #[serde(default)]
    pub(super) added_tokens: Vec<NumberedToken>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    #[serde(borrow)]
    pub(super) model: ModelFile<'f>,
}

/// An added token with its id.
#[derive(Deserialize)]
pub(super) struct NumberedToken {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: AddedToken,
}

/// The model of a `tokenizer.json`, as far as it is a byte-pair encoding.
#[derive(Deserialize)]
pub(super) struct ModelFile<'f> {
    #[serde(rename = "type", default)]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) unk_token: Option<String>,
    #[serde(default)]
    pub(super) continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    #[serde(borrow, default)]
    pub(super) vocab: VocabFile<'f>,
    #[serde(borrow, default)]
    pub(super) merges: Option<Vec<MergeFile<'f>>>,
}

/// Tokens and their ids; empty for a vocabulary in another form.
#[derive(Default)]
pub(super) struct VocabFile<'f>(pub(super) Vec<(Cow<'f, str>, u32)>);

/// The two parts of a merge.
pub(super) struct MergeFile<'f>(pub(super) Cow<'f, str>, pub(super) Cow<'f, str>);

/// A text that is borrowed wherever it has no escapes.
struct Text<'f>(Cow<'f, str>);

impl<'de: 'f, 'f> Deserialize<'de> for Text<'f> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Any)
    }
}

impl<'de: 'f, 'f> Deserialize<'de> for VocabFile<'f> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = VocabFile<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from tokens to ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut tokens = Vec::new();
                while let Some((Text(token), id)) = map.next_entry()? {
                    tokens.push((token, id));
                }
                Ok(VocabFile(tokens))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(VocabFile(Vec::new()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de: 'f, 'f> Deserialize<'de> for MergeFile<'f> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = MergeFile<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("two tokens, in a list or with a space between them")
            }
            fn visit_borrowed_str<E: Error>(self, both: &'de str) -> Result<Self::Value, E> {
                match pair(both) {
                    Some((left, right)) => Ok(MergeFile(left.into(), right.into())),
                    None => Err(E::invalid_value(serde::de::Unexpected::Str(both), &self)),
                }
            }
            fn visit_str<E: Error>(self, both: &str) -> Result<Self::Value, E> {
                match pair(both) {
                    Some((left, right)) => {
                        Ok(MergeFile(left.to_owned().into(), right.to_owned().into()))
                    }
                    None => Err(E::invalid_value(serde::de::Unexpected::Str(both), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let left = seq.next_element::<Text>()?;
                let right = seq.next_element::<Text>()?;
                let more = seq.next_element::<IgnoredAny>()?;
                match (left, right, more) {
                    (Some(Text(left)), Some(Text(right)), None) => Ok(MergeFile(left, right)),
                    _ => Err(A::Error::invalid_length(0, &self)),
                }
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Returns the two parts of a merge that is written with a space between them.
pub(super) fn pair(both: &str) -> Option<(&str, &str)> {
    let (left, right) = both.split_once(' ')?;
    (!right.contains(' ')).then_some((left, right))
}
