//! API keys over HTTP: required keys and scopes. `key_limits.rs` tests the limits.

use std::time::{Duration, Instant};

use crate::support::keys::{FREE, KeysFile, requests_per_minute};
use crate::support::raw::{ask, get};
use crate::support::{Answer, Setup, TestServer, client};
use serde_json::{Value, json};
use skald::http::Access;
use skald::keys::KeyScope::{Admin, Generate, Metrics};

pub fn completion() -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": 2, "seed": 7})
}

#[tokio::test]
async fn without_a_key_or_with_a_wrong_one_nothing_is_done_and_nothing_told() {
    let mut keys = KeysFile::new();
    let ada = keys.add("ada", Generate, FREE);
    let server = keys.serve(Setup::default());
    let steps = server.engine().status().steps;
    let wrong_secret: &'static str = format!("{}{}", &ada[..82], "x").leak();
    let unknown_id: &'static str = ada.replace("skald_", "skald_000000000000").leak();
    let mut told = Vec::new();
    for wrong in [wrong_secret, unknown_id, "none", "sk-1234"] {
        let caller = server.caller().with_key(wrong);
        let answer = caller.post("/v1/completions", completion()).await;
        assert_eq!(answer.status, 401, "{wrong}: {}", answer.body);
        assert_eq!(answer.body["error"]["code"], "invalid_api_key");
        assert_eq!(answer.body["error"]["type"], "invalid_request_error");
        assert!(answer.header("www-authenticate").contains("invalid_token"));
        assert!(!answer.body.to_string().contains(wrong));
        told.push(answer.body.to_string());
        let native = caller.post("/generate", json!({"inputs": "A"})).await;
        assert_eq!(native.status, 401);
        assert_eq!(native.body["error_type"], "unauthorized");
    }
    told.dedup();
    assert_eq!(
        told.len(),
        1,
        "an id that exists can be told from others: {told:?}"
    );
    // Only clients with a key learn whether a path exists.
    let mut refusals = Vec::new();
    for path in ["/v1/models", "/v1/nothing", "/info", "/nothing", "/metrics"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"skald\"");
        refusals.push(answer.message().to_owned());
    }
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    let caller = server.caller().with_key(ada);
    assert_eq!(caller.get("/v1/nothing").await.status, 404);
    assert_eq!(caller.get("/nothing").await.status, 404);
    assert_eq!(caller.get("/v1/completions").await.status, 405);
    for probe in ["/livez", "/readyz", "/health", "/ping"] {
        assert_eq!(server.get(probe).await.status, 200, "{probe}");
    }
    assert_eq!(
        server.engine().status().steps,
        steps,
        "a refused request ran"
    );
}

