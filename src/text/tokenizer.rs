//! GPT-2's byte-level BPE (Radford et al. 2019), implemented by the `tokenizers` library.
//!
//! A token is a string of bytes, not of characters: [`Tokenizer::token_bytes`] is exact, while text
//! comes from decoding several tokens together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::cuts::{Cuts, PART};
use super::merges::{Merge, Merges};

/// GPT-2's only special token.
const END_OF_TEXT: &str = "<|endoftext|>";

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
    /// Encodes special tokens in a text as special tokens.
    parsing: Inner,
    /// Encodes special tokens in a text as plain text.
    plain: Inner,
    /// The bytes of each token id; empty for unused ids.
    bytes: Vec<Box<[u8]>>,
    special: Vec<u32>,
    end_of_text: Option<u32>,
    /// Rules for cutting long texts; `None` if they must not be cut.
    cuts: Option<Cuts>,
    /// The vocabulary's merges, once an inspection needs them.
    merges: OnceLock<Merges>,
}

impl Tokenizer {
    /// Reads the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::Load`] if it is not a byte-level BPE.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TextError> {
        let file = "tokenizer.json";
        checked(file, || {
            let inner = Inner::from_bytes(bytes).map_err(|e| load(file, e))?;
            Self::new(inner, file)
        })
    }

    /// Reads `vocab.json` and `merges.txt`, as OpenAI published them.
    ///
    /// # Errors
    /// [`TextError::Load`] if a file is missing or not valid.
    pub fn from_vocab_and_merges(vocab: &Path, merges: &Path) -> Result<Self, TextError> {
        let file = vocab.display().to_string();
        let names = (vocab.to_str(), merges.to_str());
        let (Some(vocab), Some(merges)) = names else {
            return Err(load(&file, "the path is not UTF-8"));
        };
        checked(&file, || {
            let bpe = BPE::from_file(vocab, merges)
                .build()
                .map_err(|e| load(&file, e))?;
            let mut inner = Inner::new(bpe);
            inner.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
            inner.with_decoder(Some(ByteLevel::default()));
            let end_of_text = AddedToken::from(END_OF_TEXT, true).normalized(false);
            inner
                .add_special_tokens([end_of_text])
                .map_err(|e| load(&file, e))?;
            Self::new(inner, &file)
        })
    }

    fn new(mut parsing: Inner, file: &str) -> Result<Self, TextError> {
        // The scheduler enforces the context length, and batches are not padded.
        parsing.with_padding(None);
        parsing.with_truncation(None).map_err(|e| load(file, e))?;
        let ModelWrapper::BPE(bpe) = parsing.get_model() else {
            return Err(load(file, "its model is not of type BPE"));
        };
        if bpe.dropout.is_some() {
            // Dropout omits merges at random, for training. Here the same text must have the same
            // tokens.
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            parsing.with_model(bpe);
        }
        if parsing.get_decoder().is_none() {
            return Err(load(file, "it does not have a decoder, expected ByteLevel"));
        }
        let added = parsing.get_added_tokens_decoder();
        let ids = parsing.get_vocab(true).into_values().max().unwrap_or(0);
        // The table has one entry for each id up to the last, so a single absurd id would exhaust
        // memory.
        if ids > MAX_ID {
            let reason = format!("it has the token id {ids}; the largest possible is {MAX_ID}");
            return Err(load(file, reason));
        }
        let alphabet = byte_alphabet();
        let bytes = (0..=ids)
            .map(|id| match (added.get(&id), parsing.id_to_token(id)) {
                (Some(token), _) => token.content.as_bytes().into(),
                (None, Some(token)) => token_bytes(&token, &alphabet),
                (None, None) => Box::default(),
            })
            .collect();
        let special = added.iter().filter(|(_, token)| token.special);
        let special = special.map(|(&id, _)| id).collect();
        let mut plain = parsing.clone();
        plain.set_encode_special_tokens(true);
        Ok(Self {
            cuts: Cuts::of(&parsing),
            end_of_text: parsing.token_to_id(END_OF_TEXT),
            parsing,
            plain,
            bytes,
            special,
            merges: OnceLock::new(),
        })
    }

    fn inner(&self, parse_special: bool) -> &Inner {
        if parse_special {
            &self.parsing
        } else {
            &self.plain
        }
    }

    /// Returns the token ids of a text. With `parse_special`, `<|endoftext|>` in it is the special token.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the library fails.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TextError> {
        self.encode_in_parts(text, parse_special, PART)
    }

    fn encode_in_parts(
        &self,
        text: &str,
        parse_special: bool,
        length: usize,
    ) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        for part in Self::parts(self.cuts.as_ref(), text, length) {
            let encoding = self.inner(parse_special).encode_fast(part, false);
            let encoding = encoding.map_err(|e| TextError::Encode(e.to_string()))?;
            ids.extend_from_slice(encoding.get_ids());
        }
        Ok(ids)
    }

    /// Returns the parts of a text; the whole text if it can't be cut.
    fn parts<'a>(
        cuts: Option<&'a Cuts>,
        text: &'a str,
        length: usize,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        let parts = cuts.map(|cuts| cuts.parts(text, length));
        let whole = parts.is_none().then_some(text);
        parts.into_iter().flatten().chain(whole)
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
        self.spans_in_parts(text, parse_special, PART)
    }

    fn spans_in_parts(
        &self,
        text: &str,
        parse_special: bool,
        length: usize,
    ) -> Result<Vec<TokenSpan>, TextError> {
        let cuts = self.cuts.as_ref().filter(|cuts| cuts.keeps_places());
        let (mut spans, mut before) = (Vec::new(), 0);
        for part in Self::parts(cuts, text, length) {
            let encoding = self.inner(parse_special).encode_char_offsets(part, false);
            let encoding = encoding.map_err(|e| TextError::Encode(e.to_string()))?;
            let places = encoding.get_ids().iter().zip(encoding.get_offsets());
            spans.extend(places.map(|(&id, &(start, end))| TokenSpan {
                id,
                start: before + start,
                end: before + end,
            }));
            before += part.chars().count();
        }
        Ok(spans)
    }

    /// Returns the text of token ids; bytes that are not UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .filter_map(|&id| self.token_bytes(id))
            .flatten()
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the bytes of a token; for a special token, its name. `None` if the token does not
    /// exist.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id as usize).map(AsRef::as_ref)
    }

    /// Returns a token in the vocabulary's notation, with `Ġ` for a leading space. `None` if the
    /// token does not exist.
    #[must_use]
    pub fn token_name(&self, id: u32) -> Option<String> {
        self.parsing.id_to_token(id)
    }

    /// Returns the merges that make a token of its bytes, in order; none for a special token.
    #[must_use]
    pub fn merges(&self, id: u32) -> Vec<Merge> {
        match self.token_bytes(id) {
            Some(bytes) if !self.is_special(id) => {
                self.merges.get_or_init(|| merges(&self.parsing)).of(bytes)
            }
            _ => Vec::new(),
        }
    }

    /// Returns whether a token is special, like end-of-text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Returns the texts of the special tokens.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> {
        let bytes = self.special.iter().filter_map(|&id| self.token_bytes(id));
        bytes
            .filter_map(|bytes| std::str::from_utf8(bytes).ok())
            .filter(|text| !text.is_empty())
    }

    /// Returns the number of token ids.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the id of `<|endoftext|>`.
    #[must_use]
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }
}

