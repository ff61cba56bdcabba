//! `--device`: the kernels and candle's own operations, compared over HTTP.

use serde_json::{Value, json};
use skald::config::Device;

use crate::support::{Setup, TestServer};

/// Maximum difference of log-probabilities between two f32 implementations.
const TOLERANCE: f64 = 4e-4;

async fn completion(server: &TestServer, prompt: &str) -> Value {
    let body = json!({
        "model": "fairy-tales", "prompt": prompt, "temperature": 0, "max_tokens": 24,
        "logprobs": 1, "echo": true,
    });
    server.post("/v1/completions", body).await.ok()
}

#[tokio::test]
async fn candle_gives_the_tokens_and_logprobs_of_the_kernels() {
    let cpu = TestServer::start();
    let candle = TestServer::with(Setup {
        device: Device::Candle,
        ..Setup::default()
    });
    for prompt in ["Once upon a time", "The king had three daughters, and"] {
        let [kernels, reference] = [&cpu, &candle].map(|server| completion(server, prompt));
        let (kernels, reference) = tokio::join!(kernels, reference);
        assert_eq!(
            kernels["choices"][0]["text"],
            reference["choices"][0]["text"]
        );
        assert_ne!(
            kernels["system_fingerprint"],
            reference["system_fingerprint"]
        );
        let logprobs = |answer: &Value| {
            let logprobs = &answer["choices"][0]["logprobs"]["token_logprobs"];
            let logprobs = logprobs.as_array().expect("a list").iter();
            logprobs.filter_map(Value::as_f64).collect::<Vec<_>>()
        };
        let (kernels, reference) = (logprobs(&kernels), logprobs(&reference));
        assert!(kernels.len() > 24 && kernels.len() == reference.len());
        for (kernels, reference) in kernels.iter().zip(&reference) {
            let difference = (kernels - reference).abs();
            assert!(difference <= TOLERANCE, "{kernels} is not {reference}");
        }
    }
    for (server, device) in [(&cpu, "cpu"), (&candle, "candle")] {
        let info = server.get("/info").await.ok();
        assert_eq!(info["model"]["device"], device);
        assert_eq!(info["model"]["dtype"], "f32");
    }
}
