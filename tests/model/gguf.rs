//! Models in GGUF compute what their twins in the Hugging Face layout do, and what transformers did.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;

use crate::runner::{Runner, load, without_tokenizer};
use crate::support::tiny_model;

const TINY: [&str; 8] = [
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3-untied",
    "llama",
    "llama-bias",
    "qwen2",
    "qwen3",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gemma")
}

fn gguf(name: &str) -> PathBuf {
    fixtures().join(format!("gguf/{name}-f32.gguf"))
}

fn twin(name: &str) -> PathBuf {
    fixtures().join("tiny").join(name)
}

/// Opens a model by the text that `--model` has.
fn open(path: &Path) -> ModelFiles {
    let source: ModelSource = path.to_str().expect("a name").parse().expect("a model");
    source.fetch(false).expect("its files")
}

fn ids(tensor: &Tensor) -> Vec<u32> {
    let tensor = tensor.to_dtype(DType::U32).expect("ids");
    tensor.to_vec1().expect("a list")
}

#[test]
fn every_tiny_model_in_gguf_has_the_logits_of_transformers_and_its_greedy_texts() {
    for name in TINY {
        // Scores before the cap are large.
        let tolerance = if name == "gemma2" { 5e-4 } else { 2e-4 };
        let model = load(&without_tokenizer(&gguf(name)), WeightDtype::F32);
        let reference = twin(name).join("reference.safetensors");
        let reference = candle_core::safetensors::load(reference, &Device::Cpu).expect("a file");
        for prompt in 0..4 {
            let get = |part: &str| &reference[&format!("p{prompt}.{part}")];
            let prompt = ids(get("input_ids"));
            let expected: Vec<Vec<f32>> = get("logits").to_vec2().expect("rows");
            let mut runner = Runner::new(&model, KvDtype::F32, 128);
            let mut first = 0;
            runner.append(&prompt, |row, logits| {
                let differences = logits
                    .iter()
                    .zip(&expected[row])
                    .map(|(a, b)| (a - b).abs());
                let largest = differences.fold(0.0, f32::max);
                assert!(largest < tolerance, "{name}, row {row}: {largest}");
                first = skald::kernels::rows::argmax(logits).expect("a token").0 as u32;
            });
            let (greedy, _) = runner.greedy(first, 40);
            assert_eq!(greedy, ids(get("greedy40")), "{name}");
        }
    }
}

#[test]
fn every_tiny_model_in_gguf_has_the_tokens_and_the_template_of_its_twin() {
    let text =
        "It was the best of times; 8080\n\n\tdef f(x): Über 你好 🙂 <end_of_turn> <|im_end|>";
    for name in TINY {
        let (found, expected) = (open(&gguf(name)), open(&twin(name)));
        assert_eq!(found.name, format!("{name}-f32"));
        for parse_special in [false, true] {
            let ids = |files: &ModelFiles| files.tokenizer.encode(text, parse_special).unwrap();
            assert_eq!(ids(&found), ids(&expected), "{name} {parse_special}");
        }
        assert_eq!(found.tokenizer.bos(), expected.tokenizer.bos(), "{name}");
        for end in expected.end_of_text() {
            assert!(found.end_of_text().contains(&end), "{name}: {end}");
        }
        let template = |files: &ModelFiles| files.chat_template.as_ref().map(|t| t.text.clone());
        // The files of Gemma 3 were made before their twins got the template of the published models.
        if name.starts_with("gemma3") {
            assert!(template(&found).is_some(), "{name}");
        } else {
            assert_eq!(template(&found), template(&expected), "{name}");
        }
    }
}

/// The values of a file in GGUF that a test writes.
#[derive(Default)]
struct Writer {
    keys: Vec<u8>,
    tensors: Vec<u8>,
    data: Vec<u8>,
    counts: [u64; 2],
}

impl Writer {
    fn name(to: &mut Vec<u8>, name: &str) {
        to.extend((name.len() as u64).to_le_bytes());
        to.extend(name.as_bytes());
    }

    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        Self::name(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.counts[1] += 1;
    }

    /// Adds a tensor of F32; `shape` has the innermost dimension last.
    fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        Self::name(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        for &size in shape.iter().rev() {
            self.tensors.extend((size as u64).to_le_bytes());
        }
        self.tensors.extend(0_u32.to_le_bytes());
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.data
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.counts[0] += 1;
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.counts.iter().flat_map(|count| count.to_le_bytes()));
        bytes.extend(self.keys.iter().chain(&self.tensors));
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}

fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let column = |n| values.iter().skip(n).step_by(columns);
    (0..columns).flat_map(column).copied().collect()
}

