//! The page at `GET /`: its files, and what browsers are told about them.

use crate::support::keys::{FREE, KeysFile};
use crate::support::{Setup, TestServer, client};
use skald::keys::KeyScope::Generate;

/// Returns the addresses of a text that begin with `/assets/`.
fn assets(text: &str) -> Vec<String> {
    let parts = text.split("/assets/").skip(1);
    let name = |part: &str| {
        let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
        part[..end.unwrap_or(part.len())].to_owned()
    };
    parts
        .map(|part| format!("/assets/{}", name(part)))
        .collect()
}

#[tokio::test]
async fn the_page_and_what_it_loads_is_served_and_nothing_from_elsewhere() {
    let server = TestServer::start();
    let page = client().get(server.url("/")).send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("http"));
    let mut texts = vec![page.text().await.unwrap()];
    let mut seen = 0;
    while let Some(text) = texts.pop() {
        for path in assets(&text) {
            let file = client().get(server.url(&path)).send().await.unwrap();
            assert_eq!(file.status(), 200, "{path}");
            assert_eq!(file.headers()["x-content-type-options"], "nosniff");
            let kind = file.headers()["content-type"].to_str().unwrap().to_owned();
            seen += 1;
            if kind.starts_with("text/css") {
                texts.push(file.text().await.unwrap());
            }
        }
    }
    assert_eq!(seen, 6, "files that the page loads");
    let missing = client().get(server.url("/assets/nothing.js")).send().await;
    assert_eq!(missing.unwrap().status(), 404);
}

#[tokio::test]
async fn a_browser_that_has_the_page_gets_it_once_and_compressed() {
    let server = TestServer::start();
    let url = server.url("/assets/page.js");
    let ask = || client().get(&url).header("accept-encoding", "gzip");
    let first = ask().send().await.unwrap();
    assert_eq!(first.headers()["content-encoding"], "gzip");
    let version = first.headers()["etag"].clone();
    let compressed = first.bytes().await.unwrap();
    let again = ask().header("if-none-match", version).send().await.unwrap();
    assert_eq!(again.status(), 304);
    assert_eq!(again.bytes().await.unwrap().len(), 0);
    let stale = ask().header("if-none-match", "W/\"0\"").send().await;
    assert_eq!(stale.unwrap().status(), 200);
    let plain = client().get(&url).send().await.unwrap();
    assert!(plain.headers().get("content-encoding").is_none());
    assert!(plain.bytes().await.unwrap().len() > compressed.len());
    let head = client().head(server.url("/")).send().await.unwrap();
    assert_eq!(head.status(), 200);
}

#[tokio::test]
async fn the_page_needs_no_key_but_generation_at_the_same_path_does() {
    let mut keys = KeysFile::new();
    keys.add("ada", Generate, FREE);
    let server = keys.serve(Setup::default());
    for path in ["/", "/assets/page.js", "/assets/page.css"] {
        let answer = client().get(server.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    let body = serde_json::json!({"inputs": "A"});
    assert_eq!(server.post("/", body).await.status, 401);
}
