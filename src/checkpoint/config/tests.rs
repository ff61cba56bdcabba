//! Configurations of every architecture: defaults, both spellings of rotary parameters, refused values.

use serde_json::{Value, json};

use super::*;
use crate::checkpoint::decoder_fields::{DecoderShape, LayerKind};
use crate::checkpoint::rope::{Llama3Scaling, Rope, RopeScaling};

fn parse(json: &Value) -> Result<ModelConfig, String> {
    let config = ModelConfig::from_json("config.json", json.to_string().as_bytes());
    config.map_err(|error| error.to_string())
}

fn gemma(json: &Value) -> GemmaConfig {
    match parse(json).expect("a configuration") {
        ModelConfig::Gemma(config) => config,
        other => panic!("{other:?}"),
    }
}

fn llama(json: &Value) -> LlamaConfig {
    match parse(json).expect("a configuration") {
        ModelConfig::Llama(config) => config,
        other => panic!("{other:?}"),
    }
}

/// Returns the layers that slide.
fn sliding(shape: &DecoderShape) -> Vec<usize> {
    let layers = 0..shape.layers();
    layers
        .filter(|&layer| shape.window(layer).is_some())
        .collect()
}

/// Returns heads, key and value heads, head width and context length.
fn sizes(shape: &DecoderShape) -> [usize; 4] {
    [
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.context_length,
    ]
}

#[test]
fn a_gemma_that_only_says_its_type_has_transformers_defaults() {
    let one = gemma(&json!({"model_type": "gemma"}));
    assert_eq!(sizes(&one.shape), [16, 16, 256, 8192]);
    assert_eq!(
        (one.shape.vocab_size, one.shape.hidden_size),
        (256_000, 3072)
    );
    assert_eq!(
        (one.shape.intermediate_size, one.shape.layers()),
        (24_576, 28)
    );
    assert!(one.shape.tie_word_embeddings && sliding(&one.shape).is_empty());
    assert_eq!(
        (one.query_scale, one.attn_soft_cap, one.final_soft_cap),
        (0.0625, None, None)
    );
    assert_eq!(one.rope_global, Rope::unscaled(1e4));
    assert!(!one.has_post_norms() && !one.has_qk_norms());

    let two = gemma(&json!({"model_type": "gemma2"}));
    assert_eq!(sizes(&two.shape), [8, 4, 256, 8192]);
    assert_eq!(
        (two.attn_soft_cap, two.final_soft_cap),
        (Some(50.0), Some(30.0))
    );
    assert_eq!(sliding(&two.shape)[..3], [0, 2, 4]);
    assert_eq!((two.shape.sliding_window, two.query_scale), (4096, 0.0625));
    assert!(two.has_post_norms() && !two.has_qk_norms());

    let three = gemma(&json!({"model_type": "gemma3_text"}));
    assert_eq!(sizes(&three.shape), [8, 4, 256, 131_072]);
    assert_eq!((three.attn_soft_cap, three.final_soft_cap), (None, None));
    assert_eq!(sliding(&three.shape)[..6], [0, 1, 2, 3, 4, 6]);
    assert_eq!(three.rope_global, Rope::unscaled(1e6));
    assert_eq!(three.rope_local, Rope::unscaled(1e4));
    assert!(three.has_post_norms() && three.has_qk_norms());
}

