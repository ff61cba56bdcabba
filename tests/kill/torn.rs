//! Damaged and foreign files: set aside with a warning, without other effects.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kills::files;
use crate::reference::{Choice, Reference};
use crate::support::caller::{Caller, said};
use crate::support::pace::PATIENCE;
use crate::support::process::Process;
use crate::support::script::tokenizer;

/// Files of the built-in model.
const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fairy-tales");
/// So little memory that KV blocks are evicted: 48 blocks of 16 tokens.
const SMALL: [&str; 2] = ["--kv-memory", "9MiB"];

/// Damages the content of a file.
type Damage = fn(&mut Vec<u8>);

const DAMAGES: [(&str, Damage); 9] = [
    ("emptied", |bytes| bytes.clear()),
    ("cut to a byte", |bytes| bytes.truncate(1)),
    ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
    ("without its last byte", |bytes| {
        bytes.pop();
    }),
    ("with a byte more", |bytes| bytes.push(0)),
    ("a bit flipped at its beginning", |bytes| bytes[0] ^= 1),
    ("a bit flipped in its middle", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
    }),
    ("a bit flipped at its end", |bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 0x80;
    }),
    ("garbage", |bytes| {
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = (n * 167 + 13) as u8;
        }
    }),
];

fn damage(file: &Path, how: Damage) {
    let mut bytes = fs::read(file).expect("a file");
    if bytes.is_empty() {
        return;
    }
    how(&mut bytes);
    fs::write(file, bytes).expect("written");
}

/// Returns the file with the history of a session.
fn history_of(directory: &Path, session: &str) -> PathBuf {
    let of = |file: &PathBuf| {
        let parent = file.parent().and_then(Path::file_name);
        let parent = parent.expect("a directory").to_string_lossy().into_owned();
        file.ends_with("history") && parent.starts_with(session)
    };
    let mut found = files(directory).into_iter().filter(of);
    found.next().expect("the session has a file")
}

/// Returns the files of all KV blocks.
fn blocks(directory: &Path) -> Vec<PathBuf> {
    files(&directory.join("kv"))
        .into_iter()
        .filter(|file| !ends_with(file, ".corrupt"))
        .collect()
}

fn ends_with(file: &Path, ending: &str) -> bool {
    file.to_string_lossy().ends_with(ending)
}

async fn say(caller: &Caller, session: &str, inputs: &str, max_new_tokens: usize) -> Value {
    let body = json!({
        "inputs": inputs, "session_id": session,
        "parameters": {"max_new_tokens": max_new_tokens, "do_sample": false, "details": true},
    });
    caller.post("/generate", body).await.ok()
}

/// Asserts that a greedy turn on this history gives the same as without a cache. Returns the new history.
async fn goes_on_from(
    caller: &Caller,
    session: &str,
    history: &[u32],
    reference: &Reference,
) -> Vec<u32> {
    let told = said(&say(caller, session, " Then the king", 12).await);
    let context = [history, &reference.ids(" Then the king")].concat();
    let expected = reference.next(&context, Choice::Greedy, 12).await;
    assert_eq!(told, expected, "{session}");
    [context, told].concat()
}

