//! Limits of API keys over HTTP: requests and tokens per minute, concurrent requests, and the headers that
//! report them.

use std::time::Instant;

use serde_json::json;
use skald::engine::EngineConfig;
use skald::http::Access;
use skald::keys::KeyScope::{Admin, Generate};

use crate::keys::completion;
use crate::support::keys::{
    FREE, KeysFile, concurrent_requests, requests_per_minute, tokens_per_minute,
};
use crate::support::load::{endless, streamed};
use crate::support::metrics;
use crate::support::pace::until;
use crate::support::{Answer, Setup, TestServer};

/// Scrapes all series with a key that has the scope.
async fn series(server: &TestServer, key: &'static str) -> metrics::Metrics {
    let answer = server.caller().with_key(key).get("/metrics").await;
    metrics::Metrics::parse(answer.ok().as_str().expect("text").to_owned())
}

fn milliseconds(answer: &Answer) -> u64 {
    answer.header("retry-after-ms").parse().expect("a number")
}

#[tokio::test]
async fn requests_beyond_a_key_s_limit_are_told_when_to_come_back() {
    let mut keys = KeysFile::new();
    let one = keys.add("one", Generate, requests_per_minute(1));
    let free = keys.add("free", Admin, FREE);
    let server = keys.serve(Setup::default());
    let caller = server.caller().with_key(one);
    let first = caller.post("/v1/completions", completion()).await;
    assert_eq!(first.status, 200);
    assert_eq!(first.header("x-ratelimit-limit-requests"), "1");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "0");
    assert!(first.header("x-ratelimit-reset-requests").ends_with('s'));
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "");
    assert_eq!(
        first.header("ratelimit-policy"),
        "\"requests\";q=1;w=60;qu=\"requests\""
    );
    for (path, body) in [
        ("/v1/completions", completion()),
        ("/v1/completions", streamed(completion())),
    ] {
        let refused = caller.post(path, body).await;
        assert_eq!(refused.status, 429, "{}", refused.body);
        assert_eq!(refused.body["error"]["code"], "rate_limit_exceeded");
        assert!(
            refused.message().contains("reached (1 per minute)"),
            "{}",
            refused.message()
        );
        assert!((1..=60_000).contains(&milliseconds(&refused)));
        let seconds: u64 = refused.header("retry-after").parse().unwrap();
        assert_eq!(seconds, milliseconds(&refused).div_ceil(1000));
        assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
        assert!(
            refused
                .header("content-type")
                .starts_with("application/json")
        );
    }
    let native = caller.post("/generate", json!({"inputs": "A"})).await;
    assert_eq!(native.status, 429);
    assert_eq!(native.body["error_type"], "rate_limited");
    // Other keys are not affected, and their answers have no headers about limits.
    let other = server.caller().with_key(free);
    let answer = other.post("/v1/completions", completion()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-ratelimit-limit-requests"), "");
    assert_eq!(answer.header("ratelimit"), "");
    let figures = series(&server, free).await;
    assert_eq!(figures.get("skald_key_requests_total{key=\"one\"}"), 1.0);
    let refused = "skald_key_refusals_total{reason=\"requests_per_minute\"}";
    assert_eq!(figures.get(refused), 3.0);
    let outcomes = figures.outcomes("/v1/completions");
    assert_eq!(outcomes["rate_limited"], 2.0, "{outcomes:?}");
}

