//! Tokenizers in the files of other classes, `vocab.txt` and `spiece.model`, against the results of transformers
//! (`tests/fixtures/tokenizers`, made by its `make.py`).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skald::checkpoint::ModelFiles;
use tempfile::TempDir;

use crate::support::tiny_model;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers")
}

/// A directory with a model and the tokenizer of a case.
fn directory(case: &str) -> TempDir {
    let directory = TempDir::new().expect("a directory");
    let mut files = tiny_model::files();
    files.remove("tokenizer.json");
    let mut config = tiny_model::config();
    config["vocab_size"] = json!(600);
    files.insert("config.json".to_owned(), config.to_string().into_bytes());
    tiny_model::write(directory.path(), files);
    for entry in fs::read_dir(fixtures().join(case)).expect("the case") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        fs::copy(&path, directory.path().join(name)).expect("a copy");
    }
    directory
}

fn open(directory: &TempDir) -> Result<ModelFiles, String> {
    ModelFiles::open("tiny", directory.path()).map_err(|error| error.to_string())
}

fn vectors(case: &str) -> Vec<Value> {
    let file = fixtures().join(case).join("vectors.json");
    let text = fs::read(file).expect("the vectors");
    serde_json::from_slice(&text).expect("a list")
}

/// Asserts that the ids of all texts are those of a field, and that the ids of another one are the text of a third,
/// whole and streamed.
fn assert_vectors(case: &str, ids_field: &str, decoded: Option<(&str, &str)>) {
    let files = open(&directory(case)).expect("a tokenizer");
    let tokenizer = files.tokenizer;
    for vector in vectors(case) {
        let ids = |field: &str| -> Vec<u32> {
            serde_json::from_value(vector[field].clone()).expect("ids")
        };
        let text = vector["text"].as_str().expect("a text");
        let found = tokenizer.encode(text, true).expect("tokens");
        assert_eq!(found, ids(ids_field), "{case}: {text:?}");
        let Some((from, to)) = decoded else {
            continue;
        };
        let expected = vector[to].as_str().expect("a text");
        assert_eq!(tokenizer.decode(&ids(from)), expected, "{case}: {text:?}");
        let mut speller = tokenizer.speller_after(&[]);
        let mut streamed = Vec::new();
        for id in ids(from) {
            streamed.extend_from_slice(tokenizer.spell(&mut speller, id));
        }
        let streamed = String::from_utf8_lossy(&streamed);
        assert_eq!(streamed, expected, "{case}: {text:?}");
    }
}

#[test]
fn a_vocabulary_of_words_and_pieces_is_that_of_a_bert_tokenizer() {
    for case in ["bert", "bert-bare", "bert-cased"] {
        assert_vectors(case, "ids", Some(("ids", "decoded")));
    }
    let other = directory("bert");
    let config = json!({"tokenizer_class": "BertJapaneseTokenizer"});
    fs::write(
        other.path().join("tokenizer_config.json"),
        config.to_string(),
    )
    .expect("written");
    let refused = open(&other).map(drop).expect_err("another class");
    for words in ["vocab.txt", "BertJapaneseTokenizer", "save_pretrained"] {
        assert!(refused.contains(words), "{refused}");
    }
    let without = directory("bert-bare");
    fs::write(without.path().join("vocab.txt"), "a\nb\n").expect("written");
    let refused = open(&without).map(drop).expect_err("no [UNK]");
    assert!(refused.contains("`[UNK]`"), "{refused}");
}

/// As transformers converts it, which is what `AutoTokenizer` gives; that differs from SentencePiece itself in
/// combining characters.
#[test]
fn a_unigram_model_of_sentence_piece_is_as_transformers_converts_it() {
    assert_vectors("spiece-unigram", "fast_ids", Some(("fast_ids", "decoded")));
}

#[test]
fn a_model_of_lower_case_gets_lower_case() {
    let lower = directory("spiece-unigram");
    let path = lower.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("json");
    config["do_lower_case"] = true.into();
    fs::write(&path, config.to_string()).expect("written");
    let files = open(&lower).expect("a tokenizer");
    for vector in vectors("spiece-unigram") {
        // The texts in which the conversion is SentencePiece itself.
        if vector["fast_ids"] == vector["ids"] {
            let text = vector["text"].as_str().expect("a text");
            let found = files.tokenizer.encode(text, true).expect("tokens");
            assert_eq!(json!(found), vector["lower_ids"], "{text:?}");
        }
    }
}

#[test]
fn a_byte_pair_model_of_sentence_piece_is_that_of_llama() {
    assert_vectors("spiece-bpe", "ids", Some(("ids", "decoded")));
}

/// Its own decoder puts a space before special tokens, which are not text here.
#[test]
fn a_byte_pair_model_of_gpt_sw3_cleans_texts_as_its_class_does() {
    assert_vectors("spiece-sw3", "ids", None);
    let files = open(&directory("spiece-sw3")).expect("a tokenizer");
    for vector in vectors("spiece-sw3") {
        let ids: Vec<u32> = serde_json::from_value(vector["ids"].clone()).expect("ids");
        if !ids.iter().any(|&id| files.tokenizer.is_special(id)) {
            let decoded = files.tokenizer.decode(&ids);
            assert_eq!(json!(decoded), vector["decoded"], "{}", vector["text"]);
        }
    }
}

#[test]
fn models_that_cannot_be_read_exactly_are_refused() {
    let word = open(&directory("spiece-word"))
        .map(drop)
        .expect_err("words");
    assert!(word.contains("model type 3"), "{word}");
    let bytes = open(&directory("spiece-bytes"))
        .map(drop)
        .expect_err("unigram");
    assert!(bytes.contains("GPTSw3Tokenizer"), "{bytes}");
    let broken = directory("spiece-bpe");
    for name in ["spiece.model", "tokenizer.model"] {
        fs::write(broken.path().join(name), b"\xff\xff\xff").expect("written");
    }
    let broken = open(&broken).map(drop).expect_err("broken");
    assert!(broken.contains("spiece.model"), "{broken}");
}
