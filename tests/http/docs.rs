//! The API reference as a page: its files, its policy, and that it needs neither a key nor another host.
//! `tests/clients/node/docs.test.js` looks at it in a browser.

use std::path::Path;
use std::sync::LazyLock;

use reqwest::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
};

use crate::support::keys::KeysFile;
use crate::support::{Setup, TestServer, client};

/// Without a model: the page is there while one is being loaded.
static SERVER: LazyLock<TestServer> = LazyLock::new(|| {
    TestServer::with(Setup {
        load: false,
        ..Setup::default()
    })
});

const FILES: [(&str, &str); 4] = [
    ("docs.js", "text/javascript; charset=utf-8"),
    ("docs.css", "text/css; charset=utf-8"),
    ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    ("swagger-ui.css", "text/css; charset=utf-8"),
];

async fn fetch(path: &str) -> reqwest::Response {
    let sent = client().get(SERVER.url(path)).send().await;
    sent.expect("an answer")
}

#[tokio::test]
async fn the_page_loads_its_own_files_and_nothing_else() {
    let page = fetch("/docs").await;
    assert_eq!(page.status(), 200);
    assert_eq!(page.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
    let policy = page.headers()[CONTENT_SECURITY_POLICY]
        .to_str()
        .expect("text");
    for part in [
        "default-src 'none'",
        "script-src 'self';",
        "style-src 'self';",
        "connect-src 'self';",
    ] {
        assert!(policy.contains(part), "{part} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let page = page.text().await.expect("a page");
    for (name, kind) in FILES {
        assert!(page.contains(&format!("\"docs/{name}\"")), "{name}");
        let file = fetch(&format!("/docs/{name}")).await;
        assert_eq!(
            (file.status().as_u16(), &file.headers()[CONTENT_TYPE]),
            (200, &kind.try_into().expect("a header"))
        );
        assert_eq!(file.headers()["x-content-type-options"], "nosniff");
        let is_vendored = name.starts_with("swagger");
        assert_eq!(
            file.headers().contains_key(CONTENT_ENCODING),
            is_vendored,
            "{name}"
        );
        let bytes = file.bytes().await.expect("bytes");
        let ending = if is_vendored { ".gz" } else { "" };
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/docs");
        let there = std::fs::read(directory.join(format!("{name}{ending}"))).expect("a file");
        assert!(bytes == there, "{name}");
    }
    assert!(
        !page.contains("http://") && !page.contains("https://"),
        "{page}"
    );
    assert!(!page.contains("<style") && !page.contains("style=") && !page.contains("<script>"));
}

#[tokio::test]
async fn a_browser_that_has_a_file_does_not_get_it_again() {
    let first = fetch("/docs/swagger-ui-bundle.js").await;
    assert_eq!(first.headers()[CACHE_CONTROL], "no-cache");
    let tag = first.headers()[ETAG].to_str().expect("a tag").to_owned();
    for (known, status) in [
        (tag.clone(), 304),
        (format!("\"other\", {}", tag.trim_start_matches("W/")), 304),
        ("*".to_owned(), 304),
        ("\"other\"".to_owned(), 200),
    ] {
        let again = client()
            .get(SERVER.url("/docs/swagger-ui-bundle.js"))
            .header(IF_NONE_MATCH, &known);
        let again = again.send().await.expect("an answer");
        assert_eq!(again.status(), status, "{known}");
        assert_eq!(again.headers()[ETAG], tag);
        assert_eq!(
            again.bytes().await.expect("bytes").is_empty(),
            status == 304
        );
    }
    let head = client().head(SERVER.url("/docs")).send().await;
    assert_eq!(head.expect("an answer").status(), 200);
}

#[tokio::test]
async fn other_names_are_not_found() {
    for name in ["nothing.js", "index.html", "LICENSE", "..%2Fopenapi.json"] {
        let answer = SERVER.get(&format!("/docs/{name}")).await;
        assert_eq!(answer.status, 404, "{name}: {}", answer.body);
    }
    let answer = SERVER.get("/docs/%ff").await;
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert_eq!(
        SERVER.post("/docs", serde_json::json!({})).await.status,
        405
    );
}

/// The reference says how to show a key, so reading it needs none; calling what it describes does.
#[tokio::test]
async fn a_server_with_keys_shows_its_reference_to_everyone() {
    let server = KeysFile::new().serve(Setup::default());
    for path in [
        "/docs",
        "/docs/docs.js",
        "/docs/swagger-ui.css",
        "/openapi.json",
    ] {
        let answer = client().get(server.url(path)).send().await;
        assert_eq!(answer.expect("an answer").status(), 200, "{path}");
    }
    for path in ["/docs/", "/docs/a/b", "/info", "/v1/models"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
    let contract = server.get("/openapi.json").await.ok();
    for path in ["/openapi.json", "/docs", "/docs/{file}"] {
        let operation = &contract["paths"][path]["get"];
        assert_eq!(operation["security"], serde_json::json!([]), "{path}");
        assert!(operation["responses"].get("401").is_none(), "{path}");
    }
}
