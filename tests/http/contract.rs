//! `openapi.yaml` is generated from the code, and describes everything.

use crate::support::{Setup, TestServer};
use serde_json::Value;

#[tokio::test]
async fn the_committed_contract_is_the_one_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let made = skald::http::openapi().to_yaml().unwrap();
    if committed.trim_end() != made.trim_end() {
        let now = concat!(env!("CARGO_TARGET_TMPDIR"), "/openapi.yaml");
        std::fs::write(now, made).unwrap();
        panic!(
            "openapi.yaml is not what the code says ({now}): `cargo run -- openapi > openapi.yaml`"
        );
    }
    let server = TestServer::with(Setup {
        load: false,
        ..Setup::default()
    });
    let answer = server.get("/openapi.json").await.ok();
    let made: Value = serde_json::from_str(&skald::http::openapi().to_json().unwrap()).unwrap();
    assert_eq!(answer, made);
}

#[test]
fn the_contract_is_whole() {
    let contract: Value = serde_json::from_str(&skald::http::openapi().to_json().unwrap()).unwrap();
    let paths = contract["paths"].as_object().unwrap();
    for path in [
        "/",
        "/generate",
        "/generate_stream",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/sessions",
        "/v1/sessions/{id}",
        "/tokenize",
        "/detokenize",
        "/livez",
        "/readyz",
        "/health",
        "/info",
        "/ping",
        "/model_info",
        "/get_model_info",
        "/server_info",
        "/get_server_info",
        "/get_load",
        "/openapi.json",
        "/docs",
        "/docs/{file}",
    ] {
        assert!(paths.contains_key(path), "{path} is not described");
    }
    let operations = paths
        .values()
        .flat_map(|item| item.as_object().unwrap().values());
    let ids: Vec<&str> = operations
        .filter_map(|it| it["operationId"].as_str())
        .collect();
    for id in &ids {
        let same = ids.iter().filter(|other| *other == id).count();
        assert_eq!(same, 1, "{id} is the name of {same} operations");
    }
    let schemas = contract["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        for (field, of) in schema["properties"].as_object().into_iter().flatten() {
            let text = of.to_string();
            assert!(
                text.contains("description"),
                "{name}.{field} is not described"
            );
        }
    }
    let text = contract.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            schemas.contains_key(name),
            "{name} is referred to but not there"
        );
    }
}
