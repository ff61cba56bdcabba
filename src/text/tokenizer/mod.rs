//! Tokenizers: from text to tokens, and the bytes of each token.
//!
//! A token is a string of bytes, not of characters: [`Tokenizer::token_bytes`] is exact, while text
//! comes from decoding several tokens together. A text is the bytes of its tokens one after another,
//! but for its first token, which some tokenizers write differently: see [`Speller`].
//!
//! | module | what it is for |
//! |---|---|
//! | `json`, `file` | `tokenizer.json` and its components |
//! | `arrays` | the vocabulary of a GGUF file |
//! | `settings` | `vocab.json` and `merges.txt`; what the files beside a tokenizer ask for |
//! | `pipeline` | from text to tokens: `added`, `normalize`, `split` (with `classes`), `bpe` |
//! | `spelling` | the bytes of each token |
//! | `vocab`, `table`, `trie` | texts and ids; merges; texts by their first bytes |
//! | `library` | tokenizers that the `tokenizers` library runs |

mod added;
mod arrays;
mod bpe;
mod classes;
mod file;
mod json;
mod library;
mod normalize;
mod pipeline;
mod settings;
mod spelling;
mod split;
mod table;
pub(in crate::text) mod trie;
mod vocab;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

pub use self::added::AddedToken;
pub use self::arrays::VocabularyArrays;
pub use self::bpe::Merge;
use self::library::Library;
use self::normalize::Place;
use self::pipeline::{Pipeline, Reading};
pub use self::settings::TokenizerSettings;
pub use self::spelling::Speller;
use self::spelling::Spelling;
#[cfg(any(test, fuzzing))]
pub(crate) use self::spelling::byte_alphabet;

/// The largest token id, the same as for a model's vocabulary.
const MAX_ID: u32 = (1 << 24) - 1;

/// Error of loading a tokenizer or of tokenizing a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The tokenizer's files are not valid.
    #[error("{file} is not a usable tokenizer: {reason}")]
    Load {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The text could not be tokenized.
    #[error("the text could not be tokenized: {0}")]
    Encode(String),
}

/// A token and its range of characters in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSpan {
    /// Token id.
    pub id: u32,
    /// Its first character, counted in characters from the start of the text.
    pub start: usize,
    /// End of its characters, exclusive.
    pub end: usize,
}

/// A model's tokenizer. Encoding runs on the calling thread alone.
pub struct Tokenizer {
    encoder: Encoder,
    spelling: Spelling,
    /// Whether each token is special, and whether it is control.
    kinds: Vec<Kind>,
    /// The token that a text begins with.
    bos: Option<u32>,
    /// The token that the files call so, whether or not a text begins with it.
    named_bos: Option<u32>,
    eos: Option<u32>,
    end_of_text: Option<u32>,
    ends_of_turn: Vec<u32>,
}

/// What runs a tokenizer.
enum Encoder {
    Own(Box<Pipeline>),
    Library(Box<Library>),
}

/// Kind of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Text.
    Text,
    /// Directs the model, but is shown.
    Control,
    /// Directs the model, and is hidden.
    Special,
}

/// What a tokenizer is made of.
struct Parts {
    encoder: Encoder,
    spelling: Spelling,
}

