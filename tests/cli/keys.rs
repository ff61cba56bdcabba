//! `skald keys`, and servers that read its file: at start, on a change, and on SIGHUP.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::pace::until;
use crate::support::process::{Process, skald};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory for a key file.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("keys.toml")
    }

    /// Runs `skald keys` with the file set in the environment. Returns exit code, output and messages.
    fn keys(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = skald(&[&["keys"], arguments].concat());
        let Output {
            status,
            stdout,
            stderr,
        } = command
            .env("SKALD_KEYS", self.file())
            .output()
            .expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (status.code(), text(stdout), text(stderr))
    }

    #[track_caller]
    fn create(&self, arguments: &[&str]) -> &'static str {
        let (code, key, said) = self.keys(&[&["create"], arguments].concat());
        assert_eq!(code, Some(0), "{said}");
        key.trim_end().to_owned().leak()
    }

    #[track_caller]
    fn list(&self) -> Value {
        let (code, list, said) = self.keys(&["list", "--json"]);
        assert_eq!(code, Some(0), "{said}");
        serde_json::from_str(&list).expect("JSON")
    }

    fn serve(&self) -> Process {
        Process::start(&["--keys", self.file().to_str().expect("UTF-8")])
    }
}

async fn status(server: &Process, key: &'static str) -> u16 {
    let caller = server.caller().with_key(key);
    caller.get("/v1/models").await.status
}

