//! LoRA adapters over sockets: chosen by name in both dialects, side by side, loaded and unloaded while the
//! server runs.

use std::path::{Path, PathBuf};

use crate::support::keys::{FREE, KeysFile};
use crate::support::{Setup, TestServer};
use serde_json::{Value, json};
use skald::checkpoint::ModelSource;
use skald::config::AdapterSetting;
use skald::keys::KeyScope;
use tempfile::TempDir;

const COMPLETIONS: &str = "/v1/completions";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2-family")
}

fn path_of(adapter: &str) -> String {
    let path = fixtures().join("lora-base/adapters").join(adapter);
    path.display().to_string()
}

/// The model's files beside its tokenizer.
fn base() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for file in [
        "lora-base/config.json",
        "lora-base/model.safetensors",
        "tokenizer.json",
    ] {
        let from = fixtures().join(file);
        let to = directory.path().join(from.file_name().expect("a name"));
        std::fs::copy(&from, to).expect("a copy");
    }
    directory
}

/// Returns the prompt and the greedy continuation of an adapter's reference.
fn reference(adapter: &str) -> (Vec<u32>, Vec<u32>) {
    let path = Path::new(&path_of(adapter)).join("reference.safetensors");
    let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu);
    let tensors = tensors.expect("the reference");
    let ids = |name: &str| -> Vec<u32> {
        let ids = tensors[name]
            .to_dtype(candle_core::DType::U32)
            .expect("ids");
        ids.to_vec1().expect("ids")
    };
    (ids("ids"), ids("greedy"))
}

/// A server of the model with some of its adapters.
fn server(adapters: &[&str], change: impl FnOnce(&mut Setup)) -> (TempDir, TestServer) {
    let directory = base();
    let mut setup = Setup {
        source: ModelSource::Directory(directory.path().to_owned()),
        adapters: adapters
            .iter()
            .map(|name| AdapterSetting {
                name: (*name).to_owned(),
                source: path_of(name),
            })
            .collect(),
        ..Setup::default()
    };
    change(&mut setup);
    (directory, TestServer::with(setup))
}

fn greedy(model: Option<&str>, prompt: &[u32], tokens: usize) -> Value {
    json!({
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
        "logprobs": 0, "return_tokens_as_token_ids": true,
    })
}

fn ids(answer: &Value) -> Vec<u32> {
    let ids = &answer["choices"][0]["logprobs"]["token_ids"];
    serde_json::from_value(ids.clone()).expect("token ids")
}

#[tokio::test]
async fn each_request_runs_with_the_adapter_that_it_names() {
    let names = ["all", "attn", "mlp", "one-layer"];
    let (_directory, server) = server(&names, |_| ());
    let (prompt, _) = reference("all");
    // All at once, in one batch; and again, from the cache.
    for _ in 0..2 {
        let requests = names.map(|name| {
            let (prompt, expected) = reference(name);
            let body = greedy(Some(name), &prompt, expected.len());
            let server = &server;
            async move { (name, server.post(COMPLETIONS, body).await.ok(), expected) }
        });
        for (name, answer, expected) in futures_util::future::join_all(requests).await {
            assert_eq!(ids(&answer), expected, "{name}");
            assert_eq!(answer["model"], name);
        }
    }
    // Without an adapter it is the model, whose prefixes are not the adapters'.
    let plain = server
        .post(COMPLETIONS, greedy(None, &prompt, 16))
        .await
        .ok();
    assert!(names.iter().all(|name| ids(&plain) != reference(name).1));
    assert_eq!(plain["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn every_endpoint_takes_the_name_of_an_adapter() {
    let (_directory, server) = server(&["all"], |_| ());
    let caller = server.caller();
    for (path, body) in [
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "abc"}], "max_tokens": 3}),
        ),
        ("/v1/embeddings", json!({"input": "abc"})),
    ] {
        let with = |model: Value| {
            let mut body = body.clone();
            body["model"] = model;
            body
        };
        let adapted = caller.post(path, with(json!("all"))).await.ok();
        assert_eq!(adapted["model"], "all", "{path}");
        let missing = caller.post(path, with(json!("none"))).await;
        assert_eq!(missing.status, 404, "{path}");
        assert!(
            missing.message().contains("\"all\""),
            "{}",
            missing.message()
        );
    }
    let embedding = |answer: &Value| answer["data"][0]["embedding"].clone();
    let body = json!({"input": "abc"});
    let plain = caller.post("/v1/embeddings", body).await.ok();
    let adapted = json!({"input": "abc", "model": "all"});
    let adapted = caller.post("/v1/embeddings", adapted).await.ok();
    assert_ne!(embedding(&plain), embedding(&adapted));

    let generate = |adapter: Value| {
        json!({"inputs": "abc", "parameters": {
            "adapter_id": adapter, "max_new_tokens": 8, "details": true,
        }})
    };
    let tokens = |answer: &Value| answer["details"]["tokens"].clone();
    let plain = caller.post("/generate", generate(Value::Null)).await.ok();
    let adapted = caller.post("/generate", generate(json!("all"))).await.ok();
    assert_ne!(tokens(&plain), tokens(&adapted));
    let missing = caller.post("/generate", generate(json!("none"))).await;
    assert_eq!(
        (missing.status, &missing.body["error_type"]),
        (404, &json!("not_found"))
    );

    let inspect = |model: &str| json!({"text": "abc", "model": model, "stages": ["logits"]});
    let adapted = caller.post("/v1/inspect", inspect("all")).await;
    assert_eq!(adapted.status, 200, "{}", adapted.body);
}