impl Tokenizer {
    /// Reads the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::Load`] if it is not a valid tokenizer.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TextError> {
        checked("tokenizer.json", || json::read(bytes))
    }

    /// Reads `vocab.json` and `merges.txt`, as OpenAI published them.
    ///
    /// # Errors
    /// [`TextError::Load`] if a file is missing or not valid.
    pub fn from_vocab_and_merges(vocab: &Path, merges: &Path) -> Result<Self, TextError> {
        checked(&vocab.display().to_string(), || {
            settings::vocab_and_merges(vocab, merges)
        })
    }

    /// Rebuilds the tokenizer of a GGUF file; `file` is its name in messages.
    ///
    /// # Errors
    /// [`TextError::Load`] if the arrays are not a known vocabulary.
    pub fn from_arrays(file: &str, arrays: VocabularyArrays) -> Result<Self, TextError> {
        checked(file, || arrays::build(arrays))
    }

    /// Applies what the files beside a tokenizer ask for; `file` is the tokenizer's name in messages.
    ///
    /// # Errors
    /// [`TextError::Load`] if they contradict the tokenizer.
    pub fn with_settings(
        mut self,
        file: &str,
        settings: &TokenizerSettings,
    ) -> Result<Self, TextError> {
        checked(file, || self.apply(settings).map(|()| self))
    }

    fn new(parts: Parts) -> Self {
        let Parts { encoder, spelling } = parts;
        let mut tokenizer = Self {
            encoder,
            spelling,
            kinds: Vec::new(),
            bos: None,
            named_bos: None,
            eos: None,
            end_of_text: None,
            ends_of_turn: Vec::new(),
        };
        tokenizer.find_kinds();
        tokenizer
    }

    /// Spells the vocabulary again, after tokens were added.
    fn refresh(&mut self) -> Result<(), String> {
        self.spelling = match &self.encoder {
            Encoder::Own(pipeline) => {
                let literal = pipeline.bpe.is_byte_level();
                let text = |token: &AddedToken| {
                    if literal {
                        token.content.clone()
                    } else {
                        token.content.replace(spelling::MARK, " ")
                    }
                };
                let added = pipeline.added.iter();
                let mut spelling = self.spelling.clone();
                spelling.add(&added.map(|(id, token)| (id, text(token))).collect());
                spelling
            }
            Encoder::Library(library) => library.spelling()?,
        };
        self.find_kinds();
        Ok(())
    }

    fn find_kinds(&mut self) {
        let added = match &self.encoder {
            Encoder::Own(pipeline) => {
                let tokens = pipeline.added.iter();
                tokens.map(|(id, token)| (id, token.clone())).collect()
            }
            Encoder::Library(library) => library.added(),
        };
        self.kinds = vec![Kind::Text; self.vocab_size()];
        for (id, token) in added {
            if let Some(kind) = self.kinds.get_mut(id as usize) {
                *kind = match (token.special, token.is_control()) {
                    (true, _) => Kind::Special,
                    (false, true) => Kind::Control,
                    (false, false) => Kind::Text,
                };
            }
        }
        self.end_of_text = self.id(settings::END_OF_TEXT);
        let control = |text: &str| self.id(text).filter(|&id| self.is_control(id));
        self.ends_of_turn = arrays::ends_of_turn(control);
    }

    /// Returns the token ids of a text. With `parse_special`, special tokens in it are special.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the library fails.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TextError> {
        self.encode_at(text, parse_special, Place::Start)
    }

    /// Encodes a text that continues another, so that no space is put before it.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the library fails.
    pub fn encode_continued(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TextError> {
        self.encode_at(text, parse_special, Place::Continued)
    }

    /// Encodes a part of a text, in which control tokens are plain text.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the library fails.
    pub(in crate::text) fn encode_part(
        &self,
        text: &str,
        is_first: bool,
    ) -> Result<Vec<u32>, TextError> {
        let place = if is_first { Place::Start } else { Place::Later };
        self.encode_at(text, false, place)
    }

    fn encode_at(&self, text: &str, control: bool, place: Place) -> Result<Vec<u32>, TextError> {
        match &self.encoder {
            Encoder::Own(pipeline) => {
                let mut ids = Vec::with_capacity(text.len() / 4);
                let reading = Reading { control, place };
                pipeline.encode(text, reading, |section| ids.extend(section.ids()));
                Ok(ids)
            }
            Encoder::Library(library) => library.encode(text, control),
        }
    }

    /// Encodes a prompt: special tokens in it are special, and it begins with
    /// [`bos`](Self::bos), once.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the library fails.
    pub fn encode_prompt(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TextError> {
        let mut ids = self.encode(text, parse_special)?;
        self.add_bos(&mut ids);
        Ok(ids)
    }

    /// Returns whether a text may begin with a space that is not part of it.
    #[must_use]
    pub fn adds_space(&self) -> bool {
        match &self.encoder {
            Encoder::Own(pipeline) => pipeline.adds_space(),
            Encoder::Library(_) => false,
        }
    }

    /// Removes [`bos`](Self::bos) from the beginning of a prompt that continues a text.
    pub fn without_bos(&self, ids: &mut Vec<u32>) {
        if self.bos.is_some() && ids.first() == self.bos.as_ref() {
            ids.remove(0);
        }
    }

    /// Leaves the last `most` tokens of a prompt, and of those [`bos`](Self::bos) as the first if the
    /// prompt begins with it.
    pub fn keep_last(&self, ids: &mut Vec<u32>, most: usize) {
        let removed = ids.len().saturating_sub(most);
        let begins_text = self.bos.is_some() && ids.first() == self.bos.as_ref();
        if removed > 0 {
            ids.drain(..removed);
            if let (Some(first), true) = (ids.first_mut(), begins_text) {
                *first = self.bos.unwrap_or(*first);
            }
        }
    }

    /// Puts [`bos`](Self::bos) first, unless the tokens begin with it. Returns whether it was added.
    pub fn add_bos(&self, ids: &mut Vec<u32>) -> bool {
        let missing = self.bos.filter(|bos| ids.first() != Some(bos));
        if let Some(bos) = missing {
            ids.insert(0, bos);
        }
        missing.is_some()
    }

    /// Encodes like [`encode`](Self::encode), with the range of every token in the text.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the library fails.
    pub fn encode_spans(
        &self,
        text: &str,
        parse_special: bool,
    ) -> Result<Vec<TokenSpan>, TextError> {
        let pipeline = match &self.encoder {
            Encoder::Own(pipeline) => pipeline,
            Encoder::Library(library) => return library.spans(text, parse_special),
        };
        let reading = Reading {
            control: parse_special,
            place: Place::Start,
        };
        let (mut spans, mut before) = (Vec::with_capacity(text.len() / 4), 0);
        pipeline.encode(text, reading, |section| {
            before += section.spans(|id, start, end| {
                spans.push(TokenSpan {
                    id,
                    start: before + start,
                    end: before + end,
                });
            });
        });
        Ok(spans)
    }

    /// Returns the text of token ids from its beginning; bytes that are not UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut speller = Speller::at_start();
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.spell(&mut speller, id));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the bytes of the next token of a text; for a special token, its name. Empty if the
    /// token does not exist.
    pub fn spell(&self, speller: &mut Speller, id: u32) -> &[u8] {
        speller.spell(&self.spelling, id)
    }

    /// Returns the speller of what follows a context.
    #[must_use]
    pub fn speller_after(&self, context: &[&[u32]]) -> Speller {
        let is_text = |&&id: &&u32| !self.is_special(id);
        let mut context = context.iter().copied().flatten();
        if self.spelling.is_alike() || context.any(|id| is_text(&id)) {
            Speller::within()
        } else {
            Speller::at_start()
        }
    }

    /// Returns the bytes of a token within a text; for a special token, its name. `None` if the token
    /// does not exist.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.spelling.bytes(id)
    }

    /// Returns a token in the vocabulary's notation, with `Ġ` or `▁` for a leading space. `None` if
    /// the token does not exist.
    #[must_use]
    pub fn token_name(&self, id: u32) -> Option<String> {
        match &self.encoder {
            Encoder::Own(pipeline) => {
                let added = pipeline.added.get(id).map(|token| token.content.as_str());
                added.or_else(|| pipeline.vocab.text(id)).map(str::to_owned)
            }
            Encoder::Library(library) => library.text(id),
        }
    }

    /// Returns the id of a token in the vocabulary's notation.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::Own(pipeline) => pipeline.vocab.id(name).or_else(|| pipeline.added.id(name)),
            Encoder::Library(library) => library.id(name),
        }
    }

    /// Returns the merges that make a token of its symbols, in order; none for a special token, or in
    /// a tokenizer that does not merge.
    #[must_use]
    pub fn merges(&self, id: u32) -> Vec<Merge> {
        match &self.encoder {
            Encoder::Own(pipeline) if !self.is_control(id) && pipeline.vocab.text(id).is_some() => {
                let bytes = |id| self.token_bytes(id).unwrap_or_default();
                pipeline.bpe.steps(&pipeline.vocab, id, bytes)
            }
            _ => Vec::new(),
        }
    }

    /// Returns whether a token is special, like end-of-text: hidden in generated text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::Special)
    }

    /// Returns whether a token directs the model: it is special, or one of those that direct it
    /// without being marked as special. In a text from a user it is plain text.
    #[must_use]
    pub fn is_control(&self, id: u32) -> bool {
        let kind = self.kinds.get(id as usize);
        kind.is_some_and(|kind| *kind != Kind::Text)
    }

    /// Returns the texts of the tokens that direct the model.
    pub fn control_texts(&self) -> impl Iterator<Item = &str> {
        let ids = (0..)
            .zip(&self.kinds)
            .filter(|(_, kind)| **kind != Kind::Text);
        let bytes = ids.filter_map(|(id, _)| self.token_bytes(id));
        bytes
            .filter_map(|bytes| std::str::from_utf8(bytes).ok())
            .filter(|text| !text.is_empty())
    }

    /// Returns the number of token ids.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.spelling.len()
    }

    /// Returns the token that the tokenizer puts before a text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the token that the files name as the first of a text, whether or not the tokenizer
    /// puts it there.
    #[must_use]
    pub fn named_bos(&self) -> Option<u32> {
        self.named_bos.or(self.bos)
    }

    /// Returns the token that the files name as the last of a text.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Returns the id of `<|endoftext|>`, or of the token that ends a text in its place.
    #[must_use]
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Returns the token that stands for an empty prompt.
    #[must_use]
    pub fn empty_prompt(&self) -> Option<u32> {
        self.bos.or(self.end_of_text).or(self.named_bos)
    }

    /// Returns the tokens that end an assistant's turn, as far as they are known by their names.
    #[must_use]
    pub fn ends_of_turn(&self) -> &[u32] {
        &self.ends_of_turn
    }
}

/// Loads a tokenizer, and catches panics of the library on some inconsistent files.
fn checked(
    file: &str,
    load_it: impl FnOnce() -> Result<Tokenizer, String>,
) -> Result<Tokenizer, TextError> {
    let failed = || Err("the tokenizers library failed".to_owned());
    let loaded = catch_unwind(AssertUnwindSafe(load_it)).unwrap_or_else(|_| failed());
    loaded.map_err(|reason| TextError::Load {
        file: file.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests;
