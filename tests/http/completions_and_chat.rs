//! Common behaviour of completions and chat completions: every test runs on both.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::TestServer;
use crate::support::sse::Events;

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

/// One of the two endpoints.
#[derive(Clone, Copy)]
enum Endpoint {
    Completions,
    Chat,
}

use Endpoint::{Chat, Completions};

impl Endpoint {
    const BOTH: [Self; 2] = [Completions, Chat];

    fn path(self) -> &'static str {
        match self {
            Completions => "/v1/completions",
            Chat => "/v1/chat/completions",
        }
    }

    /// Returns a request for `prompt` with additional fields.
    fn body(self, prompt: &str, more: Value) -> Value {
        let mut body = match self {
            Completions => json!({"prompt": prompt}),
            Chat => json!({"messages": [{"role": "user", "content": prompt}]}),
        };
        let more = more.as_object().expect("fields").clone();
        body.as_object_mut().expect("fields").extend(more);
        body
    }

    /// Returns the number of tokens of `prompt`.
    fn prompt_tokens(self, prompt: &str) -> usize {
        match self {
            Completions => SERVER.ids(prompt).len(),
            Chat => SERVER.ids(&format!("User: {prompt}\n\nAssistant:")).len(),
        }
    }

    async fn post(self, prompt: &str, more: Value) -> Value {
        SERVER.post(self.path(), self.body(prompt, more)).await.ok()
    }

    async fn stream(self, prompt: &str, mut more: Value) -> Events {
        more["stream"] = json!(true);
        SERVER.stream(self.path(), self.body(prompt, more)).await
    }

    /// Returns the text of a choice of an answer.
    fn text(self, answer: &Value, choice: usize) -> &str {
        let choice = &answer["choices"][choice];
        let text = match self {
            Completions => &choice["text"],
            Chat => &choice["message"]["content"],
        };
        text.as_str().expect("a text")
    }

    /// Returns the text of a choice of a stream.
    fn streamed(self, events: &Events, choice: usize) -> String {
        let pieces = events.choices(choice).map(|choice| match self {
            Completions => &choice["text"],
            Chat => &choice["delta"]["content"],
        });
        pieces.filter_map(Value::as_str).collect()
    }
}

#[tokio::test]
async fn usage_comes_last_in_a_stream_that_asks_for_it() {
    for endpoint in Endpoint::BOTH {
        let asked = json!({
            "max_tokens": 6, "temperature": 0, "ignore_eos": true, "stop": ["\u{1}"],
            "stream_options": {"include_usage": true},
        });
        let events = endpoint.stream("Hans", asked).await;
        let (last, earlier) = events.data.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        let prompt = endpoint.prompt_tokens("Hans");
        assert_eq!(last["usage"]["prompt_tokens"], prompt);
        let generated = last["usage"]["completion_tokens"].as_u64().unwrap();
        assert!((1..=6).contains(&generated));
        assert_eq!(last["usage"]["total_tokens"], prompt as u64 + generated);
        for event in earlier {
            assert_eq!(event.get("usage"), Some(&Value::Null));
        }
        assert!(events.done);
    }
}

#[tokio::test]
async fn headers_keep_proxies_from_buffering_a_stream() {
    for endpoint in Endpoint::BOTH {
        let body = endpoint.body("Hans", json!({"max_tokens": 1, "stream": true}));
        let response = SERVER.send(endpoint.path(), body.to_string()).await;
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert!(header("content-type").starts_with("text/event-stream"));
        assert_eq!(header("cache-control"), "no-cache");
        assert_eq!(header("x-accel-buffering"), "no");
        assert!(!header("x-request-id").is_empty());
    }
}

#[tokio::test]
async fn choice_i_is_drawn_with_seed_plus_i_and_prompts_count_once() {
    for endpoint in Endpoint::BOTH {
        let drawn = |seed: usize, n: usize| json!({"max_tokens": 6, "temperature": 1, "seed": seed, "n": n});
        let three = endpoint.post("Far away", drawn(40, 3)).await;
        for i in 0..3 {
            assert_eq!(three["choices"][i]["index"], i);
            assert_eq!(three["choices"][i]["seed"], 40 + i);
            let alone = endpoint.post("Far away", drawn(40 + i, 1)).await;
            assert_eq!(endpoint.text(&three, i), endpoint.text(&alone, 0));
        }
        let prompt = endpoint.prompt_tokens("Far away");
        assert_eq!(three["usage"]["prompt_tokens"], prompt);
        // Streamed choices are interleaved, with an index each.
        let events = endpoint.stream("Far away", drawn(40, 3)).await;
        for i in 0..3 {
            assert_eq!(endpoint.streamed(&events, i), endpoint.text(&three, i));
            assert_eq!(events.finish_reason(i).len(), 1);
        }
        assert!(events.done);
    }
}

#[tokio::test]
async fn stop_strings_are_not_part_of_the_text() {
    for endpoint in Endpoint::BOTH {
        let asked = |stop: Value| json!({"max_tokens": 24, "temperature": 0, "stop": stop});
        let whole = endpoint.post("Once upon a time", asked(json!([]))).await;
        let whole = endpoint.text(&whole, 0);
        // A stop string that is not a single token: from the middle of one token into the next.
        let stop: String = whole.chars().skip(8).take(5).collect();
        let expected = whole.split(&stop).next().unwrap();
        let many = vec![stop; 16];
        let stopped = endpoint.post("Once upon a time", asked(json!(many))).await;
        assert_eq!(endpoint.text(&stopped, 0), expected);
        assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
        let used = stopped["usage"]["completion_tokens"].as_u64().unwrap();
        assert!(used < 24, "generation ended with the stop string");
        let events = endpoint
            .stream("Once upon a time", asked(json!(many)))
            .await;
        assert_eq!(endpoint.streamed(&events, 0), expected);
        assert_eq!(events.finish_reason(0), ["stop"]);
    }
}
