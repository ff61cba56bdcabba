//! Checkpoints of all layouts, complete and broken, are loaded or refused with a message that names the file,
//! the tensor, the actual and the expected value.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};
use skald::checkpoint::Checkpoint;
use skald::checkpoint::{Gpt2Config, ModelConfig, ModelFiles, ModelSource};
use skald::kernels::stored::StoredType;
use tempfile::TempDir;

use crate::support::tiny_model::{
    self, END_OF_TEXT, N_EMBD, Tensor, Tensors, VOCAB_SIZE, shapes, tensors, values,
};

/// Creates a directory with the whole tiny model, whose files a test can change.
fn model() -> TempDir {
    let directory = TempDir::new().unwrap();
    tiny_model::write(directory.path(), tiny_model::files());
    directory
}

fn model_of(tensors: &Tensors) -> TempDir {
    let directory = model();
    replace(
        &directory,
        "model.safetensors",
        tiny_model::safetensors(tensors),
    );
    directory
}

fn replace(directory: &TempDir, file: &str, content: impl AsRef<[u8]>) {
    std::fs::write(directory.path().join(file), content).unwrap();
}

fn remove(directory: &TempDir, file: &str) {
    std::fs::remove_file(directory.path().join(file)).unwrap();
}

/// Opens a model and checks its weights, as loading does.
fn open(directory: &Path) -> Result<ModelFiles, String> {
    let files = ModelFiles::open("tiny", directory).map_err(|error| error.to_string())?;
    let valid = files.checkpoint.validate(&files.config);
    valid.map_err(|error| error.to_string())?;
    Ok(files)
}

fn refused(directory: &TempDir) -> String {
    match open(directory.path()) {
        Ok(_) => panic!("the model was accepted"),
        Err(message) => message,
    }
}

