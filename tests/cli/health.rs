//! `skald health`: its exit codes for container engines, and its messages for people.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::support::load::{begun, endless};
use crate::support::process::skald;
use crate::support::{Setup, TestServer};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

fn health(arguments: &[&str]) -> Command {
    skald(&[&["health"], arguments].concat())
}

/// Runs the command and returns its exit code and all its output.
fn outcome(mut command: Command) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("skald runs");
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8(said).expect("UTF-8"))
}

#[track_caller]
fn is_healthy(command: Command) -> String {
    let (code, said) = outcome(command);
    assert_eq!(code, Some(0), "{said}");
    said
}

#[track_caller]
fn is_unhealthy(command: Command, words: &[&str]) {
    let (code, said) = outcome(command);
    assert_eq!(code, Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} in {said}");
    }
}

/// Returns a listener that is never accepted from, and its address.
fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

#[test]
fn a_ready_server_is_healthy() {
    let said = is_healthy(health(&[&SERVER.url("")]));
    assert!(said.contains("/readyz: ok"), "{said}");
    is_healthy(health(&[&SERVER.url("/livez")]));
}

#[test]
fn the_exit_code_does_not_depend_on_whether_its_words_can_be_written() {
    let full = || std::fs::File::options().write(true).open("/dev/full");
    let Ok(full) = full() else { return };
    let mut command = health(&[&SERVER.url("")]);
    let status = command.stdout(full).status().expect("skald runs");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_password_is_not_shown() {
    let address = SERVER.url("").replace("http://", "http://ann:s3cret@");
    let said = is_healthy(health(&[&address]));
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn flags_that_do_not_exist_are_a_failure_like_any_other() {
    is_unhealthy(health(&["--no-such-flag"]), &["--no-such-flag"]);
}

#[test]
fn without_a_url_the_server_of_the_environment_or_the_file_is_asked() {
    let port = SERVER.address.port();
    let mut everywhere = health(&[]);
    everywhere.env("SKALD_LISTEN", format!("0.0.0.0:{port}"));
    let said = is_healthy(everywhere);
    assert!(
        said.contains(&format!("http://127.0.0.1:{port}/")),
        "{said}"
    );

    let mut file = tempfile::NamedTempFile::new().expect("a file");
    write!(file, "listen = \"127.0.0.1:{port}\"").expect("written");
    let path = file.path().to_str().expect("a path");
    is_healthy(health(&["--config", path]));
    let mut by_variable = health(&[]);
    by_variable.env("SKALD_CONFIG", path);
    is_healthy(by_variable);

    let mut wins = health(&["--config", path]);
    let (_listener, other) = silent();
    wins.env("SKALD_LISTEN", other.to_string());
    wins.args(["--timeout", "100ms"]);
    is_unhealthy(wins, &[&other.to_string()]);
}

#[test]
fn a_proxy_of_the_environment_is_not_asked() {
    let mut command = health(&[&SERVER.url("")]);
    let (_listener, proxy) = silent();
    for name in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        command.env(name, format!("http://{proxy}"));
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    is_healthy(command);
}

#[test]
fn a_server_that_loads_its_model_is_not_healthy_but_alive() {
    let server = TestServer::with(Setup {
        load: false,
        ..Setup::default()
    });
    is_unhealthy(health(&[&server.url("")]), &["503", "loading"]);
    is_healthy(health(&[&server.url("/livez")]));
    server.app.fail("disk on fire".to_owned());
    is_unhealthy(health(&[&server.url("")]), &["503", "disk on fire"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_is_not_healthy() {
    let server = TestServer::start();
    let stream = begun(&server, endless()).await;
    server.stop();
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.get("/readyz").await.status == 200 {
        assert!(Instant::now() < deadline, "the server does not drain");
    }
    is_unhealthy(health(&[&server.url("")]), &["503", "draining"]);
    drop(stream);
    server.join();
}

#[test]
fn no_server_is_not_healthy() {
    let (listener, address) = silent();
    drop(listener);
    let url = format!("http://{address}");
    is_unhealthy(health(&[&url]), &[&url, "refused"]);
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let (_listener, address) = silent();
    let url = format!("http://{address}");
    is_unhealthy(health(&[&url, "--timeout", "200ms"]), &[&url, "200ms"]);
}

#[test]
fn another_server_is_not_healthy() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let elsewhere = SERVER.url("/readyz");
    let answers = [
        format!("HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"),
        "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nwhat".to_owned(),
        "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
    ];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut client, _) = listener.accept().expect("a client");
            let mut request = [0; 1024];
            let _ = client.read(&mut request).expect("a request");
            client.write_all(answer.as_bytes()).expect("sent");
        }
    });
    is_unhealthy(health(&[&url]), &["302"]);
    is_unhealthy(health(&[&url]), &["404"]);
    is_unhealthy(health(&[&url]), &[&url]);
    server.join().expect("it answers");
}

#[test]
fn what_can_not_be_asked_is_not_healthy() {
    for wrong in ["8080", "http://", "ftp://localhost"] {
        is_unhealthy(health(&[wrong]), &[wrong, "not a valid URL"]);
    }
    let mut command = health(&[]);
    command.env("SKALD_LISTEN", "8080");
    is_unhealthy(command, &["SKALD_LISTEN", "8080", "127.0.0.1:8080"]);
    let mut command = health(&[]);
    command.env("SKALD_LISTEN", "127.0.0.1:0");
    is_unhealthy(command, &["URL"]);
    is_unhealthy(
        health(&["--config", "no-such-file.toml"]),
        &["no-such-file.toml"],
    );
}