#[test]
fn a_llama_or_qwen_that_only_says_its_type_has_transformers_defaults() {
    let plain = llama(&json!({"model_type": "llama"}));
    assert_eq!(sizes(&plain.shape), [32, 32, 128, 2048]);
    assert!(!plain.shape.tie_word_embeddings && !plain.has_qk_norms());
    assert!(!plain.qkv_bias && !plain.out_bias && !plain.mlp_bias);
    let qwen2 = llama(&json!({"model_type": "qwen2", "attention_bias": true, "mlp_bias": true}));
    assert!(qwen2.qkv_bias && !qwen2.out_bias && !qwen2.mlp_bias);
    assert_eq!(sizes(&qwen2.shape), [32, 32, 128, 32_768]);
    let qwen3 = llama(&json!({"model_type": "qwen3", "hidden_size": 64}));
    assert_eq!(sizes(&qwen3.shape), [32, 32, 128, 32_768]);
    assert!(qwen3.has_qk_norms() && !qwen3.qkv_bias);
    // Absent and null are different things.
    let fewer = json!({"model_type": "qwen2", "num_attention_heads": 64});
    assert_eq!(llama(&fewer).shape.kv_heads, 32);
    let null =
        json!({"model_type": "qwen2", "num_attention_heads": 64, "num_key_value_heads": null});
    assert_eq!(llama(&null).shape.kv_heads, 64);
    let uncapped = json!({"model_type": "gemma2", "attn_logit_softcapping": null, "final_logit_softcapping": null});
    let uncapped = gemma(&uncapped);
    assert_eq!(
        (uncapped.attn_soft_cap, uncapped.final_soft_cap),
        (None, None)
    );
}