/// Asserts that the message contains all the words.
fn assert_names(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

/// Asserts that every tensor of the tiny model exists and has its values.
fn assert_whole(checkpoint: &Checkpoint) {
    for (seed, (name, shape)) in shapes().into_iter().enumerate() {
        let tensor = checkpoint.tensor(&name, &shape).unwrap();
        assert_eq!(tensor.to_f32(), values(seed, &shape), "{name}");
    }
}

#[test]
fn every_type_of_values_with_and_without_prefix_gives_the_same_model() {
    for (dtype, expected) in [
        (Dtype::F32, StoredType::F32),
        (Dtype::F16, StoredType::F16),
        (Dtype::BF16, StoredType::Bf16),
    ] {
        for prefix in ["", "transformer."] {
            let directory = model_of(&tensors(prefix, dtype));
            let files = open(directory.path()).unwrap();
            assert_eq!(files.checkpoint.dtype(), Some(expected));
            assert_whole(&files.checkpoint);
        }
    }
}

#[test]
fn the_shards_of_an_index_are_one_checkpoint() {
    let directory = model();
    remove(&directory, "model.safetensors");
    let shards = tiny_model::shards(&tensors("transformer.", Dtype::F16));
    tiny_model::write(directory.path(), shards);
    assert_whole(&open(directory.path()).unwrap().checkpoint);
}

#[test]
fn the_output_projection_is_wte_unless_there_is_a_separate_one() {
    let shape = [VOCAB_SIZE, N_EMBD];
    let head = |directory: &TempDir| {
        let files = open(directory.path()).unwrap();
        files.checkpoint.lm_head(&files.config).unwrap().to_f32()
    };
    let mut tensors = tensors("transformer.", Dtype::F32);
    assert_eq!(head(&model_of(&tensors)), values(0, &shape));

    let separate = Tensor::new(98, &shape, Dtype::F32);
    tensors.insert("lm_head.weight".to_owned(), separate);
    assert_eq!(head(&model_of(&tensors)), values(98, &shape));
}

#[test]
fn an_output_projection_that_is_not_tied_has_to_be_there() {
    let directory = model();
    let mut config = tiny_model::config();
    config["tie_word_embeddings"] = false.into();
    replace(&directory, "config.json", config.to_string());
    assert_names(
        &refused(&directory),
        &["`lm_head.weight`", "[8, 4]", "missing"],
    );
}

/// Without the others the model would be one without biases, which nanoGPT can save.
#[test]
fn a_single_bias_is_not_left_out() {
    let mut tensors = tensors("", Dtype::F32);
    tensors.retain(|name, _| !name.contains(".bias") || name.contains("c_attn.bias"));
    assert_names(&refused(&model_of(&tensors)), &["`ln_f.bias`", "missing"]);
}

#[test]
fn tensors_the_model_has_no_use_for_are_ignored_whatever_their_type() {
    let mut tensors = tensors("", Dtype::F32);
    let mask = Tensor {
        dtype: Dtype::BOOL,
        shape: vec![1, 1, 6, 6],
        bytes: vec![1; 36],
    };
    tensors.insert("h.0.attn.bias".to_owned(), mask);
    let masked = Tensor::new(0, &[], Dtype::F64);
    tensors.insert("h.0.attn.masked_bias".to_owned(), masked);
    assert_whole(&open(model_of(&tensors).path()).unwrap().checkpoint);
}

#[test]
fn a_separate_embedding_is_its_row_of_wte_and_no_other_id_has_one() {
    let mut tensors = tensors("", Dtype::F16);
    let tied = open(model_of(&tensors).path()).unwrap();
    let none = tied.checkpoint.separate_embedding(&tied.config).unwrap();
    assert!(none.is_none());
    let separate = Tensor::new(98, &[VOCAB_SIZE, N_EMBD], Dtype::F16);
    tensors.insert("lm_head.weight".to_owned(), separate);
    let files = open(model_of(&tensors).path()).unwrap();
    let wte = files.checkpoint.separate_embedding(&files.config).unwrap();
    let wte = wte.unwrap();
    let expected = values(0, &[VOCAB_SIZE, N_EMBD]);
    for (id, expected) in expected.chunks(N_EMBD).enumerate() {
        let mut row = vec![1.0; N_EMBD];
        wte.add_rows(&[u32::try_from(id).unwrap()], &mut row)
            .unwrap();
        let expected: Vec<f32> = expected.iter().map(|e| 1.0 + e).collect();
        assert_eq!(row, expected);
    }
    for id in [8, u32::MAX] {
        let refused = wte.add_rows(&[id], &mut [0.0; N_EMBD]).unwrap_err();
        assert_names(
            &refused.to_string(),
            &[&id.to_string(), "the vocabulary (8 tokens)"],
        );
    }
}

#[test]
fn a_missing_tensor_is_named_with_its_shape_and_the_file() {
    for (name, shape) in shapes() {
        let mut tensors = tensors("transformer.", Dtype::F32);
        tensors.remove(&format!("transformer.{name}"));
        let words = [
            &format!("`{name}`"),
            &format!("{shape:?}"),
            "model.safetensors",
        ];
        assert_names(&refused(&model_of(&tensors)), &words);
    }
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    for (name, shape) in shapes() {
        let mut tensors = tensors("", Dtype::F32);
        let mut found = shape.clone();
        found[0] += 1;
        tensors.insert(name.clone(), Tensor::new(0, &found, Dtype::F32));
        let (found, expected) = (format!("shape {found:?}"), format!("expected {shape:?}"));
        let words = [&format!("`{name}`"), &found, &expected, "model.safetensors"];
        assert_names(&refused(&model_of(&tensors)), &words);
    }
}

#[test]
fn a_tensor_of_an_unsupported_type_is_named_with_the_type() {
    let mut tensors = tensors("", Dtype::F32);
    let double = Tensor::new(0, &[N_EMBD], Dtype::F64);
    tensors.insert("ln_f.bias".to_owned(), double);
    let words = [
        "model.safetensors",
        "`ln_f.bias`",
        "F64",
        "F32, F16 or BF16",
    ];
    assert_names(&refused(&model_of(&tensors)), &words);
}

#[test]
fn a_file_cut_short_anywhere_is_refused_with_its_length() {
    let directory = model();
    let whole = tiny_model::safetensors(&tensors("", Dtype::F32));
    for length in (0..whole.len()).step_by(13).chain([whole.len() - 1]) {
        replace(&directory, "model.safetensors", &whole[..length]);
        let bytes = format!("({length} bytes)");
        assert_names(
            &refused(&directory),
            &["model.safetensors", "not a complete", &bytes],
        );
    }
}

#[test]
fn a_header_that_lies_is_refused() {
    let directory = model();
    let whole = tiny_model::safetensors(&tensors("", Dtype::F32));
    for header in [u64::MAX, 1 << 40, 0, 7] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&header.to_le_bytes());
        replace(&directory, "model.safetensors", &bytes);
        assert_names(
            &refused(&directory),
            &["model.safetensors", "not a complete"],
        );
    }
}

