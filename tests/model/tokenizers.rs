//! The tokenizers of real models against published vectors: `SmolLM2` from its merges, Gemma 3 from the files
//! in `SKALD_TEST_REAL`, each from the arrays of a GGUF file and from a `tokenizer.json`.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use skald::checkpoint::Gguf;
use skald::text::template::{Ending, Message, Role, TemplateSource, TemplateTokens};
use skald::text::{
    AddedToken, ChatTemplate, Speller, TextStream, Tokenizer, TokenizerSettings, VocabularyArrays,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn read(name: &str) -> String {
    let path = fixture(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A text with its tokens.
#[derive(Deserialize)]
struct Vector {
    text: String,
    ids: Vec<u32>,
    ids_with_special: Vec<u32>,
    decoded: String,
    decoded_skip_special: String,
    llamacpp_ids_special_as_text: Vec<u32>,
}

/// `SmolLM2`'s vocabulary: some special tokens and bytes, then the result of each merge.
fn smollm2() -> VocabularyArrays {
    let merges: Vec<String> = read("smollm2-tokenizer/merges.txt")
        .lines()
        .map(str::to_owned)
        .collect();
    let first = read("smollm2-tokenizer/first-tokens.json");
    let mut tokens: Vec<String> = serde_json::from_str(&first).expect("tokens");
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    VocabularyArrays {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        token_types: (0..tokens.len())
            .map(|id| if id < 17 { 3 } else { 1 })
            .collect(),
        tokens,
        merges,
        add_bos: Some(false),
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..VocabularyArrays::default()
    }
}

/// Returns the `tokenizer.json` of `SmolLM2`.
fn smollm2_json() -> String {
    let arrays = smollm2();
    let vocab = arrays.tokens.iter().zip(0..);
    let vocab: serde_json::Map<String, Value> = vocab
        .map(|(token, id)| (token.clone(), json!(id)))
        .collect();
    let added = arrays.tokens.iter().take(17).zip(0..).map(|(content, id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": arrays.merges},
    })
    .to_string()
}

fn from_arrays(arrays: VocabularyArrays) -> Tokenizer {
    Tokenizer::from_arrays("model.gguf", arrays).expect("a tokenizer")
}

fn from_json(json: &str) -> Tokenizer {
    Tokenizer::from_json(json.as_bytes()).expect("a tokenizer")
}

/// Checks a tokenizer against vectors; `differs` names texts whose plain tokens llama.cpp sees differently.
fn check(tokenizer: &Tokenizer, vectors: &str, differs: &[&str]) {
    let vectors: Vec<Vector> = serde_json::from_str(&read(vectors)).expect("vectors");
    assert_eq!(vectors.len(), 80);
    for vector in &vectors {
        let text = &vector.text;
        assert_eq!(
            tokenizer.encode(text, true).expect("ids"),
            vector.ids,
            "{text:?}"
        );
        let prompt = tokenizer.encode_prompt(text, true).expect("ids");
        // A text that begins with the token keeps one.
        let mut once = vector.ids_with_special.clone();
        once.dedup_by(|second, first| Some(*first) == tokenizer.bos() && first == second);
        assert_eq!(prompt, once, "{text:?}");
        if !differs.contains(&text.as_str()) {
            let plain = tokenizer.encode(text, false).expect("ids");
            assert_eq!(plain, vector.llamacpp_ids_special_as_text, "{text:?}");
        }
        assert_eq!(tokenizer.decode(&vector.ids), vector.decoded, "{text:?}");
        let shown: Vec<u32> = vector
            .ids
            .iter()
            .copied()
            .filter(|&id| !tokenizer.is_special(id))
            .collect();
        if !text.contains("<unused") && !text.contains("<mask>") && !text.contains("_image>") {
            assert_eq!(
                tokenizer.decode(&shown),
                vector.decoded_skip_special,
                "{text:?}"
            );
        }
        let mut stream = TextStream::new(&[], false);
        let mut speller = Speller::at_start();
        let pieces = vector.ids.iter().map(|&id| {
            let bytes = tokenizer.spell(&mut speller, id);
            stream.push(id, bytes).text
        });
        let streamed = pieces.collect::<String>();
        assert_eq!(streamed + &stream.finish().text, vector.decoded, "{text:?}");
        let spans = tokenizer.encode_spans(text, true).expect("spans");
        assert!(
            spans
                .iter()
                .map(|span| span.id)
                .eq(vector.ids.iter().copied()),
            "{text:?}"
        );
        let end = spans.last().map_or(0, |span| span.end);
        assert_eq!(end, text.chars().count(), "{text:?}");
    }
}

#[test]
fn smollm2_has_its_published_ids_from_arrays_and_from_json() {
    for tokenizer in [from_arrays(smollm2()), from_json(&smollm2_json())] {
        check(&tokenizer, "smollm2-tokenizer/vectors.json", &[]);
        assert_eq!(tokenizer.vocab_size(), 49152);
        assert_eq!(
            (tokenizer.bos(), tokenizer.ends_of_turn()),
            (None, &[2][..])
        );
    }
    let tokenizer = from_arrays(smollm2());
    assert_eq!((tokenizer.named_bos(), tokenizer.eos()), (Some(1), Some(2)));
}

/// Returns a conversation of the vectors.
fn conversation(vector: &Value) -> Vec<Message> {
    let messages = vector["messages"].as_array().expect("messages").iter();
    let message = |message: &Value| Message {
        role: match message["role"].as_str().expect("a role") {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        },
        content: message["content"].as_str().expect("a text").to_owned(),
        name: None,
        tool_calls: None,
        tool_call_id: None,
    };
    messages.map(message).collect()
}

/// Checks a template against the conversations of the vectors.
fn check_chat(model: &str, tokenizer: &Tokenizer, tokens: TemplateTokens) {
    let json: Value = serde_json::from_str(&read("gemma/chat-vectors.json")).expect("JSON");
    let template = ChatTemplate::parse(TemplateSource {
        origin: "tokenizer_config.json".to_owned(),
        text: json[model]["template"]
            .as_str()
            .expect("a template")
            .to_owned(),
    });
    let template = template.expect("a template").for_model(tokenizer, tokens);
    let vectors = json[model]["vectors"].as_array().expect("vectors");
    assert_eq!(vectors.len(), 14);
    for vector in vectors {
        let ending = if vector["add_generation_prompt"] == true {
            Ending::Answer
        } else {
            Ending::Closed
        };
        let messages = conversation(vector);
        let encoded = template.encode(tokenizer, &messages, ending);
        if let Some(error) = vector["error"].as_str() {
            let said = encoded.expect_err("refused").to_string();
            assert_eq!(
                said,
                format!("the chat template refuses these messages: {error}")
            );
            continue;
        }
        let (ids, text) = (
            encoded.expect("ids"),
            vector["text"].as_str().expect("a text"),
        );
        assert_eq!(tokenizer.decode(&ids), text);
        let expected: Vec<u32> = serde_json::from_value(vector["ids"].clone()).expect("ids");
        let said = messages
            .iter()
            .any(|message| message.content.contains("<end_of_turn>"));
        if !said {
            assert_eq!(ids, expected, "{text:?}");
            continue;
        }
        // What the user wrote is text here; in the vectors it is parsed.
        let control = |ids: &[u32]| ids.iter().filter(|&&id| tokenizer.is_control(id)).count();
        let turns = text.matches(if model == "gemma3" {
            "<start_of_turn>user"
        } else {
            "<|im_start|>"
        });
        let closed = usize::from(ending == Ending::Closed);
        let own = match model {
            // `<bos>`, and the beginning and end of each turn.
            "gemma3" => 1 + 2 * turns.count() + (1 - closed),
            _ => 2 * turns.count() - (1 - closed),
        };
        assert_eq!(control(&ids), own, "{text:?}");
    }
}

#[test]
fn smollm2s_conversations_have_the_ids_of_its_own_template() {
    let tokens = TemplateTokens {
        bos: "<|im_start|>".to_owned(),
        eos: "<|im_end|>".to_owned(),
    };
    check_chat("smollm2", &from_arrays(smollm2()), tokens);
}

/// Returns a file of `SKALD_TEST_REAL`, if the variable is set.
fn real(name: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("SKALD_TEST_REAL");
    if directory.is_none() {
        eprintln!("skipped: SKALD_TEST_REAL=DIRECTORY is not set");
    }
    Some(Path::new(&directory?).join(name))
}

/// Returns Gemma 3's arrays.
fn gemma3() -> Option<VocabularyArrays> {
    let gguf = Gguf::open(&real("gemma-3-270m-q4_k_m.gguf")?).expect("a GGUF file");
    Some(gguf.vocabulary().expect("a vocabulary"))
}

/// Returns Gemma 3's `tokenizer.json`.
fn gemma3_json() -> Option<Tokenizer> {
    let json = fs::read_to_string(real("gemma3-tokenizer.json")?);
    Some(from_json(&json.expect("it is read")))
}

#[test]
fn real_gemma3_has_its_published_ids_from_arrays_and_from_json() {
    let arrays = gemma3().map(from_arrays);
    let json = gemma3_json();
    // A literal U+2581 is another token to llama.cpp.
    for tokenizer in arrays.iter().chain(&json) {
        check(
            tokenizer,
            "gemma/tok-gemma3.json",
            &[
                "▁▁ ▁Hello",
                "<start_of_image>\n<end_of_image>",
                "<unk> <pad> <mask> [multimodal]",
            ],
        );
        assert_eq!(tokenizer.bos(), Some(2));
        assert_eq!(tokenizer.ends_of_turn(), [106]);
        assert_eq!(tokenizer.token_bytes(236_743), Some(&b" "[..]));
        assert_eq!(tokenizer.token_bytes(138), Some(&b"  "[..]));
        assert_eq!(tokenizer.token_bytes(248), Some(&b"\x0a"[..]));
        let tokens = TemplateTokens {
            bos: "<bos>".to_owned(),
            eos: "<eos>".to_owned(),
        };
        check_chat("gemma3", tokenizer, tokens);
    }
    let (Some(arrays), Some(json)) = (arrays, json) else {
        return;
    };
    // Both ways of reading one vocabulary, on random texts.
    let runner = &mut proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(2000));
    let texts = "(\\PC|[ \\n\\ta-zA-Z0-9.,'\"<>_]|the |ing|  |🐉|é|中|▁|<b>|<start_of_turn>){0,80}";
    let same = runner.run(&texts, |text| {
        for control in [false, true] {
            let ids = arrays.encode(&text, control).unwrap();
            prop_assert_eq!(&ids, &json.encode(&text, control).unwrap());
            prop_assert!(arrays.decode(&ids) == text.replace('▁', " "));
        }
        Ok(())
    });
    same.unwrap();
}

#[test]
fn settings_beside_a_tokenizer_are_honoured() {
    let token = |content: &str, special| AddedToken {
        content: content.to_owned(),
        special,
        ..AddedToken::default()
    };
    let settings = TokenizerSettings {
        added: vec![
            (50257, token("<|user|>", false)),
            (50258, token("<|end|>", false)),
        ],
        special: vec!["<|end|>".to_owned()],
        bos: Some("<|endoftext|>".to_owned()),
        eos: Some("<|end|>".to_owned()),
        add_bos: Some(true),
        add_prefix_space: Some(true),
    };
    let gpt2 = || {
        let file = |name: &str| fixture("gpt2-tokenizer").join(name);
        Tokenizer::from_vocab_and_merges(&file("vocab.json"), &file("merges.txt"))
            .expect("a tokenizer")
    };
    let plain = gpt2();
    assert_eq!((plain.vocab_size(), plain.bos()), (50257, None));
    let tokenizer = gpt2()
        .with_settings("vocab.json", &settings)
        .expect("a tokenizer");
    assert_eq!(tokenizer.vocab_size(), 50259);
    assert_eq!(tokenizer.encode("Hello world", true).unwrap(), [18435, 995]);
    assert_eq!(
        tokenizer.encode_continued("hi<|user|>", true).unwrap(),
        [5303, 50257]
    );
    assert_eq!(tokenizer.encode_prompt(" a", true).unwrap(), [50256, 257]);
    assert_eq!(
        tokenizer.encode_prompt("<|endoftext|> a", true).unwrap(),
        [50256, 257]
    );
    assert_eq!(tokenizer.token_bytes(50257), Some(&b"<|user|>"[..]));
    assert!(!tokenizer.is_special(50257) && tokenizer.is_special(50258));
    // `add_prefix_space` is off in the example.
    let settings = TokenizerSettings {
        add_prefix_space: None,
        ..settings
    };
    let tokenizer = gpt2()
        .with_settings("vocab.json", &settings)
        .expect("a tokenizer");
    assert_eq!(tokenizer.encode("<|user|>hi", true).unwrap(), [50257, 5303]);
    let twice = TokenizerSettings {
        added: vec![(5, token("<|user|>", false))],
        ..TokenizerSettings::default()
    };
    let error = gpt2()
        .with_settings("vocab.json", &twice)
        .err()
        .expect("refused");
    assert!(
        error.to_string().contains("the token id 5 is `&`"),
        "{error}"
    );
}
