//! Tokenizers that the `tokenizers` library runs: `WordPiece`, Unigram, and what else is not a
//! byte-pair encoding that [`pipeline`](super::pipeline) knows.

use tokenizers::Tokenizer as Inner;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::{AddedToken as LibraryToken, Decoder as _};

use super::added::AddedToken;
use super::spelling::{ByteStrings, First, Spelling, byte_of};
use super::{MAX_ID, TextError, TokenSpan};

/// A tokenizer of the library.
pub(super) struct Library {
    /// Encodes special tokens in a text as special tokens.
    parsing: Inner,
    /// Encodes special tokens in a text as plain text.
    plain: Inner,
}

impl Library {
    /// Creates a tokenizer.
    ///
    /// # Errors
    /// If its settings contradict themselves, or an id is too large.
    pub(super) fn new(mut parsing: Inner) -> Result<Self, String> {
        // The scheduler enforces the context length, and batches are not padded.
        parsing.with_padding(None);
        let cut = parsing.with_truncation(None);
        cut.map_err(|error| error.to_string())?;
        let last = parsing.get_vocab(true).into_values().max().unwrap_or(0);
        if last > MAX_ID {
            return Err(format!(
                "it has the token id {last}; the largest possible is {MAX_ID}"
            ));
        }
        let plain = Self::plain(&parsing);
        Ok(Self { parsing, plain })
    }

    fn plain(parsing: &Inner) -> Inner {
        let mut plain = parsing.clone();
        plain.set_encode_special_tokens(true);
        plain
    }

    fn inner(&self, control: bool) -> &Inner {
        if control { &self.parsing } else { &self.plain }
    }

    /// Returns the token ids of a text.
    ///
    /// # Errors
    /// If the library fails.
    pub(super) fn encode(&self, text: &str, control: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner(control).encode_fast(text, false);
        let encoding = encoding.map_err(|error| TextError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the tokens of a text with their characters.
    ///
    /// # Errors
    /// If the library fails.
    pub(super) fn spans(&self, text: &str, control: bool) -> Result<Vec<TokenSpan>, TextError> {
        let encoding = self.inner(control).encode_char_offsets(text, false);
        let encoding = encoding.map_err(|error| TextError::Encode(error.to_string()))?;
        let places = encoding.get_ids().iter().zip(encoding.get_offsets());
        let span = |(&id, &(start, end)): (&u32, &(usize, usize))| TokenSpan {
            id,
            start: start.min(end),
            end,
        };
        Ok(places.map(span).collect())
    }

    /// Returns a token as it is written in the vocabulary.
    pub(super) fn text(&self, id: u32) -> Option<String> {
        self.parsing.id_to_token(id)
    }

    /// Returns the id of a token as it is written in the vocabulary.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.parsing.token_to_id(text)
    }

    /// Returns the number of ids up to the last.
    pub(super) fn len(&self) -> usize {
        let ids = self.parsing.get_vocab(true).into_values();
        ids.max().map_or(0, |last| last as usize + 1)
    }

    /// Returns the added tokens.
    pub(super) fn added(&self) -> Vec<(u32, AddedToken)> {
        let added = self.parsing.get_added_tokens_decoder().into_iter();
        let token = |(id, token): (u32, LibraryToken)| {
            let token = AddedToken {
                content: token.content,
                special: token.special,
                normalized: token.normalized,
                single_word: token.single_word,
                lstrip: token.lstrip,
                rstrip: token.rstrip,
            };
            (id, token)
        };
        added.map(token).collect()
    }

    /// Adds a token; its id is the vocabulary's, or the next free one.
    ///
    /// # Errors
    /// If the library refuses it.
    pub(super) fn add(&mut self, token: &AddedToken) -> Result<(), String> {
        let added = LibraryToken {
            content: token.content.clone(),
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            normalized: token.normalized,
            special: token.special,
        };
        let added = self.parsing.add_tokens([added]);
        added.map_err(|error| error.to_string())?;
        self.plain = Self::plain(&self.parsing);
        Ok(())
    }

    /// Returns the spelling of the vocabulary by its own decoder.
    pub(super) fn spelling(&self) -> Result<Spelling, String> {
        let added = self.parsing.get_added_tokens_decoder();
        let names = (0..u32::try_from(self.len()).unwrap_or(u32::MAX)).map(|id| {
            let literal = added.contains_key(&id);
            self.text(id).map(|text| (text, literal))
        });
        let decoder = self.parsing.get_decoder();
        spelled(decoder.ok_or("it does not have a decoder")?, names)
    }
}

/// Returns the spelling of tokens by a decoder: what it makes of each alone, and after another one.
///
/// # Errors
/// If the decoder fails.
pub(super) fn spelled(
    decoder: &DecoderWrapper,
    names: impl Iterator<Item = Option<(String, bool)>>,
) -> Result<Spelling, String> {
    /// A token before another one.
    const BEFORE: &str = "a";
    let decode = |tokens: Vec<String>| {
        let decoded = decoder.decode(tokens);
        decoded.map_err(|error| format!("its decoder failed: {error}"))
    };
    let before = decode(vec![BEFORE.to_owned()])?;
    let (mut tokens, mut first) = (ByteStrings::default(), ByteStrings::default());
    for name in names {
        let Some((name, literal)) = name else {
            tokens.push(b"");
            first.push(b"");
            continue;
        };
        // A byte is no text by itself.
        if let Some(byte) = byte_of(&name).filter(|byte| !literal && is_fallback(decoder, *byte)) {
            tokens.push(&[byte]);
            first.push(&[byte]);
            continue;
        }
        let both = decode(vec![BEFORE.to_owned(), name.clone()])?;
        let after = both.strip_prefix(&before).unwrap_or(&both);
        tokens.push(after.as_bytes());
        first.push(decode(vec![name])?.as_bytes());
    }
    Ok(Spelling::new(tokens, First::Listed(first)))
}

/// Returns whether the decoder writes `<0xNN>` as a byte.
fn is_fallback(decoder: &DecoderWrapper, byte: u8) -> bool {
    let name = format!("<0x{byte:02X}>");
    let decoded = decoder.decode(vec![name.clone()]);
    decoded.is_ok_and(|text| !text.contains(&name))
}