#[test]
fn both_spellings_of_rotary_parameters_are_read() {
    let linear = Rope {
        base: 1e6,
        scaling: RopeScaling::Linear { factor: 8.0 },
    };
    let classic = json!({
        "model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 2e4,
        "rope_scaling": {"type": "linear", "factor": 8},
    });
    let new = json!({
        "model_type": "gemma3_text",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    });
    for json in [classic, new] {
        let config = gemma(&json);
        assert_eq!(config.rope_global, linear);
        assert_eq!(config.rope_local, Rope::unscaled(2e4));
    }
    let parameters = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let expected = Rope {
        base: 5e5,
        scaling: RopeScaling::Llama3(Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        }),
    };
    let classic = json!({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": parameters});
    assert_eq!(llama(&classic).rope, expected);
    let mut new = json!({"model_type": "llama", "rope_parameters": parameters});
    new["rope_parameters"]["rope_theta"] = 5e5.into();
    assert_eq!(llama(&new).rope, expected);
}

#[test]
fn layers_slide_as_the_file_lists_them_or_by_its_pattern() {
    let pattern =
        json!({"model_type": "gemma3_text", "num_hidden_layers": 4, "_sliding_window_pattern": 2});
    assert_eq!(sliding(&gemma(&pattern).shape), [0, 2]);
    let listed = json!({
        "model_type": "gemma3_text", "num_hidden_layers": 3, "sliding_window": 512,
        "sliding_window_pattern": 2, "_sliding_window_pattern": 6,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    });
    let shape = gemma(&listed).shape;
    assert_eq!((sliding(&shape), shape.window(1)), (vec![1, 2], Some(512)));
    assert_eq!(shape.layer_kinds[0], LayerKind::Global);
    let mut qwen = json!({
        "model_type": "qwen2", "num_hidden_layers": 4, "max_window_layers": 2, "sliding_window": 16,
    });
    assert!(sliding(&llama(&qwen).shape).is_empty());
    qwen["use_sliding_window"] = true.into();
    assert_eq!(sliding(&llama(&qwen).shape), [2, 3]);
    qwen["sliding_window"] = Value::Null;
    assert!(sliding(&llama(&qwen).shape).is_empty());
}

#[test]
fn the_text_model_of_a_multimodal_gemma_3_is_read() {
    let config = gemma(&json!({
        "model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {"hidden_size": 1152},
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    }));
    assert_eq!(
        (config.shape.hidden_size, config.shape.layers()),
        (2560, 34)
    );
    assert_eq!(config.shape.end_of_text, [1, 106]);
    let error = parse(&json!({"model_type": "gemma3", "text_config": {"head_dim": 3}}));
    let error = error.expect_err("an odd width");
    assert!(error.contains("`text_config.head_dim` is 3;"), "{error}");
}

#[test]
fn what_cannot_be_served_is_refused_by_file_field_and_value() {
    let gemma = |field: &str, value: Value| {
        let mut json = json!({"model_type": "gemma3_text"});
        json[field] = value;
        (json, field.to_owned())
    };
    let llama = |field: &str, value: Value| {
        let mut json = json!({"model_type": "llama"});
        json[field] = value;
        (json, field.to_owned())
    };
    for ((json, field), words) in [
        (
            gemma("model_type", "mamba".into()),
            "is mamba; only \"gpt2\", \"gemma\",",
        ),
        (gemma("model_type", Value::Null), "is missing; only"),
        (
            gemma("num_hidden_layers", 0.into()),
            "is 0; expected 1 to 16777216",
        ),
        (
            gemma("num_key_value_heads", 3.into()),
            "is 3; it must divide `num_attention_heads` (8)",
        ),
        (
            gemma("head_dim", 27.into()),
            "is 27; rotary positions need an even width",
        ),
        (
            gemma("rms_norm_eps", 0.into()),
            "is 0; expected a number above 0",
        ),
        (
            gemma("query_pre_attn_scalar", (-1).into()),
            "is -1; expected a number above 0",
        ),
        (
            gemma("final_logit_softcapping", 0.into()),
            "is 0; expected a number above 0",
        ),
        (
            gemma("hidden_activation", "relu".into()),
            "is relu; only gelu_pytorch_tanh",
        ),
        (gemma("attention_bias", true.into()), "is true;"),
        (
            gemma("use_bidirectional_attention", true.into()),
            "is true;",
        ),
        (gemma("sliding_window", 0.into()), "is 0; expected 1 to"),
        (
            gemma("sliding_window_pattern", 0.into()),
            "is 0; expected 1 to",
        ),
        (
            gemma("rope_theta", 0.into()),
            "is 0; expected a number above 0",
        ),
        (
            gemma("layer_types", json!(["full_attention"])),
            "is a list of 1; expected one for each",
        ),
        (llama("hidden_act", "gelu".into()), "is gelu; only silu"),
        (
            llama("num_attention_heads", 7.into()),
            "is 7; without `head_dim` it must divide",
        ),
    ] {
        let error = parse(&json).expect_err("not served");
        let start = format!("config.json: `{field}` ");
        assert!(
            error.starts_with(&start) && error.contains(words),
            "{error}"
        );
    }
}

#[test]
fn scaling_that_cannot_be_served_is_refused_by_field_and_value() {
    for (scaling, words) in [
        (
            json!({"rope_type": "yarn"}),
            "`rope_scaling.rope_type` is yarn; only `default`",
        ),
        (
            json!({"type": "linear"}),
            "`rope_scaling.factor` is missing;",
        ),
        (
            json!({"type": "linear", "factor": -1}),
            "`rope_scaling.factor` is -1;",
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "`rope_scaling.partial_rotary_factor` is 0.5;",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            "`rope_scaling.high_freq_factor` is 4; expected more than",
        ),
    ] {
        let error = parse(&json!({"model_type": "llama", "rope_scaling": scaling}));
        let error = error.expect_err("not served");
        assert!(error.contains(words), "{error}");
    }
    let kinds = json!({"model_type": "qwen3", "num_hidden_layers": 1, "layer_types": ["chunked_attention"]});
    let error = parse(&kinds).expect_err("not served");
    assert!(
        error.contains("`layer_types[0]` is chunked_attention;"),
        "{error}"
    );
    let wrong = parse(&json!({"model_type": "llama", "head_dim": "wide"})).expect_err("a type");
    assert!(
        wrong.starts_with("config.json: head_dim: invalid type"),
        "{wrong}"
    );
}

#[test]
fn published_shapes_have_the_published_numbers_of_parameters() {
    let gemma3_270m = json!({
        "model_type": "gemma3_text", "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048,
        "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    });
    assert_eq!(
        parse(&gemma3_270m).expect("a shape").parameters(),
        268_098_176
    );
    let smollm2_135m = json!({
        "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": true,
    });
    assert_eq!(
        parse(&smollm2_135m).expect("a shape").parameters(),
        134_515_008
    );
    let qwen3 = json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": true,
    });
    assert_eq!(parse(&qwen3).expect("a shape").parameters(), 596_049_920);
}
