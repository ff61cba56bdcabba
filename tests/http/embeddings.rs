//! `/v1/embeddings` over a real socket, with the built-in model.

use std::sync::LazyLock;
use std::time::Duration;

use crate::support::load::{begun, endless, slow};
use crate::support::{Setup, TestServer, client, tiny_model};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use candle_core::{DType, Device, Tensor};
use futures_util::future::join_all;
use safetensors::Dtype;
use serde_json::{Value, json};
use skald::checkpoint::ModelSource;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PATH: &str = "/v1/embeddings";
/// Maximum difference of vectors between two f32 implementations.
const TOLERANCE: f32 = 2e-4;

async fn embed(body: Value) -> Value {
    SERVER.post(PATH, body).await.ok()
}

/// Returns the vectors of an answer in numbers.
fn floats(answer: &Value) -> Vec<Vec<f32>> {
    let numbers = |embedding: &Value| {
        let numbers = embedding["embedding"].as_array().expect("numbers").iter();
        numbers
            .map(|x| x.to_string().parse().expect("a number"))
            .collect()
    };
    data(answer).iter().map(numbers).collect()
}

/// Returns the vectors of an answer in Base64.
fn decoded(answer: &Value) -> Vec<Vec<f32>> {
    let floats = |embedding: &Value| {
        let text = embedding["embedding"].as_str().expect("a string");
        let bytes = BASE64_STANDARD.decode(text).expect("Base64");
        let (floats, rest) = bytes.as_chunks();
        assert!(rest.is_empty());
        floats.iter().copied().map(f32::from_le_bytes).collect()
    };
    data(answer).iter().map(floats).collect()
}

fn data(answer: &Value) -> &Vec<Value> {
    answer["data"].as_array().expect("a list")
}

#[tokio::test]
async fn an_answer_has_the_form_clients_expect() {
    let answer = embed(json!({"input": ["The fox", "The bear"], "model": "fairy-tales"})).await;
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["model"], "fairy-tales");
    let tokens = SERVER.ids("The fox").len() + SERVER.ids("The bear").len();
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": tokens, "total_tokens": tokens})
    );
    for (index, embedding) in data(&answer).iter().enumerate() {
        assert_eq!(embedding["object"], "embedding");
        assert_eq!(embedding["index"], index);
    }
    let vectors = floats(&answer);
    assert_eq!(vectors.len(), 2);
    for vector in &vectors {
        assert_eq!(vector.len(), 320);
        let squares: f32 = vector.iter().map(|x| x * x).sum();
        assert!((squares - 1.0).abs() < 1e-5, "{squares}");
    }
    assert_ne!(vectors[0], vectors[1]);
    let nulls = json!({
        "input": "The fox", "model": null, "encoding_format": null, "dimensions": null,
        "user": null, "truncate": true
    });
    assert_eq!(floats(&embed(nulls).await)[0], vectors[0]);
    let width = json!({"input": "The fox", "dimensions": 320, "user": "me"});
    assert_eq!(floats(&embed(width).await)[0], vectors[0]);
}

#[tokio::test]
async fn an_embedding_is_the_references_mean_hidden_state_scaled_to_length_1() {
    let fixtures = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/fairy-tales/reference.safetensors"
    );
    let references = candle_core::safetensors::load(fixtures, &Device::Cpu).expect("references");
    let ids = references["case0.ids"].to_dtype(DType::U32).expect("ids");
    let ids: Vec<u32> = ids.to_vec1().expect("ids");
    let hidden = &references["case0.hidden"];
    let last = hidden.dim(0).expect("layers") - 1;
    let mean: Tensor = hidden
        .get(last)
        .expect("after ln_f")
        .mean(0)
        .expect("a mean");
    let mean: Vec<f32> = mean.to_vec1().expect("a vector");
    let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();

    let float = floats(&embed(json!({"input": ids, "encoding_format": "float"})).await);
    let base64 = decoded(&embed(json!({"input": ids, "encoding_format": "base64"})).await);
    assert_eq!(float, base64, "the same bits");
    assert_eq!(float[0].len(), mean.len());
    for (found, expected) in float[0].iter().zip(&mean) {
        let difference = (found - expected / length).abs();
        assert!(difference < TOLERANCE, "{difference}");
    }
}

#[tokio::test]
async fn all_four_forms_of_an_input_are_the_same() {
    let texts = ["Once upon a time", "Zwölf 🐉"];
    let ids = texts.map(|text| SERVER.ids(text));
    let both = floats(&embed(json!({"input": texts})).await);
    assert_eq!(floats(&embed(json!({"input": ids})).await), both);
    for ((text, ids), vector) in texts.iter().zip(ids).zip(both) {
        let one = floats(&embed(json!({"input": text})).await);
        assert_eq!(one, std::slice::from_ref(&vector));
        assert_eq!(floats(&embed(json!({"input": ids})).await), [vector]);
    }
}

#[tokio::test]
async fn an_input_of_a_whole_window_is_embedded_and_a_longer_one_refused() {
    let a = SERVER.ids(" a")[0];
    let whole = vec![a; 1024];
    let answer = embed(json!({"input": whole})).await;
    assert_eq!(answer["usage"]["prompt_tokens"], 1024);
    let long = vec![a; 1025];
    let refused = SERVER.post(PATH, json!({"input": long})).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.body["error"]["code"], "context_length_exceeded");
    assert_eq!(refused.body["error"]["param"], "input");
    // Of several inputs, the message names the wrong one.
    let refused = SERVER.post(PATH, json!({"input": [[a], long]})).await;
    assert_eq!(refused.body["error"]["code"], "context_length_exceeded");
    assert_eq!(refused.body["error"]["param"], "input[1]");
    for part in ["`input[1]`", "1025", "1024"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
}

