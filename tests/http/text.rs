//! Text over the wire from a model that follows a script, token by token: characters and stop strings that
//! are split over tokens, and the text that sessions keep.

use crate::support::script::Script;
use crate::support::{Setup, TestServer};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

struct Scripted {
    server: TestServer,
    script: Script,
}

fn scripted(script: Script) -> Scripted {
    let server = TestServer::with(Setup {
        source: script.source(),
        ..Setup::default()
    });
    Scripted { server, script }
}

impl Scripted {
    /// Returns a greedy request with one prompt token, whose answer is the script.
    fn body(&self, more: Value) -> Value {
        let mut body = json!({
            "prompt": [0], "max_tokens": self.script.ids.len(), "temperature": 0,
        });
        let more = more.as_object().expect("fields").clone();
        body.as_object_mut().expect("fields").extend(more);
        body
    }

    async fn whole(&self, more: Value) -> Value {
        self.server.post(PATH, self.body(more)).await.ok()
    }

    /// Returns the texts of a stream's events, without empty ones.
    async fn pieces(&self, mut more: Value) -> Vec<String> {
        more["stream"] = json!(true);
        let events = self.server.stream(PATH, self.body(more)).await;
        assert!(events.done);
        events
            .choices(0)
            .filter_map(|choice| choice["text"].as_str())
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .collect()
    }

    async fn session(&self, id: &str) -> Value {
        self.server.get(&format!("/v1/sessions/{id}")).await.ok()
    }
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().expect("a text")
}

#[tokio::test]
async fn characters_split_over_tokens_are_streamed_whole() {
    let said = "é🐉龍—ok";
    let scripted = scripted(Script::bytes(said.as_bytes()));
    let whole = scripted.whole(json!({"logprobs": 0})).await;
    assert_eq!(text(&whole), said);
    let pieces = scripted.pieces(json!({})).await;
    assert_eq!(pieces, ["é", "🐉", "龍", "—", "o", "k"]);

    // Tokens that are not valid text on their own are written as bytes. The tokens of one character share its
    // offset, which counts characters and begins after the prompt's one.
    let logprobs = &whole["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"][0], "bytes:\\xc3");
    assert_eq!(logprobs["tokens"][2], "bytes:\\xf0");
    let prompt = scripted.server.tokenizer().decode(&[0]).chars().count();
    let offsets = [0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5].map(|n| n + prompt);
    assert_eq!(logprobs["text_offset"], json!(offsets));

    // The native dialect returns each character with the token that completes it.
    let native = json!({"inputs": "!", "parameters": {"max_new_tokens": 14}});
    let events = scripted.server.stream("/generate_stream", native).await;
    assert_eq!(events.native_text(), said);
    assert_eq!(events.data.len(), 14);
    assert_eq!(events.data[0]["token"]["text"], "");
    assert_eq!(events.data[1]["token"]["text"], "é");
}

#[tokio::test]
async fn a_character_that_is_never_completed_is_a_replacement_character() {
    let scripted = scripted(Script::bytes(b"ab\xf0\x9f"));
    assert_eq!(text(&scripted.whole(json!({})).await), "ab\u{fffd}");
    assert_eq!(scripted.pieces(json!({})).await.concat(), "ab\u{fffd}");
    let native = json!({"inputs": "!", "parameters": {"max_new_tokens": 4}});
    let events = scripted.server.stream("/generate_stream", native).await;
    assert_eq!(events.native_text(), "ab\u{fffd}");
    let last = events.data.last().unwrap();
    assert_eq!(last["generated_text"], "ab\u{fffd}");
}

#[tokio::test]
async fn a_stop_string_split_over_tokens_is_never_shown_in_part() {
    let scripted = scripted(Script::bytes("one <stop> two".as_bytes()));
    for stop in ["<stop>", "stop>", "ne <"] {
        let expected = "one <stop> two".split(stop).next().unwrap();
        let whole = scripted.whole(json!({"stop": stop})).await;
        assert_eq!(text(&whole), expected);
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        let pieces = scripted.pieces(json!({"stop": [stop]})).await;
        assert_eq!(pieces.concat(), expected, "{pieces:?}");
        let mut shown = String::new();
        for piece in &pieces {
            shown += piece;
            assert!(expected.starts_with(&shown), "{pieces:?}");
        }
    }
}

#[tokio::test]
async fn a_false_start_of_a_stop_string_is_not_lost() {
    let scripted = scripted(Script::bytes(b"a <sto b <st"));
    let whole = scripted
        .whole(json!({"stop": "<stop>", "logprobs": 1}))
        .await;
    assert_eq!(text(&whole), "a <sto b <st");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(
        whole["choices"][0]["logprobs"]["tokens"]
            .as_array()
            .unwrap()
            .len(),
        12
    );
    assert_eq!(
        scripted.pieces(json!({"stop": "<stop>"})).await.concat(),
        "a <sto b <st"
    );
}