#[tokio::test]
async fn a_key_may_do_what_its_scopes_say() {
    let mut keys = KeysFile::new();
    let (ada, scraper, root) = (
        keys.add("ada", Generate, FREE),
        keys.add("prometheus", Metrics, FREE),
        keys.add("root", Admin, FREE),
    );
    let server = keys.serve(Setup::default());
    for (key, generates, scrapes) in [(ada, 200, 403), (scraper, 403, 200), (root, 200, 200)] {
        let caller = server.caller().with_key(key);
        for (path, body) in [
            ("/v1/completions", completion()),
            (
                "/v1/chat/completions",
                json!({"messages": [{"role": "user", "content": "A"}], "max_tokens": 1}),
            ),
            ("/v1/embeddings", json!({"input": "A"})),
            (
                "/generate",
                json!({"inputs": "A", "parameters": {"max_new_tokens": 1}}),
            ),
            (
                "/",
                json!({"inputs": "A", "parameters": {"max_new_tokens": 1}}),
            ),
            ("/tokenize", json!({"content": "A"})),
            ("/detokenize", json!({"tokens": [1]})),
        ] {
            let answer = caller.post(path, body).await;
            assert_eq!(answer.status, generates, "{path} {}", answer.body);
        }
        for path in [
            "/v1/models",
            "/v1/sessions",
            "/info",
            "/server_info",
            "/get_load",
        ] {
            assert_eq!(caller.get(path).await.status, generates, "{path}");
        }
        assert_eq!(caller.get("/metrics").await.status, scrapes);
    }
    let refused = server.caller().with_key(scraper).get("/v1/models").await;
    assert_eq!(refused.body["error"]["code"], "insufficient_scope");
    assert!(
        refused.message().contains("`generate`"),
        "{}",
        refused.message()
    );
    let challenge = refused.header("www-authenticate");
    assert!(challenge.contains("scope=\"generate\""), "{challenge}");
    let refused = server.caller().with_key(ada).get("/metrics").await;
    assert_eq!(refused.body["error_type"], "insufficient_scope");
    assert!(
        refused.message().contains("`metrics`"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn a_key_can_be_shown_in_two_ways_but_not_two_keys() {
    let mut keys = KeysFile::new();
    let (ada, bob) = (
        keys.add("ada", Generate, FREE),
        keys.add("bob", Generate, FREE),
    );
    let with_keys = keys.serve(Setup::default());
    let models = |server: &TestServer| client().get(server.url("/v1/sessions"));
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status();
    assert_eq!(
        status(models(&with_keys).header("x-api-key", ada)).await,
        200
    );
    assert_eq!(
        status(models(&with_keys).header("X-API-KEY", "none")).await,
        401
    );
    let both = models(&with_keys).header("x-api-key", ada).bearer_auth(ada);
    assert_eq!(status(both).await, 200);
    // A proxy's own authentication is ignored.
    let proxy = models(&with_keys)
        .header("x-api-key", ada)
        .basic_auth("x", Some("y"));
    assert_eq!(status(proxy).await, 200);
    let two = models(&with_keys).header("x-api-key", ada).bearer_auth(bob);
    assert_eq!(status(two).await, 400);

    // Without keys, tokens name a tenant in the same ways.
    let open = TestServer::start();
    let begun = open.caller().with_key("mine");
    let body = json!({"prompt": "A", "max_tokens": 1, "session_id": "s"});
    begun.post("/v1/completions", body).await.ok();
    let list = async |request: reqwest::RequestBuilder| {
        let answer = Answer::whole(request.send().await.unwrap()).await.unwrap();
        answer.ok()["data"].as_array().unwrap().len()
    };
    assert_eq!(list(models(&open).header("x-api-key", "mine")).await, 1);
    assert_eq!(list(models(&open).bearer_auth("mine")).await, 1);
    assert_eq!(list(models(&open).header("x-api-key", "other")).await, 0);
    let two = models(&open)
        .header("x-api-key", "mine")
        .bearer_auth("other");
    assert_eq!(status(two).await, 400);
}

#[tokio::test]
async fn a_key_is_a_tenant_also_after_its_file_was_written_anew() {
    let mut keys = KeysFile::new();
    let (ada, bob) = (
        keys.add("ada", Generate, FREE),
        keys.add("bob", Generate, FREE),
    );
    let loaded = keys.load();
    let server = TestServer::with(Setup {
        access: Access {
            keys: Some(loaded.clone()),
            ..Access::default()
        },
        ..Setup::default()
    });
    let body = json!({"prompt": "A", "max_tokens": 2, "session_id": "story"});
    let hers = server.caller().with_key(ada);
    hers.post("/v1/completions", body).await.ok();
    let history = hers.history("story").await.unwrap();
    let his = server.caller().with_key(bob);
    assert_eq!(his.history("story").await, None);
    assert_eq!(his.delete("/v1/sessions/story").await.status, 404);

    keys.revoke("bob");
    keys.add("grace", Generate, FREE);
    loaded.reload(Instant::now()).unwrap();
    assert_eq!(hers.history("story").await.unwrap(), history);
    assert_eq!(his.get("/v1/sessions").await.status, 401);
    // With no key in the file, every request is refused.
    keys.revoke("ada");
    keys.revoke("grace");
    loaded.reload(Instant::now()).unwrap();
    assert_eq!(hers.get("/v1/sessions").await.status, 401);
    assert_eq!(server.get("/v1/sessions").await.status, 401);
}

#[tokio::test]
async fn with_keys_any_host_may_be_named_and_pages_need_their_origin_allowed() {
    let mut keys = KeysFile::new();
    let ada = keys.add("ada", Generate, requests_per_minute(1000));
    let origin = "https://app.example.org";
    let server = keys.serve(Setup {
        access: Access {
            origins: vec![origin.parse().unwrap()],
            ..Access::default()
        },
        ..Setup::default()
    });
    let key = format!("authorization: Bearer {ada}");
    let answer = ask(
        server.address,
        &get("/info", &["host: skald.example.org", &key]),
    )
    .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = ask(server.address, &get("/info", &["host: evil.example"])).await;
    assert_eq!(answer.status, 401, "{answer:?}");
    let foreign = ["host: localhost", "origin: https://evil.example", &key];
    let answer = ask(server.address, &get("/info", &foreign)).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    // The preflight needs no key. The request does, and its page can read the error.
    let preflight = client()
        .request(reqwest::Method::OPTIONS, server.url("/v1/completions"))
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization");
    assert!(preflight.send().await.unwrap().status().is_success());
    let models = || {
        client()
            .get(server.url("/v1/models"))
            .header("origin", origin)
    };
    let refused = models().send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["access-control-allow-origin"], origin);
    let answer = models().bearer_auth(ada).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let exposed = answer.headers()["access-control-expose-headers"]
        .to_str()
        .unwrap();
    for name in [
        "x-ratelimit-remaining-requests",
        "ratelimit",
        "www-authenticate",
        "retry-after",
    ] {
        assert!(
            exposed.split(',').any(|one| one.trim() == name),
            "{name} in {exposed}"
        );
    }
}

#[tokio::test]
async fn a_stream_of_a_key_that_is_revoked_goes_on_to_its_end() {
    let mut keys = KeysFile::new();
    let ada = keys.add("ada", Generate, FREE);
    let loaded = keys.load();
    let server = TestServer::with(Setup {
        access: Access {
            keys: Some(loaded.clone()),
            ..Access::default()
        },
        ..Setup::default()
    });
    let caller = server.caller().with_key(ada);
    let body = json!({"prompt": "A", "max_tokens": 200, "ignore_eos": true, "stream": true});
    let mut running = caller.send("/v1/completions", body).await;
    running.chunk().await.unwrap().expect("it runs");
    keys.revoke("ada");
    loaded.reload(Instant::now()).unwrap();
    assert_eq!(caller.get("/v1/models").await.status, 401);
    let rest = tokio::time::timeout(Duration::from_secs(180), running.text()).await;
    assert!(rest.unwrap().unwrap().ends_with("data: [DONE]\n\n"));
}
