//! Where each token begins and ends in the text.
//!
//! Tokens are bytes and may end within a UTF-8 character; text is what
//! [`String::from_utf8_lossy`] makes of all the bytes. [`Offsets`] follows that incrementally: a
//! character belongs to the token that completes it, the tokens before that are empty.

/// A place in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Position {
    /// Bytes of text before it.
    pub bytes: usize,
    /// Characters of text before it.
    pub chars: usize,
}

/// The end of the text so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Offsets {
    end: Position,
    /// Bytes of a character that is not complete; at most 3.
    pending: Vec<u8>,
}

impl Offsets {
    /// The end of all complete characters.
    pub(super) fn position(&self) -> Position {
        self.end
    }

    /// Whether the last token ended within a character.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The next token's bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let mut rest: &[u8] = bytes;
        let joined;
        if self.is_pending() {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend_from_slice(bytes);
            joined = pending;
            rest = &joined;
        }
        for chunk in rest.utf8_chunks() {
            self.add(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            // Only at the very end can bytes be incomplete rather than wrong.
            let at_end = invalid.as_ptr_range().end == rest.as_ptr_range().end;
            let incomplete =
                std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if at_end && incomplete {
                self.pending = invalid.to_vec();
            } else {
                self.add("\u{fffd}");
            }
        }
    }

    /// No more tokens: what is incomplete becomes a replacement character.
    pub(super) fn finish(&mut self) {
        if self.is_pending() {
            self.pending.clear();
            self.add("\u{fffd}");
        }
    }

    fn add(&mut self, text: &str) {
        self.end.bytes += text.len();
        self.end.chars += text.chars().count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_character_belongs_to_the_token_that_completes_it() {
        let mut offsets = Offsets::default();
        offsets.push(b"a\xe2");
        assert_eq!(offsets.position(), Position { bytes: 1, chars: 1 });
        assert!(offsets.is_pending());
        offsets.push(b"\x80");
        assert_eq!(offsets.position(), Position { bytes: 1, chars: 1 });
        offsets.push(b"\x99b");
        assert_eq!(offsets.position(), Position { bytes: 5, chars: 3 });
        assert!(!offsets.is_pending());
    }

    proptest! {
        #[test]
        fn the_end_is_that_of_the_lossy_text(
            tokens in prop::collection::vec(
                prop::collection::vec(
                    prop::sample::select(vec![b'a', 0xe2, 0x80, 0x99, 0xf0, 0x9f, 0xc3, 0xa9, 0xff]),
                    0..4,
                ),
                0..12,
            ),
        ) {
            let mut offsets = Offsets::default();
            for token in &tokens {
                offsets.push(token);
            }
            offsets.finish();
            let text = String::from_utf8_lossy(&tokens.concat()).into_owned();
            prop_assert_eq!(offsets.position().bytes, text.len());
            prop_assert_eq!(offsets.position().chars, text.chars().count());
        }
    }
}
