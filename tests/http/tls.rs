//! TLS: both protocols, certificates that change while the server runs, and pairs that can't be used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use crate::support::process::{Process, skald};
use crate::support::raw::{RawAnswer, post};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

fn fixture(name: &str) -> PathBuf {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls");
    Path::new(fixtures).join(name)
}

fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(fixture(name)).expect("a certificate")
}

/// A copy of a certificate and its key, which tests can change.
struct Pair(TempDir);

impl Pair {
    fn new(name: &str) -> Self {
        let pair = Self(TempDir::new().expect("a directory"));
        pair.replace(name);
        pair
    }

    /// Replaces each file atomically, as deployment tools do.
    fn replace(&self, name: &str) {
        for (kind, file) in [("key", self.key()), ("crt", self.certificate())] {
            let beside = file.with_extension("new");
            fs::copy(fixture(&format!("{name}.{kind}")), &beside).expect("copied");
            fs::rename(beside, file).expect("renamed");
        }
    }

    fn certificate(&self) -> PathBuf {
        self.0.path().join("tls.crt")
    }

    fn key(&self) -> PathBuf {
        self.0.path().join("tls.key")
    }

    fn serve(&self) -> Process {
        let (certificate, key) = (self.certificate(), self.key());
        Process::start(&[
            "--tls-cert",
            certificate.to_str().expect("UTF-8"),
            "--tls-key",
            key.to_str().expect("UTF-8"),
        ])
    }
}

/// Connects with trust in the tests' authority, offering these protocols.
async fn connect(server: &Process, protocols: &[&str]) -> TlsStream<TcpStream> {
    skald::tls::install_provider();
    let mut roots = RootCertStore::empty();
    roots
        .add(certificate("authority.crt"))
        .expect("an authority");
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let url = server.address().expect("it is ready");
    let address = url.strip_prefix("https://").expect("an https URL");
    let socket = TcpStream::connect(address).await.expect("a connection");
    let name = ServerName::try_from("localhost").expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, socket).await.expect("a handshake")
}

/// Returns the certificate that the server presents to a new connection.
async fn shown(server: &Process) -> CertificateDer<'static> {
    let stream = connect(server, &[]).await;
    let chain = stream
        .get_ref()
        .1
        .peer_certificates()
        .expect("a certificate");
    chain[0].clone()
}

async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> RawAnswer {
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    RawAnswer::parse(&String::from_utf8_lossy(&answer))
}

