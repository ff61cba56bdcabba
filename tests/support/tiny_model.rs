//! A GPT-2 of a few hundred parameters in the Hugging Face layout, written to disk or served by a stand-in
//! hub, complete or broken.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};

pub const VOCAB_SIZE: usize = 8;
pub const N_POSITIONS: usize = 6;
pub const N_EMBD: usize = 4;
pub const END_OF_TEXT: u32 = 4;

/// Returns the content of `config.json`.
pub fn config() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": VOCAB_SIZE, "n_positions": N_POSITIONS,
        "n_embd": N_EMBD, "n_layer": 2, "n_head": 2, "eos_token_id": END_OF_TEXT,
    })
}

/// Returns the content of a `tokenizer.json` with the tokens a, b, ab, c and end-of-text.
pub fn tokenizer() -> Value {
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
            "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": [["a", "b"]],
        },
    })
}

/// One tensor of a checkpoint.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Creates a tensor of multiples of 1/16 between -1 and 1, which F32, F16 and BF16 all represent exactly;
    /// they differ for every `seed`.
    pub fn new(seed: usize, shape: &[usize], dtype: Dtype) -> Self {
        let bytes = values(seed, shape)
            .into_iter()
            .flat_map(|value| match dtype {
                Dtype::F32 => value.to_le_bytes().to_vec(),
                Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::F64 => f64::from(value).to_le_bytes().to_vec(),
                other => panic!("no values of type {other:?}"),
            });
        Self {
            dtype,
            shape: shape.to_vec(),
            bytes: bytes.collect(),
        }
    }
}

/// Returns the values of a [`Tensor::new`] with the same seed and shape.
pub fn values(seed: usize, shape: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let sixteenth = |i: usize| i16::try_from((i * 7 + seed * 5) % 33).unwrap() - 16;
    (0..count).map(|i| f32::from(sixteenth(i)) / 16.0).collect()
}

pub type Tensors = BTreeMap<String, Tensor>;

/// Returns names, without prefix, and shapes of all tensors that the model needs, in a fixed order.
pub fn shapes() -> Vec<(String, Vec<usize>)> {
    let n = N_EMBD;
    let mut shapes = vec![
        ("wte.weight".to_owned(), vec![VOCAB_SIZE, n]),
        ("wpe.weight".to_owned(), vec![N_POSITIONS, n]),
        ("ln_f.weight".to_owned(), vec![n]),
        ("ln_f.bias".to_owned(), vec![n]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("ln_1.weight", vec![n]),
            ("ln_1.bias", vec![n]),
            ("attn.c_attn.weight", vec![n, 3 * n]),
            ("attn.c_attn.bias", vec![3 * n]),
            ("attn.c_proj.weight", vec![n, n]),
            ("attn.c_proj.bias", vec![n]),
            ("ln_2.weight", vec![n]),
            ("ln_2.bias", vec![n]),
            ("mlp.c_fc.weight", vec![n, 4 * n]),
            ("mlp.c_fc.bias", vec![4 * n]),
            ("mlp.c_proj.weight", vec![4 * n, n]),
            ("mlp.c_proj.bias", vec![n]),
        ] {
            shapes.push((format!("h.{layer}.{name}"), shape));
        }
    }
    shapes
}

/// Returns all tensors that the model needs; the i-th of [`shapes`] has the seed i.
pub fn tensors(prefix: &str, dtype: Dtype) -> Tensors {
    let shapes = shapes().into_iter().enumerate();
    shapes
        .map(|(seed, (name, shape))| (format!("{prefix}{name}"), Tensor::new(seed, &shape, dtype)))
        .collect()
}

/// Returns the content of a safetensors file.
pub fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap();
        (name, view)
    });
    serialize(views, None).unwrap()
}

/// Returns two shards and their index: `(file, content)` of each.
pub fn shards(tensors: &Tensors) -> Vec<(String, Vec<u8>)> {
    let mut halves = [Tensors::new(), Tensors::new()];
    let mut weight_map = BTreeMap::new();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        halves[i % 2].insert(name.clone(), tensor.clone());
        weight_map.insert(
            name,
            format!("model-0000{}-of-00002.safetensors", i % 2 + 1),
        );
    }
    let index = json!({"metadata": {}, "weight_map": weight_map}).to_string();
    let mut files = vec![(
        "model.safetensors.index.json".to_owned(),
        index.into_bytes(),
    )];
    for (i, half) in halves.iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        files.push((file, safetensors(half)));
    }
    files
}

/// Returns all files of the model: `config.json`, `tokenizer.json`, `model.safetensors`.
pub fn files() -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([
        ("config.json".to_owned(), config().to_string().into_bytes()),
        (
            "tokenizer.json".to_owned(),
            tokenizer().to_string().into_bytes(),
        ),
        (
            "model.safetensors".to_owned(),
            safetensors(&tensors("", Dtype::F32)),
        ),
    ])
}

/// Writes files into a directory.
pub fn write<N: AsRef<str>>(directory: &Path, files: impl IntoIterator<Item = (N, Vec<u8>)>) {
    for (name, content) in files {
        std::fs::write(directory.join(name.as_ref()), content).unwrap();
    }
}
