//! The tokenizer against GPT-2's published vectors, from both forms of its files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use skald::text::{TextStream, Tokenizer};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/gpt2-tokenizer")
        .join(name)
}

fn from_json() -> Tokenizer {
    let json = std::fs::read(fixture("tokenizer.json")).expect("the fixture");
    Tokenizer::from_json(&json).expect("a tokenizer")
}

fn from_vocab_and_merges() -> Tokenizer {
    Tokenizer::from_vocab_and_merges(&fixture("vocab.json"), &fixture("merges.txt"))
        .expect("a tokenizer")
}

/// Returns the texts and ids in a file of vectors, at any depth.
fn vectors(name: &str) -> Vec<(String, Vec<u32>)> {
    fn collect(value: &serde_json::Value, found: &mut Vec<(String, Vec<u32>)>) {
        if let (Some(text), Some(ids)) = (value["text"].as_str(), value["ids"].as_array()) {
            let ids = ids.iter().map(|id| id.as_u64().expect("an id") as u32);
            found.push((text.to_owned(), ids.collect()));
        } else if let Some(values) = value.as_array() {
            for value in values {
                collect(value, found);
            }
        } else if let Some(values) = value.as_object() {
            values.values().for_each(|value| collect(value, found));
        }
    }
    let json = std::fs::read(fixture(name)).expect("the fixture");
    let mut found = Vec::new();
    collect(&serde_json::from_slice(&json).expect("JSON"), &mut found);
    found
}

#[test]
fn published_vectors_are_met_id_for_id() {
    for tokenizer in [from_json(), from_vocab_and_merges()] {
        assert_eq!(tokenizer.vocab_size(), 50257);
        let mut checked = 0;
        for file in [
            "gpt2-tokenizer-vectors.json",
            "gpt2-tokenizer-vectors-extra.json",
        ] {
            for (text, ids) in vectors(file) {
                assert_eq!(tokenizer.encode(&text, true).expect("ids"), ids, "{text:?}");
                assert_eq!(tokenizer.decode(&ids), text);
                checked += 1;
            }
        }
        assert!(checked >= 511, "{checked} vectors");
    }
}

#[test]
fn end_of_text_is_special_unless_it_is_to_be_plain() {
    let tokenizer = from_json();
    assert_eq!(tokenizer.end_of_text(), Some(50256));
    let json = std::fs::read(fixture("gpt2-tokenizer-vectors-extra.json")).expect("the fixture");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let cases = json["special"].as_array().expect("cases");
    assert_eq!(cases.len(), 5);
    for case in cases {
        let text = case["text"].as_str().expect("a text");
        for (field, parse_special) in [("ids_with_special", true), ("ids_as_plain_text", false)] {
            let ids = tokenizer.encode(text, parse_special).expect("ids");
            assert_eq!(serde_json::json!(ids), case[field], "{text} {field}");
            assert_eq!(tokenizer.decode(&ids), text);
        }
    }
    assert!(tokenizer.is_special(50256) && !tokenizer.is_special(64));
}

#[test]
fn spans_count_characters() {
    let tokenizer = from_json();
    let spans = tokenizer
        .encode_spans("né <|endoftext|>x", true)
        .expect("spans");
    let last = spans.last().expect("a token");
    assert_eq!((last.start, last.end), (16, 17));
    assert_eq!(spans[0].start, 0);
}

#[test]
fn a_token_is_bytes_and_an_unknown_one_nothing() {
    let tokenizer = from_json();
    assert_eq!(tokenizer.token_bytes(262), Some(&b" the"[..]));
    assert_eq!(tokenizer.token_bytes(447), Some(&b"\xe2\x80"[..]));
    assert_eq!(tokenizer.token_bytes(50257), None);
}

#[test]
fn a_file_that_is_not_a_tokenizer_is_refused_by_name() {
    let error = Tokenizer::from_json(b"{\"version\": 1")
        .err()
        .expect("refused");
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    let missing = Tokenizer::from_vocab_and_merges(Path::new("no-vocab.json"), Path::new("no"));
    let error = missing.err().expect("refused");
    assert!(error.to_string().contains("no-vocab.json"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_comes_back_whole_and_token_by_token(text in "(\\PC|[ \\n\\ta-z🐉é漢]){0,60}") {
        thread_local! { static TOKENIZER: Arc<Tokenizer> = Arc::new(from_json()); }
        TOKENIZER.with(|tokenizer| {
            let ids = tokenizer.encode(&text, false).expect("ids");
            prop_assert_eq!(tokenizer.decode(&ids), text.clone());
            let mut stream = TextStream::new(&[], false);
            let mut streamed: String = ids.iter().map(|&id| stream.push(id, tokenizer.token_bytes(id).unwrap_or_default()).text).collect();
            let shows_a_broken_character = streamed.contains(char::REPLACEMENT_CHARACTER);
            prop_assert!(!shows_a_broken_character || text.contains(char::REPLACEMENT_CHARACTER));
            streamed += &stream.finish().text;
            prop_assert_eq!(streamed, text);
            Ok(())
        })?;
    }
}
