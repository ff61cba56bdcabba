//! Assembles UTF-8 text from tokens, whose bytes may end within a character.
//!
//! The text equals [`String::from_utf8_lossy`] of all bytes. A character belongs to the token that
//! completes it; earlier tokens with some of its bytes add no text.

/// A position in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct TextPosition {
    /// Number of bytes before it.
    pub bytes: usize,
    /// Number of characters before it.
    pub chars: usize,
}

/// Decodes tokens to text incrementally.
#[derive(Debug, Clone, Default)]
pub struct Utf8Decoder {
    end: TextPosition,
    /// Bytes of an incomplete character; at most 3.
    pending: Vec<u8>,
}

impl Utf8Decoder {
    /// Returns the end of all complete characters.
    #[must_use]
    pub fn position(&self) -> TextPosition {
        self.end
    }

    /// Returns whether the last token ended within a character.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Adds the bytes of the next token and returns the characters that they complete. Invalid
    /// bytes become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut complete = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            complete += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            let at_end = complete + invalid.len() == self.pending.len();
            if at_end && may_become_a_character(invalid) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            complete += invalid.len();
        }
        self.pending.drain(..complete);
        self.advance(&text);
        text
    }

    /// Returns the rest of the text after the last token: U+FFFD if a character is incomplete.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned();
        self.advance(&text);
        text
    }

    fn advance(&mut self, text: &str) {
        self.end.bytes += text.len();
        self.end.chars += text.chars().count();
    }
}

/// Returns whether more bytes could make the invalid end of a text valid. [`[u8]::utf8_chunks`] ensures that
/// it is the longest possible beginning of a character.
fn may_become_a_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], lengths: &[usize]) -> (Vec<String>, Utf8Decoder) {
        let mut decoder = Utf8Decoder::default();
        let mut rest = bytes;
        let mut pieces = Vec::new();
        for &length in lengths.iter().chain([&bytes.len()]) {
            let (piece, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            pieces.push(decoder.push(piece));
        }
        (pieces, decoder)
    }

    #[test]
    fn a_character_over_several_tokens_is_shown_when_it_is_complete() {
        let (pieces, decoder) = decode("🐉é".as_bytes(), &[1, 2, 1, 1]);
        assert_eq!(pieces, ["", "", "🐉", "", "é"]);
        assert!(!decoder.is_pending());
    }

    #[test]
    fn a_character_belongs_to_the_token_that_completes_it() {
        let mut decoder = Utf8Decoder::default();
        let mut after = |bytes: &[u8]| {
            let text = decoder.push(bytes);
            let TextPosition { bytes, chars } = decoder.position();
            (text, bytes, chars, decoder.is_pending())
        };
        assert_eq!(after(b"a\xe2"), ("a".to_owned(), 1, 1, true));
        assert_eq!(after(b"\x80"), (String::new(), 1, 1, true));
        assert_eq!(after(b"\x99b"), ("\u{2019}b".to_owned(), 5, 3, false));
    }

    #[test]
    fn bytes_that_can_never_be_a_character_are_not_held_back() {
        assert_eq!(decode(b"\xff\x80a", &[1]).0, ["\u{fffd}", "\u{fffd}a"]);
        let (pieces, mut decoder) = decode(b"\xe2\x80", &[]);
        assert_eq!((pieces, decoder.is_pending()), (vec![String::new()], true));
        assert_eq!(decoder.finish(), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn pieces_make_the_lossy_text_however_the_bytes_are_cut(
            bytes in prop::collection::vec(prop_oneof![Just(0xf0u8), Just(0x9f), Just(0x90), Just(0x89),
                Just(0xe2), Just(0x80), Just(0xc3), Just(0xa9), Just(0xff), Just(b'a')], 0..24),
            lengths in prop::collection::vec(0usize..4, 0..12),
        ) {
            let (pieces, mut decoder) = decode(&bytes, &lengths);
            prop_assert!(decoder.pending.len() <= 3);
            let text = pieces.concat() + &decoder.finish();
            prop_assert_eq!(decoder.position().bytes, text.len());
            prop_assert_eq!(decoder.position().chars, text.chars().count());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn text_is_never_shown_broken(text in "\\PC{0,12}", lengths in prop::collection::vec(0usize..4, 0..12)) {
            let (pieces, decoder) = decode(text.as_bytes(), &lengths);
            prop_assert!(!decoder.is_pending());
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
