//! Tokens to text: the incremental detokenizer and stop strings.
//!
//! An input is a byte of choices, stop strings, one a line, an empty line, and the text as bytes.

use super::input::{Choices, Input};
use crate::text::{SpannedToken, StopMatcher, TextStream};

/// Maximum bytes of text, since the checks take time quadratic in it.
const MAX_TEXT_BYTES: usize = 2048;
const MAX_STOPS: usize = 16;

/// Checks that, for any split into pieces, the text ends at the first stop string, only a possible
/// beginning of one is held back, and the tokens' spans partition the text.
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
    let bytes = input.take(MAX_TEXT_BYTES);
    let text = String::from_utf8_lossy(bytes);
    let expected = cut(&text, &stops, include_stop);
    assert_eq!(of_tokens(bytes, &stops, include_stop, 0), expected);
    assert_eq!(of_tokens(bytes, &stops, include_stop, choices), expected);
    assert_eq!(of_pieces(&text, &stops, include_stop, choices), expected);
}

/// Returns the text by the definition: it ends with the stop string that ends first, the longest of
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

/// Returns the text that a stream shows of tokens of up to four bytes, or of one byte each if
/// `seed` is 0, and checks that the tokens' spans partition it.
fn of_tokens(bytes: &[u8], stops: &[String], include_stop: bool, seed: u8) -> (String, bool) {
    // Up to three bytes of an incomplete character are held back.
    let held = stops.iter().map(String::len).max().unwrap_or(0) + 3;
    let mut choices = Choices::of(seed);
    let mut stream = TextStream::new(stops, include_stop);
    let mut shown = String::new();
    let mut tokens = Vec::new();
    let mut rest = bytes;
    let mut pushed = 0;
    while !rest.is_empty() {
        let length = if seed == 0 { 1 } else { choices.below(5) };
        let (token, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        pushed += token.len();
        let piece = stream.push(token.len(), token);
        shown += &piece.text;
        tokens.extend(piece.tokens);
        if let Some(stopped) = piece.stopped {
            check_spans(&tokens, &shown);
            let whole = tokens.iter().take(stopped.tokens);
            let whole: String = whole.map(|token| token.text.as_str()).collect();
            assert_eq!(
                whole + &stopped.tail,
                shown,
                "tokens and tail are not the text"
            );
            return (shown, true);
        }
        // A replacement character is at least as long as the bytes that it replaces.
        assert!(
            shown.len() + held >= pushed,
            "{} bytes are held back",
            pushed - shown.len()
        );
    }
    let last = stream.finish();
    shown += &last.text;
    tokens.extend(last.tokens);
    check_spans(&tokens, &shown);
    if last.stopped.is_none() {
        let reported: usize = tokens.iter().map(|token| token.token).sum();
        assert_eq!(reported, bytes.len(), "tokens are missing");
    }
    assert_eq!(stream.text(), shown);
    (shown, last.stopped.is_some())
}

/// Checks that the texts of tokens are the whole text, in order, each at its offset in characters.
fn check_spans(tokens: &[SpannedToken<usize>], shown: &str) {
    let mut text = String::new();
    for token in tokens {
        assert_eq!(token.offset, text.chars().count(), "an offset is wrong");
        text += &token.text;
    }
    assert_eq!(text, shown, "the spans are not a partition of the text");
}

/// Returns the text that a matcher shows of the text in pieces.
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
