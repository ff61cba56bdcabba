//! Gemma and the Llama family against the results of Hugging Face transformers for the same random
//! checkpoints (`tests/fixtures/gemma/tiny`), on every backend.

use std::collections::HashMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use skald::backend::Backend;
use skald::backend::candle::CandleBackend;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelConfig, ModelFiles};
use skald::engine::{self, EngineConfig, TokenEvent};
use skald::kernels::attention::weights;
use skald::kernels::kv::{KvCache, KvDtype, SequenceSpan};
use skald::kernels::linear::WeightDtype;
use skald::kernels::{Isa, Pool};
use skald::model::Model;
use skald::model::batch::Batch;
use skald::model::stage::Stage;
use skald::request::{Limits, RequestDraft, RequestId, SamplingStyle};

/// Every checkpoint with its tolerance: Gemma 2 has large scores before their cap.
const CHECKPOINTS: [(&str, f32); 8] = [
    ("gemma", 2e-4),
    ("gemma2", 5e-4),
    ("gemma3", 2e-4),
    ("gemma3-untied", 2e-4),
    ("llama", 2e-4),
    ("llama-bias", 2e-4),
    ("qwen2", 2e-4),
    ("qwen3", 2e-4),
];
const PROMPTS: usize = 4;
const POSITIONS_PER_BLOCK: usize = 16;

fn directory(name: &str) -> PathBuf {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gemma/tiny");
    PathBuf::from(fixtures).join(name)
}

fn files(name: &str) -> ModelFiles {
    ModelFiles::open(name, &directory(name)).expect("a checkpoint")
}

/// The results of transformers: `p0.logits`, `p0.hidden.0`, ...
struct Reference(HashMap<String, Tensor>);

impl Reference {
    fn of(name: &str) -> Self {
        let path = directory(name).join("reference.safetensors");
        Self(candle_core::safetensors::load(path, &Device::Cpu).expect("the reference"))
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.0[name].to_dtype(DType::F32).expect("f32")
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let ids = self.0[name].to_dtype(DType::U32).expect("ids");
        ids.to_vec1().expect("ids")
    }
}

pub fn backends() -> Vec<Box<dyn Backend>> {
    let two = NonZeroUsize::new(2).expect("not zero");
    let pool = Pool::new(two);
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(CandleBackend::new(Device::Cpu, two))];
    for isa in Isa::available() {
        backends.push(Box::new(CpuBackend::on(
            pool.clone(),
            isa,
            WeightDtype::F32,
        )));
    }
    backends
}

/// Returns a batch of all tokens.
pub fn whole(ids: &[u32]) -> Batch {
    let n = ids.len() as u32;
    Batch {
        ids: ids.to_vec(),
        positions: (0..n).collect(),
        spans: vec![SequenceSpan {
            rows: 0..ids.len(),
            first_position: 0,
            block_table: (0..ids.len().div_ceil(POSITIONS_PER_BLOCK) as u32).collect(),
            window_table: Vec::new(),
        }],
        ..Batch::default()
    }
}

pub fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let difference = (found - expected).expect("a difference").abs();
    let largest = difference.and_then(|d| d.flatten_all()?.max(0)?.to_scalar::<f32>());
    let largest = largest.expect("a number");
    assert!(largest <= tolerance, "{what}: {largest}");
}

#[test]
fn logits_and_hidden_states_are_transformers_at_every_position_on_every_backend() {
    for (name, tolerance) in CHECKPOINTS {
        let (files, reference) = (files(name), Reference::of(name));
        for backend in backends() {
            let model = Model::load(&files, &*backend).expect("the model loads");
            for prompt in 0..PROMPTS {
                let ids = reference.ids(&format!("p{prompt}.input_ids"));
                let what = |what: &str| format!("{name}, {}, p{prompt}.{what}", backend.name());
                let kv = model.kv_cache(KvDtype::F32, 4).expect("a cache");
                let observe = &mut |stage, x: &Tensor| {
                    if let Stage::Residual(layer) = stage {
                        let expected = reference.tensor(&format!("p{prompt}.hidden.{layer}"));
                        assert_close(x, &expected, tolerance, &what(&format!("hidden.{layer}")));
                    }
                    Ok(())
                };
                let observed = model.forward_observed(whole(&ids), &kv, observe);
                observed.expect("a pass");
                let rows: Vec<u32> = (0..ids.len() as u32).collect();
                let batch = Batch {
                    logits_rows: rows.clone(),
                    hidden_rows: rows,
                    ..whole(&ids)
                };
                let outputs = model.forward(batch, &kv).expect("a pass");
                for (found, part) in [(outputs.hidden, "final_norm"), (outputs.logits, "logits")] {
                    let expected = reference.tensor(&format!("p{prompt}.{part}"));
                    assert_close(&found, &expected, tolerance, &what(part));
                }
            }
        }
    }
}