#[tokio::test]
async fn a_torn_history_is_set_aside_and_harms_no_other() {
    let reference = Reference::start();
    let directory = tempfile::tempdir().expect("a directory");
    let server = Process::on(directory.path(), &[]);
    let names: Vec<String> = (0..DAMAGES.len()).map(|n| format!("torn-{n}")).collect();
    for name in names.iter().map(String::as_str).chain(["whole"]) {
        say(&server.caller(), name, "Once upon a time there was", 20).await;
    }
    let whole = server.caller().history("whole").await.expect("it is there");
    server.stop();
    for (name, (_, how)) in names.iter().zip(DAMAGES) {
        damage(&history_of(directory.path(), name), how);
    }

    let server = Process::on(directory.path(), &[]);
    let caller = server.caller();
    let list = caller.get("/v1/sessions").await.ok();
    assert_eq!(list["data"].as_array().expect("a list").len(), 1, "{list}");
    for (name, (how, _)) in names.iter().zip(DAMAGES) {
        assert_eq!(caller.session(name).await.status, 404, "{how}");
        // The name starts a new history.
        goes_on_from(&caller, name, &[], &reference).await;
        let aside = files(directory.path()).into_iter();
        let aside = aside.filter(|file| ends_with(file, ".corrupt"));
        let aside: Vec<PathBuf> = aside.filter(|file| is_under(file, name)).collect();
        assert_eq!(aside.len(), 1, "{how}: {aside:?}");
    }
    goes_on_from(&caller, "whole", &whole, &reference).await;
    let warnings = server.warnings();
    assert_eq!(warnings.len(), DAMAGES.len(), "{warnings:#?}");
    for name in &names {
        assert!(warnings.iter().any(|line| line.contains(name.as_str())));
    }
}

fn is_under(file: &Path, session: &str) -> bool {
    let parent = file.parent().and_then(Path::file_name);
    parent.is_some_and(|name| name.to_string_lossy().starts_with(session))
}

#[tokio::test]
async fn a_torn_kv_block_is_computed_again() {
    let reference = Reference::start();
    let directory = tempfile::tempdir().expect("a directory");
    let server = Process::on(directory.path(), &SMALL);
    let names: Vec<String> = (0..6).map(|n| format!("tale-{n}")).collect();
    let mut histories = Vec::new();
    for (n, name) in names.iter().enumerate() {
        // All prefixes differ, so no blocks are shared; together they exceed the cache.
        let begin = format!(
            "{n} kings. {}",
            "Once upon a time there was a fox. ".repeat(18)
        );
        say(&server.caller(), name, &begin, 20).await;
        histories.push(server.caller().history(name).await.expect("it is there"));
    }
    server.stop();
    assert!(blocks(directory.path()).len() >= 48, "the cache was stored");
    for (round, (how, tear)) in DAMAGES.into_iter().enumerate() {
        for (n, block) in blocks(directory.path()).iter().enumerate() {
            if n % 3 != round % 3 {
                damage(block, tear);
            }
        }
        let server = Process::on(directory.path(), &SMALL);
        for (name, history) in names.iter().zip(&mut histories) {
            *history = goes_on_from(&server.caller(), name, history, &reference).await;
            // Keeps the history within the window.
            let rewind = json!({"tokens": 13});
            server.caller().rewind(name, rewind).await.ok();
            history.truncate(history.len() - 13);
        }
        let log = server.log();
        server.stop();
        assert!(!log.contains("panicked"), "{how}: {log}");
    }
}

/// Blocks that a server wrote are restored after a restart instead of being computed.
#[tokio::test]
async fn kv_blocks_that_are_whole_are_used() {
    let reference = Reference::start();
    let directory = tempfile::tempdir().expect("a directory");
    let server = Process::on(directory.path(), &[]);
    let begin = "Once upon a time there was a fox. ".repeat(40);
    say(&server.caller(), "tale", &begin, 20).await;
    let history = server.caller().history("tale").await.expect("it is there");
    server.stop();
    assert!(blocks(directory.path()).len() >= history.len() / 16 - 1);

    let server = Process::on(directory.path(), &[]);
    let cold = server.caller().session("tale").await.ok();
    assert_eq!(cold["cached_tokens"], 0);
    assert_eq!(cold["kv_resident"], false);
    let body = json!({
        "prompt": " Then the king", "session_id": "tale", "max_tokens": 12, "temperature": 0,
    });
    let answer = server.caller().post("/v1/completions", body).await.ok();
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let full_blocks = (history.len() - 1) / 16 * 16;
    assert!(cached >= Some(full_blocks as u64 - 16), "{answer}");
    let prompt = reference.ids(" Then the king");
    let context = [history, prompt].concat();
    let expected = reference.next(&context, Choice::Greedy, 12).await;
    let now = server.caller().history("tale").await.expect("it is there");
    assert_eq!(now, [context, expected].concat());
}

