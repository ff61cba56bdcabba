//! The models that are a GPT-2 by shape, as they are on the hub and on disk, against the results of Hugging Face
//! transformers for the same random checkpoints (`tests/fixtures/gpt2-family`, made by its `make.py`).

use std::collections::HashMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use skald::backend::cpu::CpuBackend;
use skald::checkpoint::ModelFiles;
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::model::Model;
use skald::model::batch::Batch;
use tempfile::TempDir;

use crate::architectures::{assert_close, backends, greedy, whole};

pub const TOLERANCE: f32 = 2e-4;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2-family")
}

/// A checkpoint beside the tokenizer that all of them share.
pub struct Checkpoint {
    name: String,
    directory: TempDir,
}

impl Checkpoint {
    pub fn of(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let copy = |from: PathBuf| {
            let name = from.file_name().expect("a name").to_owned();
            fs::copy(&from, directory.path().join(name)).expect("a copy");
        };
        for entry in fs::read_dir(fixtures().join(name)).expect("the checkpoint") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                copy(path);
            }
        }
        copy(fixtures().join("tokenizer.json"));
        Self {
            name: name.to_owned(),
            directory,
        }
    }

    pub fn files(&self) -> ModelFiles {
        ModelFiles::open(&self.name, self.directory.path()).expect("a model")
    }

    fn refusal(&self) -> String {
        let files = ModelFiles::open(&self.name, self.directory.path());
        files.map(drop).expect_err("it is refused").to_string()
    }

    fn reference(&self) -> HashMap<String, Tensor> {
        let path = self.directory.path().join("reference.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).expect("the reference")
    }

    /// Asserts that logits at every position on every backend, and the greedy continuation, are those of the
    /// reference.
    async fn assert_exact(&self, logits: &str) {
        let (files, reference) = (self.files(), self.reference());
        let ids = |name: &str| {
            let ids = reference[name].to_dtype(DType::U32).expect("ids");
            ids.to_vec1::<u32>().expect("ids")
        };
        let prompt = ids("ids");
        for backend in backends() {
            let model = Model::load(&files, &*backend).expect("the model loads");
            let kv = model.kv_cache(KvDtype::F32, 4).expect("a cache");
            let batch = Batch {
                logits_rows: (0..prompt.len() as u32).collect(),
                ..whole(&prompt)
            };
            let found = model.forward(batch, &kv).expect("a pass").logits;
            let what = format!("{}, {}", self.name, backend.name());
            assert_close(&found, &reference[logits], TOLERANCE, &what);
        }
        if logits == "logits" {
            let backend = CpuBackend::new(NonZeroUsize::MIN, WeightDtype::F32);
            let expected = ids("greedy");
            let found = greedy(&files, &backend, prompt, expected.len()).await;
            assert_eq!(found, expected, "{}", self.name);
        }
    }

    /// Returns what is said about the files.
    fn peculiarities(&self) -> String {
        let files = self.files();
        files.checkpoint.peculiarities(&files.config).join("; ")
    }
}

#[tokio::test]
async fn every_activation_is_that_of_transformers() {
    for name in [
        "gelu",
        "gelu_fast",
        "gelu_new",
        "gelu_pytorch_tanh",
        "quick_gelu",
        "relu",
        "silu",
        "swish",
        "tanh",
    ] {
        Checkpoint::of(name).assert_exact("logits").await;
    }
}

#[tokio::test]
async fn scores_are_scaled_as_the_configuration_says() {
    for name in ["inverse-layer", "unscaled", "upcast"] {
        Checkpoint::of(name).assert_exact("logits").await;
    }
}

#[tokio::test]
async fn the_models_of_the_family_are_served_by_shape_and_configuration() {
    for name in [
        "cerebras-gpt",
        "dialogpt",
        "gpt-sw3",
        "protgpt2",
        "rinna",
        "rugpt3",
    ] {
        Checkpoint::of(name).assert_exact("logits").await;
    }
}

#[tokio::test]
async fn the_prefixes_of_wrappers_are_left_out() {
    for name in [
        "no-prefix",
        "prefix-both",
        "prefix-module",
        "prefix-orig-mod",
    ] {
        let checkpoint = Checkpoint::of(name);
        checkpoint.assert_exact("logits").await;
        assert_eq!(checkpoint.peculiarities(), "", "{name}");
    }
}

#[tokio::test]
async fn checkpoints_of_nano_gpt_are_recognized_by_their_shapes() {
    let with = Checkpoint::of("nanogpt-bias");
    with.assert_exact("logits").await;
    let said = with.peculiarities();
    assert!(
        said.contains("[out, in]") && !said.contains("biases"),
        "{said}"
    );

    let without = Checkpoint::of("nanogpt");
    without.assert_exact("logits").await;
    let said = without.peculiarities();
    assert!(
        said.contains("[out, in]") && said.contains("no biases"),
        "{said}"
    );
}

#[tokio::test]
async fn two_matrices_that_should_be_one_are_both_used_and_that_is_said() {
    let both = Checkpoint::of("tied-with-other-head");
    both.assert_exact("logits_separate").await;
    let said = both.peculiarities();
    assert!(said.contains("`lm_head.weight` differs"), "{said}");

    let head = Checkpoint::of("head-only");
    head.assert_exact("logits").await;
    let said = head.peculiarities();
    assert!(said.contains("no `wte.weight`"), "{said}");
}

#[tokio::test]
async fn weights_that_pytorch_has_saved_are_read_in_place() {
    for name in [
        "torch-bin",
        "torch-bool-masks",
        "torch-bin-bf16",
        "torch-bin-f16",
        "torch-module",
        "torch-sharded",
        "torch-views",
    ] {
        Checkpoint::of(name).assert_exact("logits").await;
    }
}

#[test]
fn files_of_pytorch_that_cannot_be_read_are_refused_with_a_way_out() {
    let old = Checkpoint::of("torch-legacy").refusal();
    for words in ["pytorch_model.bin", "before PyTorch 1.6"] {
        assert!(old.contains(words), "{old}");
    }

    let unreadable = Checkpoint::of("torch-int8-biases").files();
    let refused = unreadable.checkpoint.validate(&unreadable.config);
    let refused = refused.expect_err("biases of int8").to_string();
    assert!(
        refused.contains(".bias` has type sparse, quantized"),
        "{refused}"
    );

    let marker = Path::new("/tmp/skald-was-executed");
    let evil = Checkpoint::of("torch-evil").refusal();
    assert!(evil.contains("pytorch_model.bin"), "{evil}");
    assert!(!marker.exists(), "the file was executed");
}
