//! Models and adapters on disk from outside: what is unusual is in the log, and what can't be served ends the
//! command with exit code 2 and a message that names file and field.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::commands::{log_of, output, text};
use crate::support::process::skald;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2-family")
}

/// A directory with a model and its tokenizer.
fn model(name: &str) -> TempDir {
    let directory = TempDir::new().expect("a directory");
    let files = fs::read_dir(fixtures().join(name)).expect("a model");
    let paths = files.map(|entry| entry.expect("an entry").path());
    for path in paths
        .filter(|path| path.is_file())
        .chain([fixtures().join("tokenizer.json")])
    {
        let name = path.file_name().expect("a name");
        fs::copy(&path, directory.path().join(name)).expect("a copy");
    }
    directory
}

/// Runs `skald serve` and returns why it ended.
fn refusal(directory: &TempDir, flags: &[&str]) -> String {
    let path = directory.path().display().to_string();
    let ended = output(&mut skald(&[&["serve", "--model", &path], flags].concat()));
    let message = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{message}");
    message
}

#[test]
fn what_is_unusual_about_a_checkpoint_is_in_the_log() {
    for (name, words) in [
        ("nanogpt", ["[out, in]", "no biases"]),
        (
            "tied-with-other-head",
            ["`lm_head.weight` differs", "`tie_word_embeddings`"],
        ),
    ] {
        let directory = model(name);
        let path = directory.path().display().to_string();
        let log = log_of(&mut skald(&["serve", "--model", &path]));
        let log: Vec<String> = log.iter().map(|line| line["message"].to_string()).collect();
        let log = log.join("\n");
        for word in words {
            assert!(log.contains(word), "{name}: {log}");
        }
    }
}

#[test]
fn what_cannot_be_served_is_refused_with_file_and_field() {
    let legacy = refusal(&model("torch-legacy"), &[]);
    assert!(
        legacy.contains("pytorch_model.bin") && legacy.contains("PyTorch 1.6"),
        "{legacy}"
    );

    let unknown = model("gelu");
    let path = unknown.path().join("config.json");
    let config = fs::read_to_string(&path).expect("read");
    fs::write(&path, config.replace("\"gelu\"", "\"mish\"")).expect("written");
    let unknown = refusal(&unknown, &[]);
    for word in ["config.json", "`activation_function`", "mish", "quick_gelu"] {
        assert!(unknown.contains(word), "{unknown}");
    }

    let adapters = fixtures().join("lora-base/adapters");
    let dora = format!("mine={}", adapters.join("dora").display());
    let dora = refusal(&model("lora-base"), &["--adapter", &dora]);
    for word in [
        "`adapter` mine",
        "adapter_config.json",
        "`use_dora` is true",
    ] {
        assert!(dora.contains(word), "{dora}");
    }
    let nowhere = refusal(
        &model("lora-base"),
        &["--adapter", "mine=./no/such/adapter"],
    );
    assert!(
        nowhere.contains("neither an existing directory nor a valid hub id"),
        "{nowhere}"
    );
    let form = refusal(&model("lora-base"), &["--adapter", "mine"]);
    assert!(form.contains("NAME=DIRECTORY"), "{form}");
}