#[tokio::test]
async fn tokens_are_counted_and_a_key_in_debt_waits() {
    let mut keys = KeysFile::new();
    let few = keys.add("few", Generate, tokens_per_minute(100));
    let root = keys.add("root", Admin, FREE);
    let server = keys.serve(Setup::default());
    let caller = server.caller().with_key(few);
    // A prompt larger than the tokens of a minute, in each dialect.
    let long = "word ".repeat(200);
    let refused = caller
        .post("/v1/completions", json!({"prompt": long, "max_tokens": 1}))
        .await;
    assert_eq!(refused.status, 413, "{}", refused.body);
    assert_eq!(refused.body["error"]["code"], "token_limit_exceeded");
    assert!(
        refused.message().contains("100 tokens per minute"),
        "{}",
        refused.message()
    );
    assert_eq!(refused.header("retry-after"), "");
    let native = caller.post(
        "/generate",
        json!({"inputs": long, "parameters": {"max_new_tokens": 1}}),
    );
    assert_eq!(native.await.status, 413);
    let embedding = caller
        .post("/v1/embeddings", json!({"input": [long]}))
        .await;
    assert_eq!(embedding.status, 413);
    // The refused prompt was not charged: this one fits, and may overdraw.
    let body = json!({"prompt": "Once upon a time", "max_tokens": 250, "ignore_eos": true});
    let answer = caller.post("/v1/completions", body).await;
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), "100");
    assert_eq!(answer.header("x-ratelimit-remaining-tokens"), "0");
    let reset = answer.header("x-ratelimit-reset-tokens").to_owned();
    assert!(reset.starts_with("2m"), "{reset}");
    let usage = answer.ok()["usage"].clone();
    assert_eq!(usage["completion_tokens"], 250);
    let refused = caller.post("/v1/completions", completion()).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(
        refused
            .message()
            .contains("has 0 of its 100 tokens per minute left"),
        "{}",
        refused.message()
    );
    assert!(
        milliseconds(&refused) > 60_000,
        "the debt is paid off first"
    );
    let refused = caller.post("/v1/embeddings", json!({"input": "A"})).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    // Requests that need no tokens still work.
    assert_eq!(
        caller
            .post("/tokenize", json!({"content": "A"}))
            .await
            .status,
        200
    );
    let figures = series(&server, root).await;
    let prompt = usage["prompt_tokens"].as_f64().unwrap();
    assert_eq!(
        figures.get("skald_key_prompt_tokens_total{key=\"few\"}"),
        prompt
    );
    assert_eq!(
        figures.get("skald_key_generated_tokens_total{key=\"few\"}"),
        250.0
    );
    assert_eq!(
        figures.get("skald_key_refusals_total{reason=\"tokens_per_minute\"}"),
        5.0
    );
}

#[tokio::test]
async fn choices_are_one_request_and_their_tokens_and_a_shared_prompt_counts_once() {
    let mut keys = KeysFile::new();
    let root = keys.add("root", Admin, tokens_per_minute(1_000_000));
    let server = keys.serve(Setup::default());
    let caller = server.caller().with_key(root);
    let prompt = server.ids("Once upon a time").len() as f64;
    let counted = async |requests: f64, prompts: f64, generated: f64| {
        let figures = series(&server, root).await;
        assert_eq!(
            figures.get("skald_key_requests_total{key=\"root\"}"),
            requests
        );
        assert_eq!(
            figures.get("skald_key_prompt_tokens_total{key=\"root\"}"),
            prompts
        );
        assert_eq!(
            figures.get("skald_key_generated_tokens_total{key=\"root\"}"),
            generated
        );
    };
    let body = json!({"prompt": ["Once upon a time", "Once upon a time"], "n": 3, "max_tokens": 4, "ignore_eos": true});
    caller.post("/v1/completions", body).await.ok();
    counted(1.0, 2.0 * prompt, 24.0).await;
    let body = json!({"inputs": "Once upon a time", "parameters": {"best_of": 2, "do_sample": true, "max_new_tokens": 3}});
    caller.post("/generate", body).await;
    let figures = series(&server, root).await;
    assert_eq!(
        figures.get("skald_key_prompt_tokens_total{key=\"root\"}"),
        3.0 * prompt
    );
    let before = figures.get("skald_key_generated_tokens_total{key=\"root\"}");
    caller
        .post("/v1/embeddings", json!({"input": ["Once upon a time"]}))
        .await
        .ok();
    counted(3.0, 4.0 * prompt, before).await;
}

