//! A model that follows a script: a GPT-2 whose weights are made so that the greedy token after position `p`
//! is the `p`-th of the script.
//!
//! Every block adds nothing (its projections are 0), each token has a random direction as its embedding, and
//! the embedding of each position points in the direction of the next token. So it is an ordinary checkpoint
//! that runs through the whole server, with the built-in tokenizer.

use std::collections::HashMap;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView, serialize};
use skald::checkpoint::ModelSource;
use skald::text::Tokenizer;

const N_EMBD: usize = 64;
const N_POSITIONS: usize = 128;
const VOCAB_SIZE: usize = 8192;
/// Weight of a position relative to the token at it.
const LOUDNESS: f32 = 10.0;

/// Files of the built-in model.
const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fairy-tales");

/// A model on disk; deleted when this is dropped.
pub struct Script {
    directory: tempfile::TempDir,
    /// Tokens that follow a prompt of one token.
    pub ids: Vec<u32>,
}

/// Returns the built-in tokenizer.
pub fn tokenizer() -> Tokenizer {
    let json = std::fs::read(Path::new(ASSETS).join("tokenizer.json")).expect("the tokenizer");
    Tokenizer::from_json(&json).expect("it is one")
}

impl Script {
    /// Creates a model that generates these tokens after a prompt of one token, and repeats the last one
    /// forever.
    pub fn new(ids: &[u32]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str| directory.path().join(name);
        std::fs::copy(
            Path::new(ASSETS).join("tokenizer.json"),
            file("tokenizer.json"),
        )
        .expect("a copy");
        std::fs::write(file("config.json"), config()).expect("a file");
        std::fs::write(file("model.safetensors"), weights(ids)).expect("a file");
        Self {
            directory,
            ids: ids.to_vec(),
        }
    }

    /// Adds a file to the model, or replaces one.
    pub fn with(self, name: &str, content: &str) -> Self {
        std::fs::write(self.directory.path().join(name), content).expect("a file");
        self
    }

    /// Creates a model that generates this text.
    pub fn text(text: &str) -> Self {
        Self::new(&tokenizer().encode(text, true).expect("it is tokenized"))
    }

    /// Creates a model that generates this text, one byte per token.
    pub fn bytes(bytes: &[u8]) -> Self {
        let tokenizer = tokenizer();
        let id_of = |byte: u8| {
            (0..u32::MAX)
                .take(VOCAB_SIZE)
                .find(|&id| !tokenizer.is_special(id) && tokenizer.token_bytes(id) == Some(&[byte]))
                .expect("every byte is a token")
        };
        Self::new(&bytes.iter().copied().map(id_of).collect::<Vec<_>>())
    }

    pub fn source(&self) -> ModelSource {
        ModelSource::Directory(self.directory.path().to_owned())
    }
}

fn config() -> String {
    serde_json::json!({
        "model_type": "gpt2", "vocab_size": VOCAB_SIZE, "n_positions": N_POSITIONS,
        "n_embd": N_EMBD, "n_layer": 1, "n_head": 1, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "bos_token_id": 8191, "eos_token_id": 8191,
        "tie_word_embeddings": true
    })
    .to_string()
}

fn weights(script: &[u32]) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut uniform = || f32::from(random.next_u32().to_le_bytes()[0]) / 255.0 - 0.5;
    let wte: Vec<f32> = (0..VOCAB_SIZE * N_EMBD).map(|_| uniform()).collect();
    let direction = |id: u32| wte[id as usize * N_EMBD..][..N_EMBD].iter();
    let last = script.last().copied().unwrap_or(0);
    let wpe: Vec<f32> = (0..N_POSITIONS)
        .map(|position| script.get(position).copied().unwrap_or(last))
        .flat_map(|id| direction(id).map(|x| x * LOUDNESS))
        .collect();

    let mut tensors: HashMap<String, (Vec<usize>, Vec<f32>)> = HashMap::new();
    let mut add = |name: &str, shape: &[usize], value: f32| {
        let values = vec![value; shape.iter().product()];
        tensors.insert(name.to_owned(), (shape.to_vec(), values));
    };
    for norm in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
        add(&format!("{norm}.weight"), &[N_EMBD], 1.0);
        add(&format!("{norm}.bias"), &[N_EMBD], 0.0);
    }
    for (name, rows, columns) in [
        ("h.0.attn.c_attn", N_EMBD, 3 * N_EMBD),
        ("h.0.attn.c_proj", N_EMBD, N_EMBD),
        ("h.0.mlp.c_fc", N_EMBD, 4 * N_EMBD),
        ("h.0.mlp.c_proj", 4 * N_EMBD, N_EMBD),
    ] {
        add(&format!("{name}.weight"), &[rows, columns], 0.0);
        add(&format!("{name}.bias"), &[columns], 0.0);
    }
    tensors.insert("wte.weight".to_owned(), (vec![VOCAB_SIZE, N_EMBD], wte));
    tensors.insert("wpe.weight".to_owned(), (vec![N_POSITIONS, N_EMBD], wpe));

    let bytes: HashMap<_, (Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, values))| {
            let bytes = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (name, (shape, bytes))
        })
        .collect();
    let views = bytes.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor");
        (name.as_str(), view)
    });
    serialize(views, None).expect("a file")
}
