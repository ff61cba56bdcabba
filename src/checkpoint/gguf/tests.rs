//! The tiny models, and files that tests write.

mod damage;

use std::path::{Path, PathBuf};

use super::*;
use crate::checkpoint::mapped::FileBytes;
use crate::checkpoint::{Checkpoint, ModelConfig};

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

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/gemma/gguf/{name}-f32.gguf"))
}

fn twin(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/gemma/tiny/{name}"))
}

/// Reads bytes that lie in memory for the rest of the test.
fn read(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
    Gguf::from_files(vec![WeightFile {
        name: "test.gguf".to_owned(),
        bytes: FileBytes::Embedded(bytes.leak()),
    }])
}

/// The header of a file, written by a test.
#[derive(Default)]
struct Writer {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    let length = (text.len() as u64).to_le_bytes();
    [length.as_slice(), text.as_bytes()].concat()
}

impl Writer {
    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.extend(text(key));
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
        self
    }

    fn u32(self, key: &str, value: u32) -> Self {
        self.key(key, 4, &value.to_le_bytes())
    }

    fn f32(self, key: &str, value: f32) -> Self {
        self.key(key, 6, &value.to_le_bytes())
    }

    fn string(self, key: &str, value: &str) -> Self {
        self.key(key, 8, &text(value))
    }

    fn array(self, key: &str, kind: u32, count: u64, elements: &[u8]) -> Self {
        let value = [
            &kind.to_le_bytes(),
            count.to_le_bytes().as_slice(),
            elements,
        ]
        .concat();
        self.key(key, 9, &value)
    }

    fn strings(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        self.array(key, 8, values.len() as u64, &elements)
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.extend(text(name));
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        for dimension in dimensions {
            self.tensors.extend(dimension.to_le_bytes());
        }
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = vec![0; bytes];
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.key_count.to_le_bytes());
        bytes.extend(&self.keys);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn error(&self) -> String {
        read(self.bytes()).err().expect("it is refused").to_string()
    }
}

#[test]
fn every_tiny_model_has_the_shape_and_the_weights_of_its_twin() {
    for name in TINY {
        let gguf = Gguf::open(&path(name)).unwrap();
        let config = gguf.config().unwrap();
        let json = std::fs::read(twin(name).join("config.json")).unwrap();
        let expected = ModelConfig::from_json("config.json", &json).unwrap();
        let architecture = expected.architecture();
        assert_eq!(gguf.architecture().unwrap(), architecture);
        assert_same(name, &config, &expected);
        let checkpoint = Checkpoint::from_gguf(gguf, &config).unwrap();
        checkpoint.validate(&config).unwrap();
        let twin = Checkpoint::open(&twin(name)).unwrap();
        let layers = (0..config.layers()).flat_map(|layer| config.layer_tensors(layer));
        for (tensor, shape) in config.outer_tensors().into_iter().chain(layers) {
            let found = checkpoint.finite_tensor(&tensor, &shape).unwrap().to_f32();
            let mut expected = twin.tensor(&tensor, &shape).unwrap().to_f32();
            // The converter adds Gemma's 1, and the scale of queries is folded where the format has no key.
            if architecture.starts_with("gemma") && tensor.ends_with("norm.weight") {
                for weight in &mut expected {
                    *weight += 1.0;
                }
            }
            let folded = [("gemma2", "q_proj.weight"), ("gemma3", "q_norm.weight")];
            if folded
                .iter()
                .any(|&(a, end)| a == architecture && tensor.ends_with(end))
            {
                continue;
            }
            assert_eq!(found, expected, "{name} {tensor}");
        }
    }
}

