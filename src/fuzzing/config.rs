//! `config.json`, `generation_config.json` and `tokenizer_config.json`: the first byte of an input chooses
//! one.

use crate::checkpoint::{GenerationConfig, ModelConfig, TokenizerConfig};
use crate::request::{Limits, RequestDraft, RequestId, SamplingStyle};

/// Maximum bytes of an error beside what it quotes of the file.
const MESSAGE: usize = 1024;

/// Checks that a file is refused with a message that is not much longer than the file, or gives usable
/// numbers.
pub(super) fn run(bytes: &[u8]) {
    let Some((kind, file)) = bytes.split_first() else {
        return;
    };
    let refused = match kind % 3 {
        0 => shape(file),
        1 => generation(file),
        _ => TokenizerConfig::from_json(file)
            .map(drop)
            .map_err(|e| e.to_string()),
    };
    if let Err(message) = refused {
        assert!(
            message.len() <= MESSAGE + 8 * file.len(),
            "{}",
            message.len()
        );
    }
}

fn shape(file: &[u8]) -> Result<(), String> {
    let config = ModelConfig::from_json("config.json", file).map_err(|e| e.to_string())?;
    if let ModelConfig::Gpt2(config) = &config {
        assert_eq!(config.head_dim() * config.n_head, config.n_embd);
    }
    assert!(config.parameters() >= config.vocab_size());
    assert!(config.norm_epsilon() > 0.0 && config.layers() > 0);
    Ok(())
}

/// Checks that accepted defaults never prevent a plain request.
fn generation(file: &[u8]) -> Result<(), String> {
    let config = GenerationConfig::from_json(file).map_err(|e| e.to_string())?;
    let mut limits = Limits::for_model(64, 100, config.end_of_text().unwrap_or_default());
    limits.defaults = config.sampling();
    let id = RequestId::new("request");
    let draft = RequestDraft::new(id, vec![1], 1, SamplingStyle::Greedy);
    let request = limits.admit(draft).expect("a plain request");
    assert!(request.sampling.temperature.is_finite() && request.sampling.temperature >= 0.0);
    Ok(())
}
