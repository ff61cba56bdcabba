//! Tests of whole tokenizers.

use std::sync::LazyLock;

use proptest::prelude::*;
use tokenizers::Tokenizer as Inner;

use super::*;

const FAIRY_TALES: &[u8] = include_bytes!("../../../assets/fairy-tales/tokenizer.json");

fn fairy_tales() -> Tokenizer {
    Tokenizer::from_json(FAIRY_TALES).unwrap()
}

#[test]
fn merges_end_with_the_token_itself() {
    let tokenizer = fairy_tales();
    for id in [0, 257, 664, 1543, 8190] {
        let bytes = tokenizer.token_bytes(id).unwrap();
        let merges = tokenizer.merges(id);
        let last = merges.last().map(|merge| merge.parts.concat());
        assert_eq!(merges.len(), bytes.len() - 1, "{id}");
        assert_eq!(last.unwrap_or_else(|| bytes.to_vec()), bytes, "{id}");
        assert!(merges.iter().all(|merge| merge.parts.concat() == bytes));
    }
    assert!(tokenizer.merges(8191).is_empty());
    assert!(tokenizer.merges(9000).is_empty());
}

/// Returns texts of pieces that tokenizers treat specially.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "s",
        "re",
        "ll",
        "The",
        " the",
        "1",
        "42",
        " ",
        "  ",
        "\n",
        "\t",
        "\r",
        "\u{b}",
        "\u{85}",
        "\u{a0}",
        ".",
        "'",
        "'s",
        "é",
        "e\u{301}",
        "\u{301}",
        "中",
        "🐉",
        "\u{200d}",
        "\0",
        "\u{1c5}",
        "\u{2581}",
        "<|endoftext|>",
        "<bos>",
        "<start_of_turn>",
        "<eos",
        "<|im_end|>",
        "<think>",
        "ing",
        "er",
        "fox",
        "½",
        "Å",
        "\u{212b}",
        "가",
        "\u{1100}\u{1161}",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// Returns a tokenizer, and the library's of the same file in both readings of special tokens.
fn beside_library(json: &str) -> (Tokenizer, [Inner; 2]) {
    let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
    assert!(matches!(tokenizer.encoder, Encoder::Own(_)));
    let parsing = Inner::from_bytes(json).unwrap();
    let mut plain = parsing.clone();
    plain.set_encode_special_tokens(true);
    (tokenizer, [plain, parsing])
}

/// Small files of each kind.
static FILES: LazyLock<Vec<(Tokenizer, [Inner; 2])>> = LazyLock::new(|| {
    let read = |name: &str| {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let gemma = read("gemma/tokenizers/tiny-gemma.json");
    let mut json: serde_json::Value = serde_json::from_str(&gemma).unwrap();
    let prepend = serde_json::json!({"type": "Prepend", "prepend": "\u{2581}"});
    let replace = json["normalizer"].take();
    json["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": [prepend, replace]});
    json["pre_tokenizer"] = serde_json::Value::Null;
    json["added_tokens"][1]["normalized"] = true.into();
    json["added_tokens"][2]["rstrip"] = true.into();
    let llama2 = json.to_string();
    json["normalizer"] = serde_json::Value::Null;
    json["added_tokens"][1]["normalized"] = false.into();
    let metaspace = |scheme: &str, split: bool| serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split});
    json["pre_tokenizer"] = metaspace("first", false);
    let mistral = json.to_string();
    json["pre_tokenizer"] = metaspace("always", true);
    let words = json.to_string();
    let llama3 = read("gemma/tokenizers/tiny-llama.json");
    let mut spaced: serde_json::Value = serde_json::from_slice(FAIRY_TALES).unwrap();
    spaced["pre_tokenizer"]["add_prefix_space"] = true.into();
    let files = [
        String::from_utf8(FAIRY_TALES.to_vec()).unwrap(),
        gemma,
        llama2,
        mistral,
        words,
        llama3,
        read("gemma/tokenizers/tiny-qwen.json"),
        spaced.to_string(),
    ];
    files.iter().map(|json| beside_library(json)).collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ids_and_texts_are_the_librarys(text in texts()) {
        for (number, (tokenizer, inner)) in FILES.iter().enumerate() {
            for (control, inner) in [false, true].into_iter().zip(inner) {
                let ids = tokenizer.encode(&text, control).unwrap();
                let expected = inner.encode_fast(text.as_str(), false).unwrap();
                prop_assert_eq!(&ids, expected.get_ids(), "file {}, {}", number, control);
                let shown = tokenizer.decode(&ids);
                prop_assert_eq!(shown, inner.decode(&ids, false).unwrap(), "file {}", number);
                let spans = tokenizer.encode_spans(&text, control).unwrap();
                prop_assert!(spans.iter().map(|span| span.id).eq(ids), "file {}", number);
                let mut end = 0;
                for span in &spans {
                    prop_assert!(span.start <= end && end <= span.end, "{:?} after {}", span, end);
                    end = span.end;
                }
                let length = if spans.is_empty() { 0 } else { text.chars().count() };
                prop_assert_eq!(end, length, "file {}", number);
            }
        }
    }

    #[test]
    fn a_long_text_has_the_tokens_of_a_short_one(text in texts(), times in 1_usize..40) {
        let text = text.repeat(times);
        for (number, (tokenizer, inner)) in FILES.iter().enumerate() {
            let ids = tokenizer.encode(&text, true).unwrap();
            let expected = inner[1].encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(&ids, expected.get_ids(), "file {}", number);
        }
    }
}

fn of_model(model: &str) -> Result<Tokenizer, TextError> {
    let decoder = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}"#;
    let json = format!(r#"{{"added_tokens": [], "decoder": {decoder}, "model": {model}}}"#);
    Tokenizer::from_json(json.as_bytes())
}