#[tokio::test]
async fn what_does_not_belong_there_is_left_alone() {
    let reference = Reference::start();
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    let server = Process::on(root, &[]);
    say(
        &server.caller(),
        "tale",
        &"Once upon a time. ".repeat(20),
        20,
    )
    .await;
    let history = server.caller().history("tale").await.expect("it is there");
    server.stop();

    let of_tale = history_of(root, "tale");
    let tale = of_tale.parent().expect("a directory");
    let tenant = tale.parent().expect("a directory");
    let ours = fs::read(&of_tale).expect("a file");
    let strays = [
        root.join("README"),
        root.join("sessions/README"),
        root.join("kv/README"),
        root.join("kv/00"),
        tenant.join("README"),
        tale.join("README"),
        tale.join("history.bak"),
    ];
    for stray in &strays {
        let _ = fs::write(stray, b"hello");
    }
    // Remains of a process that was killed while it wrote.
    for unfinished in [
        "history.4711.0.tmp",
        "history.4711.1.tmp.tmp",
        "history.tmp",
        ".history.swp",
    ] {
        fs::write(tale.join(unfinished), &ours[..ours.len() / 2]).expect("written");
    }
    // Directories in place of files, and broken links.
    fs::create_dir_all(tenant.join("empty.session/history")).expect("a directory");
    fs::create_dir_all(tenant.join("no session at all")).expect("a directory");
    fs::create_dir_all(root.join("sessions/lost+found")).expect("a directory");
    std::os::unix::fs::symlink("/nowhere", tenant.join("link.session")).expect("a link");
    std::os::unix::fs::symlink("/nowhere", root.join("kv/zz")).expect("a link");

    let server = Process::on(root, &[]);
    let caller = server.caller();
    assert_eq!(caller.history("tale").await.as_ref(), Some(&history));
    let list = caller.get("/v1/sessions").await.ok();
    assert_eq!(list["data"].as_array().expect("a list").len(), 1, "{list}");
    goes_on_from(&caller, "tale", &history, &reference).await;
    // Only the session with an unusable file fails.
    let body = json!({"inputs": "A", "session_id": "empty", "parameters": {"max_new_tokens": 1}});
    let broken = caller.post("/generate", body).await;
    assert!([200, 500].contains(&broken.status), "{}", broken.body);
    caller.get("/health").await.ok();
    server.stop();

    // Nor do these files prevent the removal of expired sessions.
    let _server = Process::on(root, &["--session-ttl", "1s"]);
    let deadline = Instant::now() + PATIENCE;
    while of_tale.exists() {
        assert!(Instant::now() < deadline, "it is forgotten after a second");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for stray in strays.iter().filter(|stray| !stray.ends_with("kv/00")) {
        assert_eq!(fs::read(stray).expect("it is still there"), b"hello");
    }
    assert!(tenant.join("no session at all").is_dir());
}

/// Returns a directory with the built-in model and another tokenizer.
fn other_tokenizer() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(ASSETS).join(file), directory.path().join(file)).expect("a copy");
    }
    let json = fs::read(Path::new(ASSETS).join("tokenizer.json")).expect("the tokenizer");
    let mut tokenizer: Value = serde_json::from_slice(&json).expect("JSON");
    let vocabulary = tokenizer["model"]["vocab"]
        .as_object_mut()
        .expect("a vocabulary");
    // Swap two whole words.
    let ids: Vec<(String, Value)> = vocabulary
        .iter()
        .filter(|(_, id)| [3000, 3001].contains(&id.as_u64().expect("an id")))
        .map(|(token, id)| (token.clone(), id.clone()))
        .collect();
    let [(first, first_id), (second, second_id)] = &ids[..] else {
        panic!("two tokens, not {ids:?}");
    };
    vocabulary[first] = second_id.clone();
    vocabulary[second] = first_id.clone();
    fs::write(
        directory.path().join("tokenizer.json"),
        tokenizer.to_string(),
    )
    .expect("written");
    directory
}

