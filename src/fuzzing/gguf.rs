//! GGUF files: an input is the file.

use std::fs;

use super::input::Scratch;
use crate::checkpoint::{Checkpoint, Gguf};
use crate::text::Tokenizer;

/// Maximum length of an error, apart from what it quotes of the file, in bytes.
const MESSAGE: usize = 4096;
/// Maximum number of layers of which all tensors are looked for.
const LAYERS: usize = 64;

/// Checks that a file is refused with a short message, or that all that is read of it agrees with itself.
pub(super) fn run(bytes: &[u8]) {
    let scratch = Scratch::new();
    let path = scratch.path().join("model.gguf");
    fs::write(&path, bytes).expect("it is written");
    let read = Gguf::open(&path).map_err(|e| e.to_string());
    let used = read.and_then(|gguf| check(gguf, bytes.len()));
    if let Err(message) = used {
        assert!(message.len() <= MESSAGE, "{}", message.len());
    }
}

fn check(gguf: Gguf, length: usize) -> Result<(), String> {
    for (name, tensor) in gguf.tensors() {
        assert!(tensor.range.end <= length, "{name}");
        if let Ok(dtype) = tensor.dtype {
            let elements = tensor.shape.iter().product();
            assert_eq!(tensor.range.len(), dtype.bytes_of(elements), "{name}");
        }
    }
    if let Ok(vocabulary) = gguf.vocabulary() {
        let tokens = vocabulary.tokens.len();
        assert!(tokens * 8 <= length);
        assert!(vocabulary.eos.is_none_or(|eos| (eos as usize) < tokens));
        let _ = Tokenizer::from_arrays("model.gguf", vocabulary);
    }
    gguf.chat_template().map_err(|e| e.to_string())?;
    let sampling = gguf.generation_config().map_err(|e| e.to_string())?;
    sampling.sampling().check().expect("it was checked");
    let config = gguf.config().map_err(|e| e.to_string())?;
    if config.layers() > LAYERS {
        return Ok(());
    }
    let checkpoint = Checkpoint::from_gguf(gguf, &config).map_err(|e| e.to_string())?;
    checkpoint.validate(&config).map_err(|e| e.to_string())?;
    let head = checkpoint.lm_head(&config).map_err(|e| e.to_string())?;
    assert!(head.to_f32().iter().all(|value| value.is_finite()));
    Ok(())
}