#[test]
fn a_key_is_shown_once_and_only_its_hash_is_kept() {
    let place = Place::new();
    let (code, key, said) = place.keys(&["create", "ada"]);
    assert_eq!(code, Some(0), "{said}");
    // A single line, for scripts.
    let secret = key.strip_suffix('\n').expect("a line");
    assert!(
        secret.starts_with("skald_") && secret.len() == 83,
        "{secret}"
    );
    assert!(
        said.contains("ada") && said.contains("can't be shown again"),
        "{said}"
    );
    assert!(!said.contains(&secret[20..]), "{said}");
    let text = fs::read_to_string(place.file()).expect("the file");
    assert!(!text.contains(&secret[19..]), "{text}");
    let mode = fs::metadata(place.file()).expect("it").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let limits = [
        "bob",
        "--scope",
        "generate,metrics",
        "--requests-per-minute",
        "60",
        "--tokens-per-minute",
        "1000",
        "--concurrent-requests",
        "4",
        "--may-prioritize",
    ];
    place.create(&limits);
    let list = place.list();
    let id = list[0]["id"].as_str().expect("an id");
    assert_eq!(&secret[6..18], id);
    assert_eq!(list[0]["scopes"], json!(["generate"]));
    assert_eq!(list[0]["requests_per_minute"], Value::Null);
    let (name, scopes) = (&list[1]["name"], &list[1]["scopes"]);
    assert_eq!(
        (name, scopes),
        (&json!("bob"), &json!(["generate", "metrics"]))
    );
    assert_eq!(list[1]["requests_per_minute"], 60);
    assert_eq!(list[1]["tokens_per_minute"], 1000);
    assert_eq!(list[1]["concurrent_requests"], 4);
    assert_eq!(list[1]["may_prioritize"], true);
    assert!(list[1]["created"].as_str().expect("a time").ends_with('Z'));
    let (_, table, _) = place.keys(&["list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[0].starts_with("ID ") && lines[1].starts_with(id),
        "{table}"
    );

    // Keys are revoked by name and by id.
    let (code, said, _) = place.keys(&["revoke", "bob"]);
    assert!(
        code == Some(0) && said.starts_with("revoked bob ("),
        "{said}"
    );
    let (code, ..) = place.keys(&["revoke", id]);
    assert_eq!(code, Some(0));
    assert_eq!(place.list(), json!([]));
    let (code, table, said) = place.keys(&["list"]);
    assert!(code == Some(0) && table.lines().count() == 1, "{table}");
    assert!(
        said.contains("no keys in ") && said.contains("skald keys create NAME"),
        "{said}"
    );
}

#[test]
fn what_can_not_be_done_is_told_with_an_exit_code() {
    let place = Place::new();
    let refused = |arguments: &[&str], words: &[&str]| {
        let (code, out, said) = place.keys(arguments);
        assert_eq!(code, Some(2), "{arguments:?} {said}");
        assert_eq!(out, "");
        for word in words {
            assert!(said.contains(word), "{word} in {said}");
        }
    };
    for missing in [&["list"][..], &["list", "--json"], &["revoke", "ada"]] {
        let words = ["does not exist", "`skald keys create NAME --keys "];
        refused(missing, &[&words[..], &["keys.toml`"]].concat());
    }
    refused(&["create", "a b"], &["a name must be 1 to 64"]);
    refused(&["create", "ada", "--scope", "root"], &["root", "generate"]);
    for number in ["0", "-1", "1.5", "4294967296"] {
        refused(
            &["create", "ada", "--tokens-per-minute", number],
            &[
                number,
                "--tokens-per-minute",
                "write a number from 1 to 4294967295",
            ],
        );
    }
    place.create(&["ada"]);
    let before = fs::read_to_string(place.file()).expect("the file");
    refused(&["create", "ada"], &["another key has the name \"ada\""]);
    refused(
        &["revoke", "bob"],
        &["no key has this id or name", "skald keys list"],
    );
    let broken = before.replace("scopes = [", "scopes = (");
    fs::write(place.file(), &broken).expect("written");
    refused(&["create", "bob"], &["keys.toml, line 8: "]);
    refused(&["list"], &["keys.toml, line 8: "]);
    assert_eq!(fs::read_to_string(place.file()).expect("the file"), broken);

    let nowhere = place.0.path().join("none/keys.toml");
    let file = nowhere.to_str().expect("UTF-8");
    let (code, out, said) = place.keys(&["create", "ada", "--keys", file]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{said}");
    assert!(said.contains("can't be written"), "{said}");
    let output = skald(&["keys", "list"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SKALD_KEYS"));
}

#[test]
fn a_file_that_can_not_be_written_stays_as_it_was_and_leaves_nothing_beside_it() {
    let place = Place::new();
    place.create(&["ada"]);
    let before = fs::read_to_string(place.file()).expect("the file");
    for action in [["create", "bob"], ["revoke", "ada"]] {
        let mut command = Command::new("bash");
        command.args(["-c", "ulimit -f 0; exec \"$@\"", "bash"]);
        command.args([env!("CARGO_BIN_EXE_skald"), "keys"]);
        command.args(action).env("SKALD_KEYS", place.file());
        let output = command.output().expect("it runs");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{:?} {said}", output.status);
        assert!(output.stdout.is_empty(), "a key that is in no file");
        assert!(
            said.contains("keys.toml can't be written: File too large"),
            "{said}"
        );
        let files = fs::read_dir(place.0.path()).expect("the directory");
        assert_eq!(files.count(), 1);
        let after = fs::read_to_string(place.file()).expect("the file");
        assert_eq!(after, before);
    }
}

#[test]
fn the_settings_file_names_the_keys_too_and_many_at_once_lose_none() {
    let place = Place::new();
    let settings = place.0.path().join("skald.toml");
    let line = format!("keys = {:?}\n", place.file());
    fs::write(&settings, line).expect("written");
    let children: Vec<_> = (0..8)
        .map(|number| {
            let name = format!("key-{number}");
            let mut command = skald(&["keys", "create", &name]);
            command.env("SKALD_CONFIG", &settings);
            command.stdout(std::process::Stdio::null());
            command.stderr(std::process::Stdio::null());
            command.spawn().expect("it runs")
        })
        .collect();
    for mut child in children {
        assert!(child.wait().expect("it ends").success());
    }
    assert_eq!(place.list().as_array().expect("a list").len(), 8);
}

#[tokio::test]
async fn a_server_learns_of_new_and_revoked_keys_by_sighup_and_by_itself() {
    let place = Place::new();
    let ada = place.create(&["ada"]);
    let server = place.serve();
    assert_eq!(server.logged("API keys required")[0]["keys"], 1);
    assert_eq!(status(&server, ada).await, 200);
    let bob = place.create(&["bob"]);
    server.signal("HUP");
    until("bob's key works", async || {
        status(&server, bob).await == 200
    })
    .await;
    assert_eq!(server.until_logged("reloaded")["name"], "API keys");

    // A broken file does not replace the keys in use.
    let whole = fs::read(place.file()).expect("the file");
    fs::write(place.file(), "[[key]]\nname = 1\n").expect("written");
    server.signal("HUP");
    let refused = server.until_logged("reload failed; keeping the previous version");
    let reason = refused["error"].as_str().expect("a reason");
    assert!(reason.contains("keys.toml, line "), "{reason}");
    assert_eq!(status(&server, ada).await, 200);
    fs::remove_file(place.file()).expect("removed");
    server.signal("HUP");
    until("two refusals in the log", async || {
        server
            .logged("reload failed; keeping the previous version")
            .len()
            > 1
    })
    .await;
    assert_eq!(status(&server, bob).await, 200);

    // The file is read again without a signal.
    fs::write(place.file(), whole).expect("written");
    place.keys(&["revoke", "ada"]);
    until("ada's key is refused", async || {
        status(&server, ada).await == 401
    })
    .await;
    assert_eq!(status(&server, bob).await, 200);
    // A file without keys does not open the server to all.
    place.keys(&["revoke", "bob"]);
    until("bob's key is refused", async || {
        status(&server, bob).await == 401
    })
    .await;
    assert_eq!(server.caller().get("/v1/models").await.status, 401);
    server.stop();
}

#[tokio::test]
async fn the_log_has_the_name_of_a_key_and_never_the_key() {
    let place = Place::new();
    let ada = place.create(&["ada"]);
    let file = place.file();
    let flags = [
        "--keys",
        file.to_str().expect("UTF-8"),
        "--log",
        "trace",
        "--log-prompts",
    ];
    let server = Process::start(&flags);
    let caller = server.caller().with_key(ada);
    let body = json!({"prompt": "A", "max_tokens": 2});
    caller.post("/v1/completions", body.clone()).await.ok();
    caller
        .post("/v1/completions", json!({"prompt": "A", "n": 0}))
        .await;
    let wrong: &'static str = format!("{}0", &ada[..82]).leak();
    let other: &'static str = format!("{}1", &ada[..82]).leak();
    for wrong in [wrong, other] {
        if wrong != ada {
            assert_eq!(
                server
                    .caller()
                    .with_key(wrong)
                    .post("/v1/completions", body.clone())
                    .await
                    .status,
                401
            );
        }
    }
    let finished = server.until_logged("generation finished");
    assert!(
        finished.to_string().contains("\"key\":\"ada\""),
        "{finished}"
    );
    let log = server.log();
    // The id is public; the rest is the secret.
    assert!(!log.contains(&ada[19..40]), "the secret is in the log");
    server.stop();
}

fn start_refused(arguments: &[&str]) -> String {
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    let output = skald(&[&serve, arguments].concat())
        .output()
        .expect("it runs");
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{message}");
    message
}

#[test]
fn keys_that_can_not_be_used_stop_the_start() {
    let place = Place::new();
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let file = path(&place.file());
    let message = start_refused(&["--keys", &file]);
    assert!(message.contains("skald keys create"), "{message}");
    assert!(message.contains(&file), "{message}");
    let message = start_refused(&["--keys", &path(place.0.path())]);
    assert!(message.contains("a directory"), "{message}");
    place.create(&["ada"]);
    let text = fs::read_to_string(place.file()).expect("the file");
    for (broken, line, reason) in [
        (
            text.replace("\"generate\"", "\"root\""),
            8,
            "`scopes` has an unknown scope `root`",
        ),
        (text.replace("name =", "nmae ="), 6, "unknown field `nmae`"),
        (
            format!("{text}requests-per-minute = 1.5\n"),
            10,
            "`requests-per-minute` is 1.5; it must be a whole number from 1 to 4294967295",
        ),
        (
            format!("{text}\n{}", text.replace("\"ada\"", "\"bob\"")),
            15,
            "same id",
        ),
    ] {
        fs::write(place.file(), broken).expect("written");
        let message = start_refused(&["--keys", &file]);
        let place = format!("keys.toml, line {line}: ");
        assert!(message.contains(&place), "{place} in {message}");
        assert!(message.contains(reason), "{reason} in {message}");
    }
}

#[tokio::test]
async fn a_server_beyond_its_machine_warns_without_keys_or_without_tls() {
    let place = Place::new();
    let ada = place.create(&["ada"]);
    let file = place.file();
    let beyond = ["--listen", "0.0.0.0:0"];
    let keys = ["--keys", file.to_str().expect("UTF-8")];
    let open = Process::start(&beyond);
    let warnings = open.warnings().concat();
    assert!(warnings.contains("without API keys"), "{warnings}");
    open.stop();
    let plain = Process::start(&[beyond, keys].concat());
    let warnings = plain.warnings().concat();
    assert!(!warnings.contains("without API keys"), "{warnings}");
    assert!(warnings.contains("without TLS"), "{warnings}");
    plain.stop();
    // A local server needs no warning. `skald health` needs no key; `skald bench` uses one.
    let local = place.serve();
    assert_eq!(local.warnings(), [""; 0]);
    let url = local.address().expect("it is ready");
    let run = |arguments: &[&str], key: &str| {
        let mut command = skald(arguments);
        let output = command
            .env("SKALD_BENCH_API_KEY", key)
            .output()
            .expect("it runs");
        output.status.code()
    };
    assert_eq!(run(&["health", &url], ""), Some(0));
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
    assert_eq!(run(&bench, ada), Some(0));
    assert_ne!(run(&bench, "none"), Some(0));
    local.stop();
}
