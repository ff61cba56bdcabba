//! Checkpoints: an input is the file `model.safetensors`.

use std::fs;

use super::input::Scratch;
use super::tiny;
use crate::checkpoint::{Checkpoint, Gpt2Config, ModelConfig, ModelFiles};
use crate::kernels::kv::KvDtype;
use crate::model::{Model, trial};

/// Maximum length of an error, apart from what it quotes of the file, in bytes.
const MESSAGE: usize = 2048;

/// Checks that a file is refused with a message that is not much longer than the file, or gives a model
/// that computes finite numbers.
pub(super) fn run(bytes: &[u8]) {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("model.safetensors"), bytes).expect("it is written");
    if let Err(message) = load(&scratch) {
        assert!(
            message.len() <= MESSAGE + 8 * bytes.len(),
            "{}",
            message.len()
        );
    }
}

fn load(scratch: &Scratch) -> Result<(), String> {
    let checkpoint = Checkpoint::open(scratch.path()).map_err(|e| e.to_string())?;
    checkpoint.hash_into(&mut blake3::Hasher::new());
    let config = tiny::smallest();
    let of_model = ModelConfig::Gpt2(config.clone());
    checkpoint.validate(&of_model).map_err(|e| e.to_string())?;
    check_sizes(&checkpoint, &config);
    let files = ModelFiles {
        name: "fuzzed".to_owned(),
        config: of_model,
        generation_config: crate::checkpoint::GenerationConfig::default(),
        tokenizer: tiny::byte_tokenizer(),
        tokenizer_config: crate::checkpoint::TokenizerConfig::default(),
        chat_template: None,
        checkpoint,
    };
    let model = Model::load(&files, tiny::backend()).map_err(|e| e.to_string())?;
    trial::run(&model, KvDtype::F32, "f32").map_err(|e| e.to_string())
}

/// Checks that a validated tensor has as many bytes as its shape requires.
fn check_sizes(checkpoint: &Checkpoint, config: &Gpt2Config) {
    let shape = [config.vocab_size, config.n_embd];
    let wte = checkpoint
        .tensor("wte.weight", &shape)
        .expect("it was validated");
    assert_eq!(
        wte.bytes.len(),
        wte.dtype.bytes_of(config.vocab_size * config.n_embd)
    );
    assert_eq!(wte.to_f32().len(), config.vocab_size * config.n_embd);
}
