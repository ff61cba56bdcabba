//! Which text belongs to which generated token, and which tokens have been shown.
//!
//! The detokenizer gives out text late: bytes of an unfinished character and the beginning of
//! what may become a stop string are held back. The [`Ledger`] holds the tokens back with their
//! text, so that a token is told of together with it, and a token behind a stop string never is.

use std::collections::VecDeque;

use super::offsets::{Offsets, Position};
use crate::engine::{GeneratedToken, TokenLogprob};

/// A generated token whose text is settled.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ShownToken {
    /// The token drawn.
    pub token: TokenLogprob,
    /// The most likely tokens in its place.
    pub top: Vec<TokenLogprob>,
    /// Its part of the text. Empty for special tokens, and for the first tokens of a character
    /// that several share.
    pub text: String,
    /// Characters of generated text before it.
    pub offset: usize,
    /// A special token.
    pub special: bool,
}

#[derive(Debug)]
struct Entry {
    token: GeneratedToken,
    special: bool,
    start: Position,
    end: Position,
    /// It ends within a character whose text may still become part of it.
    open: bool,
}

impl Entry {
    /// With the part of its text that lies in `shown`.
    fn show(self, shown: &str) -> ShownToken {
        let end = self.end.bytes.min(shown.len());
        ShownToken {
            text: shown
                .get(self.start.bytes..end)
                .unwrap_or_default()
                .to_owned(),
            offset: self.start.chars,
            special: self.special,
            token: self.token.token,
            top: self.token.top,
        }
    }
}

/// What a session keeps of a generation that a stop string ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// So many whole tokens.
    pub tokens: usize,
    /// Then this text, part of the token after them.
    pub tail: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// All text given out so far.
    shown: String,
    offsets: Offsets,
    /// Tokens not yet told of.
    held: VecDeque<Entry>,
    /// How many were.
    released: usize,
}

impl Ledger {
    /// A token was drawn; `bytes` are those it adds to the text (none if it is not shown).
    pub(super) fn push(&mut self, token: GeneratedToken, bytes: &[u8], special: bool) {
        let start = self.offsets.position();
        self.offsets.push(bytes);
        let open = self.offsets.is_pending();
        if !open {
            self.held.iter_mut().for_each(|entry| entry.open = false);
        }
        self.held.push_back(Entry {
            token,
            special,
            start,
            end: self.offsets.position(),
            open,
        });
    }

    /// The detokenizer gave out text.
    pub(super) fn show(&mut self, text: &str) {
        self.shown.push_str(text);
    }

    /// The detokenizer gave out its last: an unfinished character belongs to the last token.
    /// Call it before the token that ends the text is pushed, if there is one.
    pub(super) fn finish(&mut self) {
        if self.offsets.is_pending() {
            self.offsets.finish();
            if let Some(last) = self.held.back_mut() {
                last.end = self.offsets.position();
            }
        }
        self.held.iter_mut().for_each(|entry| entry.open = false);
    }

    /// The tokens whose whole text has been given out since the last call.
    pub(super) fn release(&mut self) -> Vec<ShownToken> {
        let mut released = Vec::new();
        while self
            .held
            .front()
            .is_some_and(|entry| !entry.open && entry.end.bytes <= self.shown.len())
        {
            let entry = self.held.pop_front();
            released.extend(entry.map(|entry| entry.show(&self.shown)));
        }
        self.released += released.len();
        released
    }

    /// The generation is over: all tokens that are left.
    pub(super) fn release_rest(&mut self) -> Vec<ShownToken> {
        self.released += self.held.len();
        let rest = std::mem::take(&mut self.held).into_iter();
        rest.map(|entry| entry.show(&self.shown)).collect()
    }