/// Asserts that the shapes are equal, but for what GGUF has no keys for.
fn assert_same(name: &str, found: &ModelConfig, expected: &ModelConfig) {
    use crate::checkpoint::rope::RopeScaling;
    let (mut found, mut expected) = (found.clone(), expected.clone());
    match (&mut found, &mut expected) {
        (ModelConfig::Gemma(found), ModelConfig::Gemma(expected)) => {
            found.query_scale = expected.query_scale;
            found
                .shape
                .end_of_text
                .clone_from(&expected.shape.end_of_text);
            // Without sliding layers it has no meaning.
            found.rope_local = expected.rope_local.clone();
        }
        (ModelConfig::Llama(found), ModelConfig::Llama(expected)) => {
            found.shape.sliding_window = expected.shape.sliding_window;
            found
                .shape
                .end_of_text
                .clone_from(&expected.shape.end_of_text);
            if let RopeScaling::Divisors(_) = found.rope.scaling {
                let width = found.shape.head_dim;
                let pairs = found.rope.frequencies(width).into_iter();
                for (found, expected) in pairs.zip(expected.rope.frequencies(width)) {
                    assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
                }
                found.rope.scaling = expected.rope.scaling.clone();
            }
        }
        _ => panic!("{name}: different architectures"),
    }
    assert_eq!(found, expected, "{name}");
}

#[test]
fn the_tokens_the_template_and_the_ends_are_read() {
    for name in TINY {
        let gguf = Gguf::open(&path(name)).unwrap();
        let vocabulary = gguf.vocabulary().unwrap();
        assert_eq!(vocabulary.tokens.len(), 512);
        assert_eq!(vocabulary.token_types.len(), 512);
        let is_gemma = name.starts_with("gemma");
        assert_eq!(vocabulary.model, if is_gemma { "llama" } else { "gpt2" });
        assert_eq!(vocabulary.scores.is_empty(), !is_gemma);
        assert_eq!(vocabulary.merges.is_empty(), is_gemma);
        assert_eq!(vocabulary.add_bos, Some(!name.starts_with("qwen")));
        let template = gguf.chat_template().unwrap().unwrap();
        assert!(template.origin.ends_with(".gguf `tokenizer.chat_template`"));
        let json = std::fs::read(twin(name).join("config.json")).unwrap();
        let expected = ModelConfig::from_json("config.json", &json).unwrap();
        let config = gguf.config().unwrap();
        for end in expected.end_of_text() {
            assert!(config.end_of_text().contains(end), "{name}: {end}");
        }
    }
}

#[test]
fn sampling_defaults_are_those_that_converters_write() {
    let file = Writer::default()
        .f32("general.sampling.temp", 0.5)
        .key("general.sampling.top_k", 5, &(-1_i32).to_le_bytes())
        .f32("general.sampling.top_p", 0.95)
        .f32("general.sampling.penalty_repeat", 1.1);
    let sampling = read(file.bytes())
        .unwrap()
        .generation_config()
        .unwrap()
        .sampling();
    assert_eq!(sampling.temperature, Some(0.5));
    assert_eq!(sampling.top_k, Some(0));
    assert_eq!(sampling.top_p, Some(0.95));
    assert_eq!(sampling.min_p, None);
    assert_eq!(sampling.repetition_penalty, Some(1.1));
    let bad = Writer::default().f32("general.sampling.top_p", 2.0);
    let error = read(bad.bytes()).unwrap().generation_config().unwrap_err();
    assert!(error.to_string().contains("top_p"), "{error}");
}

/// A Gemma 3 without the keys that its published files lack.
fn gemma3(layers: u32) -> Writer {
    Writer::default()
        .string("general.architecture", "gemma3")
        .u32("gemma3.context_length", 4096)
        .u32("gemma3.embedding_length", 5376)
        .u32("gemma3.block_count", layers)
        .u32("gemma3.feed_forward_length", 64)
        .u32("gemma3.attention.head_count", 32)
        .u32("gemma3.attention.key_length", 128)
        .f32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
        .tensor("token_embd.weight", &[5376, 7], 8, 0)
        .data(7 * 5376 / 32 * 34)
}

