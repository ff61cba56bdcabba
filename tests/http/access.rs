//! Allowed hosts and origins: requests that a browser on the server's machine sends for a hostile page are
//! refused, those of programs, routers and probes are not.

use std::sync::LazyLock;

use crate::support::raw::{ask, get, post};
use crate::support::{Setup, TestServer, client};
use serde_json::{Value, json};
use skald::http::Access;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PROMPT: &str = r#"{"prompt":"A","max_tokens":1}"#;

/// Starts a server that allows these hosts and origins.
fn open_to(hosts: &[&str], origins: &[&str]) -> TestServer {
    TestServer::with(Setup {
        access: Access {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            origins: origins
                .iter()
                .map(|origin| origin.parse().unwrap())
                .collect(),
            keys: None,
        },
        ..Setup::default()
    })
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

#[tokio::test]
async fn a_rebound_name_gets_nothing_but_the_name_of_the_setting() {
    for host in [
        "evil.example",
        "evil.example:8080",
        "192.0.2.1",
        "localhost.evil.example",
    ] {
        let line = format!("host: {host}");
        let name = host.split(':').next().unwrap();
        let answer = ask(SERVER.address, &post("/v1/completions", &[&line], PROMPT)).await;
        assert_eq!(answer.status, 403, "{host}: {answer:?}");
        let error = &json_of(&answer.body)["error"];
        assert_eq!(error["code"], "host_not_allowed");
        assert_eq!(error["type"], "invalid_request_error");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(&format!("--allowed-host {name}")),
            "{message}"
        );
        let native = ask(
            SERVER.address,
            &post("/generate", &[&line], r#"{"inputs":"A"}"#),
        )
        .await;
        assert_eq!(native.status, 403, "{host}: {native:?}");
        assert_eq!(json_of(&native.body)["error_type"], "host_not_allowed");
        for path in ["/v1/sessions", "/info", "/nothing"] {
            let answer = ask(SERVER.address, &get(path, &[&line])).await;
            assert_eq!(answer.status, 403, "{path} {host}");
        }
    }
}

#[tokio::test]
async fn the_server_s_own_names_need_no_setting() {
    let port = SERVER.address.port();
    for host in [
        "localhost",
        "LOCALHOST",
        "127.0.0.1",
        "[::1]",
        "skald.localhost",
    ] {
        // Containers and tunnels map ports.
        for host in [
            host.to_owned(),
            format!("{host}:{port}"),
            format!("{host}:1"),
        ] {
            let answer = ask(SERVER.address, &get("/info", &[&format!("host: {host}")])).await;
            assert_eq!(answer.status, 200, "{host}: {answer:?}");
        }
    }
    // Browsers don't send HTTP/1.0; some load balancers do, without a `Host` header.
    let request = "GET /info HTTP/1.0\r\n\r\n";
    assert_eq!(ask(SERVER.address, request).await.status, 200);
}

#[tokio::test]
async fn probes_may_name_any_host() {
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        for host in ["10.1.2.3:8080", "skald.skald.svc", "evil.example"] {
            let answer = ask(SERVER.address, &get(path, &[&format!("host: {host}")])).await;
            assert_eq!(answer.status, 200, "{path} {host}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn allowed_hosts_are_served() {
    let server = open_to(&["skald", "*.svc.example"], &[]);
    for host in ["skald:8080", "Skald.", "a.svc.example"] {
        let answer = ask(server.address, &get("/info", &[&format!("host: {host}")])).await;
        assert_eq!(answer.status, 200, "{host}: {answer:?}");
    }
    let other = ask(server.address, &get("/info", &["host: evil.example"])).await;
    assert_eq!(other.status, 403);
    let any = open_to(&["*"], &[]);
    let answer = ask(any.address, &get("/info", &["host: evil.example"])).await;
    assert_eq!(answer.status, 200);
    // Any host, but no page.
    let lines = ["host: evil.example", "origin: http://other.example"];
    assert_eq!(ask(any.address, &get("/info", &lines)).await.status, 403);
}

#[tokio::test]
async fn a_page_of_another_origin_gets_nothing_done() {
    let server = TestServer::start();
    let steps = server.engine().status().steps;
    let origins = ["https://evil.example", "http://localhost:3000", "null"];
    for origin in origins {
        // Requests without a preflight: those with the type of a form, and those without a type.
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
        ] {
            for (path, body) in [
                ("/v1/completions", PROMPT),
                ("/generate", r#"{"inputs":"A"}"#),
            ] {
                let request = client()
                    .post(server.url(path))
                    .header("origin", origin)
                    .header("content-type", kind)
                    .body(body);
                let response = request.send().await.unwrap();
                assert_eq!(response.status(), 403, "{origin} {kind} {path}");
                assert!(
                    !response
                        .headers()
                        .contains_key("access-control-allow-origin")
                );
                let text = response.text().await.unwrap();
                assert!(text.contains(&format!("--cors-origin {origin}")), "{text}");
                assert!(text.contains("origin_not_allowed"), "{text}");
            }
        }
        let listed = client()
            .get(server.url("/v1/sessions"))
            .header("origin", origin);
        assert_eq!(listed.send().await.unwrap().status(), 403);
        let deleted = client()
            .delete(server.url("/v1/sessions/a"))
            .header("origin", origin);
        assert_eq!(deleted.send().await.unwrap().status(), 403);
        let preflight = client()
            .request(reqwest::Method::OPTIONS, server.url("/v1/completions"))
            .header("origin", origin)
            .header("access-control-request-method", "POST");
        let refused = preflight.send().await.unwrap();
        assert_eq!(refused.status(), 403);
        assert!(
            !refused
                .headers()
                .contains_key("access-control-allow-origin")
        );
    }
    assert_eq!(
        server.engine().status().steps,
        steps,
        "a request of a page ran"
    );
    // The server's own origin.
    let own = client()
        .get(server.url("/info"))
        .header("origin", server.url(""));
    assert_eq!(own.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn pages_of_an_allowed_origin_ask_first_and_read_answers_and_errors() {
    let origin = "https://app.example.org";
    let server = open_to(&[], &[origin]);
    let preflight = client()
        .request(reqwest::Method::OPTIONS, server.url("/v1/chat/completions"))
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type,x-stainless-os",
        );
    let answer = preflight.send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
    let header = |name: &str| {
        answer.headers()[name]
            .to_str()
            .unwrap()
            .to_ascii_lowercase()
    };
    assert_eq!(header("access-control-allow-origin"), origin);
    assert!(header("access-control-allow-methods").contains("post"));
    assert!(header("access-control-allow-methods").contains("delete"));
    for name in ["authorization", "content-type", "x-stainless-os"] {
        assert!(
            header("access-control-allow-headers").contains(name),
            "{name}"
        );
    }
    assert_eq!(header("access-control-max-age"), "600");

    for (body, status) in [(PROMPT, 200), (r#"{"prompt":"A","n":"many"}"#, 400)] {
        let request = client()
            .post(server.url("/v1/completions"))
            .header("origin", origin);
        let answer = request.body(body).send().await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["access-control-allow-origin"], origin);
        let exposed = answer.headers()["access-control-expose-headers"]
            .to_str()
            .unwrap();
        assert!(exposed.contains("x-request-id") && exposed.contains("retry-after"));
    }
    let other = client()
        .get(server.url("/info"))
        .header("origin", "https://other.example");
    assert_eq!(other.send().await.unwrap().status(), 403);
    // Without an origin nothing has changed.
    assert_eq!(server.get("/v1/completions").await.status, 405);
}

#[tokio::test]
async fn any_origin_is_allowed_by_a_star() {
    let server = open_to(&[], &["*"]);
    for origin in ["https://app.example.org", "null"] {
        let request = client()
            .get(server.url("/v1/models"))
            .header("origin", origin);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    }
}

#[tokio::test]
async fn a_request_has_exactly_one_valid_host() {
    let wrong: [&[&str]; 8] = [
        &["host: localhost:99999999"],
        &["host: localhost:65536"],
        &["host: [::1]:65536"],
        &[],
        &["host: localhost", "host: localhost"],
        &["host: localhost", "host: evil.example"],
        &["host: "],
        &["host: a@localhost"],
    ];
    for lines in wrong {
        for path in ["/v1/models", "/livez"] {
            let answer = ask(SERVER.address, &get(path, lines)).await;
            assert_eq!(answer.status, 400, "{path} {lines:?}: {answer:?}");
            assert!(answer.body.to_lowercase().contains("host"), "{answer:?}");
        }
    }
    // The authority of the request target counts, as through a proxy.
    let target = |authority: &str| {
        let path = format!("http://{authority}/info");
        get(&path, &["host: localhost"])
    };
    assert_eq!(
        ask(SERVER.address, &target("localhost:80")).await.status,
        200
    );
    assert_eq!(
        ask(SERVER.address, &target("evil.example")).await.status,
        403
    );
    assert_eq!(
        ask(SERVER.address, &target("localhost:65536")).await.status,
        400
    );
}

#[tokio::test]
async fn what_no_setting_lets_in_is_refused_without_advice() {
    for lines in [
        &["host: [::1%25eth0]"] as &[&str],
        &["host: localhost", "origin: file://"],
    ] {
        let answer = ask(SERVER.address, &get("/info", lines)).await;
        assert!([400, 403].contains(&answer.status), "{lines:?}: {answer:?}");
        assert!(!answer.body.contains("--"), "{lines:?}: {answer:?}");
    }
}

#[tokio::test]
async fn the_authority_of_http_2_is_checked_too() {
    let status = async |uri: &str| {
        let socket = tokio::net::TcpStream::connect(SERVER.address)
            .await
            .unwrap();
        let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = axum::http::Request::get(uri).body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let status = response.await.unwrap().status().as_u16();
        connection.abort();
        status
    };
    assert_eq!(status("http://localhost:8080/info").await, 200);
    assert_eq!(status("http://evil.example/info").await, 403);
    assert_eq!(status("http://evil.example/livez").await, 200);
}

#[tokio::test]
async fn a_tunnel_is_refused_by_name() {
    let socket = tokio::net::TcpStream::connect(SERVER.address)
        .await
        .unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = axum::http::Request::connect("localhost:443")
        .body(())
        .unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 404);
    let text = crate::support::reader::read_stream(response).await.unwrap();
    assert!(text.contains("CONNECT is not supported"), "{text}");
    connection.abort();
    let answer = ask(
        SERVER.address,
        "CONNECT localhost:443 HTTP/1.1\r\nhost: localhost:443\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(
        answer.body.contains("CONNECT is not supported"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn refusals_are_counted_and_named() {
    let server = TestServer::start();
    let answer = ask(
        server.address,
        &post(
            "/v1/completions",
            &["host: evil.example", "x-request-id: mine"],
            PROMPT,
        ),
    )
    .await;
    assert!(answer.head.contains("x-request-id: mine"), "{answer:?}");
    let metrics = server.get("/metrics").await.body;
    let wanted = r#"skald_requests_total{endpoint="/v1/completions",outcome="client_error"} 1"#;
    assert!(metrics.as_str().unwrap().contains(wanted), "{metrics}");
    assert_eq!(
        server
            .post("/v1/completions", json!({"prompt": "A", "max_tokens": 1}))
            .await
            .status,
        200
    );
}
