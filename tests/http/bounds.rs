//! Bounds on the front-end work of one request: work outside the engine, answers, errors, sessions, templates
//! and grammars, over real sockets.

use std::sync::LazyLock;
use std::time::Duration;

use crate::support::pace::{PATIENCE, until};
use crate::support::process::Process;
use crate::support::raw::{rest, sent};
use crate::support::{Answer, Setup, TestServer};
use bytesize::ByteSize;
use futures_util::future::join_all;
use serde_json::{Value, json};
use skald::http::HttpConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Maximum size of a body that a client can send, in bytes.
const LARGEST: usize = (2 << 20) - 1024;

/// Asserts a refusal for lack of capacity, with a retry hint.
#[track_caller]
fn assert_busy(refused: &Answer) {
    assert_eq!(refused.status, 429, "{}", refused.body);
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert!(
        refused.message().contains("retry later"),
        "{}",
        refused.message()
    );
}

#[track_caller]
fn assert_invalid(refused: &Answer, param: &str, parts: &[&str]) {
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(refused.body["error"]["param"], param, "{}", refused.body);
    for part in parts {
        let message = refused.message();
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[tokio::test]
async fn many_large_texts_are_tokenized_a_few_at_a_time_or_refused() {
    let server = TestServer::with(Setup {
        http: HttpConfig {
            max_pending: ByteSize::mib(5),
            ..HttpConfig::default()
        },
        ..Setup::default()
    });
    let large = json!({"content": "word ".repeat(LARGEST / 5)});
    let asked = (0..12).map(|_| server.post("/tokenize", large.clone()));
    let small = server.post("/tokenize", json!({"content": "a small one"}));
    let (answers, small) = tokio::join!(join_all(asked), small);
    // A small text does not wait for capacity in the lane of large ones.
    small.ok();
    let (taken, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 200);
    assert!(!taken.is_empty(), "none was taken");
    assert!(!refused.is_empty(), "all 24 MB were taken at once");
    for answer in taken {
        let tokens = answer.body["tokens"].as_array().map_or(0, Vec::len);
        assert!(tokens >= LARGEST / 5, "{tokens} tokens");
    }
    refused.iter().for_each(assert_busy);
    // The lane has capacity again.
    server.post("/tokenize", large).await.ok();
}

#[tokio::test]
async fn the_prompt_of_all_choices_is_scored_once() {
    // A server of its own, because the tokens that the engine computes are counted.
    let server = TestServer::start();
    let prompt =
        "The fox and the king went over the hill to see the sea, and the fox sang. ".repeat(8);
    let body = json!({
        "prompt": prompt, "n": 6, "seed": 5, "echo": true, "logprobs": 2, "prompt_logprobs": 1,
        "max_tokens": 3,
    });
    let prompt_tokens = server.ids(&prompt).len();
    let before = server.engine().status();
    let answer = server.post(COMPLETIONS, body.clone()).await.ok();
    server.until("at rest", |status| status.running == 0).await;
    let after = server.engine().status();
    let computed = after.step_tokens.sum() - before.step_tokens.sum();
    // Each sequence computes the last, partial block.
    let most = prompt_tokens + 6 * (16 + 3 + 3);
    assert!(
        computed <= most as u64,
        "{computed} of {prompt_tokens} tokens"
    );

    let choices = answer["choices"].as_array().expect("choices");
    let scores = |choice: &Value| {
        let all = &choice["logprobs"]["token_logprobs"];
        let scored = all.as_array().expect("a list")[..prompt_tokens].to_vec();
        (scored, choice["prompt_logprobs"].clone())
    };
    assert_eq!(
        scores(&choices[0])
            .0
            .iter()
            .filter(|score| score.is_null())
            .count(),
        1
    );
    for choice in choices {
        assert!(
            choice["text"]
                .as_str()
                .is_some_and(|text| text.starts_with(&prompt))
        );
        assert_eq!(scores(choice), scores(&choices[0]));
    }

    // In a stream each choice begins with them too.
    let mut body = body;
    body["stream"] = json!(true);
    let events = server.stream(COMPLETIONS, body).await;
    for index in 0..6 {
        let first = events.choices(index).next().expect("a first event");
        assert_eq!(scores(first), scores(&choices[0]), "{index}");
    }
}

#[tokio::test]
async fn an_answer_has_an_end() {
    let a = SERVER.ids(" a")[0];
    let echoed = json!({
        "prompt": vec![a; 1000], "n": 128, "max_tokens": 1, "echo": true, "logprobs": 20,
    });
    let refused = SERVER.post(COMPLETIONS, echoed).await;
    assert_invalid(&refused, "logprobs", &["524288"]);
    let chat = json!({
        "messages": [{"role": "user", "content": "a"}], "n": 128, "max_tokens": 900,
        "logprobs": true, "top_logprobs": 20,
    });
    assert_invalid(&SERVER.post(CHAT, chat).await, "top_logprobs", &["524288"]);
    // Two megabytes of token ids, 128 times.
    let ids = json!({"prompt": vec![a; 500_000], "n": 128, "max_tokens": 1, "overflow": "slide"});
    assert_invalid(
        &SERVER.post(COMPLETIONS, ids).await,
        "n",
        &["64000000", "1048576"],
    );
    let generated = json!({"prompt": "a", "n": 128, "max_tokens": 100_000, "overflow": "slide"});
    assert_invalid(
        &SERVER.post(COMPLETIONS, generated).await,
        "n",
        &["12800000", "1048576"],
    );
    // The longest token, as often as fits.
    let longest = (0..8000)
        .max_by_key(|&id| SERVER.tokenizer().token_bytes(id).map_or(0, <[u8]>::len))
        .expect("tokens");
    let bytes = SERVER
        .tokenizer()
        .token_bytes(longest)
        .map_or(0, <[u8]>::len);
    let tokens = vec![longest; 400_000];
    let answer = SERVER.post("/detokenize", json!({"tokens": tokens})).await;
    if bytes * 400_000 > 16 << 20 {
        assert_eq!(answer.status, 422, "{}", answer.body);
    } else {
        answer.ok();
    }
}

#[tokio::test]
async fn an_error_repeats_little_of_what_was_sent() {
    let long = "\u{1}".repeat(300_000);
    let letters = "x".repeat(LARGEST);
    let cases = [
        (COMPLETIONS, json!({"model": long})),
        (COMPLETIONS, json!({"model": letters})),
        (COMPLETIONS, json!({"max_tokens": letters})),
        (COMPLETIONS, json!({"logit_bias": {&letters: 1}})),
        (COMPLETIONS, json!({"overflow": letters})),
        (COMPLETIONS, json!({"session_id": letters})),
        (COMPLETIONS, json!({"suffix": letters})),
        (COMPLETIONS, json!({"guided_json": [&letters]})),
        (
            COMPLETIONS,
            json!({"guided_json": {"type": &letters[..100_000]}}),
        ),
        (COMPLETIONS, json!({"response_format": {"type": letters}})),
        (
            CHAT,
            json!({"messages": [{"role": letters, "content": "a"}]}),
        ),
        (CHAT, json!({"messages": [], "tool_choice": letters})),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"adapter_id": letters}}),
        ),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"grammar": {"type": letters}}}),
        ),
        (
            "/generate",
            json!({"inputs": "a", "parameters": {"grammar": {"type": "json", "value": [&letters]}}}),
        ),
        (
            "/v1/embeddings",
            json!({"input": "a", "encoding_format": letters}),
        ),
    ];
    for (path, body) in cases {
        let refused = SERVER.post(path, body).await;
        assert!(
            (400..500).contains(&refused.status),
            "{path} {}",
            refused.status
        );
        let length = refused.body.to_string().len();
        assert!(length < 8 << 10, "{path}: an error of {length} bytes");
        assert!(!refused.message().is_empty());
    }
    let refused = SERVER
        .post(COMPLETIONS, json!({"max_tokens": letters}))
        .await;
    let message = refused.message();
    assert!(
        message.starts_with("`max_tokens`: invalid type: string \"xxx"),
        "{message}"
    );
    assert!(message.ends_with("expected an integer"), "{message}");
    let path = format!("/{}", "y".repeat(20_000));
    let missing = SERVER.get(&path).await;
    assert_eq!(missing.status, 404);
    assert!(missing.message().len() < 1000);
}