#[tokio::test]
async fn greedy_continuations_are_transformers_token_for_token() {
    for (name, _) in CHECKPOINTS {
        let (files, reference) = (files(name), Reference::of(name));
        let two = NonZeroUsize::new(2).expect("not zero");
        let backends: [Box<dyn Backend>; 2] = [
            Box::new(CpuBackend::new(two, WeightDtype::F32)),
            Box::new(CandleBackend::new(Device::Cpu, two)),
        ];
        for backend in backends {
            for prompt in 0..PROMPTS {
                let ids = reference.ids(&format!("p{prompt}.input_ids"));
                let expected = reference.ids(&format!("p{prompt}.greedy40"));
                let found = greedy(&files, &*backend, ids, expected.len()).await;
                assert_eq!(found, expected, "{name}, {}, p{prompt}", backend.name());
            }
        }
    }
}

/// Returns the most likely tokens after `ids`, one by one.
pub async fn greedy(
    files: &ModelFiles,
    backend: &dyn Backend,
    ids: Vec<u32>,
    tokens: usize,
) -> Vec<u32> {
    let model = Model::load(files, backend).expect("the model loads");
    let spec = model.spec().clone();
    let limits = Limits::for_model(spec.context_length, spec.vocab_size, Vec::new());
    let engine = engine::start(model, EngineConfig::default()).expect("it starts");
    let draft = RequestDraft::new(RequestId::random(), ids, tokens, SamplingStyle::Greedy);
    let request = limits.admit(draft).expect("a request");
    let mut generation = engine.submit(request).await.expect("accepted");
    let mut found = Vec::new();
    while let Some(event) = generation.next().await {
        match event {
            TokenEvent::Token(token) => found.push(token.token.id),
            TokenEvent::Failed(error) => panic!("{error}"),
            TokenEvent::Prefilled(_) => (),
        }
    }
    found
}

/// So what holds for one of them holds for the other.
#[test]
fn both_spellings_of_a_configuration_are_the_same_model() {
    for (name, _) in CHECKPOINTS {
        let parse = |file: &str| {
            let bytes = fs::read(directory(name).join(file)).expect("the file");
            ModelConfig::from_json(file, &bytes).expect("a configuration")
        };
        assert_eq!(parse("config.json"), parse("config.v5.json"), "{name}");
    }
}

#[test]
fn the_spec_is_the_checkpoints() {
    let two = NonZeroUsize::new(2).expect("not zero");
    for (name, architecture, sizes, ends) in [
        ("gemma", "gemma", [4, 4, 1, 24, 160], vec![1, 6]),
        ("gemma2", "gemma2", [4, 4, 2, 24, 128], vec![1, 6]),
        ("gemma3", "gemma3", [7, 4, 1, 24, 128], vec![1, 6]),
        ("llama", "llama", [4, 4, 2, 32, 160], vec![507, 510]),
        ("llama-bias", "llama", [3, 4, 1, 16, 96], vec![507, 510]),
        ("qwen2", "qwen2", [3, 4, 2, 16, 128], vec![508]),
        ("qwen3", "qwen3", [3, 4, 2, 24, 128], vec![508]),
    ] {
        let backend = CpuBackend::new(two, WeightDtype::F32);
        let model = Model::load(&files(name), &backend).expect("the model loads");
        let spec = model.spec();
        assert_eq!(spec.architecture, architecture);
        let found = [
            spec.layers,
            spec.heads,
            spec.kv_heads,
            spec.head_width,
            spec.inner_width,
        ];
        assert_eq!(found, sizes, "{name}");
        assert_eq!((spec.vocab_size, spec.hidden_width), (512, 64));
        assert_eq!(spec.context_length, 256);
        assert_eq!(spec.end_of_text, ends, "{name}");
    }
}

/// A pass over 20 tokens, more than a window, and what it reported.
struct Observed {
    name: &'static str,
    model: Model,
    ids: Vec<u32>,
    kv: KvCache,
    stages: Vec<(Stage, Tensor)>,
}

impl Observed {
    fn of(name: &'static str) -> Self {
        let two = NonZeroUsize::new(2).expect("not zero");
        let backend = CpuBackend::new(two, WeightDtype::F32);
        let model = Model::load(&files(name), &backend).expect("the model loads");
        let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 512).collect();
        let kv = model.kv_cache(KvDtype::F32, 2).expect("a cache");
        let mut stages = Vec::new();
        let observe = &mut |stage, x: &Tensor| {
            stages.push((stage, x.clone()));
            Ok(())
        };
        let pass = model.forward_observed(whole(&ids), &kv, observe);
        pass.expect("a pass");
        Self {
            name,
            model,
            ids,
            kv,
            stages,
        }
    }

    fn stage(&self, wanted: Stage) -> &Tensor {
        let found = self.stages.iter().find(|(stage, _)| *stage == wanted);
        &found.expect("the stage").1
    }

    fn rows(&self, stage: Stage) -> Vec<Vec<f32>> {
        self.stage(stage).to_vec2().expect("rows of f32")
    }
}