/// Loads a tokenizer, and catches panics of the library on some inconsistent files.
fn checked(
    file: &str,
    load_it: impl FnOnce() -> Result<Tokenizer, TextError>,
) -> Result<Tokenizer, TextError> {
    catch_unwind(AssertUnwindSafe(load_it))
        .unwrap_or_else(|_| Err(load(file, "the tokenizers library failed")))
}

fn load(file: &str, reason: impl std::fmt::Display) -> TextError {
    TextError::Load {
        file: file.to_owned(),
        reason: reason.to_string(),
    }
}

/// Returns the byte of each character below U+0144, the inverse of GPT-2's printable encoding of
/// bytes. Printable bytes encode as themselves; the others, in order, as U+0100 and up.
pub(crate) fn byte_alphabet() -> Vec<Option<u8>> {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut alphabet = vec![None; 0x144];
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        let character = if prints(byte) {
            usize::from(byte)
        } else {
            next += 1;
            next - 1
        };
        if let Some(entry) = alphabet.get_mut(character) {
            *entry = Some(byte);
        }
    }
    alphabet
}

/// Returns the merges of a tokenizer's vocabulary.
fn merges(inner: &Inner) -> Merges {
    let ModelWrapper::BPE(bpe) = inner.get_model() else {
        return Merges::new(std::iter::empty());
    };
    // The library keeps them private, but writes them.
    let written = serde_json::to_value(bpe).unwrap_or_default();
    let pairs = written.get("merges").and_then(Value::as_array);
    let alphabet = byte_alphabet();
    let pairs = pairs.into_iter().flatten().filter_map(|pair| {
        let (left, right) = match pair {
            Value::String(pair) => pair.split_once(' ')?,
            Value::Array(pair) => match pair.as_slice() {
                [left, right] => (left.as_str()?, right.as_str()?),
                _ => return None,
            },
            _ => return None,
        };
        Some((token_bytes(left, &alphabet), token_bytes(right, &alphabet)))
    });
    Merges::new(pairs)
}

