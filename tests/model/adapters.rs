//! LoRA adapters against the results of the Python package peft (`tests/fixtures/gpt2-family/lora-base`).

use std::collections::HashMap;
use std::fs;
use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use skald::backend::Backend;
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::ModelFiles;
use skald::checkpoint::adapter::{AdapterError, AdapterFiles};
use skald::kernels::kv::{KvDtype, SequenceSpan};
use skald::kernels::linear::WeightDtype;
use skald::model::Model;
use skald::model::adapter::{Adapter, AdapterRows};
use skald::model::batch::Batch;

use crate::architectures::{assert_close, backends, whole};
use crate::gpt2_family::{Checkpoint, TOLERANCE, fixtures};

const BASE: &str = "lora-base";
/// Adapters with references.
const ADAPTERS: [&str; 6] = ["all", "attn", "mlp", "one-layer", "rank-pattern", "rslora"];

fn files_of(adapter: &str) -> Result<AdapterFiles, AdapterError> {
    AdapterFiles::open(&fixtures().join(BASE).join("adapters").join(adapter))
}

fn load(
    name: &str,
    files: &ModelFiles,
    backend: &dyn Backend,
) -> Result<Arc<Adapter>, AdapterError> {
    let adapter = Adapter::load(name, name, &files_of(name)?, &files.config, backend);
    adapter.map(Arc::new)
}