fn values(x: &Tensor) -> Vec<f32> {
    let flat = x.flatten_all().expect("flat");
    flat.to_vec1().expect("f32")
}

#[test]
fn embeddings_and_lens_are_the_ends_of_every_architectures_pass() {
    for (name, _) in CHECKPOINTS {
        let pass = Observed::of(name);
        let (model, spec) = (&pass.model, pass.model.spec());
        let embeddings = model.token_embeddings(&pass.ids).expect("embeddings");
        assert_eq!(embeddings, values(pass.stage(Stage::Residual(0))), "{name}");
        assert!(model.position_embeddings(&[0]).expect("none").is_none());

        // The last state read off is the logits of a plain pass.
        let batch = Batch {
            logits_rows: (0..20).collect(),
            ..whole(&pass.ids)
        };
        let logits = model.forward(batch, &pass.kv).expect("a pass").logits;
        let read = model.read_off(pass.stage(Stage::Residual(spec.layers)));
        assert_eq!(values(&read.expect("logits")), values(&logits), "{name}");

        // An embedding's product with itself is the square of its norm.
        let row = Tensor::new(&embeddings[..spec.hidden_width], &Device::Cpu).expect("a row");
        let row = row.reshape((1, spec.hidden_width)).expect("a row");
        let products = values(&model.embedding_products(&row).expect("products"));
        let own = products[pass.ids[0] as usize];
        let norm = model.embedding_norms().expect("norms")[pass.ids[0] as usize];
        let difference = (own - norm * norm).abs();
        assert!(difference <= 1e-4 * own, "{name}: {own} is not {norm}^2");
    }
}

#[test]
fn attentions_weights_over_the_values_are_what_every_architecture_mixes() {
    for (name, _) in CHECKPOINTS {
        let pass = Observed::of(name);
        for layer in 0..pass.model.spec().layers {
            for head in 0..pass.model.spec().heads {
                assert_mixes(&pass, layer, head);
            }
        }
    }
}

fn assert_mixes(pass: &Observed, layer: usize, head: usize) {
    let spec = pass.model.spec();
    let shape = pass.model.attention_shape(layer).expect("a shape");
    let qkv = pass.rows(Stage::Qkv(layer));
    let mixed = pass.rows(Stage::Mixed(layer));
    let cached = pass.kv.layer(layer).expect("a layer");
    let keys = cached.keys(spec.kv_head(head), &[0, 1], pass.ids.len());
    let keys = keys.expect("keys");
    for (n, row) in qkv.iter().enumerate() {
        let [query, ..] = spec.split_qkv(row, head);
        let seen = &keys[..(n + 1) * spec.head_width];
        let weights = weights(&shape, query, seen, KvDtype::F32);
        for d in 0..spec.head_width {
            let products = weights.iter().zip(&qkv);
            let products = products.map(|(w, row)| w * spec.split_qkv(row, head)[2][d]);
            let (sum, found) = (products.sum::<f32>(), mixed[n][head * spec.head_width + d]);
            let difference = (sum - found).abs();
            assert!(
                difference < 1e-3,
                "{} {layer}: {sum} is not {found}",
                pass.name
            );
        }
    }
}

/// But for a bias and, where a norm follows, a positive factor for each row.
#[test]
fn neurons_write_what_every_architectures_network_adds_to_the_stream() {
    for (name, _) in CHECKPOINTS {
        let pass = Observed::of(name);
        let (model, spec) = (&pass.model, pass.model.spec());
        let neurons: Vec<usize> = (0..spec.inner_width).collect();
        let outputs = model.neuron_outputs(0, &neurons).expect("outputs");
        let outputs = Tensor::new(outputs, &Device::Cpu).expect("a tensor");
        let outputs = outputs.reshape((spec.inner_width, spec.hidden_width));
        let outputs = outputs.expect("the shape");
        let written = pass.stage(Stage::Neurons(0)).matmul(&outputs);
        let written: Vec<Vec<f32>> = written.and_then(|w| w.to_vec2()).expect("rows");
        let after = pass.rows(Stage::Residual(1));
        let before = pass.rows(Stage::Attended(0));
        for (written, (after, before)) in written.iter().zip(after.iter().zip(&before)) {
            let added: Vec<f32> = after.iter().zip(before).map(|(a, b)| a - b).collect();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let lengths = dot(written, written) * dot(&added, &added);
            let cosine = dot(written, &added) / lengths.sqrt();
            let least = if name == "llama-bias" { 0.9 } else { 0.999_99 };
            assert!(cosine > least, "{name}: {cosine}");
        }
        let norms = model.neuron_norms(0).expect("norms");
        let first: f32 = values(&outputs)[..spec.hidden_width]
            .iter()
            .map(|x| x * x)
            .sum();
        assert!((norms[0] - first.sqrt()).abs() < 1e-4, "{name}");
        assert!(model.block_bytes(0).expect("bytes").1 > 0);
        assert!(model.block_bytes(spec.layers).is_err());
    }
}