#[tokio::test]
async fn a_body_of_many_keys_is_taken() {
    let fields: serde_json::Map<String, Value> = (0..130_000)
        .map(|n| (format!("k{n}"), json!(0)))
        .chain([
            ("prompt".to_owned(), json!("a")),
            ("max_tokens".to_owned(), json!(1)),
        ])
        .collect();
    SERVER.post(COMPLETIONS, Value::Object(fields)).await.ok();
}

#[tokio::test]
async fn a_session_ends_at_its_length() {
    let mut server = Process::start(&["--max-session-tokens", "64"]);
    let caller = server.caller();
    let turn = |tokens: u64| json!({"prompt": "Once upon a time", "session_id": "s", "max_tokens": tokens, "overflow": "slide", "ignore_eos": true});
    caller.post(COMPLETIONS, turn(40)).await.ok();
    let refused = caller.post(COMPLETIONS, turn(40)).await;
    assert_invalid(
        &refused,
        "session_id",
        &["at most 64 tokens", "40 tokens to generate", "rewind"],
    );
    // The history is unchanged, and shorter turns still fit.
    caller.post(COMPLETIONS, turn(1)).await.ok();
    server.terminate();
    server.ended();
}

/// Comparing two lists that double forty times takes forever and no memory.
const ENDLESS: &str = "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}";

