//! The four forms of `prompt` and `input`: a string, strings, token ids, lists of token ids.

use std::fmt;
use std::sync::Arc;

use serde::de::{Error, SeqAccess, Unexpected, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::http::admission::{Admission, TOKENIZE_INLINE};
use crate::http::error::ApiError;
use crate::request::InvalidRequest;
use crate::serving::Serving;
use crate::text::{Speller, TextError, Tokenizer, Utf8Decoder};

/// A string, a list of strings, a list of token ids, or a list of lists of token ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = json!("Once upon a time"))]
pub(in crate::http) enum Prompt {
    /// One text.
    Text(String),
    /// Several texts, each on its own.
    Texts(Vec<String>),
    /// One prompt as token ids.
    Tokens(Vec<u32>),
    /// Several prompts as token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt, as text or as ids.
#[derive(Debug)]
pub(super) enum OnePrompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl OnePrompt {
    /// How long it is to be read.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(ids) => size_of_val(ids.as_slice()),
        }
    }
}

/// Returns the token ids of all inputs of a request, as they are: an empty text has none.
///
/// # Errors
/// If the tokenizer fails, or too much is being tokenized.
pub(super) async fn token_ids(
    inputs: Vec<OnePrompt>,
    admission: &Admission,
    tokenizer: &Arc<Tokenizer>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let bytes = inputs.iter().map(OnePrompt::bytes).sum();
    let tokenizer = Arc::clone(tokenizer);
    let work = move || {
        let ids = inputs.into_iter().map(|input| match input {
            OnePrompt::Text(text) if text.is_empty() => Ok(Vec::new()),
            OnePrompt::Text(text) => tokenizer.encode_prompt(&text, true),
            OnePrompt::Tokens(ids) => Ok(ids),
        });
        ids.collect::<Result<_, _>>()
    };
    Ok(admission.run(bytes, TOKENIZE_INLINE, work).await??)
}

impl Prompt {
    /// Returns the number of prompts.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::TokenLists(lists) => lists.len(),
        }
    }

    /// Returns the prompts one by one.
    pub(super) fn split(self) -> Vec<OnePrompt> {
        match self {
            Self::Text(text) => vec![OnePrompt::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(OnePrompt::Text).collect(),
            Self::Tokens(ids) => vec![OnePrompt::Tokens(ids)],
            Self::TokenLists(lists) => lists.into_iter().map(OnePrompt::Tokens).collect(),
        }
    }
}