#[test]
fn an_index_has_to_name_shards_that_are_there() {
    let directory = model();
    remove(&directory, "model.safetensors");
    tiny_model::write(
        directory.path(),
        tiny_model::shards(&tensors("", Dtype::F32)),
    );
    remove(&directory, "model-00002-of-00002.safetensors");
    assert_names(
        &refused(&directory),
        &["model-00002-of-00002.safetensors", "No such file"],
    );

    let index = "model.safetensors.index.json";
    for (weight_map, words) in [
        (json!({}), "does not name any shards"),
        (
            json!({"wte.weight": "../model.safetensors"}),
            "not a safetensors file in the same",
        ),
        (
            json!({"wte.weight": "config.json"}),
            "not a safetensors file in the same",
        ),
        (json!(["model.safetensors"]), "expected a map"),
    ] {
        replace(
            &directory,
            index,
            json!({"weight_map": weight_map}).to_string(),
        );
        assert_names(&refused(&directory), &[index, words]);
    }
}

#[test]
fn json_that_is_broken_is_named_by_file_and_place() {
    for file in ["config.json", "generation_config.json", "tokenizer.json"] {
        let directory = model();
        replace(&directory, file, "{\"model_type\": \"gpt2\",");
        assert_names(&refused(&directory), &[file, "line 1"]);
    }
    let directory = model();
    remove(&directory, "model.safetensors");
    replace(&directory, "model.safetensors.index.json", "{");
    assert_names(
        &refused(&directory),
        &["model.safetensors.index.json", "line 1"],
    );
}

#[test]
fn a_model_of_another_architecture_is_refused_by_its_type() {
    for (model_type, found) in [(json!("mamba"), "mamba"), (Value::Null, "missing")] {
        let directory = model();
        let mut config = tiny_model::config();
        config["model_type"] = model_type;
        replace(&directory, "config.json", config.to_string());
        assert_names(
            &refused(&directory),
            &["config.json", "`model_type`", found, "\"gpt2\""],
        );
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_embeddings_is_refused() {
    let directory = model();
    let mut tokenizer = tiny_model::tokenizer();
    tokenizer["added_tokens"][0]["id"] = 8.into();
    tokenizer["model"]["vocab"] =
        json!({"a": 0, "b": 1, "ab": 2, "c": 3, "d": 4, "e": 5, "f": 6, "g": 7});
    replace(&directory, "tokenizer.json", tokenizer.to_string());
    let words = ["tokenizer.json", "up to 8", "config.json", "is 8"];
    assert_names(&refused(&directory), &words);
}

#[test]
fn a_directory_without_a_whole_model_is_refused_by_what_it_lacks() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let directory = model();
        remove(&directory, file);
        let path = directory.path().display().to_string();
        assert_names(&refused(&directory), &[&path, &format!("has no {file}")]);
    }
    let directory = model();
    remove(&directory, "model.safetensors");
    replace(&directory, "tf_model.h5", "hierarchical");
    assert_names(
        &refused(&directory),
        &["only tf_model.h5", "save_pretrained"],
    );

    let nowhere = directory.path().join("nowhere");
    assert_names(
        &open(&nowhere).err().unwrap(),
        &["nowhere", "not a directory"],
    );
}

#[test]
fn vocab_and_merges_stand_in_for_a_tokenizer_json() {
    let directory = model();
    remove(&directory, "tokenizer.json");
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "c": 3, "<|endoftext|>": 4});
    replace(&directory, "vocab.json", vocab.to_string());
    replace(&directory, "merges.txt", "#version: 0.2\na b\n");
    let files = open(directory.path()).unwrap();
    assert_eq!(files.tokenizer.encode("abca", false).unwrap(), [2, 3, 0]);
    assert_eq!(files.tokenizer.end_of_text(), Some(END_OF_TEXT));

    replace(&directory, "vocab.json", "[]");
    assert_names(&refused(&directory), &["vocab.json"]);
}

