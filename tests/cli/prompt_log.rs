//! Prompts and answers are logged only with `--log-prompts`, at any log level.

use crate::support::process::Process;
use serde_json::json;

/// Words that users write, each in another place.
const SECRETS: [&str; 5] = [
    "alibabasesame",
    "zweitgeheim",
    "drittgeheim",
    "viertgeheim",
    "fuenftgeheim",
];

/// Sends requests that succeed and requests that fail, in all dialects. Returns an answer.
async fn ask_all(server: &Process) -> String {
    let caller = server.caller();
    let [first, second, third, fourth, fifth] = SECRETS;
    let requests = [
        (
            "/v1/completions",
            json!({"prompt": first, "max_tokens": 24, "seed": 7, "ignore_eos": true}),
        ),
        (
            "/v1/completions",
            json!({"prompt": first, "max_tokens": 4, "stream": true, "session_id": "s"}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": second}], "max_tokens": 4}),
        ),
        (
            "/generate",
            json!({"inputs": third, "parameters": {"max_new_tokens": 4}}),
        ),
        ("/v1/embeddings", json!({"input": fourth})),
        ("/tokenize", json!({"content": fifth})),
        // Errors that quote the request.
        ("/v1/chat/completions", json!({"messages": second})),
        (
            "/v1/completions",
            json!({"prompt": "A", "max_tokens": fifth}),
        ),
        (
            "/v1/completions",
            json!({"prompt": first, "stop": [first.repeat(200)]}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "A", "guided_regex": format!("{fifth}(")}),
        ),
        ("/generate", json!({"inputs": [third]})),
    ];
    let mut answers = Vec::new();
    for (path, body) in requests {
        answers.push(caller.post(path, body).await);
    }
    let first = answers.swap_remove(0).ok();
    let text = first["choices"][0]["text"].as_str();
    text.expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_prompts_and_answers_is_logged_at_any_level() {
    let server = Process::start(&["--log", "trace"]);
    let text = ask_all(&server).await;
    server.until_logged("generation finished");
    server.until_logged("request refused");
    let log = server.log();
    for secret in SECRETS {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
    let shown = serde_json::to_string(&text).expect("JSON");
    assert!(!log.contains(shown.trim_matches('"')), "{shown}");
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_logged_where_asked_for() {
    let server = Process::start(&["--log-prompts", "--log", "debug"]);
    let text = ask_all(&server).await;
    let has = |message: &str, field: &str, value: &str| {
        server.until_logged_where(message, |line| {
            let text = line[field].as_str();
            text.is_some_and(|text| text.contains(value))
        })
    };
    let [first, second, third, fourth, quoted] = SECRETS;
    for secret in [first, second, third, fourth] {
        let line = has("prompt", "prompt", secret);
        assert!(line["span"]["id"].is_string(), "{line}");
    }
    let line = has("answer", "text", &text);
    assert!(line["span"]["id"].is_string(), "{line}");
    has("request refused", "error", quoted);
    server.stop();
}