#[tokio::test]
async fn too_many_inputs_or_tokens_are_refused_at_once() {
    let refused = SERVER.post(PATH, json!({"input": vec!["a"; 2049]})).await;
    assert_eq!(refused.status, 400);
    for part in ["`input`", "2049", "2048"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
    let refused = SERVER
        .post(PATH, json!({"input": vec![vec![1; 1000]; 301]}))
        .await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.body["error"]["param"], "input");
    for part in ["`input`", "301000", "300000"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
}

#[tokio::test]
async fn as_many_inputs_as_are_allowed_come_back_in_order() {
    let inputs: Vec<[u32; 1]> = (0..2048).map(|id| [id]).collect();
    let answer = embed(json!({"input": inputs, "encoding_format": "base64"})).await;
    let vectors = decoded(&answer);
    assert_eq!(vectors.len(), 2048);
    for place in [0, 1, 31, 32, 33, 1000, 2047] {
        assert_eq!(data(&answer)[place]["index"], place);
        let one = embed(json!({"input": inputs[place]})).await;
        assert_eq!(floats(&one)[0], vectors[place], "input {place}");
    }
}

#[tokio::test]
async fn many_inputs_leave_room_for_others_in_a_small_queue() {
    let server = slow(Duration::from_millis(1), |setup| {
        setup.engine.max_batch = 2;
        setup.engine.queue_limit = 4;
    });
    let inputs: Vec<Vec<u32>> = (0..200).map(|id| vec![id; 20]).collect();
    let many = server.post(PATH, json!({"input": inputs}));
    let beside = async {
        let mut answered = 0;
        server.until("under way", |status| status.steps > 0).await;
        for _ in 0..10 {
            let small = json!({"prompt": "A", "max_tokens": 2});
            let answer = server.post("/v1/completions", small).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            answered += 1;
        }
        answered
    };
    let (many, answered) = tokio::join!(many, beside);
    assert_eq!(data(&many.ok()).len(), 200);
    assert_eq!(answered, 10);
}

#[tokio::test]
async fn embeddings_beside_each_other_are_what_they_are_alone() {
    let inputs = |n: u32| -> Vec<Vec<u32>> { (0..6).map(|i| vec![n * 7 + i; 30]).collect() };
    let together = join_all((0..8).map(|n| embed(json!({"input": inputs(n)})))).await;
    for (n, together) in (0..).zip(together) {
        for (input, vector) in inputs(n).into_iter().zip(floats(&together)) {
            let alone = embed(json!({"input": input})).await;
            assert_eq!(floats(&alone)[0], vector);
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_takes_all_its_inputs_along() {
    let server = slow(Duration::from_millis(5), |_| {});
    let inputs: Vec<Vec<u32>> = (0..100).map(|id| vec![id; 500]).collect();
    let request = client()
        .post(server.url(PATH))
        .body(json!({"input": inputs}).to_string())
        .send();
    let request = tokio::spawn(request);
    server.until("under way", |status| status.running > 0).await;
    request.abort();
    server
        .until("free", |status| {
            status.running + status.waiting + status.kv_blocks_used == 0
        })
        .await;
}

#[tokio::test]
async fn a_queue_full_of_bulks_refuses_one_more() {
    let server = slow(Duration::from_millis(20), |setup| {
        setup.engine.max_batch = 1;
        setup.engine.queue_limit = 1;
    });
    let running = begun(&server, endless()).await;
    let first = tokio::spawn(
        client()
            .post(server.url(PATH))
            .body(json!({"input": ["a", "b"]}).to_string())
            .send(),
    );
    server.until("waiting", |status| status.waiting == 1).await;
    let refused = server.post(PATH, json!({"input": "c"})).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.body["error"]["code"], "rate_limit_exceeded");
    assert_eq!(refused.header("retry-after"), "1");
    drop(running);
    let first = first.await.expect("it ends").expect("an answer");
    assert_eq!(first.status(), 200);
    assert_eq!(server.post(PATH, json!({"input": "c"})).await.status, 200);
}

#[tokio::test]
async fn hidden_states_that_are_not_finite_are_an_error_and_not_an_embedding() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut tensors = tiny_model::tensors("", Dtype::F32);
    // The mean of this token's embedding is infinite. The start-up check does not use this token, and its
    // logits are 0, as all are.
    let wte = tensors.get_mut("wte.weight").expect("a tensor");
    let (last, width) = (wte.shape[0] - 1, wte.shape[1]);
    let token = (0..last)
        .find(|&id| (0..6).all(|i| i * last / 5 != id))
        .expect("a token that is not tried");
    let rows = wte.bytes.as_chunks_mut::<4>().0;
    for value in &mut rows[token * width..(token + 1) * width] {
        *value = f32::MAX.to_le_bytes();
    }
    for name in ["ln_f.weight", "ln_f.bias"] {
        tensors.get_mut(name).expect("a tensor").bytes.fill(0);
    }
    let mut files = tiny_model::files();
    files.insert(
        "model.safetensors".to_owned(),
        tiny_model::safetensors(&tensors),
    );
    tiny_model::write(directory.path(), files);
    let server = TestServer::with(Setup {
        source: ModelSource::Directory(directory.path().to_owned()),
        ..Setup::default()
    });
    let failed = server.post(PATH, json!({"input": [1, token]})).await;
    assert_eq!(failed.status, 500);
    assert_eq!(failed.body["error"]["code"], "generation_failed");
    assert!(
        failed.message().contains("not finite"),
        "{}",
        failed.message()
    );
    assert_eq!(server.engine().status().running, 0);
}