/// Two servers with different models on one directory by mistake, each with a session of the same name.
#[tokio::test]
async fn servers_of_different_tokenizers_never_touch_each_other_s_histories() {
    let directory = tempfile::tempdir().expect("a directory");
    let other = other_tokenizer();
    let model = other.path().to_str().expect("a path");
    let servers = [
        Process::on(directory.path(), &[]),
        Process::on(directory.path(), &["--model", model]),
    ];
    let callers = servers.each_ref().map(Process::caller);
    let mut histories = [Vec::new(), Vec::new()];
    for turn in 0..4 {
        for (n, (caller, history)) in callers.iter().zip(&mut histories).enumerate() {
            let inputs = format!("On day {turn} the {n}th king");
            say(caller, "tale", &inputs, 5).await;
            let now = caller.history("tale").await.expect("it is there");
            assert!(now.starts_with(history) && now.len() > history.len());
            *history = now;
        }
    }
    assert_ne!(histories[0], histories[1]);
    for (caller, history) in callers.iter().zip(&histories) {
        assert_eq!(caller.history("tale").await.as_ref(), Some(history));
        let list = caller.get("/v1/sessions").await.ok();
        assert_eq!(list["data"].as_array().expect("a list").len(), 1, "{list}");
    }
    callers[1].delete("/v1/sessions/tale").await.ok();
    assert_eq!(
        callers[0].history("tale").await.as_ref(),
        Some(&histories[0])
    );
    for server in servers {
        assert_eq!(server.warnings(), Vec::<String>::new());
        server.stop();
    }
    for file in files(directory.path()) {
        assert!(!ends_with(&file, ".corrupt") && !ends_with(&file, ".foreign"));
    }
    // A server of the first model finds them again.
    let server = Process::on(directory.path(), &[]);
    let reference = Reference::start();
    goes_on_from(&server.caller(), "tale", &histories[0], &reference).await;
}

/// In an earlier layout, the histories of all tokenizers were in one directory.
#[tokio::test]
async fn a_directory_of_the_earlier_layout_goes_on() {
    let reference = Reference::start();
    let directory = tempfile::tempdir().expect("a directory");
    let other = other_tokenizer();
    let model = other.path().to_str().expect("a path");
    for (name, flags) in [("ours", &[][..]), ("theirs", &["--model", model])] {
        let server = Process::on(directory.path(), flags);
        say(&server.caller(), name, "Once upon a time there was", 8).await;
        server.stop();
    }
    let sessions = directory.path().join("sessions");
    let tenant = sessions.join("anonymous");
    fs::create_dir(&tenant).expect("made");
    for name in ["ours", "theirs"] {
        let history = history_of(directory.path(), name);
        let session = history.parent().expect("a directory");
        let name = session.file_name().expect("a name");
        fs::rename(session, tenant.join(name)).expect("moved");
    }
    let server = Process::on(directory.path(), &[]);
    let caller = server.caller();
    let ours = caller.history("ours").await.expect("it is there");
    goes_on_from(&caller, "ours", &ours, &reference).await;
    assert_eq!(caller.session("theirs").await.status, 404);
    assert!(tenant.join("theirs.session/history").exists());
    let moved = server.logged("sessions moved to the directory of their tokenizer");
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0]["sessions"], 1);
    assert_eq!(server.warnings(), Vec::<String>::new());
    let server = Process::on(directory.path(), &["--model", model]);
    assert!(server.caller().history("theirs").await.is_some());
    assert!(!tenant.exists());
}