#[test]
fn absent_keys_mean_the_architectures_own_values() {
    let config = |file: Writer| match read(file.bytes()).unwrap().config().unwrap() {
        ModelConfig::Gemma(config) => config,
        other => panic!("{other:?}"),
    };
    let found = config(gemma3(12));
    assert_eq!(found.shape.vocab_size, 7);
    assert_eq!(found.shape.kv_heads, 32);
    assert!(found.shape.tie_word_embeddings);
    assert_eq!((found.rope_global.base, found.rope_local.base), (1e6, 1e4));
    let global: Vec<usize> = (0..12)
        .filter(|&n| found.shape.window(n).is_none())
        .collect();
    assert_eq!(global, [5, 11]);
    assert_eq!(found.query_scale, 128_f64.powf(-0.5));
    assert_eq!((found.attn_soft_cap, found.final_soft_cap), (None, None));
    assert_eq!(found.shape.rms_norm_eps, 1e-6);
    // The 27B has 62 layers, and a scale of its own.
    assert_eq!(config(gemma3(62)).query_scale, 168_f64.powf(-0.5));

    let slides = [1, 0, 1];
    let key = "gemma3.attention.sliding_window_pattern";
    let found = config(gemma3(3).array(key, 7, 3, &slides));
    let global: Vec<usize> = (0..3)
        .filter(|&n| found.shape.window(n).is_none())
        .collect();
    assert_eq!(global, [1]);
    let found = config(gemma3(3).u32(key, 2).f32("gemma3.rope.scaling.factor", 8.0));
    assert!(found.shape.window(1).is_none() && found.shape.window(2).is_some());
    assert_eq!(found.rope_global.frequencies(2), [0.125]);
    assert_eq!(found.rope_local.frequencies(2), [1.0]);
}

#[test]
fn keys_that_can_not_be_served_are_named_with_value_and_limit() {
    let error = |file: Writer| {
        let gguf = read(file.bytes()).unwrap();
        gguf.config().expect_err("it is refused").to_string()
    };
    for (file, words) in [
        (gemma3(0), ["`gemma3.block_count` is 0", "expected 1 to"]),
        (
            gemma3(2).u32("gemma3.attention.head_count_kv", 5),
            ["`gemma3.attention.head_count_kv` is 5", "must divide"],
        ),
        (
            gemma3(2).string("gemma3.rope.scaling.type", "yarn"),
            ["`gemma3.rope.scaling.type` is yarn", "linear"],
        ),
        (
            gemma3(2).u32("gemma3.rope.dimension_count", 64),
            ["`gemma3.rope.dimension_count` is 64", "(128)"],
        ),
        (
            gemma3(2).f32("gemma3.rope.freq_base", f32::NAN),
            ["`gemma3.rope.freq_base` is NaN", "finite"],
        ),
        (
            gemma3(2).string("gemma3.rope.freq_base", "x"),
            ["`gemma3.rope.freq_base` is of type string", "a number"],
        ),
        (
            gemma3(2).array("gemma3.attention.sliding_window_pattern", 7, 3, &[0, 0, 0]),
            ["sliding_window_pattern` is a list of 3", "(2)"],
        ),
        (
            Writer::default().string("general.architecture", "mamba"),
            ["`general.architecture` is `mamba`", "gemma3"],
        ),
        (Writer::default(), ["`general.architecture` is missing", ""]),
        (
            Writer::default().string("general.architecture", "llama"),
            ["test.gguf: the key `llama.", "is missing"],
        ),
    ] {
        let error = error(file);
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{words:?}: {error}"
        );
    }
}

#[test]
fn the_parts_of_a_model_are_read_together_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let part = |number: u16, count: u16| {
        let name = format!("t{number}");
        let file = Writer::default()
            .key("split.no", 2, &number.to_le_bytes())
            .key("split.count", 2, &count.to_le_bytes())
            .key("split.tensors.count", 5, &2_i32.to_le_bytes());
        let file = file.tensor(&name, &[4], 0, 0).data(32);
        let name = format!("m-{:05}-of-00002.gguf", number + 1);
        let path = directory.path().join(name);
        std::fs::write(&path, file.bytes()).unwrap();
        path
    };
    let (first, second) = (part(0, 2), part(1, 2));
    for path in [&first, &second] {
        let gguf = Gguf::open(path).unwrap();
        assert_eq!(gguf.tensors().count(), 2);
        assert!(gguf.file().ends_with("m-00001-of-00002.gguf"));
    }
    std::fs::remove_file(&second).unwrap();
    let error = Gguf::open(&first).err().unwrap().to_string();
    assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
    // Alone under another name.
    let renamed = directory.path().join("m.gguf");
    std::fs::rename(&first, &renamed).unwrap();
    let error = Gguf::open(&renamed).err().unwrap().to_string();
    assert!(
        error.contains("`split.count` is 2, but 1 were found"),
        "{error}"
    );
}