    /// A stop string ended the text: the tokens that are part of it, and what a session keeps.
    pub(super) fn cut(&mut self) -> (Vec<ShownToken>, Cut) {
        let end = self.shown.len();
        self.held.retain(|entry| entry.start.bytes < end);
        let partial = self
            .held
            .iter()
            .find(|entry| entry.end.bytes > end)
            .map(|entry| entry.start.bytes);
        let cut = match partial {
            // Tokens that only began the character it completes go with it.
            Some(start) => Cut {
                tokens: self.released
                    + self
                        .held
                        .iter()
                        .take_while(|entry| entry.start.bytes < start)
                        .count(),
                tail: self.shown.get(start..).unwrap_or_default().to_owned(),
            },
            None => Cut {
                tokens: self.released + self.held.len(),
                tail: String::new(),
            },
        };
        let tokens = std::mem::take(&mut self.held);
        let tokens = tokens.into_iter().map(|entry| entry.show(&self.shown));
        (tokens.collect(), cut)
    }

    /// Returns the text given out so far.
    pub(super) fn text(&self) -> &str {
        &self.shown
    }

    /// All text given out.
    pub(super) fn into_text(self) -> String {
        self.shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32) -> GeneratedToken {
        GeneratedToken {
            token: TokenLogprob { id, logprob: -1.0 },
            top: Vec::new(),
            finish: None,
        }
    }

    fn texts(tokens: &[ShownToken]) -> Vec<(u32, &str, usize)> {
        tokens
            .iter()
            .map(|shown| (shown.token.id, shown.text.as_str(), shown.offset))
            .collect()
    }

    #[test]
    fn tokens_of_one_character_come_out_together() {
        let mut ledger = Ledger::default();
        ledger.push(token(1), b"a\xe2", false);
        ledger.show("a");
        assert!(ledger.release().is_empty());
        ledger.push(token(2), b"\x80\x99", false);
        ledger.show("\u{2019}");
        assert_eq!(texts(&ledger.release()), [(1, "a", 0), (2, "\u{2019}", 1)]);
    }

    #[test]
    fn an_unfinished_character_at_the_end_belongs_to_the_last_token() {
        let mut ledger = Ledger::default();
        ledger.push(token(1), b"\xe2", false);
        ledger.push(token(2), b"\x80", false);
        ledger.finish();
        ledger.show("\u{fffd}");
        ledger.push(token(9), b"", true);
        assert_eq!(
            texts(&ledger.release()),
            [(1, "", 0), (2, "\u{fffd}", 0), (9, "", 1)]
        );
    }

    #[test]
    fn a_stop_string_cuts_the_token_it_begins_in_and_drops_those_after() {
        let mut ledger = Ledger::default();
        ledger.push(token(1), b"one", false);
        ledger.show("one");
        assert_eq!(ledger.release().len(), 1);
        ledger.push(token(2), b" two STO", false);
        ledger.show(" two ");
        ledger.push(token(3), b"P", false);
        let (tokens, cut) = ledger.cut();
        assert_eq!(texts(&tokens), [(2, " two ", 3)]);
        assert_eq!(
            cut,
            Cut {
                tokens: 1,
                tail: " two ".to_owned()
            }
        );
    }

    #[test]
    fn a_stop_string_between_tokens_keeps_whole_tokens() {
        let mut ledger = Ledger::default();
        ledger.push(token(1), b"one", false);
        ledger.show("one");
        ledger.push(token(2), b"STOP", false);
        let (tokens, cut) = ledger.cut();
        assert_eq!(texts(&tokens), [(1, "one", 0)]);
        assert_eq!(
            cut,
            Cut {
                tokens: 1,
                tail: String::new()
            }
        );
    }

    #[test]
    fn a_cut_token_takes_along_the_beginning_of_its_first_character() {
        let mut ledger = Ledger::default();
        ledger.push(token(1), b"\xe2", false);
        ledger.push(token(2), b"\x80\x99STOP", false);
        ledger.show("\u{2019}");
        let (_, cut) = ledger.cut();
        assert_eq!(
            cut,
            Cut {
                tokens: 0,
                tail: "\u{2019}".to_owned()
            }
        );
    }
}
