//! `skald trace`: every query of `docs/trace.md` agrees with the kernels; failures leave no file.

use std::path::Path;
use std::process::Command;

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use serde_json::Value;

use crate::support::process::skald;
use crate::support::tiny_model;

const TEXT: &str = "Once upon a time there was a king who had three";
const TOLERANCE: f64 = 1e-4;

fn trace(text: &str, out: &Path, flags: &[&str]) -> Command {
    let mut command = skald(&["trace", text, "--threads", "2", "--out"]);
    command.arg(out).args(flags);
    command
}

/// Runs a command to its end; returns its standard output.
#[track_caller]
fn succeeds(mut command: Command) -> String {
    let output = command.output().expect("skald runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command that is refused; returns its message.
#[track_caller]
fn refused(mut command: Command) -> String {
    let output = command.output().expect("skald runs");
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).expect("text")
}

/// A function of one number that the bundled SQLite lacks.
type Function = fn(f64) -> f64;

/// Opens a trace with the functions that `sqlite3` has and the bundled library lacks.
fn open(path: &Path) -> Connection {
    let db = Connection::open(path).expect("a database");
    let functions: [(&str, Function); 3] =
        [("exp", f64::exp), ("sqrt", f64::sqrt), ("tanh", f64::tanh)];
    for (name, function) in functions {
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        db.create_scalar_function(name, 1, flags, move |context| {
            Ok(function(context.get::<f64>(0)?))
        })
        .expect("a function");
    }
    db
}

/// Returns the queries of the page.
fn queries() -> Vec<&'static str> {
    let page = include_str!("../../docs/trace.md");
    let fences = page.split("```sql\n").skip(1);
    let queries = fences.map(|rest| rest.split("```").next().expect("the end of a query"));
    queries.collect()
}

/// Runs a query; returns its number of rows and, if it compares, the greatest difference.
fn run(db: &Connection, query: &str) -> (usize, Option<f64>) {
    let mut statement = db.prepare(query).unwrap_or_else(|e| panic!("{e}: {query}"));
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    if names.is_empty() {
        statement.execute([]).expect("it runs");
        return (1, None);
    }
    let column = |name| names.iter().position(|column| column == name);
    let compared = column("recomputed").zip(column("recorded"));
    let mut rows = statement.query([]).expect("it runs");
    let (mut count, mut greatest) = (0, 0f64);
    while let Some(row) = rows.next().expect("a row") {
        count += 1;
        if let Some((a, b)) = compared {
            let (a, b): (f64, f64) = (row.get(a).expect("a number"), row.get(b).expect("a number"));
            assert!((a - b).is_finite());
            greatest = greatest.max((a - b).abs());
        }
    }
    (count, compared.map(|_| greatest))
}

#[test]
fn every_query_of_the_page_agrees_with_the_kernels() {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().join("trace.db");
    let flags = ["--weights", "--dtype", "f32", "--seed", "7"];
    succeeds(trace(TEXT, &out, &flags));
    let db = open(&out);
    let mut compared = 0;
    for query in queries() {
        let (rows, difference) = run(&db, query);
        assert!(rows > 0, "no rows: {query}");
        if let Some(difference) = difference {
            compared += 1;
            assert!(difference <= TOLERANCE, "off by {difference}: {query}");
        }
    }
    assert!(compared >= 14, "{compared}");
    // The queries that ask for layer 0 hold for every layer.
    for layer in 1..6 {
        for query in queries() {
            if !query.contains("layer = 0") {
                continue;
            }
            let query = query.replace("layer = 1 ", &format!("layer = {} ", layer + 1));
            let query = query.replace("layer = 0", &format!("layer = {layer}"));
            let (rows, difference) = run(&db, &query);
            assert!(rows > 0, "no rows: {query}");
            let difference = difference.unwrap_or_default();
            assert!(difference <= TOLERANCE, "off by {difference}: {query}");
        }
    }
}

/// Weights are rounded in these precisions, so queries over weights are near only.
#[test]
fn traces_in_other_precisions_agree_where_no_weight_is_rounded() {
    let directory = tempfile::tempdir().expect("a directory");
    for dtype in ["bf16", "q8"] {
        let out = directory.path().join(dtype);
        succeeds(trace(
            TEXT,
            &out,
            &["--weights", "--dtype", dtype, "--seed", "7"],
        ));
        let db = open(&out);
        let near: Vec<(usize, f64)> = (0..)
            .zip(queries())
            .filter_map(|(n, query)| Some((n, run(&db, query).1?)))
            .collect();
        eprintln!("{dtype}: {near:?}");
        for (n, query) in (0..).zip(queries()) {
            let norm = query.contains("layer_norm_epsilon");
            let softmax = query.contains("WINDOW row");
            let sampling = query.contains("candidates");
            if let Some((_, difference)) = near.iter().find(|(m, _)| *m == n)
                && (norm || softmax || sampling)
            {
                assert!(
                    *difference <= TOLERANCE,
                    "{dtype}: off by {difference}: {query}"
                );
            }
        }
    }
}

#[test]
fn the_token_is_the_one_that_generate_samples() {
    let directory = tempfile::tempdir().expect("a directory");
    for seed in ["1", "2", "18446744073709551615"] {
        let out = directory.path().join(seed);
        succeeds(trace(TEXT, &out, &["--seed", seed]));
        let generate = ["generate", TEXT, "-n", "1", "--seed", seed, "--json"];
        let generated: Value = serde_json::from_str(&succeeds(skald(&generate))).expect("JSON");
        let token: String = open(&out)
            .query_row("SELECT text FROM draw", [], |row| row.get(0))
            .expect("a token");
        assert_eq!(generated["text"], token);
    }
}