/// Returns the bytes of a token in the vocabulary's notation.
fn token_bytes(token: &str, alphabet: &[Option<u8>]) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(token.len());
    for character in token.chars() {
        match alphabet.get(character as usize).copied().flatten() {
            Some(byte) => bytes.push(byte),
            // The token is not written in the byte alphabet, so it is literal text.
            None => return token.as_bytes().into(),
        }
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn merges_end_with_the_token_itself() {
        let json = include_bytes!("../../assets/fairy-tales/tokenizer.json");
        let tokenizer = Tokenizer::from_json(json).unwrap();
        for id in [0, 257, 664, 1543, 8190] {
            let bytes = tokenizer.token_bytes(id).unwrap();
            let merges = tokenizer.merges(id);
            let last = merges.last().map(|merge| merge.parts.concat());
            assert_eq!(merges.len(), bytes.len() - 1, "{id}");
            assert_eq!(last.unwrap_or_else(|| bytes.to_vec()), bytes, "{id}");
            assert!(merges.iter().all(|merge| merge.parts.concat() == bytes));
        }
        assert!(tokenizer.merges(8191).is_empty());
        assert!(tokenizer.merges(9000).is_empty());
    }

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let mut bytes: Vec<u8> = byte_alphabet().into_iter().flatten().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(&*token_bytes("Ġthe", &byte_alphabet()), b" the");
        assert_eq!(&*token_bytes("Ċ", &byte_alphabet()), b"\n");
        assert_eq!(&*token_bytes("âĢ", &byte_alphabet()), b"\xe2\x80");
    }

    /// Returns pieces of text that GPT-2's pre-tokenizer treats specially.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "a",
            "s",
            "re",
            "ll",
            "The",
            "1",
            "42",
            " ",
            "  ",
            "\n",
            "\t",
            "\r",
            "\u{b}",
            "\u{85}",
            "\u{a0}",
            "\u{3000}",
            "'",
            "'s",
            "'ll",
            "\u{2019}",
            ".",
            "!?",
            "-",
            "<|endoftext|>",
            "<|",
            "endoftext",
            "|>",
            "é",
            "e\u{301}",
            "中",
            "文",
            "२",
            "½",
            "Ⅷ",
            "\u{1f43a}",
            "\u{200d}",
            "\0",
            "\u{1c5}",
        ]);
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn the_parts_of_a_text_have_the_tokens_of_the_whole(
            text in pieces(), length in 1_usize..12, parse_special: bool,
        ) {
            static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
                let json = include_bytes!("../../assets/fairy-tales/tokenizer.json");
                Tokenizer::from_json(json).unwrap()
            });
            let (whole, parts) = (usize::MAX, length);
            let encode = |length| TOKENIZER.encode_in_parts(&text, parse_special, length).unwrap();
            prop_assert_eq!(encode(parts), encode(whole));
            let spans = |length| TOKENIZER.spans_in_parts(&text, parse_special, length).unwrap();
            prop_assert_eq!(spans(parts), spans(whole));
        }
    }

    #[test]
    fn long_texts_are_cut_wherever_they_can_be() {
        let json = include_bytes!("../../assets/fairy-tales/tokenizer.json");
        let tokenizer = Tokenizer::from_json(json).unwrap();
        let cuts = tokenizer.cuts.as_ref().expect("it is GPT-2's kind");
        for unit in [
            "The wolf said. ",
            "a1",
            "\n.",
            ". ",
            "é1",
            "中.",
            "!a",
            "' ",
        ] {
            let text = unit.repeat(2000);
            let longest = cuts.parts(&text, 100).map(str::len).max();
            assert!(longest < Some(130), "{unit:?}: {longest:?}");
            assert_eq!(cuts.parts(&text, 100).collect::<String>(), text);
        }
        // White space looks ahead, and a run can't be split.
        for unit in [" ", "a", "'"] {
            let text = unit.repeat(2000);
            assert_eq!(cuts.parts(&text, 100).count(), 1, "{unit:?}");
        }
    }

    fn of_model(model: &str) -> Result<Tokenizer, TextError> {
        let decoder = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}"#;
        let json = format!(r#"{{"added_tokens": [], "decoder": {decoder}, "model": {model}}}"#);
        Tokenizer::from_json(json.as_bytes())
    }

    #[test]
    fn a_text_has_the_same_tokens_each_time() {
        let json = r#"{"type": "BPE", "dropout": 0.5, "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]]}"#;
        let tokenizer = of_model(json).unwrap();
        for _ in 0..64 {
            assert_eq!(tokenizer.encode("ab", false).unwrap(), [2]);
        }
    }

    #[test]
    fn files_that_contradict_themselves_are_refused() {
        let refused = |model| of_model(model).err().map(|error| error.to_string());
        // The library strips the prefix from each token of a merge, even from tokens without it.
        let prefix = r#"{"type": "BPE", "continuing_subword_prefix": "long",
            "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}"#;
        let said = refused(prefix).expect("an error");
        assert!(said.contains("the tokenizers library failed"), "{said}");
        let words = r#"{"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}"#;
        let said = refused(words).expect("an error");
        assert!(said.contains("its model is not of type BPE"), "{said}");
    }
}
