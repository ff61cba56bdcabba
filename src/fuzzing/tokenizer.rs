//! The files of a tokenizer, and texts for one.
//!
//! The first byte of an input chooses the kind: `tokenizer.json`; `vocab.json`, a zero byte and
//! `merges.txt`; or a text for the tokenizer of the built-in model.

use std::fs;

use super::input::Scratch;
use super::tiny;
use crate::text::{TextError, Tokenizer};

/// Texts that every accepted tokenizer must encode.
const TEXTS: [&str; 4] = [
    "",
    "ab c",
    "<|endoftext|>a<|endoftext|>",
    "é🐉\u{301}\0\u{fdd0}\r\n",
];

pub(super) fn run(bytes: &[u8]) {
    let Some((kind, file)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => accepted(Tokenizer::from_json(file)),
        1 => accepted(vocabulary_and_merges(file)),
        _ => roundtrip(&String::from_utf8_lossy(file)),
    }
}

fn vocabulary_and_merges(file: &[u8]) -> Result<Tokenizer, TextError> {
    let mut parts = file.splitn(2, |&byte| byte == 0);
    let scratch = Scratch::new();
    let paths = ["vocab.json", "merges.txt"].map(|name| scratch.path().join(name));
    for path in &paths {
        fs::write(path, parts.next().unwrap_or_default()).expect("it is written");
    }
    Tokenizer::from_vocab_and_merges(&paths[0], &paths[1])
}

/// Checks that an accepted tokenizer encodes a text to known tokens, in the order of the text.
fn accepted(tokenizer: Result<Tokenizer, TextError>) {
    let Ok(tokenizer) = tokenizer else {
        return;
    };
    for text in TEXTS {
        for parse_special in [false, true] {
            let Ok(ids) = tokenizer.encode(text, parse_special) else {
                continue;
            };
            assert!(
                ids.iter().all(|&id| tokenizer.token_bytes(id).is_some()),
                "{ids:?}"
            );
            let _ = tokenizer.decode(&ids);
            let spans = tokenizer
                .encode_spans(text, parse_special)
                .expect("as before");
            assert!(spans.iter().map(|span| span.id).eq(ids));
            let length = text.chars().count();
            assert!(
                spans
                    .iter()
                    .all(|span| span.start <= span.end && span.end <= length)
            );
        }
    }
    assert!(
        tokenizer
            .end_of_text()
            .is_none_or(|id| (id as usize) < tokenizer.vocab_size())
    );
    assert_eq!(tokenizer.token_bytes(tokenizer.vocab_size() as u32), None);
}

/// Checks that a text decodes unchanged, and that its tokens cover it from the first character to
/// the last.
fn roundtrip(text: &str) {
    let tokenizer = tiny::real_tokenizer();
    for parse_special in [false, true] {
        let spans = tokenizer.encode_spans(text, parse_special).expect("tokens");
        let ids: Vec<u32> = spans.iter().map(|span| span.id).collect();
        assert_eq!(tokenizer.encode(text, parse_special).expect("tokens"), ids);
        assert_eq!(tokenizer.decode(&ids), text);
        assert!(parse_special || !ids.iter().any(|&id| tokenizer.is_special(id)));
        let mut end = 0;
        for span in &spans {
            // Tokens that are parts of one character all have its range.
            assert!(span.start <= end && end <= span.end, "{span:?} after {end}");
            end = span.end;
        }
        assert_eq!(end, text.chars().count());
    }
}