#[test]
fn what_ends_a_text_is_what_the_most_specific_file_says() {
    let directory = model();
    let end_of_text = || open(directory.path()).unwrap().end_of_text();
    assert_eq!(end_of_text(), [END_OF_TEXT]);

    replace(
        &directory,
        "generation_config.json",
        r#"{"eos_token_id": [1, 2]}"#,
    );
    assert_eq!(end_of_text(), [1, 2]);
    replace(
        &directory,
        "generation_config.json",
        r#"{"temperature": 0.5}"#,
    );
    assert_eq!(end_of_text(), [END_OF_TEXT]);

    let mut config = tiny_model::config();
    config["eos_token_id"] = 3.into();
    replace(&directory, "config.json", config.to_string());
    assert_eq!(end_of_text(), [3]);
    config["eos_token_id"] = Value::Null;
    replace(&directory, "config.json", config.to_string());
    assert_eq!(end_of_text(), [END_OF_TEXT]);
}

#[test]
fn defaults_for_sampling_come_from_the_generation_config_if_there_is_one() {
    let directory = model();
    let sampling = || open(directory.path()).unwrap().generation_config.sampling();
    assert_eq!(sampling().temperature, None);
    replace(
        &directory,
        "generation_config.json",
        r#"{"do_sample": true, "temperature": 0.5, "transformers_version": "4.0"}"#,
    );
    assert_eq!(sampling().temperature, Some(0.5));
    assert_eq!(sampling().do_sample, Some(true));
}

#[test]
fn a_chat_template_comes_from_a_file_of_its_own_or_from_the_tokenizers_config() {
    let directory = model();
    let origin = || {
        let files = open(directory.path()).unwrap();
        let chat = files.chat(None);
        chat.map(|chat| chat.origin().to_owned())
    };
    assert_eq!(origin().unwrap(), "plain");
    let config = r#"{"chat_template": "{{ messages }}"}"#;
    tiny_model::write(
        directory.path(),
        [("tokenizer_config.json", config.as_bytes().to_vec())],
    );
    assert!(origin().unwrap().ends_with("tokenizer_config.json"));
    tiny_model::write(
        directory.path(),
        [("chat_template.jinja", b"{{ messages }}".to_vec())],
    );
    assert!(origin().unwrap().ends_with("chat_template.jinja"));
    tiny_model::write(
        directory.path(),
        [("chat_template.jinja", b"{% for %}".to_vec())],
    );
    let message = origin().unwrap_err().to_string();
    assert_names(&message, &["chat_template.jinja", "syntax error"]);
    tiny_model::write(
        directory.path(),
        [("tokenizer_config.json", b"{\"chat_template\": 3}".to_vec())],
    );
    let message = open(directory.path()).err().unwrap();
    assert_names(&message, &["tokenizer_config.json"]);
}

#[test]
fn a_directory_is_a_source_and_gives_the_model_its_name() {
    let directory = model();
    let source: ModelSource = directory.path().to_str().unwrap().parse().unwrap();
    assert_eq!(source, ModelSource::Directory(directory.path().to_owned()));
    let files = source.fetch(false).unwrap();
    let name = directory.path().file_name().unwrap().to_string_lossy();
    assert_eq!(files.name, name);
}

#[cfg(feature = "builtin-model")]
#[test]
fn the_built_in_model_is_whole() {
    let files = "builtin"
        .parse::<ModelSource>()
        .unwrap()
        .fetch(false)
        .unwrap();
    assert_eq!(files.name, "fairy-tales");
    files.checkpoint.validate(&files.config).unwrap();
    assert_eq!(files.config.parameters(), 10_347_520);
    assert_eq!(files.tokenizer.vocab_size(), files.config.vocab_size());
    assert_eq!(files.end_of_text(), [8191]);
    assert_eq!(files.generation_config.sampling().do_sample, Some(true));
}

#[cfg(not(feature = "builtin-model"))]
#[test]
fn a_build_without_the_built_in_model_says_so() {
    let message = ModelSource::Builtin.fetch(false).err().unwrap().to_string();
    assert_names(&message, &["no built-in model", "`builtin-model`"]);
}

#[test]
fn the_shape_is_read_as_the_file_has_it() {
    let config = tiny_model::config().to_string();
    let config = Gpt2Config::from_json("config.json", config.as_bytes()).unwrap();
    assert_eq!(
        (config.n_layer, config.n_head, config.head_dim()),
        (2, 2, 2)
    );
    assert_eq!(config.n_inner, 4 * N_EMBD);
    let tensors: usize = shapes()
        .iter()
        .map(|(_, s)| s.iter().product::<usize>())
        .sum();
    assert_eq!(ModelConfig::Gpt2(config).parameters(), tensors);
}