#[tokio::test]
async fn a_prompt_that_was_never_read_is_put_back() {
    let mut keys = KeysFile::new();
    let root = keys.add("root", Admin, FREE);
    let server = {
        let setup = Setup::default();
        // As many tokens as the prompt has: a second one would not fit for a minute.
        let tokens = TestServer::start().ids("Once upon a time").len();
        keys.add(
            "few",
            Generate,
            tokens_per_minute(tokens.try_into().unwrap()),
        );
        keys.revoke("few");
        let engine = EngineConfig {
            max_batch: 1,
            ..setup.engine
        };
        let few = keys.add(
            "few",
            Generate,
            tokens_per_minute(tokens.try_into().unwrap()),
        );
        (keys.serve(Setup { engine, ..setup }), few)
    };
    let (server, few) = server;
    let mut running = server
        .caller()
        .with_key(root)
        .send("/v1/completions", streamed(endless()))
        .await;
    running.chunk().await.unwrap().expect("it runs");
    let caller = server.caller().with_key(few);
    let mut body = completion();
    body["timeout"] = json!(0.2);
    for _ in 0..3 {
        let answer = caller.post("/v1/completions", body.clone()).await;
        assert_eq!(answer.status, 408, "{}", answer.body);
    }
    drop(running);
    assert_eq!(
        caller.post("/v1/completions", completion()).await.status,
        200
    );
    assert_eq!(
        caller.post("/v1/completions", completion()).await.status,
        429
    );
}

#[tokio::test]
async fn a_place_is_held_until_the_answer_has_ended_or_its_client_has_gone() {
    let mut keys = KeysFile::new();
    let one = keys.add("one", Generate, concurrent_requests(1));
    let free = keys.add("free", Generate, FREE);
    let server = keys.serve(Setup::default());
    let caller = server.caller().with_key(one);
    let mut running = caller.send("/v1/completions", streamed(endless())).await;
    assert_eq!(
        running.headers()["ratelimit"],
        "\"concurrent-requests\";r=0"
    );
    running.chunk().await.unwrap().expect("it runs");
    let refused = caller.post("/v1/completions", completion()).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(
        refused
            .message()
            .contains("concurrent request limit of this API key reached (1)"),
        "{}",
        refused.message()
    );
    assert_eq!(refused.header("retry-after"), "1");
    let other = server.caller().with_key(free);
    assert_eq!(
        other.post("/v1/completions", completion()).await.status,
        200
    );
    drop(running);
    until("free again", async || {
        caller.post("/v1/completions", completion()).await.status == 200
    })
    .await;
    // A client that sends the next request right after its answer finds a place, also after a failure.
    for _ in 0..10 {
        caller.post("/v1/completions", completion()).await.ok();
        let stream = caller
            .stream("/v1/completions", streamed(completion()))
            .await;
        drop(stream);
        let bad = caller
            .post("/v1/completions", json!({"prompt": "A", "n": 0}))
            .await;
        assert_eq!(bad.status, 400);
        assert_eq!(caller.get("/v1/sessions/none").await.status, 404);
    }
}

#[tokio::test]
async fn a_file_that_is_rewritten_in_place_gives_no_limit_back() {
    let mut keys = KeysFile::new();
    let ada = keys.add("ada", Generate, concurrent_requests(1));
    let bob = keys.add("bob", Generate, tokens_per_minute(100));
    let loaded = keys.load();
    let server = TestServer::with(Setup {
        access: Access {
            keys: Some(loaded.clone()),
            ..Access::default()
        },
        ..Setup::default()
    });
    let (hers, his) = (server.caller().with_key(ada), server.caller().with_key(bob));
    let mut running = hers.send("/v1/completions", streamed(endless())).await;
    running.chunk().await.unwrap().expect("it runs");
    // A debt of more than a minute.
    let body = json!({"prompt": "Once upon a time", "max_tokens": 250, "ignore_eos": true});
    his.post("/v1/completions", body).await.ok();
    let whole = std::fs::read(keys.path()).unwrap();
    for (text, status) in [(&[][..], 401), (&whole, 429)] {
        std::fs::write(keys.path(), text).unwrap();
        loaded.reload(Instant::now()).unwrap();
        for caller in [&hers, &his] {
            let refused = caller.post("/v1/completions", completion()).await;
            assert_eq!(refused.status, status, "{}", refused.body);
        }
    }
    drop(running);
    until("her place is free again", async || {
        hers.post("/v1/completions", completion()).await.status == 200
    })
    .await;
}