#[tokio::test]
async fn the_list_of_models_has_the_adapters() {
    let (_directory, server) = server(&["attn", "mlp"], |_| ());
    let list = server.get("/v1/models").await.ok();
    let models = list["data"].as_array().expect("a list").clone();
    let names: Vec<_> = models.iter().map(|model| model["id"].clone()).collect();
    assert_eq!(names[1..], [json!("attn"), json!("mlp")]);
    assert_eq!(
        (&models[1]["parent"], &models[1]["root"]),
        (&names[0], &json!(path_of("attn")))
    );
    assert!(models[0].get("parent").is_none());
    let one = server.get("/v1/models/mlp").await.ok();
    assert_eq!(one, models[2]);
}

#[tokio::test]
async fn an_administrator_loads_and_unloads_adapters_while_the_server_runs() {
    let mut keys = ["", ""];
    let (_directory, server) = server(&[], |setup| {
        let mut file = KeysFile::new();
        let admin = file.add("admin", KeyScope::Admin, FREE);
        let user = file.add("user", KeyScope::Generate, FREE);
        keys = [admin, user];
        setup.access.keys = Some(file.load());
    });
    let [admin, user] = keys.map(|key| server.caller().with_key(key));
    let (load, unload) = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter");
    let body = |name: &str, path: &str| json!({"lora_name": name, "lora_path": path});
    let refused = user.post(load, body("all", &path_of("all"))).await;
    assert_eq!(refused.status, 403);

    let (prompt, expected) = reference("all");
    let request = greedy(Some("mine"), &prompt, expected.len());
    assert_eq!(user.post(COMPLETIONS, request.clone()).await.status, 404);
    let loaded = admin.post(load, body("mine", &path_of("all"))).await;
    assert_eq!(loaded.status, 200, "{}", loaded.body);
    let answer = user.post(COMPLETIONS, request.clone()).await.ok();
    assert_eq!(ids(&answer), expected);

    for (wrong, field) in [
        (body("mine", &path_of("attn")), "lora_name"),
        (body("with space", &path_of("attn")), "lora_name"),
        (body("other", "/nowhere/at/all"), "lora_path"),
        (body("other", &path_of("dora")), "use_dora"),
    ] {
        let refused = admin.post(load, wrong).await;
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert!(refused.message().contains(field), "{}", refused.message());
    }

    assert_eq!(
        user.post(unload, json!({"lora_name": "mine"})).await.status,
        403
    );
    let unloaded = admin.post(unload, json!({"lora_name": "mine"})).await;
    assert_eq!(unloaded.status, 200, "{}", unloaded.body);
    assert_eq!(user.post(COMPLETIONS, request).await.status, 404);
    assert_eq!(
        admin
            .post(unload, json!({"lora_name": "mine"}))
            .await
            .status,
        404
    );

    // Another adapter under the old name has prefixes of its own.
    let loaded = admin.post(load, body("mine", &path_of("attn"))).await;
    assert_eq!(loaded.status, 200, "{}", loaded.body);
    let (prompt, expected) = reference("attn");
    let answer = user
        .post(COMPLETIONS, greedy(Some("mine"), &prompt, expected.len()))
        .await
        .ok();
    assert_eq!(ids(&answer), expected);
}

/// A server without keys must not open files for anyone who can reach it.
#[tokio::test]
async fn a_server_without_keys_does_not_change_its_adapters() {
    let (_directory, server) = server(&["all"], |_| ());
    let body = json!({"lora_name": "more", "lora_path": path_of("attn")});
    let refused = server.post("/v1/load_lora_adapter", body).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert!(
        refused.message().contains("--keys"),
        "{}",
        refused.message()
    );
    let refused = server
        .post("/v1/unload_lora_adapter", json!({"lora_name": "all"}))
        .await;
    assert_eq!(refused.status, 403, "{}", refused.body);
}

/// A session continues with another adapter, or without one: its text is the same, its keys and values are not.
#[tokio::test]
async fn a_session_can_change_its_adapter() {
    let (_directory, server) = server(&["all", "attn"], |_| ());
    let turn = |model: Option<&str>, prompt: &[u32]| {
        let mut body = greedy(model, prompt, 4);
        body["session_id"] = json!("story");
        body
    };
    let (prompt, _) = reference("all");
    let mut history = prompt.clone();
    let mut more = prompt;
    for model in [Some("all"), Some("attn"), None, Some("all")] {
        let answer = server.post(COMPLETIONS, turn(model, &more)).await.ok();
        let alone = server
            .post(COMPLETIONS, greedy(model, &history, 4))
            .await
            .ok();
        assert_eq!(ids(&answer), ids(&alone), "{model:?}");
        history.extend(ids(&answer));
        more = vec![5, 6];
        history.extend(&more);
    }
}