#[test]
fn a_text_of_many_passes_is_whole_and_the_empty_text_is_end_of_text() {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().join("long.db");
    let text = "The king said no. ".repeat(30);
    succeeds(trace(&text, &out, &["--all-logits", "--temperature", "0"]));
    let db = open(&out);
    let count = |sql: &str| -> i64 { db.query_row(sql, [], |row| row.get(0)).expect("a number") };
    let n = count("SELECT count(*) FROM tokens");
    assert!(n > 128, "{n}");
    assert_eq!(
        count("SELECT count(*) FROM attention"),
        30 * n * (n + 1) / 2
    );
    assert_eq!(count("SELECT count(*) FROM residual"), 13 * n * 320);
    assert_eq!(count("SELECT count(*) FROM mlp"), 6 * n * 1280);
    assert_eq!(count("SELECT count(*) FROM logits"), n * 8192);
    let unlike_one =
        "SELECT count(*) FROM (SELECT sum(weight) AS s FROM attention GROUP BY layer, head, query)
        WHERE abs(s - 1) > 1e-5";
    assert_eq!(count(unlike_one), 0);

    let out = directory.path().join("empty.db");
    succeeds(trace("", &out, &[]));
    let id: i64 = open(&out)
        .query_row("SELECT id FROM tokens", [], |row| row.get(0))
        .expect("one token");
    assert_eq!(id, 8191);
}

#[test]
fn failures_say_what_to_do_and_leave_no_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = || std::fs::read_dir(directory.path()).expect("it").count();
    let out = directory.path().join("trace.db");

    let message = refused(trace(&"no ".repeat(3000), &out, &[]));
    assert!(message.contains("1024"), "{message}");
    let message = refused(trace(TEXT, &out, &["--temperature=-1"]));
    assert!(message.contains("--temperature"), "{message}");
    let message = refused(trace(TEXT, &directory.path().join("no/trace.db"), &[]));
    assert!(message.contains("can't be written"), "{message}");
    let message = refused(trace(TEXT, directory.path(), &["--force"]));
    assert!(message.contains("is a directory"), "{message}");
    assert_eq!(files(), 0);

    std::fs::write(&out, "mine").expect("written");
    let message = refused(trace(TEXT, &out, &[]));
    assert!(message.contains("--force"), "{message}");
    assert_eq!(std::fs::read(&out).expect("it"), b"mine");
    succeeds(trace(TEXT, &out, &["--force"]));
    assert!(std::fs::metadata(&out).expect("it").len() > 1 << 20);
    assert_eq!(files(), 1);
}

#[test]
fn only_a_regular_file_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = || std::fs::read_dir(directory.path()).expect("it").count();
    let pipe = directory.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).expect("a link");
    for (out, kind) in [(&pipe, "a named pipe"), (&link, "a device")] {
        let message = refused(trace(TEXT, out, &["--force"]));
        assert!(message.contains(kind), "{message}");
    }
    let message = refused(trace(TEXT, &directory.path().join("new/"), &[]));
    assert!(message.contains("is a directory"), "{message}");
    assert_eq!(files(), 2);
}

#[test]
fn every_name_of_a_file_is_possible() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("file:a?mode=memory")).expect("a directory");
    let longest = "n".repeat(255);
    for out in [&longest[..], "file:b", "file:a?mode=memory/c.db"] {
        let mut command = trace(TEXT, Path::new(out), &[]);
        command.current_dir(directory.path());
        succeeds(command);
        let size = std::fs::metadata(directory.path().join(out)).expect("it");
        assert!(size.len() > 1 << 20, "{out}");
    }
}

#[test]
fn a_text_may_fill_the_window() {
    let directory = tempfile::tempdir().expect("a directory");
    tiny_model::write(directory.path(), tiny_model::files());
    let model = directory.path().to_str().expect("a path");
    let (out, flags) = (directory.path().join("trace.db"), ["--model", model]);
    let window = "c".repeat(tiny_model::N_POSITIONS);
    succeeds(trace(&window, &out, &flags));
    let db = open(&out);
    let drawn = db.query_row("SELECT token FROM draw", [], |row| row.get::<_, u32>(0));
    assert!(drawn.expect("a token") < 8);
    let message = refused(trace(
        &format!("{window}c"),
        &out,
        &[&flags[..], &["--force"]].concat(),
    ));
    assert!(
        message.contains("the text has 7 tokens; the model's window is 6 tokens"),
        "{message}"
    );
    let generate = skald(&["generate", &format!("{window}c"), "--model", model]);
    let message = refused(generate);
    assert!(message.contains("`--slide`"), "{message}");
}

#[test]
fn an_interrupted_trace_leaves_no_file() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        interrupted(signal, code);
    }
}

fn interrupted(signal: &str, code: i32) {
    let directory = tempfile::tempdir().expect("a directory");
    let files = || std::fs::read_dir(directory.path()).expect("it").count();
    let mut command = trace(TEXT, &directory.path().join("trace.db"), &["--weights"]);
    let mut child = command.spawn().expect("skald runs");
    let grown = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|e| e.metadata().is_ok_and(|m| m.len() > 1 << 20))
    };
    while !std::fs::read_dir(directory.path()).expect("it").any(grown) {
        assert!(child.try_wait().expect("a status").is_none(), "it ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-s", signal, &pid]).status();
    assert!(sent.expect("kill runs").success());
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(code));
    assert_eq!(files(), 0, "after {signal}");
}
