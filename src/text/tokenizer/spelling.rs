//! The bytes of each token, and what a tokenizer's decoder does at the beginning of a text.
//!
//! A text is the bytes of its tokens one after another, but for its first token, which some decoders
//! write differently: `SentencePiece` puts a space before the first word, and takes it away again. So
//! there are two spellings of a token, and a [`Speller`] knows which one is next.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The mark that stands for a space in `SentencePiece`'s vocabularies, U+2581.
pub(super) const MARK: char = '\u{2581}';

/// The spelling of all tokens of a vocabulary.
#[derive(Debug, Clone)]
pub(super) struct Spelling {
    tokens: ByteStrings,
    first: First,
}

/// How the first token of a text is written.
#[derive(Debug, Clone)]
pub(super) enum First {
    /// Like all others.
    Alike,
    /// Without this many spaces at its beginning.
    WithoutSpaces(usize),
    /// As listed here.
    Listed(ByteStrings),
}

/// Byte strings by number, in one buffer.
#[derive(Debug, Clone, Default)]
pub(super) struct ByteStrings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl ByteStrings {
    /// Adds the next byte string.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    fn get(&self, number: u32) -> Option<&[u8]> {
        let number = number as usize;
        let end = *self.ends.get(number)?;
        let before = number
            .checked_sub(1)
            .and_then(|before| self.ends.get(before));
        self.bytes.get(before.copied().unwrap_or(0)..end)
    }
}

impl Spelling {
    /// Creates the spelling of a vocabulary.
    pub(super) fn new(tokens: ByteStrings, first: First) -> Self {
        Self { tokens, first }
    }

    /// Returns the bytes of a token after others.
    #[inline]
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id)
    }

    /// Returns the bytes of a token that begins a text.
    pub(super) fn first(&self, id: u32) -> Option<&[u8]> {
        match &self.first {
            First::Alike => self.bytes(id),
            First::WithoutSpaces(most) => {
                let bytes = self.bytes(id)?;
                let spaces = bytes.iter().take(*most).take_while(|byte| **byte == b' ');
                bytes.get(spaces.count()..)
            }
            First::Listed(first) => first.get(id),
        }
    }

    /// Returns whether all tokens are written alike.
    pub(super) fn is_alike(&self) -> bool {
        matches!(self.first, First::Alike)
    }

    /// Writes tokens as these texts.
    pub(super) fn add(&mut self, texts: &BTreeMap<u32, String>) {
        let last = texts
            .keys()
            .next_back()
            .map_or(0, |last| *last as usize + 1);
        let ids = 0..u32::try_from(self.len().max(last)).unwrap_or(u32::MAX);
        let with = |strings: &ByteStrings| {
            let mut longer = ByteStrings::default();
            for id in ids.clone() {
                let known = || strings.get(id).unwrap_or_default();
                let text = texts.get(&id);
                longer.push(text.map_or_else(known, |text| text.as_bytes()));
            }
            longer
        };
        self.tokens = with(&self.tokens);
        if let First::Listed(first) = &mut self.first {
            *first = with(first);
        }
    }

    /// Returns the number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.ends.len()
    }
}

/// Returns the bytes of a token that is written in byte-level notation, or of literal text.
pub(super) fn byte_level(token: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for character in token.chars() {
        match BYTES.get(character as usize).copied().flatten() {
            Some(byte) => bytes.push(byte),
            // The token is not written in the byte alphabet, so it is literal text.
            None => return token.as_bytes().to_vec(),
        }
    }
    bytes
}

/// Returns the bytes of a token that is written with marks for spaces; with `bytes`, `<0xNN>` is a
/// byte.
pub(super) fn marked(token: &str, bytes: bool) -> Vec<u8> {
    match byte_of(token).filter(|_| bytes) {
        Some(byte) => vec![byte],
        None => token.replace(MARK, " ").into_bytes(),
    }
}

/// Returns the byte that a token stands for, if it is written `<0xNN>`.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_byte)
}

/// Returns bytes in the notation of byte-level vocabularies.
pub(super) fn to_alphabet(bytes: &[u8]) -> String {
    let characters = bytes.iter().map(|&byte| CHARACTERS.get(usize::from(byte)));
    characters.flatten().collect()
}

/// The byte of each character of the alphabet.
static BYTES: LazyLock<Vec<Option<u8>>> = LazyLock::new(byte_alphabet);

/// The character of each byte.
static CHARACTERS: LazyLock<Vec<char>> = LazyLock::new(|| {
    let mut characters = vec!['\0'; 256];
    for (character, byte) in (0..).zip(byte_alphabet()) {
        let entry = byte.and_then(|byte| characters.get_mut(usize::from(byte)));
        if let (Some(entry), Some(character)) = (entry, char::from_u32(character)) {
            *entry = character;
        }
    }
    characters
});

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

/// Spells the tokens of one text in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speller {
    has_begun: bool,
}

impl Speller {
    /// Creates a speller at the beginning of a text.
    #[must_use]
    pub fn at_start() -> Self {
        Self { has_begun: false }
    }

    /// Creates a speller within a text.
    #[must_use]
    pub fn within() -> Self {
        Self { has_begun: true }
    }

    /// Returns the bytes of the next token; empty if the token does not exist.
    pub(super) fn spell<'s>(&mut self, spelling: &'s Spelling, id: u32) -> &'s [u8] {
        let bytes = if self.has_begun {
            spelling.bytes(id)
        } else {
            spelling.first(id)
        };
        self.has_begun = true;
        bytes.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let mut bytes: Vec<u8> = byte_alphabet().into_iter().flatten().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_level("Ġthe"), b" the");
        assert_eq!(byte_level("Ċ"), b"\n");
        assert_eq!(byte_level("âĢ"), b"\xe2\x80");
        assert_eq!(byte_level("中"), "中".as_bytes());
        assert_eq!(to_alphabet(b" the\n"), "ĠtheĊ");
    }

    #[test]
    fn marks_are_spaces_and_bytes_are_bytes() {
        assert_eq!(marked("\u{2581}the", true), b" the");
        assert_eq!(marked("<0x0A>", true), b"\n");
        assert_eq!(marked("<0xe2>", true), b"\xe2");
        assert_eq!(marked("<0x0A>", false), b"<0x0A>");
        for text in ["<0x+A>", "<0x0>", "<0x0AB>", "0x0A", "<0xGG>"] {
            assert_eq!(byte_of(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_token_loses_its_space() {
        let mut tokens = ByteStrings::default();
        for token in [" the", "the", "   ", ""] {
            tokens.push(token.as_bytes());
        }
        let spelling = |first| Spelling::new(tokens.clone(), first);
        let one = spelling(First::WithoutSpaces(1));
        let all = spelling(First::WithoutSpaces(usize::MAX));
        assert_eq!(
            (one.first(0), one.first(2)),
            (Some(&b"the"[..]), Some(&b"  "[..]))
        );
        assert_eq!(
            (all.first(1), all.first(2)),
            (Some(&b"the"[..]), Some(&b""[..]))
        );
        assert_eq!(one.bytes(0), Some(&b" the"[..]));
        assert_eq!((one.first(3), one.first(4)), (Some(&b""[..]), None));
    }
}
