//! The files beside a tokenizer: added and special tokens of older models, what begins and ends a text, and
//! vocabularies that do not fit the model.

use serde_json::{Value, json};
use skald::checkpoint::ModelFiles;
use skald::text::ChatTemplate;
use skald::text::template::{Ending, Message, Role, TemplateSource};
use tempfile::TempDir;

use crate::support::tiny_model::{self, END_OF_TEXT};

/// Creates a directory with the whole tiny model and more files.
fn model(files: &[(&str, Value)]) -> TempDir {
    let directory = TempDir::new().unwrap();
    tiny_model::write(directory.path(), tiny_model::files());
    for (name, content) in files {
        let content = content
            .as_str()
            .map_or_else(|| content.to_string(), str::to_owned);
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

/// Creates a model whose tokenizer is `vocab.json` and `merges.txt`.
fn with_vocab(vocab: &Value, files: &[(&str, Value)]) -> TempDir {
    let directory = model(files);
    std::fs::remove_file(directory.path().join("tokenizer.json")).unwrap();
    std::fs::write(directory.path().join("vocab.json"), vocab.to_string()).unwrap();
    std::fs::write(
        directory.path().join("merges.txt"),
        "#version: 0.2\na b\n\n",
    )
    .unwrap();
    directory
}

fn open(directory: &TempDir) -> ModelFiles {
    ModelFiles::open("tiny", directory.path()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(directory: &TempDir) -> String {
    let opened = ModelFiles::open("tiny", directory.path());
    opened.err().expect("refused").to_string()
}

fn vocab() -> Value {
    json!({"a": 0, "b": 1, "ab": 2, "c": 3, "<|endoftext|>": 4})
}

#[test]
fn added_tokens_of_an_older_tokenizer_are_tokens() {
    let user = json!({"<|user|>": 5});
    let decoder = json!({"added_tokens_decoder": {"6": {"content": "<|end|>", "special": true}}});
    let map = json!({"additional_special_tokens": [{"content": "<|user|>", "lstrip": false}]});
    let files = open(&with_vocab(
        &vocab(),
        &[("added_tokens.json", user.clone())],
    ));
    let encode = |files: &ModelFiles, text: &str| files.tokenizer.encode(text, true).unwrap();
    assert_eq!(encode(&files, "<|user|>ab"), [5, 2]);
    assert_eq!(files.tokenizer.token_bytes(5), Some(&b"<|user|>"[..]));
    assert!(!files.tokenizer.is_special(5) && files.tokenizer.is_control(5));
    let files = open(&with_vocab(
        &vocab(),
        &[
            ("added_tokens.json", user),
            ("tokenizer_config.json", decoder),
            ("special_tokens_map.json", map),
        ],
    ));
    assert_eq!(encode(&files, "c<|user|>ab<|end|>"), [3, 5, 2, 6]);
    assert!(files.tokenizer.is_special(5) && files.tokenizer.is_special(6));
    assert_eq!(files.tokenizer.decode(&[5, 2, 6]), "<|user|>ab<|end|>");

    let other = json!({"<|user|>": 3});
    let said = refused(&with_vocab(&vocab(), &[("added_tokens.json", other)]));
    for word in ["vocab.json", "the token id 3 is `c`", "`<|user|>`"] {
        assert!(said.contains(word), "{said}");
    }
    let said = refused(&with_vocab(&vocab(), &[("added_tokens.json", json!([1]))]));
    assert!(said.contains("added_tokens.json"), "{said}");
}

#[test]
fn a_vocabulary_without_end_of_text_is_loaded_as_it_is() {
    let files = open(&with_vocab(&json!({"a": 0, "b": 1, "ab": 2, "c": 3}), &[]));
    assert_eq!(files.tokenizer.vocab_size(), 4);
    assert_eq!(files.tokenizer.end_of_text(), None);
    // The configuration's.
    assert_eq!(files.end_of_text(), [END_OF_TEXT]);
}

#[test]
fn tokens_that_the_model_has_no_embedding_for_are_told() {
    let added = |count: u32| {
        let tokens = (5..8 + count).map(|id| (format!("<{id}>"), json!(id)));
        Value::Object(tokens.collect())
    };
    open(&with_vocab(&vocab(), &[("added_tokens.json", added(0))]));
    let said = refused(&with_vocab(&vocab(), &[("added_tokens.json", added(1))]));
    for word in [
        "vocab.json has 1 token more than the model",
        "up to 8 (`<8>`)",
        "`vocab_size` in",
        "is 8",
    ] {
        assert!(said.contains(word), "{said}");
    }
    let said = refused(&with_vocab(&vocab(), &[("added_tokens.json", added(3))]));
    assert!(said.contains("3 tokens more"), "{said}");
}

#[test]
fn the_tokenizers_end_of_text_counts_beside_the_configurations() {
    let config = json!({"eos_token": "c"});
    let files = open(&model(&[("tokenizer_config.json", config)]));
    assert_eq!(files.end_of_text(), [END_OF_TEXT, 3]);
    let generation = json!({"eos_token_id": [1, 2]});
    let config = json!({"eos_token": {"content": "b"}});
    let files = open(&model(&[
        ("tokenizer_config.json", config),
        ("generation_config.json", generation),
    ]));
    assert_eq!(files.end_of_text(), [1, 2]);
    // A token that ends a turn, if the template writes it.
    let added = json!({"<|im_end|>": 5});
    let template = json!({"chat_template": "{{ messages[0].content }}<|im_end|>"});
    let files = open(&with_vocab(
        &vocab(),
        &[
            ("added_tokens.json", added.clone()),
            ("tokenizer_config.json", template),
        ],
    ));
    assert_eq!(files.end_of_text(), [END_OF_TEXT, 5]);
    let files = open(&with_vocab(&vocab(), &[("added_tokens.json", added)]));
    assert_eq!(files.end_of_text(), [END_OF_TEXT]);
}

#[test]
fn a_template_has_the_tokens_that_the_files_name() {
    let rendered = |config: Value| {
        let files = open(&model(&[("tokenizer_config.json", config)]));
        let template = ChatTemplate::parse(TemplateSource {
            origin: "test".to_owned(),
            text: "{{ bos_token }}|{{ eos_token }}".to_owned(),
        });
        let chat = files.chat(Some(template.unwrap())).unwrap();
        let message = Message {
            role: Role::User,
            content: String::new(),
            name: None,
            tool_calls: None,
            tool_call_id: None,
        };
        chat.render(&[message], Ending::Answer).unwrap()
    };
    assert_eq!(rendered(json!({})), "<|endoftext|>|<|endoftext|>");
    assert_eq!(rendered(json!({"bos_token": null})), "|<|endoftext|>");
    assert_eq!(rendered(json!({"bos_token": null, "eos_token": "c"})), "|c");
    assert_eq!(rendered(json!({"bos_token": "a", "eos_token": "c"})), "a|c");
}

#[test]
fn what_the_configuration_asks_for_is_done() {
    let config = json!({"add_bos_token": true, "bos_token": "c"});
    let files = open(&model(&[("tokenizer_config.json", config)]));
    assert_eq!(files.tokenizer.encode_prompt("ab", true).unwrap(), [3, 2]);
    assert_eq!(files.tokenizer.encode("ab", true).unwrap(), [2]);
    let config = json!({"bos_token": "c"});
    let files = open(&model(&[("tokenizer_config.json", config)]));
    assert_eq!(files.tokenizer.encode_prompt("ab", true).unwrap(), [2]);
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "c": 3, "\u{120}": 4});
    let config = json!({"add_prefix_space": true});
    let files = open(&with_vocab(&vocab, &[("tokenizer_config.json", config)]));
    assert_eq!(files.tokenizer.encode("ab", true).unwrap(), [4, 2]);
    assert_eq!(files.tokenizer.encode(" ab", true).unwrap(), [4, 2]);
    assert_eq!(files.tokenizer.encode_continued("ab", true).unwrap(), [2]);
}
