//! The incremental detokenizer: turns tokens into text that may be shown, with the span of each
//! token.
//!
//! Bytes of an incomplete character and text that may become a stop string are held back. A token
//! is reported together with its text, and a token after a stop string is never reported. All
//! pieces together are exactly the whole text, and the spans partition it.

use std::collections::VecDeque;

use super::stop::StopMatcher;
use super::utf8::{TextPosition, Utf8Decoder};

/// Turns one generation's tokens into text. `T` is the caller's token, which is returned with its
/// span.
#[derive(Debug, Clone)]
pub struct TextStream<T = ()> {
    decoder: Utf8Decoder,
    stops: StopMatcher,
    /// The text shown so far.
    shown: String,
    /// Tokens not reported yet.
    held: VecDeque<HeldToken<T>>,
    /// Number of tokens reported.
    released: usize,
}

/// The text and tokens that one token adds to the shown text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPiece<T = ()> {
    /// New text.
    pub text: String,
    /// Tokens whose whole text is now shown.
    pub tokens: Vec<SpannedToken<T>>,
    /// Set if a stop string is complete, so that nothing follows `text`.
    pub stopped: Option<ShownTokens>,
}

/// A token and its part of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpannedToken<T> {
    /// The caller's token.
    pub token: T,
    /// Its part of the text. Empty for a token without bytes, and for the first tokens of a character that
    /// several share.
    pub text: String,
    /// Number of characters before it.
    pub offset: usize,
}

/// The shown text as tokens, for a session's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownTokens {
    /// Number of whole tokens.
    pub tokens: usize,
    /// Text after them, which is part of the next token.
    pub tail: String,
}

#[derive(Debug, Clone)]
struct HeldToken<T> {
    token: T,
    start: TextPosition,
    end: TextPosition,
    /// Whether it ends within a character that a later token may complete.
    open: bool,
}

impl<T> HeldToken<T> {
    /// Returns the token with the part of its text that is in `shown`.
    fn show(self, shown: &str) -> SpannedToken<T> {
        let end = self.end.bytes.min(shown.len());
        let text = shown.get(self.start.bytes..end).unwrap_or_default();
        SpannedToken {
            text: text.to_owned(),
            offset: self.start.chars,
            token: self.token,
        }
    }
}

impl<T> TextPiece<T> {
    /// Appends the piece after this one.
    pub fn append(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
        self.stopped = next.stopped;
    }
}

impl<T> TextStream<T> {
    /// Creates a stream that ends at one of `stops`; with `include_stop` the text includes it.
    #[must_use]
    pub fn new(stops: &[String], include_stop: bool) -> Self {
        Self {
            decoder: Utf8Decoder::default(),
            stops: StopMatcher::new(stops, include_stop),
            shown: String::new(),
            held: VecDeque::new(),
            released: 0,
        }
    }

    /// Adds the next token and its bytes, which are empty if the token has no text.
    pub fn push(&mut self, token: T, bytes: &[u8]) -> TextPiece<T> {
        let start = self.decoder.position();
        let text = self.decoder.push(bytes);
        let open = self.decoder.is_pending();
        if !open {
            self.held.iter_mut().for_each(|held| held.open = false);
        }
        self.held.push_back(HeldToken {
            token,
            start,
            end: self.decoder.position(),
            open,
        });
        let found = self.stops.push(&text);
        self.piece(found.text, found.stopped)
    }

    /// Returns everything that was held back, once the text has ended. An incomplete character is
    /// U+FFFD and belongs to the last token. Tokens without bytes may follow.
    pub fn finish(&mut self) -> TextPiece<T> {
        let was_pending = self.decoder.is_pending();
        let mut found = self.stops.push(&self.decoder.finish());
        if !found.stopped {
            found.text += &self.stops.finish();
        }
        if let (true, Some(last)) = (was_pending, self.held.back_mut()) {
            last.end = self.decoder.position();
        }
        self.held.iter_mut().for_each(|held| held.open = false);
        self.piece(found.text, found.stopped)
    }

