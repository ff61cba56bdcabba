//! Small models and tokenizers for targets that need a complete one.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock};

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};

use super::input::{Choices, Scratch};
use crate::backend::cpu::CpuBackend;
use crate::checkpoint::{Checkpoint, Gpt2Config, ModelConfig, ModelFiles, ModelSource};
use crate::kernels::linear::WeightDtype;
use crate::text::Tokenizer;
use crate::text::tokenizer::byte_alphabet;

/// The only special token of [`byte_tokenizer`].
const END_OF_TEXT: usize = 256;

/// Returns a tokenizer whose tokens are the single bytes and `<|endoftext|>`.
pub(super) fn byte_tokenizer() -> Tokenizer {
    let json = byte_tokenizer_json().to_string();
    Tokenizer::from_json(json.as_bytes()).expect("a tokenizer")
}

fn byte_tokenizer_json() -> Value {
    let bytes = (0..).zip(byte_alphabet());
    let vocabulary = bytes.filter_map(|(character, byte)| {
        let character = char::from_u32(character)?;
        Some((character.to_string(), json!(byte?)))
    });
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "post_processor": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "added_tokens": [{
            "id": END_OF_TEXT, "content": "<|endoftext|>", "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        }],
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary.collect::<serde_json::Map<_, _>>(), "merges": [],
        },
    })
}

/// Returns the tokenizer of the built-in model.
pub(super) fn real_tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(builtin().tokenizer));
    Arc::clone(&TOKENIZER)
}

fn builtin() -> ModelFiles {
    let files = ModelSource::Builtin.fetch(false);
    files.expect("the feature builtin-model is on")
}

/// Returns a model with the tokenizer of the built-in one and a shape that takes almost no time.
pub(super) fn model() -> ModelFiles {
    let mut files = builtin();
    let ModelConfig::Gpt2(builtin) = files.config else {
        unreachable!("the built-in model is a GPT-2")
    };
    let config = Gpt2Config {
        n_positions: 64,
        n_embd: 16,
        n_layer: 1,
        n_head: 2,
        n_inner: 32,
        ..builtin
    };
    let scratch = Scratch::new();
    let weights = checkpoint(&config);
    files.config = ModelConfig::Gpt2(config);
    fs::write(scratch.path().join("model.safetensors"), weights).expect("it is written");
    // The mapping stays valid after the file is deleted.
    files.checkpoint = Checkpoint::open(scratch.path()).expect("a checkpoint");
    files
}

/// Returns the backend with which targets load models.
pub(super) fn backend() -> &'static CpuBackend {
    static BACKEND: LazyLock<CpuBackend> =
        LazyLock::new(|| CpuBackend::new(NonZeroUsize::MIN, WeightDtype::F32));
    &BACKEND
}

/// Returns the configuration of the smallest useful model.
pub(super) fn smallest() -> Gpt2Config {
    let json = json!({
        "model_type": "gpt2", "vocab_size": 8, "n_positions": 6, "n_embd": 4, "n_layer": 1,
        "n_head": 2, "n_inner": 4, "eos_token_id": 4,
    });
    Gpt2Config::from_json("config.json", json.to_string().as_bytes()).expect("a configuration")
}

/// Returns a safetensors file for a model of this shape.
pub(super) fn checkpoint(config: &Gpt2Config) -> Vec<u8> {
    let mut choices = Choices::of(0);
    let mut values = |shape: &[usize]| -> Vec<u8> {
        let sixteenths = (0..shape.iter().product()).map(|_| choices.below(33) as f32 - 16.0);
        sixteenths
            .flat_map(|n: f32| (n / 16.0).to_le_bytes())
            .collect()
    };
    let shapes = shapes(config).into_iter();
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .map(|(name, shape)| {
            let bytes = values(&shape);
            (name, (shape, bytes))
        })
        .collect();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor");
        (name, view)
    });
    serialize(views, None).expect("a checkpoint")
}

fn shapes(config: &Gpt2Config) -> Vec<(String, Vec<usize>)> {
    let (n, inner) = (config.n_embd, config.n_inner);
    let outer = [
        ("wte.weight", vec![config.vocab_size, n]),
        ("wpe.weight", vec![config.n_positions, n]),
        ("ln_f.weight", vec![n]),
        ("ln_f.bias", vec![n]),
    ];
    let mut shapes: Vec<_> = outer.map(|(name, shape)| (name.to_owned(), shape)).into();
    for layer in 0..config.n_layer {
        for (name, shape) in [
            ("ln_1.weight", vec![n]),
            ("ln_1.bias", vec![n]),
            ("attn.c_attn.weight", vec![n, 3 * n]),
            ("attn.c_attn.bias", vec![3 * n]),
            ("attn.c_proj.weight", vec![n, n]),
            ("attn.c_proj.bias", vec![n]),
            ("ln_2.weight", vec![n]),
            ("ln_2.bias", vec![n]),
            ("mlp.c_fc.weight", vec![n, inner]),
            ("mlp.c_fc.bias", vec![inner]),
            ("mlp.c_proj.weight", vec![inner, n]),
            ("mlp.c_proj.bias", vec![n]),
        ] {
            shapes.push((format!("h.{layer}.{name}"), shape));
        }
    }
    shapes
}