#[tokio::test]
async fn a_stop_string_that_ends_with_the_last_token_counts_as_stop() {
    let scripted = scripted(Script::bytes(b"ab."));
    let whole = scripted.whole(json!({"stop": "."})).await;
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(text(&whole), "ab");
    assert_eq!(whole["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn logprobs_stop_where_the_text_does() {
    let scripted = scripted(Script::bytes(b"ab<e>cd"));
    let whole = scripted.whole(json!({"stop": "<e>", "logprobs": 0})).await;
    assert_eq!(whole["choices"][0]["logprobs"]["tokens"], json!(["a", "b"]));
    let native = json!({"inputs": "!", "parameters": {"max_new_tokens": 7, "stop": ["<e>"], "details": true}});
    let answer = scripted.server.post("/generate", native).await.ok();
    assert_eq!(answer["generated_text"], "ab<e>");
    assert_eq!(answer["details"]["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(answer["details"]["generated_tokens"], 5);
}

#[tokio::test]
async fn special_tokens_within_a_text_are_not_shown() {
    let tokenizer = crate::support::script::tokenizer();
    let end = tokenizer.end_of_text().unwrap();
    let (a, b) = (
        tokenizer.encode("left", true).unwrap(),
        tokenizer.encode("right", true).unwrap(),
    );
    let ids = [a.as_slice(), &[end], &b].concat();
    let scripted = scripted(Script::new(&ids));
    let on = scripted.whole(json!({"ignore_eos": true})).await;
    assert_eq!(text(&on), "leftright");
    assert_eq!(on["usage"]["completion_tokens"], ids.len());
    let off = scripted.whole(json!({"logprobs": 0})).await;
    assert_eq!(text(&off), "left");
    let tokens = off["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.last().unwrap(), "<|endoftext|>");
    assert_eq!(off["usage"]["completion_tokens"], a.len() + 1);
}

#[tokio::test]
async fn a_session_keeps_prompt_and_text() {
    let scripted = scripted(Script::text("There lived a king."));
    let ids = scripted.script.ids.clone();
    let first = scripted
        .whole(json!({"max_tokens": 3, "session_id": "tale"}))
        .await;
    let session = scripted.session("tale").await;
    assert_eq!(session["tokens"], json!([&[0], &ids[..3]].concat()));
    assert_eq!(session["token_count"], 4);
    assert_eq!(session["busy"], false);
    // Continue without a prompt: the next tokens of the script.
    let body = json!({"session_id": "tale", "max_tokens": ids.len() - 3, "temperature": 0});
    let rest = scripted.server.post(PATH, body).await.ok();
    assert_eq!(
        format!("{}{}", text(&first), text(&rest)),
        "There lived a king."
    );
    assert_eq!(rest["usage"]["prompt_tokens"], 4, "the history counts");
    let session = scripted.session("tale").await;
    let said = session["text"].as_str().unwrap();
    assert!(said.ends_with("There lived a king."), "{said}");
}

#[tokio::test]
async fn the_header_names_a_session_too() {
    let scripted = scripted(Script::text("There lived a king."));
    let body = json!({"inputs": "!", "parameters": {"max_new_tokens": 2}});
    let sent = crate::support::client()
        .post(scripted.server.url("/generate"))
        .header("x-session-id", "by-header")
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(sent.status(), 200);
    drop(sent);
    let list = scripted.server.get("/v1/sessions").await.ok();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "by-header");
    let gone = scripted.server.delete("/v1/sessions/by-header").await.ok();
    assert_eq!(
        gone,
        json!({"id": "by-header", "object": "session.deleted", "deleted": true})
    );
    for answer in [
        scripted.server.get("/v1/sessions/by-header").await,
        scripted.server.delete("/v1/sessions/by-header").await,
    ] {
        assert_eq!(answer.status, 404);
        assert_eq!(answer.body["error"]["type"], "invalid_request_error");
    }
    assert_eq!(scripted.server.get("/v1/sessions/a%20b").await.status, 400);
}

#[tokio::test]
async fn a_session_keeps_neither_stop_string_nor_end_of_text() {
    let tokenizer = crate::support::script::tokenizer();
    // The stop string begins within a token: " king" is cut after " k".
    let said = scripted(Script::text("There lived a king."));
    let stopped = said
        .whole(json!({"stop": "ing", "session_id": "cut"}))
        .await;
    assert_eq!(text(&stopped), "There lived a k");
    let session = said.session("cut").await;
    let prompt = tokenizer.decode(&[0]);
    assert_eq!(session["text"], format!("{prompt}There lived a k"));

    let end = tokenizer.end_of_text().unwrap();
    let a = tokenizer.encode(" once", true).unwrap();
    let ended = scripted(Script::new(&[a.as_slice(), &[end]].concat()));
    ended.whole(json!({"session_id": "eos"})).await;
    assert_eq!(
        ended.session("eos").await["tokens"],
        json!([&[0], a.as_slice()].concat())
    );
}

#[tokio::test]
async fn a_stop_string_of_the_native_dialect_stays_in_the_session() {
    let scripted = scripted(Script::text("There lived a king."));
    let body = json!({"inputs": "!", "session_id": "native", "parameters": {"stop": ["ing"]}});
    let answer = scripted.server.post("/generate", body).await.ok();
    assert_eq!(answer["generated_text"], "There lived a king");
    let session = scripted.session("native").await;
    assert_eq!(session["text"], "!There lived a king");
}

#[tokio::test]
async fn a_session_that_is_too_long_is_refused_before_the_stream_begins() {
    let scripted = scripted(Script::text("There lived a king."));
    let long: Vec<u32> = vec![5; 120];
    scripted
        .server
        .post(
            PATH,
            json!({"prompt": long, "max_tokens": 1, "session_id": "long"}),
        )
        .await
        .ok();
    let more = json!({"prompt": [5], "max_tokens": 20, "session_id": "long", "stream": true});
    let refused = scripted.server.post(PATH, more).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.body["error"]["code"], "context_length_exceeded");
    let empty = json!({"max_tokens": 2, "session_id": "never-seen"});
    let refused = scripted.server.post(PATH, empty).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.message().contains("no history"),
        "{}",
        refused.message()
    );
}
