//! A model that can't be served ends the start-up: exit code 2, the file and the problem, no panic, and no
//! endless wait.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::pace::PATIENCE;
use crate::support::process::{Process, skald};
use crate::support::tiny_model::{self, N_EMBD, Tensor, Tensors, VOCAB_SIZE, safetensors, tensors};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Creates a directory with the whole tiny model, whose files a test can change.
fn model() -> TempDir {
    let directory = TempDir::new().expect("a directory");
    tiny_model::write(directory.path(), tiny_model::files());
    directory
}

fn of_config(change: impl FnOnce(&mut Value)) -> TempDir {
    let directory = model();
    let mut config = tiny_model::config();
    change(&mut config);
    fs::write(directory.path().join("config.json"), config.to_string()).expect("written");
    directory
}

fn of_tensors(dtype: Dtype, change: impl FnOnce(&mut Tensors)) -> TempDir {
    let directory = model();
    let mut tensors = tensors("", dtype);
    change(&mut tensors);
    let file = directory.path().join("model.safetensors");
    fs::write(file, safetensors(&tensors)).expect("written");
    directory
}

/// Starts a server that exits with code 2, and returns its messages.
#[track_caller]
fn refused(model: &Path) -> String {
    let path = model.to_str().expect("a path");
    let mut child = skald(&["serve", "--listen", "127.0.0.1:0", "--model", path])
        .env("RUST_BACKTRACE", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("skald runs");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a status") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut said = String::new();
    let mut pipe = child.stderr.take().expect("a pipe");
    pipe.read_to_string(&mut said).expect("text");
    assert_eq!(status.code(), Some(2), "{said}");
    for panic in ["panicked", "backtrace", "ready at"] {
        assert!(!said.contains(panic), "{said}");
    }
    said
}

#[track_caller]
fn is_refused(model: &TempDir, words: &[&str]) {
    let said = refused(model.path());
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn the_whole_model_is_served() {
    let directory = model();
    let path = directory.path().to_str().expect("a path");
    let _server = Process::start(&["--model", path]);
}

/// Replaces a file by something else.
type Replace = fn(&Path);

#[test]
fn only_regular_files_are_read() {
    let kinds: [(&str, Replace); 3] = [
        ("a named pipe", |path| {
            assert!(
                Command::new("mkfifo")
                    .arg(path)
                    .status()
                    .expect("it")
                    .success()
            );
        }),
        ("a directory", |path| fs::create_dir(path).expect("made")),
        ("a device", |path| symlink("/dev/zero", path).expect("made")),
    ];
    let files = [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "model.safetensors",
    ];
    for (kind, replace) in kinds {
        for file in files {
            let directory = model();
            let path = directory.path().join(file);
            let _ = fs::remove_file(&path);
            replace(&path);
            is_refused(&directory, &[file, kind, "not a regular file"]);
        }
    }
    for file in ["vocab.json", "merges.txt", "model.safetensors.index.json"] {
        let directory = model();
        let there = |name: &str| -> PathBuf { directory.path().join(name) };
        fs::remove_file(there("tokenizer.json")).expect("removed");
        if file.ends_with("index.json") {
            fs::remove_file(there("model.safetensors")).expect("removed");
        }
        fs::write(there("vocab.json"), r#"{"a": 0}"#).expect("written");
        fs::write(there("merges.txt"), "").expect("written");
        let _ = fs::remove_file(there(file));
        (kinds[0].1)(&there(file));
        is_refused(&directory, &[file, "a named pipe, not a regular file"]);
    }
}

#[test]
fn an_absurd_token_id_is_refused_and_takes_no_memory() {
    for id in [1 << 24, u64::from(u32::MAX)] {
        for place in ["added", "vocabulary"] {
            let directory = model();
            let mut tokenizer = tiny_model::tokenizer();
            if place == "added" {
                tokenizer["added_tokens"][0]["id"] = id.into();
                tokenizer["model"]["vocab"]["<|endoftext|>"] = id.into();
            } else {
                tokenizer["model"]["vocab"]["z"] = id.into();
            }
            let file = directory.path().join("tokenizer.json");
            fs::write(file, tokenizer.to_string()).expect("written");
            let words = ["tokenizer.json", &id.to_string(), "16777215"];
            is_refused(&directory, &words);
        }
    }
}

#[test]
fn a_configuration_is_refused_by_field_and_value() {
    for (field, value, words) in [
        ("layer_norm_epsilon", json!(-1e-5), ["-0.00001", "above 0"]),
        (
            "layer_norm_epsilon",
            json!(0),
            ["`layer_norm_epsilon` is 0", "above 0"],
        ),
        ("n_layer", json!(-2), ["-2", "line 1"]),
        ("n_layer", json!(0), ["`n_layer` is 0", "1 to 16777216"]),
        (
            "n_embd",
            json!(1_u64 << 40),
            ["1099511627776", "1 to 16777216"],
        ),
        (
            "n_positions",
            json!(1 << 24),
            ["`wpe.weight`", "16777216, 4"],
        ),
        ("n_layer", json!(1 << 24), ["`h.2.ln_1.weight`", "missing"]),
    ] {
        let directory = of_config(|config| config[field] = value);
        let file = if words[0].starts_with("`w") || words[0].starts_with("`h") {
            "model.safetensors"
        } else {
            "config.json"
        };
        is_refused(&directory, &[file, words[0], words[1]]);
    }
    let directory = model();
    let config = tiny_model::config().to_string();
    let config = config.replacen('{', r#"{"layer_norm_epsilon": NaN, "#, 1);
    fs::write(directory.path().join("config.json"), config).expect("written");
    is_refused(&directory, &["config.json: layer_norm_epsilon", "line 1"]);
}

#[test]
fn a_checkpoint_of_more_layers_than_its_configuration_is_refused() {
    let directory = of_config(|config| config["n_layer"] = 1.into());
    let words = [
        "model.safetensors",
        "`h.1.",
        "layer 1",
        "`n_layer` in config.json is 1",
    ];
    is_refused(&directory, &words);
}

#[test]
fn a_tensor_that_is_there_twice_is_refused() {
    let directory = of_tensors(Dtype::F32, |tensors| {
        let other = Tensor::new(7, &[N_EMBD], Dtype::F32);
        tensors.insert("transformer.ln_f.bias".to_owned(), other);
    });
    is_refused(
        &directory,
        &["model.safetensors", "`ln_f.bias`", "duplicate"],
    );
}

#[test]
fn a_weight_that_is_not_finite_is_refused_by_its_place() {
    for (dtype, nan, infinity) in [
        (Dtype::F32, vec![0, 0, 0xc0, 0x7f], vec![0, 0, 0x80, 0xff]),
        (Dtype::F16, vec![0, 0x7e], vec![0, 0xfc]),
        (Dtype::BF16, vec![0xc0, 0x7f], vec![0x80, 0xff]),
    ] {
        for (bytes, name) in [(nan, "NaN"), (infinity, "-inf")] {
            for (tensor, at, place) in [
                ("h.1.mlp.c_fc.weight", 17, "[1, 1]"),
                ("h.0.ln_1.bias", 3, "[3]"),
                // The embedding of the last token, which a short text may not contain.
                ("wte.weight", VOCAB_SIZE * N_EMBD - 1, "[7, 3]"),
                ("wpe.weight", 23, "[5, 3]"),
            ] {
                let directory = of_tensors(dtype, |tensors| {
                    let tensor = tensors.get_mut(tensor).expect("it is there");
                    let at = at * bytes.len();
                    tensor.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
                });
                let tensor = format!("`{tensor}`");
                is_refused(&directory, &["model.safetensors", &tensor, name, place]);
            }
        }
    }
}

/// Every weight is finite, but the logits are not.
#[test]
fn a_model_that_gives_no_numbers_is_refused_before_it_is_ready() {
    let directory = of_tensors(Dtype::F32, |tensors| {
        let tensor = tensors.get_mut("ln_f.weight").expect("it is there");
        for value in tensor.bytes.chunks_mut(4) {
            value.copy_from_slice(&3e38_f32.to_le_bytes());
        }
    });
    is_refused(&directory, &["not finite", "f32", "can't be served"]);
}