#[test]
fn a_text_has_the_same_tokens_each_time() {
    let json = r#"{"type": "BPE", "dropout": 0.5, "vocab": {"a": 0, "b": 1, "ab": 2},
        "merges": [["a", "b"]]}"#;
    let tokenizer = of_model(json).unwrap();
    for _ in 0..64 {
        assert_eq!(tokenizer.encode("ab", false).unwrap(), [2]);
    }
}

#[test]
fn files_that_contradict_themselves_are_refused() {
    let refused = |model| of_model(model).err().map(|error| error.to_string());
    // The library strips the prefix from each token of a merge, even from tokens without it.
    let prefix = r#"{"type": "BPE", "continuing_subword_prefix": "long",
        "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}"#;
    let said = refused(prefix).expect("an error");
    assert!(said.contains("the tokenizers library failed"), "{said}");
    let unknown = r#"{"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}"#;
    let said = refused(unknown).expect("an error");
    assert!(
        said.contains("`ab`, which is not in the vocabulary"),
        "{said}"
    );
    let absurd = r#"{"type": "BPE", "vocab": {"a": 16777216}, "merges": []}"#;
    let said = refused(absurd).expect("an error");
    assert!(said.contains("the token id 16777216"), "{said}");
}

/// Returns the text of tokens as a stream shows it.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut speller = Speller::at_start();
    let mut stream = crate::text::TextStream::new(&[], false);
    let mut text = String::new();
    for &id in ids {
        text += &stream.push(id, tokenizer.spell(&mut speller, id)).text;
    }
    text + &stream.finish().text
}

#[test]
fn word_pieces_are_shown_as_their_decoder_shows_them() {
    let json = r###"{"version": "1.0", "added_tokens": [
            {"id": 7, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "hello": 1, "play": 2, "##ing": 3,
            "caf": 4, "##é": 5, ".": 6, "[SEP]": 7}}}"###;
    let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
    let inner = Inner::from_bytes(json).unwrap();
    let ids = tokenizer.encode("hello playing café.", true).unwrap();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6]);
    assert_eq!(tokenizer.decode(&ids), "hello playing café.");
    for ids in [&ids[..], &[3, 1, 7, 2], &[6], &[]] {
        assert_eq!(tokenizer.decode(ids), inner.decode(ids, false).unwrap());
        assert_eq!(streamed(&tokenizer, ids), tokenizer.decode(ids));
    }
    assert_eq!(tokenizer.token_bytes(2), Some(&b" play"[..]));
    assert_eq!(tokenizer.token_bytes(3), Some(&b"ing"[..]));
    assert_eq!(tokenizer.encode("hello[SEP]", true).unwrap(), [1, 7]);
    assert!(!tokenizer.encode("hello[SEP]", false).unwrap().contains(&7));
    assert!(tokenizer.merges(2).is_empty());
    assert_eq!(tokenizer.speller_after(&[&[7]]), Speller::at_start());
    assert_eq!(tokenizer.speller_after(&[&[7], &[1]]), Speller::within());
    let spans = tokenizer.encode_spans("hello playing", true).unwrap();
    let spans: Vec<_> = spans.iter().map(|span| (span.start, span.end)).collect();
    assert_eq!(spans, [(0, 5), (6, 10), (10, 13)]);
}

#[test]
fn unigrams_are_shown_as_their_decoder_shows_them() {
    let metaspace =
        r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}"#;
    let bytes: String = (0..=255)
        .map(|byte| format!(r#", ["<0x{byte:02X}>", -20.0]"#))
        .collect();
    let json = format!(
        r#"{{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {metaspace},
        "post_processor": null,
        "decoder": {{"type": "Sequence", "decoders": [{{"type": "ByteFallback"}}, {metaspace}]}},
        "model": {{"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": [["<unk>", 0.0],
            ["▁", -3.0], ["▁hello", -1.0], ["▁wor", -2.0], ["ld", -2.0]{bytes}]}}}}"#
    );
    let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
    let inner = Inner::from_bytes(&json).unwrap();
    let text = "hello world hello é";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(ids, [2, 3, 4, 2, 1, 5 + 0xc3, 5 + 0xa9]);
    assert_eq!(tokenizer.decode(&ids), text);
    assert_eq!(streamed(&tokenizer, &ids), text);
    assert_eq!(inner.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.token_bytes(2), Some(&b" hello"[..]));
    assert_eq!(tokenizer.token_bytes(5 + 0xc3), Some(&b"\xc3"[..]));
}

#[test]
fn a_post_processor_says_which_token_begins_a_text() {
    let of = |processor: serde_json::Value| {
        let mut json: serde_json::Value = serde_json::from_slice(FAIRY_TALES).unwrap();
        json["post_processor"] = processor;
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    };
    let template = serde_json::json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {}});
    let byte_level = serde_json::json!({"type": "ByteLevel", "trim_offsets": true});
    let both = serde_json::json!({"type": "Sequence", "processors": [byte_level, template]});
    assert_eq!(of(template.clone()).bos(), Some(8191));
    assert_eq!(of(both).bos(), Some(8191));
    let tokenizer = of(byte_level);
    assert_eq!(tokenizer.bos(), None);
    let mut ids = vec![1, 2, 3];
    tokenizer.keep_last(&mut ids, 2);
    assert_eq!(ids, [2, 3]);
    let tokenizer = of(template);
    let mut ids = tokenizer.encode_prompt("The king", true).unwrap();
    assert_eq!(ids[0], 8191);
    let last = *ids.last().unwrap();
    tokenizer.keep_last(&mut ids, 2);
    assert_eq!(ids, [8191, last]);
    tokenizer.without_bos(&mut ids);
    assert_eq!(ids, [last]);
}