fn reference(adapter: &str) -> HashMap<String, Tensor> {
    let adapter = fixtures().join(BASE).join("adapters").join(adapter);
    let path = adapter.join("reference.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).expect("the reference")
}

fn ids(reference: &HashMap<String, Tensor>) -> Vec<u32> {
    let ids = reference["ids"].to_dtype(DType::U32).expect("ids");
    ids.to_vec1().expect("ids")
}

/// A batch of all tokens with an adapter, and the logits of all rows.
fn adapted(ids: &[u32], adapter: &Arc<Adapter>) -> Batch {
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    Batch {
        logits_rows: rows.clone(),
        adapters: vec![AdapterRows {
            adapter: Arc::clone(adapter),
            rows,
        }],
        ..whole(ids)
    }
}

#[test]
fn adapters_give_what_peft_gives_on_every_backend() {
    let files = Checkpoint::of(BASE).files();
    for backend in backends() {
        let model = Model::load(&files, &*backend).expect("the model loads");
        for name in ADAPTERS {
            let (reference, own) = (reference(name), backend.for_adapters());
            let adapter = load(name, &files, &*own).expect("the adapter loads");
            let kv = model.kv_cache(KvDtype::F32, 4).expect("a cache");
            let batch = adapted(&ids(&reference), &adapter);
            let found = model.forward(batch, &kv).expect("a pass").logits;
            let what = format!("{name}, {}", backend.name());
            assert_close(&found, &reference["logits"], TOLERANCE, &what);
        }
    }
}

/// The rows of several requests, one without an adapter, in one pass: in every precision each has the bits that it
/// has alone.
#[test]
fn requests_of_different_adapters_in_one_batch_are_as_alone_bit_for_bit() {
    let files = Checkpoint::of(BASE).files();
    for dtype in [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::Q8] {
        let backend = CpuBackend::new(NonZeroUsize::MIN, dtype);
        let model = Model::load(&files, &backend).expect("the model loads");
        let own = backend.for_adapters();
        let prompt = ids(&reference("all"));
        let adapters =
            ["all", "attn", "mlp"].map(|name| load(name, &files, &*own).expect("it loads"));
        let choices = [None, Some(0), Some(1), Some(0), Some(2)];
        let logits = |batch| {
            let kv = model.kv_cache(KvDtype::F32, 16).expect("a cache");
            let logits = model.forward(batch, &kv).expect("a pass").logits;
            logits.to_vec2::<f32>().expect("rows")
        };
        let alone = choices.map(|choice: Option<usize>| match choice {
            Some(n) => logits(adapted(&prompt, &adapters[n])),
            None => logits(Batch {
                logits_rows: (0..prompt.len() as u32).collect(),
                ..whole(&prompt)
            }),
        });
        let rows = prompt.len();
        let mut together = Batch::default();
        for (n, choice) in choices.iter().enumerate() {
            let first = n * rows;
            together.ids.extend(&prompt);
            together.positions.extend(0..rows as u32);
            let blocks = rows.div_ceil(16) as u32;
            together.spans.push(SequenceSpan {
                rows: first..first + rows,
                first_position: 0,
                block_table: (n as u32 * blocks..(n as u32 + 1) * blocks).collect(),
                window_table: Vec::new(),
            });
            if let Some(adapter) = choice {
                let own = (first..first + rows).map(|row| row as u32);
                let adapter = &adapters[*adapter];
                let known = together.adapters.iter_mut();
                let mut known = known.filter(|known| Arc::ptr_eq(&known.adapter, adapter));
                match known.next() {
                    Some(known) => known.rows.extend(own),
                    None => together.adapters.push(AdapterRows {
                        adapter: Arc::clone(adapter),
                        rows: own.collect(),
                    }),
                }
            }
        }
        together.logits_rows = (0..together.ids.len() as u32).collect();
        let together = logits(together);
        let bits = |rows: &[Vec<f32>]| -> Vec<u32> {
            rows.iter().flatten().map(|x| x.to_bits()).collect()
        };
        for (n, alone) in alone.iter().enumerate() {
            let found = &together[n * rows..(n + 1) * rows];
            assert!(bits(found) == bits(alone), "{dtype:?}, request {n}");
        }
        assert!(bits(&alone[0]) != bits(&alone[1]) && bits(&alone[1]) != bits(&alone[2]));
    }
}

#[test]
fn what_is_not_plain_lora_for_this_model_is_refused_by_name() {
    let files = Checkpoint::of(BASE).files();
    let backend = CpuBackend::new(NonZeroUsize::MIN, WeightDtype::F32);
    for (name, words) in [
        ("dora", &["adapter_config.json", "`use_dora` is true"][..]),
        ("bias", &["`bias` is all"]),
        ("saved-head", &["`modules_to_save`", "lm_head"]),
        ("ia3", &["`peft_type` is IA3", "LORA"]),
        (
            "embedding",
            &["the tensor `wte.lora_embedding_A`", "c_attn"],
        ),
    ] {
        let refused = load(name, &files, &backend).expect_err("it is refused");
        let message = refused.to_string();
        for word in words {
            assert!(message.contains(word), "{name}: {message}");
        }
    }
    // Fields that other versions have, and values that can't be computed with.
    for (field, value, words) in [
        ("alora_invocation_tokens", json!([5, 6]), "[5,6]"),
        ("use_qalora", json!(true), "true"),
        ("a_later_field", json!({"x": 1}), "may ask for more"),
        ("lora_alpha", json!(1e300), "finite"),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let from = fixtures().join(BASE).join("adapters/attn");
        let weights = "adapter_model.safetensors";
        fs::copy(from.join(weights), directory.path().join(weights)).expect("a copy");
        let config = fs::read(from.join("adapter_config.json")).expect("read");
        let mut config: Value = serde_json::from_slice(&config).expect("json");
        config[field] = value;
        fs::write(
            directory.path().join("adapter_config.json"),
            config.to_string(),
        )
        .expect("written");
        let adapter = AdapterFiles::open(directory.path());
        let adapter =
            adapter.and_then(|adapter| Adapter::load("x", "x", &adapter, &files.config, &backend));
        let message = adapter.expect_err("it is refused").to_string();
        assert!(
            message.contains(field) && message.contains(words),
            "{message}"
        );
    }
    // Of a model with another width.
    let other = Checkpoint::of("gelu").files();
    let refused = load("attn", &other, &backend).expect_err("another shape");
    let message = refused.to_string();
    assert!(
        message.contains("lora_A.weight") && message.contains("shape"),
        "{message}"
    );
}