/// Writes the tiny GPT-2 as the converter does: its matrices are turned to `[out, in]`.
fn gpt2(files: &ModelFiles) -> Vec<u8> {
    let skald::checkpoint::ModelConfig::Gpt2(config) = &files.config else {
        panic!("the tiny model is a GPT-2")
    };
    let mut writer = Writer::default();
    let architecture = [&4_u64.to_le_bytes(), b"gpt2".as_slice()].concat();
    writer.key("general.architecture", 8, &architecture);
    for (key, value) in [
        ("context_length", config.n_positions),
        ("embedding_length", config.n_embd),
        ("block_count", config.n_layer),
        ("feed_forward_length", config.n_inner),
        ("attention.head_count", config.n_head),
    ] {
        writer.key(&format!("gpt2.{key}"), 4, &(value as u32).to_le_bytes());
    }
    let epsilon = (config.layer_norm_epsilon as f32).to_le_bytes();
    writer.key("gpt2.attention.layer_norm_epsilon", 6, &epsilon);
    for (name, shape) in tiny_model::shapes() {
        let values = files.checkpoint.tensor(&name, &shape).unwrap().to_f32();
        let name = name
            .replace("wte.", "token_embd.")
            .replace("wpe.", "position_embd.");
        let name = name.replace("ln_f.", "output_norm.").replace("h.", "blk.");
        let name = name
            .replace("ln_1", "attn_norm")
            .replace("ln_2", "ffn_norm");
        let name = name
            .replace("attn.c_attn", "attn_qkv")
            .replace("attn.c_proj", "attn_output");
        let name = name
            .replace("mlp.c_fc", "ffn_up")
            .replace("mlp.c_proj", "ffn_down");
        let is_conv1d = name.starts_with("blk") && shape.len() == 2;
        match shape[..] {
            [rows, columns] if is_conv1d => {
                writer.tensor(&name, &[columns, rows], &transposed(&values, columns));
            }
            _ => writer.tensor(&name, &shape, &values),
        }
    }
    writer.bytes()
}

#[test]
fn gpt2_in_gguf_computes_the_same_as_from_safetensors() {
    let directory = tempfile::tempdir().unwrap();
    tiny_model::write(directory.path(), tiny_model::files());
    let files = open(directory.path());
    let path = directory.path().join("tiny.gguf");
    std::fs::write(&path, gpt2(&files)).unwrap();
    let ids = [1, 5, 3, 0, 2];
    let logits = |files: &ModelFiles| {
        let model = load(files, WeightDtype::F32);
        let mut all = Vec::new();
        let mut runner = Runner::new(&model, KvDtype::F32, 16);
        runner.append(&ids, |_, logits| all.extend_from_slice(logits));
        all
    };
    let expected = logits(&files);
    assert_eq!(logits(&without_tokenizer(&path)), expected);
}

#[test]
fn a_directory_has_one_model_in_gguf_or_the_path_must_be_given() {
    let directory = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let to = directory.path().join(name);
        std::fs::copy(gguf("qwen2"), to).unwrap();
    };
    copy("one.gguf");
    let files = open(directory.path());
    assert_eq!(files.config.architecture(), "qwen2");
    copy("two.gguf");
    let error = ModelFiles::open("two", directory.path()).err().unwrap();
    let error = error.to_string();
    assert!(
        error.contains("several models in GGUF: one.gguf, two.gguf"),
        "{error}"
    );
    assert!(error.contains("path of one of them"), "{error}");
    std::fs::remove_file(directory.path().join("two.gguf")).unwrap();
    std::fs::write(directory.path().join("one.gguf"), b"GGUF").unwrap();
    let error = ModelFiles::open("one", directory.path()).err().unwrap();
    assert!(error.to_string().contains("one.gguf"), "{error}");
}

#[test]
fn a_tensor_that_is_missing_or_of_another_type_is_named_as_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    let whole = std::fs::read(gguf("gemma3")).unwrap();
    let message = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole
            .windows(from.len())
            .position(|found| found == from.as_bytes());
        let mut bytes = whole.clone();
        let at = at.expect("it is there");
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        let files = without_tokenizer(&path);
        files
            .checkpoint
            .validate(&files.config)
            .unwrap_err()
            .to_string()
    };
    let error = message("blk.1.attn_q.weight", "blk.1.other1.weight");
    assert!(error.contains("`blk.1.attn_q.weight`"), "{error}");
    assert!(error.contains("m.gguf"), "{error}");
    let error = message("blk.1.ffn_norm.weight", "blk.99.fn_norm.weight");
    assert!(error.contains("`blk.1.ffn_norm.weight`"), "{error}");
}