/// A header and a field in every form of answer, until a turn is committed.
#[tokio::test]
async fn the_client_of_a_damaged_history_is_told() {
    const HEADER: &str = "x-skald-session-reset";
    let directory = tempfile::tempdir().expect("a directory");
    let server = Process::on(directory.path(), &[]);
    let caller = server.caller();
    let native = json!({
        "inputs": "Once", "session_id": "tale", "parameters": {"max_new_tokens": 2},
    });
    let openai = json!({"prompt": "Once", "session_id": "tale", "max_tokens": 2});
    let streamed = |body: &Value| {
        let mut body = body.clone();
        body["stream"] = true.into();
        body
    };
    let requests = [
        ("/generate", native.clone()),
        ("/", native.clone()),
        ("/generate_stream", native.clone()),
        ("/v1/completions", openai.clone()),
        ("/v1/completions", streamed(&openai)),
    ];
    caller.post("/generate", native.clone()).await.ok();
    for (round, (path, body)) in requests.iter().enumerate() {
        damage(&history_of(directory.path(), "tale"), DAMAGES[6].1);
        // Neither reading nor a refused turn clears the mark.
        assert_eq!(caller.session("tale").await.status, 404);
        let wrong = json!({"inputs": "", "session_id": "tale"});
        assert_eq!(caller.post("/generate", wrong).await.status, 422);
        for is_told in [true, false] {
            let answer = caller.post(path, body.clone()).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            let header = if is_told { "history-lost" } else { "" };
            assert_eq!(answer.header(HEADER), header, "{path}");
            let text = answer.body.to_string().replace('\\', "");
            let field = text.contains(r#""history_lost":true"#);
            assert_eq!(field, is_told, "{path}: {text}");
            assert!(is_told || !text.contains("history_lost"));
        }
        let aside = files(directory.path()).into_iter();
        let aside = aside.filter(|file| ends_with(file, ".corrupt")).count();
        assert_eq!(aside, round + 1, "nothing set aside is overwritten");
    }
}

/// Opening a named pipe would block forever.
#[tokio::test]
async fn a_history_that_is_not_a_regular_file_is_set_aside() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Process::on(directory.path(), &[]);
    let caller = server.caller();
    say(&caller, "tale", "Once", 2).await;
    let history = history_of(directory.path(), "tale");
    for make in ["mkfifo", "mkdir"] {
        fs::remove_file(&history).expect("removed");
        let made = std::process::Command::new(make).arg(&history).status();
        assert!(made.expect("it runs").success());
        assert_eq!(caller.session("tale").await.status, 404);
        let answer = say(&caller, "tale", "Once", 2).await;
        assert_eq!(answer["history_lost"], true, "{make}: {answer}");
        assert!(caller.history("tale").await.is_some());
    }
}

/// KV blocks of other weights or of another precision are not used.
#[tokio::test]
async fn kv_blocks_of_another_precision_are_not_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let begin = "Once upon a time there was a fox. ".repeat(30);
    let server = Process::on(directory.path(), &[]);
    say(&server.caller(), "tale", &begin, 20).await;
    server.stop();
    for flags in [
        &["--kv-dtype", "bf16"][..],
        &["--dtype", "bf16"],
        &["--dtype", "q8"],
        &[],
    ] {
        let server = Process::on(directory.path(), flags);
        let caller = server.caller();
        let history = caller.history("tale").await.expect("it is there");
        let length = history.len();
        let answer = say(&caller, "tale", " Then", 8).await;
        let whole = [history, tokenizer().encode(" Then", true).expect("ids")].concat();
        let context = json!({
            "prompt": whole, "max_tokens": 8, "temperature": 0, "session_id": "cold",
        });
        // Another key, so nothing is cached.
        let cold = caller.with_key("cold");
        cold.post("/v1/completions", context).await.ok();
        let expected = cold.history("cold").await.expect("it is there");
        let now = caller.history("tale").await.expect("it is there");
        assert_eq!(now, expected, "{flags:?}");
        let tokens = said(&answer).len() + 1;
        assert_eq!(now.len(), length + tokens);
        cold.delete("/v1/sessions/cold").await.ok();
        server.stop();
    }
}
