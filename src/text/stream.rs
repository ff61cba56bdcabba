//! The incremental detokenizer: tokens in, text that may be shown out.
//!
//! Held back are the bytes of a character that is not complete yet, and text that may become a
//! stop string. All pieces together are exactly the text of the whole.

use std::sync::Arc;

use super::stop::{Shown, StopMatcher};
use super::tokenizer::Tokenizer;

/// The longest a UTF-8 character can be.
const MAX_CHARACTER: usize = 4;

/// Turns one generation's tokens into text.
#[derive(Clone)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    stops: StopMatcher,
    /// The beginning of a character.
    bytes: Vec<u8>,
}

/// What one token brought.
pub type Piece = Shown;

impl TextStream {
    /// A stream that ends with one of `stops`; `include_stop`: which is then shown.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, stops: &[String], include_stop: bool) -> Self {
        Self {
            tokenizer,
            stops: StopMatcher::new(stops, include_stop),
            bytes: Vec::with_capacity(2 * MAX_CHARACTER),
        }
    }

    /// Takes the next token; a token that does not exist brings nothing.
    pub fn push(&mut self, id: u32) -> Piece {
        let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        self.bytes.extend_from_slice(bytes);
        let text = take_characters(&mut self.bytes);
        self.stops.push(&text)
    }

    /// All that was held back, when no more tokens come: the beginning of a character that never
    /// became one is shown as U+FFFD.
    pub fn finish(&mut self) -> Piece {
        let bytes = std::mem::take(&mut self.bytes);
        let mut shown = self.stops.push(&String::from_utf8_lossy(&bytes));
        if !shown.stopped {
            shown.text += &self.stops.finish();
        }
        shown
    }
}

/// Takes all whole characters out of `bytes`; what can't become a character any more is U+FFFD.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut complete = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        complete += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() {
            continue;
        }
        let at_end = complete + invalid.len() == bytes.len();
        if at_end && may_become_a_character(invalid) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        complete += invalid.len();
    }
    bytes.drain(..complete);
    text
}

/// Whether more bytes could make this invalid end of a text valid. [`[u8]::utf8_chunks`] has
/// made sure that it is the longest beginning of a character there is.
fn may_become_a_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn in_pieces(bytes: &[u8], lengths: &[usize]) -> (Vec<String>, Vec<u8>) {
        let mut held = Vec::new();
        let mut rest = bytes;
        let mut pieces = Vec::new();
        for &length in lengths.iter().chain([&bytes.len()]) {
            let (piece, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            held.extend_from_slice(piece);
            pieces.push(take_characters(&mut held));
        }
        (pieces, held)
    }

    #[test]
    fn a_character_over_several_tokens_is_shown_when_it_is_whole() {
        let (pieces, held) = in_pieces("🐉é".as_bytes(), &[1, 2, 1, 1]);
        assert_eq!(pieces, ["", "", "🐉", "", "é"]);
        assert!(held.is_empty());
    }

    #[test]
    fn bytes_that_can_never_be_a_character_are_not_held_back() {
        assert_eq!(in_pieces(b"\xff\x80a", &[1]).0, ["\u{fffd}", "\u{fffd}a"]);
        assert_eq!(
            in_pieces(b"\xe2\x80", &[]),
            (vec![String::new()], b"\xe2\x80".to_vec())
        );
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole_however_the_bytes_are_cut(
            bytes in prop::collection::vec(prop_oneof![Just(0xf0u8), Just(0x9f), Just(0x90), Just(0x89),
                Just(0xc3), Just(0xa9), Just(0xff), Just(b'a')], 0..24),
            lengths in prop::collection::vec(0usize..4, 0..12),
        ) {
            let (pieces, held) = in_pieces(&bytes, &lengths);
            let mut whole = pieces.concat();
            whole += &String::from_utf8_lossy(&held);
            prop_assert_eq!(whole, String::from_utf8_lossy(&bytes));
            prop_assert!(held.len() < MAX_CHARACTER);
        }

        #[test]
        fn text_is_never_shown_broken(text in "\\PC{0,12}", lengths in prop::collection::vec(0usize..4, 0..12)) {
            let (pieces, held) = in_pieces(text.as_bytes(), &lengths);
            prop_assert!(held.is_empty());
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
