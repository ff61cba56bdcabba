//! Tokens to text: the incremental detokenizer and stop strings.
//!
//! An input is a byte of choices, stop strings, one a line, an empty line, and the text as bytes.

use std::sync::{Arc, OnceLock};

use super::input::{Choices, Input};
use super::tiny;
use crate::text::{StopMatcher, TextStream, Tokenizer};

/// Text beyond this is cut: what is checked takes its square.
const LONGEST: usize = 2048;
const MAX_STOPS: usize = 16;

/// Whatever the pieces, what is shown is the text up to the first stop string, and no more is held back
/// than may begin one.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choices = input.byte();
    let include_stop = choices & 1 == 1;
    let mut stops = Vec::new();
    while !input.is_empty() && stops.len() < MAX_STOPS {
        match input.line() {
            [] => break,
            line => stops.push(String::from_utf8_lossy(line).into_owned()),
        }
    }
    let bytes = input.take(LONGEST);
    let text = String::from_utf8_lossy(bytes);
    let expected = cut(&text, &stops, include_stop);
    assert_eq!(of_tokens(bytes, &stops, include_stop), expected);
    assert_eq!(of_pieces(&text, &stops, include_stop, choices), expected);
}

/// The definition, over the whole text: it ends with the stop string that ends first, the longest of
/// those that end there.
fn cut(text: &str, stops: &[String], include_stop: bool) -> (String, bool) {
    for end in (0..=text.len()).filter(|&at| text.is_char_boundary(at)) {
        let ending = stops.iter().filter(|stop| text[..end].ends_with(*stop));
        if let Some(stop) = ending.max_by_key(|stop| stop.len()) {
            let shown = if include_stop { end } else { end - stop.len() };
            return (text[..shown].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

/// The text that a stream shows of tokens of one byte each.
fn of_tokens(bytes: &[u8], stops: &[String], include_stop: bool) -> (String, bool) {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| Arc::new(tiny::byte_tokenizer()));
    // Of a character that is not complete up to three bytes are held back.
    let held = stops.iter().map(String::len).max().unwrap_or(0) + 3;
    let mut stream = TextStream::new(Arc::clone(tokenizer), stops, include_stop);
    let mut shown = String::new();
    for (n, &byte) in bytes.iter().enumerate() {
        let piece = stream.push(tiny::byte_token(byte));
        shown += &piece.text;
        if piece.stopped {
            return (shown, true);
        }
        // A character that replaces bytes is no shorter than these.
        assert!(
            shown.len() + held > n,
            "{} bytes are held back",
            n + 1 - shown.len()
        );
    }
    let last = stream.finish();
    (shown + &last.text, last.stopped)
}

/// What a matcher shows of the text in pieces.
fn of_pieces(text: &str, stops: &[String], include_stop: bool, seed: u8) -> (String, bool) {
    let mut matcher = StopMatcher::new(stops, include_stop);
    let mut choices = Choices::of(seed);
    let characters: Vec<char> = text.chars().collect();
    let mut rest = &characters[..];
    let mut shown = String::new();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(choices.below(8).min(rest.len()));
        rest = after;
        let step = matcher.push(&piece.iter().collect::<String>());
        shown += &step.text;
        if step.stopped {
            return (shown, true);
        }
    }
    (shown + &matcher.finish(), false)
}