#[tokio::test]
async fn http_1_and_2_are_spoken_by_what_the_client_offers() {
    let pair = Pair::new("first");
    let server = pair.serve();
    assert_eq!(server.logged("listening")[0]["tls"], true);
    let body = json!({"prompt": "A", "max_tokens": 2}).to_string();
    for offered in [&["http/1.1"] as &[&str], &[]] {
        let mut stream = connect(&server, offered).await;
        let answer = ask(
            &mut stream,
            &post("/v1/completions", &["host: localhost"], &body),
        )
        .await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // The half-close of TLS.
    let mut stream = connect(&server, &["http/1.1"]).await;
    let request = post("/v1/completions", &["host: localhost"], &body);
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream.shutdown().await.expect("closed");
    assert_eq!(ask(&mut stream, "").await.status, 200);

    let stream = connect(&server, &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) = h2::client::handshake(stream).await.expect("a handshake");
    let connection = tokio::spawn(connection);
    let request = axum::http::Request::get("https://localhost/readyz");
    let (response, _) = client
        .send_request(request.body(()).expect("a request"), true)
        .expect("sent");
    assert_eq!(response.await.expect("an answer").status(), 200);
    connection.abort();
    server.stop();
}

#[tokio::test]
async fn bytes_that_are_not_tls_do_not_affect_others() {
    let pair = Pair::new("first");
    let server = pair.serve();
    let url = server.address().expect("it is ready");
    let address = url
        .strip_prefix("https://")
        .expect("an https URL")
        .to_owned();
    for bytes in [
        "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "\0\0\0",
        "",
    ] {
        let mut socket = TcpStream::connect(&address).await.expect("a connection");
        socket.write_all(bytes.as_bytes()).await.expect("sent");
        socket.shutdown().await.expect("closed");
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "{bytes:?}");
    }
    let mut stream = connect(&server, &["http/1.1"]).await;
    let request = "GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(ask(&mut stream, request).await.status, 200);
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_used_on_sighup_and_when_its_file_changes() {
    let pair = Pair::new("first");
    let server = pair.serve();
    assert_eq!(shown(&server).await, certificate("first.crt"));
    let mut before = connect(&server, &["http/1.1"]).await;
    pair.replace("second");
    server.signal("HUP");
    let name = server.until_logged("reloaded")["name"].clone();
    assert_eq!(name, "TLS certificate and key");
    assert_eq!(shown(&server).await, certificate("second.crt"));
    // An open connection continues.
    let request = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(ask(&mut before, request).await.status, 200);

    // A certificate and key that do not match replace nothing.
    fs::copy(fixture("first.key"), pair.key()).expect("copied");
    server.signal("HUP");
    let refused = server.until_logged("reload failed; keeping the previous version");
    assert!(
        refused["error"]
            .as_str()
            .expect("a reason")
            .contains("does not belong"),
        "{refused}"
    );
    assert_eq!(shown(&server).await, certificate("second.crt"));

    // Without a signal, when the files change.
    pair.replace("first");
    crate::support::pace::until("the first again", async || {
        shown(&server).await == certificate("first.crt")
    })
    .await;
    server.stop();
}

fn refused(flags: &[&str]) -> String {
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    let Output { status, stderr, .. } = skald(&[&serve, flags].concat()).output().expect("it runs");
    let message = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!(status.code(), Some(2), "{message}");
    assert!(!message.contains("PRIVATE"), "{message}");
    // Nor as the numbers of its bytes.
    assert!(
        !message.contains("[45, ") && !message.contains("[67, "),
        "{message}"
    );
    message
}

#[test]
fn a_pair_that_can_not_be_used_is_refused_at_the_start() {
    let path = |name: &str| fixture(name).to_str().expect("UTF-8").to_owned();
    let (certificate, key, other) = (path("first.crt"), path("first.key"), path("second.key"));
    let directory = TempDir::new().expect("a directory");
    let file = |name: &str, content: &str| {
        let file = directory.path().join(name);
        fs::write(&file, content).expect("a file");
        file.to_str().expect("UTF-8").to_owned()
    };
    let nothing = file("nothing", "");
    let broken = file(
        "broken",
        "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n",
    );
    let locked = file(
        "locked",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let empty = file(
        "empty",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let whole = fs::read_to_string(&certificate).expect("a certificate");
    let half = file("half.crt", &whole[..whole.len() / 2]);
    let whole = fs::read_to_string(&key).expect("a key");
    let half_key = file("half.key", &whole[..whole.len() / 2]);
    let garbled = file("garbled", "-----BEGIN CERTIFICATE\nAAAA\n");
    let no_key = file(
        "no_key",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    );
    let folder = directory.path().to_str().expect("UTF-8").to_owned();
    let cases: [(&str, &str, &[&str]); 13] = [
        (&half, &key, &["tls-cert", &half, "may be truncated"]),
        (
            &certificate,
            &half_key,
            &["tls-key", &half_key, "may be truncated"],
        ),
        (
            &garbled,
            &key,
            &["tls-cert", &garbled, "begins with `-----BEGIN`"],
        ),
        (
            &certificate,
            &no_key,
            &["tls-key", &no_key, "not a valid RSA"],
        ),
        (
            &certificate,
            &other,
            &["tls-key", "does not belong", &other, &certificate],
        ),
        (
            "no/such.crt",
            &key,
            &["tls-cert", "no/such.crt", "can't be read"],
        ),
        (
            &certificate,
            "no/such.key",
            &["tls-key", "no/such.key", "can't be read"],
        ),
        (&nothing, &key, &["tls-cert", &nothing, "certificate"]),
        (&broken, &key, &["tls-cert", &broken, "not valid Base64"]),
        (
            &certificate,
            &certificate,
            &["tls-key", &certificate, "private key"],
        ),
        (
            &certificate,
            &locked,
            &["tls-key", &locked, "not encrypted"],
        ),
        (&folder, &key, &["tls-cert", &folder, "regular file"]),
        (&empty, &key, &["tls-cert", &empty, "X.509"]),
    ];
    for (certificate, key, words) in cases {
        let message = refused(&["--tls-cert", certificate, "--tls-key", key]);
        for word in words {
            assert!(message.contains(word), "{word:?} in {message}");
        }
    }
    let message = refused(&["--tls-cert", &certificate]);
    assert!(message.contains("`tls-key` is not"), "{message}");
    let message = refused(&["--tls-key", &key]);
    assert!(message.contains("`tls-cert` is not"), "{message}");
}

#[test]
fn health_and_bench_ask_by_tls() {
    let pair = Pair::new("first");
    let server = pair.serve();
    let url = server.address().expect("it is ready");
    let address = url.strip_prefix("https://").expect("an https URL");
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = skald(arguments);
        command.envs(variables.iter().copied());
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().expect("it runs");
        let said = String::from_utf8([stdout, stderr].concat()).expect("UTF-8");
        (status.code(), said)
    };
    // The server configured by these settings, whatever its certificate says.
    let certificate = pair.certificate();
    let own = [
        ("SKALD_LISTEN", address),
        ("SKALD_TLS_CERT", certificate.to_str().expect("UTF-8")),
    ];
    let (code, said) = run(&["health"], &own);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("{url}/readyz: ok")), "{said}");
    // The certificate of a given URL is verified, unless `--insecure` is set.
    let (code, said) = run(&["health", &url], &[]);
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = run(&["health", "--insecure", &url], &[]);
    assert_eq!(code, Some(0), "{said}");
    let authority = fixture("authority.crt");
    let trusted = [("SSL_CERT_FILE", authority.to_str().expect("UTF-8"))];
    let (code, said) = run(&["health", &url], &trusted);
    assert_eq!(code, Some(0), "{said}");

    let few = [
        "--requests",
        "2",
        "--concurrency",
        "1",
        "--prompt-tokens",
        "4",
        "--output-tokens",
        "4",
    ];
    let bench = [&["bench", &url] as &[&str], &few].concat();
    let (code, said) = run(&bench, &trusted);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&bench, &[]);
    assert_ne!(code, Some(0), "{said}");
    server.stop();
}