#[tokio::test]
async fn templates_that_come_to_no_end_hold_nothing_up() {
    let mut server = Process::start(&["--chat-template", ENDLESS]);
    let caller = server.caller();
    let ask = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
    let asked = (0..4).map(|_| caller.post(CHAT, ask.clone()));
    let others = async {
        caller.get("/livez").await.ok();
        let completion = json!({"prompt": "a", "max_tokens": 1});
        caller.post(COMPLETIONS, completion).await.ok();
    };
    let (answers, ()) = tokio::join!(join_all(asked), others);
    let (slow, busy): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 400);
    assert_eq!((slow.len(), busy.len()), (2, 2));
    for answer in &slow {
        assert_invalid(answer, "messages", &["took longer than"]);
    }
    busy.iter().for_each(assert_busy);
    // The server stops when asked to, although the templates are still running.
    server.terminate();
    server.ended_within(Duration::from_secs(20));
}

#[tokio::test]
async fn a_template_that_doubles_a_string_is_refused() {
    // Bounded by steps or output, or by time on a slow machine.
    for (times, shown) in [(40, "{{ n.x }}"), (40, ""), (22, "{{ n.x }}")] {
        let template = format!(
            "{{% set n = namespace(x='ab') %}}{{% for i in range({times}) %}}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}{shown}"
        );
        let server = TestServer::with(Setup {
            chat_template: Some(Box::leak(template.into_boxed_str())),
            ..Setup::default()
        });
        let ask = json!({"messages": [{"role": "user", "content": "a"}]});
        let refused = server.post(CHAT, ask).await;
        assert_invalid(&refused, "messages", &["the chat template"]);
    }
}

/// Sends a request whose body does not arrive, and returns its connection.
async fn half_sent(server: &TestServer, bytes: usize) -> TcpStream {
    let request = format!(
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n{}",
        " ".repeat(bytes)
    );
    sent(server.address, &request).await
}

#[tokio::test]
async fn bodies_that_do_not_arrive_take_bounded_memory_and_delay_no_others() {
    let server = TestServer::with(Setup {
        http: HttpConfig {
            max_pending: ByteSize::kib(256),
            body_timeout: Duration::from_secs(1000),
            ..HttpConfig::default()
        },
        ..Setup::default()
    });
    let whole = json!({"content": "a b"}).to_string();
    let slow = format!(
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        whole.len()
    );
    // Each also needs 32 KiB for itself, so two fit. A body without progress is evicted for the next one
    // after a second; until then the next one is refused.
    let now = Duration::from_millis(100);
    let mut waiting: Vec<TcpStream> = Vec::new();
    let gives_way = async {
        loop {
            let mut next = half_sent(&server, 80_000).await;
            if timeout(now, rest(&mut next)).await.is_err() {
                waiting.push(next);
            }
            let mut still_waiting = Vec::new();
            for mut socket in waiting.drain(..) {
                match timeout(now, rest(&mut socket)).await {
                    Ok(answer) if answer.body.contains("still arriving") => (),
                    Ok(answer) => return answer,
                    Err(_) => still_waiting.push(socket),
                }
            }
            waiting = still_waiting;
        }
    };
    let answer = timeout(PATIENCE, gives_way).await.expect("one gives way");
    assert_eq!(answer.status, 429, "{answer:?}");
    assert!(answer.body.contains("did not arrive in time"), "{answer:?}");
    assert!(answer.head.contains("retry-after"), "{answer:?}");
    // Other requests have capacity: one with a large body, and one whose body arrives in two parts.
    let large = json!({"content": "a b ".repeat(15_000)});
    until("room", async || {
        server.post("/tokenize", large.clone()).await.status == 200
    })
    .await;
    until("room", async || {
        let mut socket = sent(server.address, &slow).await;
        socket.write_all(whole.as_bytes()).await.expect("sent");
        rest(&mut socket).await.status == 200
    })
    .await;
}