/// An element of a list.
enum Element {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Element;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }
            fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
                u32::try_from(id)
                    .map(Element::Token)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Element, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Element::Tokens)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Prompt;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, a list of strings, token ids, or lists of token ids")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }
            fn visit_string<E: Error>(self, text: String) -> Result<Prompt, E> {
                Ok(Prompt::Text(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompt, A::Error> {
                let mut prompt: Option<Prompt> = None;
                while let Some(element) = seq.next_element()? {
                    match (&mut prompt, element) {
                        (None, Element::Text(text)) => prompt = Some(Prompt::Texts(vec![text])),
                        (None, Element::Token(id)) => prompt = Some(Prompt::Tokens(vec![id])),
                        (None, Element::Tokens(ids)) => {
                            prompt = Some(Prompt::TokenLists(vec![ids]));
                        }
                        (Some(Prompt::Texts(texts)), Element::Text(text)) => texts.push(text),
                        (Some(Prompt::Tokens(ids)), Element::Token(id)) => ids.push(id),
                        (Some(Prompt::TokenLists(lists)), Element::Tokens(ids)) => lists.push(ids),
                        _ => {
                            return Err(A::Error::custom(
                                "the list mixes strings, token ids and lists of token ids, expected one kind",
                            ));
                        }
                    }
                }
                prompt.ok_or_else(|| A::Error::invalid_length(0, &"at least one element"))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A prompt as the engine and the answer need it.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenizedPrompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// What `echo` shows. Empty where end-of-text stands in for an empty prompt, and until it is made
    /// where only the ids are known.
    pub text: String,
    /// Characters of `text`.
    chars: usize,
    /// What the ids are to `text`.
    source: Source,
    /// Whether the first id was put before the text.
    has_bos: bool,
}

/// Where the text of a prompt comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Source {
    /// The request.
    #[default]
    Text,
    /// The ids, of which it is still to be made.
    Ids,
    /// Nowhere: the ids add nothing to it.
    StandIn,
}

impl TokenizedPrompt {
    /// Tokenizes one prompt. An empty text becomes the token that begins a text, else the end-of-text
    /// token, unless a session goes on.
    ///
    /// # Errors
    /// If the tokenizer fails.
    fn new(prompt: OnePrompt, tokenizer: &Tokenizer, in_session: bool) -> Result<Self, TextError> {
        Ok(match prompt {
            OnePrompt::Text(text) if text.is_empty() => Self::empty(tokenizer, in_session),
            OnePrompt::Text(text) => {
                let mut ids = tokenizer.encode(&text, true)?;
                let has_bos = tokenizer.add_bos(&mut ids);
                Self {
                    has_bos,
                    ..Self::with_text(ids, text)
                }
            }
            OnePrompt::Tokens(ids) => Self::without_text(ids),
        })
    }

    /// Tokenizes all prompts of a request.
    ///
    /// # Errors
    /// If the tokenizer fails, or too much is being tokenized.
    pub(super) async fn all(
        prompts: Vec<OnePrompt>,
        admission: &Admission,
        tokenizer: &Arc<Tokenizer>,
        in_session: bool,
    ) -> Result<Vec<Self>, ApiError> {
        let bytes = prompts.iter().map(OnePrompt::bytes).sum();
        let tokenizer = Arc::clone(tokenizer);
        let work = move || {
            let prompts = prompts.into_iter();
            let prompts = prompts.map(|prompt| Self::new(prompt, &tokenizer, in_session));
            prompts.collect::<Result<_, _>>()
        };
        Ok(admission.run(bytes, TOKENIZE_INLINE, work).await??)
    }

    /// Makes the texts that are still to be made of token ids, for answers that tell of `prompts`, each
    /// in `choices` choices.
    ///
    /// # Errors
    /// If they are too long for an answer, or too much is being done already.
    pub(super) async fn with_texts(
        mut prompts: Vec<Self>,
        choices: usize,
        admission: &Admission,
        serving: &Arc<Serving>,
    ) -> Result<Vec<Self>, ApiError> {
        let tokens: usize = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        let serving = Arc::clone(serving);
        let work = move || {
            let tokenizer = &serving.tokenizer;
            let lengths = prompts.iter().map(|prompt| prompt.text_bytes(tokenizer));
            let bytes = lengths.sum::<usize>().saturating_mul(choices);
            serving.limits.check_text("prompt", bytes)?;
            for prompt in &mut prompts {
                if prompt.source == Source::Ids {
                    let text = tokenizer.decode(prompt.ids_of_text());
                    *prompt = Self {
                        has_bos: prompt.has_bos,
                        ..Self::with_text(std::mem::take(&mut prompt.ids), text)
                    };
                }
            }
            Ok::<_, InvalidRequest>(prompts)
        };
        let bytes = tokens.saturating_mul(size_of::<u32>());
        Ok(admission.run(bytes, TOKENIZE_INLINE, work).await??)
    }

    /// Bytes of its text, made or not.
    fn text_bytes(&self, tokenizer: &Tokenizer) -> usize {
        let of = |&id| tokenizer.token_bytes(id).map_or(0, <[u8]>::len);
        match self.source {
            Source::Text => self.text.len(),
            Source::Ids => self.ids_of_text().iter().map(of).sum(),
            Source::StandIn => 0,
        }
    }

    /// Returns the ids that are part of the text.
    fn ids_of_text(&self) -> &[u32] {
        self.ids
            .get(usize::from(self.has_bos)..)
            .unwrap_or_default()
    }

    fn without_text(ids: Vec<u32>) -> Self {
        Self {
            ids,
            text: String::new(),
            chars: 0,
            source: Source::Ids,
            has_bos: false,
        }
    }

    fn with_text(ids: Vec<u32>, text: String) -> Self {
        Self {
            ids,
            chars: text.chars().count(),
            text,
            source: Source::Text,
            has_bos: false,
        }
    }

    /// Leaves only its last `tokens` tokens, and their text.
    pub(super) fn keep_last(&mut self, tokenizer: &Tokenizer, tokens: usize) {
        if self.ids.len() > tokens {
            tokenizer.keep_last(&mut self.ids, tokens);
            *self = Self {
                has_bos: self.has_bos,
                ..Self::without_text(std::mem::take(&mut self.ids))
            };
        }
    }

    /// Makes it what follows a session's history, rather than the beginning of a text.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub(super) fn continue_history(&mut self, tokenizer: &Tokenizer) -> Result<(), TextError> {
        if self.source == Source::Text && tokenizer.adds_space() {
            self.ids = tokenizer.encode_continued(&self.text, true)?;
        } else if self.has_bos {
            tokenizer.without_bos(&mut self.ids);
        }
        self.has_bos = false;
        Ok(())
    }

    /// Characters of the text.
    pub(super) fn chars(&self) -> usize {
        self.chars
    }

    /// No prompt.
    fn empty(tokenizer: &Tokenizer, in_session: bool) -> Self {
        Self {
            ids: if in_session {
                tokenizer.bos().into_iter().collect()
            } else {
                tokenizer.empty_prompt().into_iter().collect()
            },
            text: String::new(),
            chars: 0,
            source: Source::StandIn,
            has_bos: tokenizer.bos().is_some(),
        }
    }

    /// Characters of the text before each token.
    pub(super) fn offsets(&self, tokenizer: &Tokenizer) -> Vec<usize> {
        let mut text = Utf8Decoder::default();
        let mut speller = Speller::at_start();
        let bos = self.has_bos.then_some(0);
        let own = self.ids_of_text().iter().map(|&id| {
            let start = text.position().chars;
            if self.source != Source::StandIn {
                text.push(tokenizer.spell(&mut speller, id));
            }
            start
        });
        bos.into_iter().chain(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Prompt, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn all_four_forms_are_read() {
        assert_eq!(parse(r#""a""#), Ok(Prompt::Text("a".into())));
        assert_eq!(
            parse(r#"["a",""]"#),
            Ok(Prompt::Texts(vec!["a".into(), String::new()]))
        );
        assert_eq!(parse("[1,2]"), Ok(Prompt::Tokens(vec![1, 2])));
        assert_eq!(
            parse("[[1],[2,3]]"),
            Ok(Prompt::TokenLists(vec![vec![1], vec![2, 3]]))
        );
    }

    #[test]
    fn anything_else_says_what_was_expected() {
        for (json, part) in [
            ("[]", "at least one element"),
            ("3", "a string, a list of strings"),
            (r#"["a", 1]"#, "mixes"),
            ("[-1]", "-1"),
            ("[1.5]", "1.5"),
            ("[4294967296]", "4294967296"),
            (r#"[[1, "a"]]"#, "u32"),
        ] {
            let message = parse(json).unwrap_err();
            assert!(message.contains(part), "{json}: {message}");
        }
    }
}