    /// Returns the text shown so far.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.shown
    }

    /// Returns the shown text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.shown
    }

    /// Returns the text shown so far, as tokens.
    #[must_use]
    pub fn shown_tokens(&self) -> ShownTokens {
        let end = self.shown.len();
        let shown = || self.held.iter().filter(|held| held.start.bytes < end);
        match shown().find(|held| held.end.bytes > end) {
            // Tokens with earlier bytes of its first character are partial too.
            Some(partial) => {
                let start = partial.start.bytes;
                let whole = shown().take_while(|held| held.start.bytes < start);
                ShownTokens {
                    tokens: self.released + whole.count(),
                    tail: self.shown.get(start..).unwrap_or_default().to_owned(),
                }
            }
            None => ShownTokens {
                tokens: self.released + shown().count(),
                tail: String::new(),
            },
        }
    }

    fn piece(&mut self, text: String, stopped: bool) -> TextPiece<T> {
        self.shown.push_str(&text);
        let (tokens, stopped) = if stopped {
            let shown = self.shown_tokens();
            (self.release_shown(), Some(shown))
        } else {
            (self.release(), None)
        };
        TextPiece {
            text,
            tokens,
            stopped,
        }
    }

    /// Removes and returns the tokens whose whole text has been shown.
    fn release(&mut self) -> Vec<SpannedToken<T>> {
        let settled = |held: &HeldToken<T>| !held.open && held.end.bytes <= self.shown.len();
        let count = self.held.iter().take_while(|held| settled(held)).count();
        self.released += count;
        let released = self.held.drain(..count);
        released.map(|held| held.show(&self.shown)).collect()
    }

    /// Removes and returns all tokens in the shown text, which has ended.
    fn release_shown(&mut self) -> Vec<SpannedToken<T>> {
        let end = self.shown.len();
        let held = std::mem::take(&mut self.held).into_iter();
        let shown = held.filter(|held| held.start.bytes < end);
        shown.map(|held| held.show(&self.shown)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(tokens: &[SpannedToken<u32>]) -> Vec<(u32, &str, usize)> {
        let tokens = tokens.iter();
        tokens
            .map(|shown| (shown.token, shown.text.as_str(), shown.offset))
            .collect()
    }

    fn stream(stops: &[&str]) -> TextStream<u32> {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        TextStream::new(&stops, false)
    }

    fn shown(tokens: usize, tail: &str) -> ShownTokens {
        let tail = tail.to_owned();
        ShownTokens { tokens, tail }
    }

    #[test]
    fn tokens_of_one_character_come_out_together() {
        let mut stream = stream(&[]);
        let piece = stream.push(1, b"a\xe2");
        assert_eq!((piece.text.as_str(), piece.tokens), ("a", vec![]));
        let piece = stream.push(2, b"\x80\x99");
        assert_eq!(texts(&piece.tokens), [(1, "a", 0), (2, "\u{2019}", 1)]);
    }

    #[test]
    fn an_incomplete_character_at_the_end_belongs_to_the_last_token() {
        let mut stream = stream(&[]);
        let mut piece = stream.push(1, b"\xe2");
        piece.append(stream.push(2, b"\x80"));
        piece.append(stream.finish());
        piece.append(stream.push(9, b""));
        assert_eq!(
            texts(&piece.tokens),
            [(1, "", 0), (2, "\u{fffd}", 0), (9, "", 1)]
        );
    }

    #[test]
    fn a_stop_string_cuts_the_token_it_begins_in_and_drops_those_after() {
        let mut stream = stream(&["STOP"]);
        assert_eq!(stream.push(1, b"one").tokens.len(), 1);
        assert_eq!(stream.push(2, b" two STO").text, " two ");
        let piece = stream.push(3, b"P");
        assert_eq!(texts(&piece.tokens), [(2, " two ", 3)]);
        assert_eq!(piece.stopped, Some(shown(1, " two ")));
    }

    #[test]
    fn a_stop_string_between_tokens_keeps_whole_tokens() {
        let mut stream = stream(&["eSTOP"]);
        assert!(stream.push(1, b"on").stopped.is_none());
        let piece = stream.push(2, b"eSTOP");
        assert_eq!(texts(&piece.tokens), []);
        assert_eq!(piece.stopped, Some(shown(1, "")));
        let mut stream = self::stream(&["eS"]);
        assert!(stream.push(1, b"one").tokens.is_empty());
        let piece = stream.push(2, b"S");
        assert_eq!(texts(&piece.tokens), [(1, "on", 0)]);
        assert_eq!(piece.stopped, Some(shown(0, "on")));
    }

    #[test]
    fn a_cut_token_takes_along_the_beginning_of_its_first_character() {
        let mut stream = stream(&["STOP"]);
        stream.push(1, b"\xe2");
        let piece = stream.push(2, b"\x80\x99STOP");
        assert_eq!(piece.stopped, Some(shown(0, "\u{2019}")));
    }

    #[test]
    fn an_abandoned_stream_is_told_as_tokens() {
        let mut stream = stream(&["STOP"]);
        stream.push(1, b"one");
        stream.push(2, b" two ST");
        let ShownTokens { tokens, tail } = stream.shown_tokens();
        assert_eq!(
            (tokens, tail.as_str(), stream.text()),
            (1, " two ", "one two ")
        );
    }
}
