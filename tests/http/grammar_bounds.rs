//! Bounds on the work for a schema or grammar; accepted ones are followed.

use std::sync::LazyLock;

use crate::support::{Answer, TestServer};
use futures_util::future::join_all;
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PATH: &str = "/v1/completions";

async fn post(grammar: Value) -> Answer {
    let mut body = json!({"prompt": "The number is", "max_tokens": 40, "temperature": 2});
    let fields = grammar.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(fields);
    SERVER.post(PATH, body).await
}

async fn refused(grammar: Value, parts: &[&str]) {
    let asked = grammar.to_string();
    let shown: String = asked.chars().take(200).collect();
    let answer = post(grammar).await;
    assert_eq!(answer.status, 400, "{shown}: {}", answer.body);
    for part in parts {
        let message = answer.message();
        assert!(message.contains(part), "{shown}: {part}: {message}");
    }
}

/// Returns the texts of a schema's choices.
async fn texts(schema: &Value) -> Vec<String> {
    let answer = post(json!({"guided_json": schema, "n": 24, "seed": 3}))
        .await
        .ok();
    let choices = answer["choices"].as_array().expect("choices");
    let whole = choices
        .iter()
        .filter(|choice| choice["finish_reason"] == "stop");
    whole
        .map(|choice| choice["text"].as_str().expect("a text").to_owned())
        .collect()
}

#[tokio::test]
async fn integers_stay_within_bounds_of_64_bits() {
    for (bounds, least, greatest) in [
        (
            json!({"minimum": i64::MIN, "maximum": i64::MAX}),
            i128::from(i64::MIN),
            i128::from(i64::MAX),
        ),
        (
            json!({"minimum": 9_007_199_254_740_993_i64, "maximum": 9_007_199_254_740_999_i64}),
            9_007_199_254_740_993,
            9_007_199_254_740_999,
        ),
        (
            json!({"minimum": 9_223_372_036_854_775_000_i64}),
            9_223_372_036_854_775_000,
            i128::MAX,
        ),
        (
            json!({"minimum": 0, "maximum": u64::MAX}),
            0,
            i128::from(u64::MAX),
        ),
        (
            json!({"exclusiveMaximum": -5_000_000_000_000_000_000_i64}),
            i128::MIN,
            -5_000_000_000_000_000_001,
        ),
    ] {
        let mut schema = json!({"type": "integer"});
        let bounds = bounds.as_object().expect("bounds").clone();
        schema.as_object_mut().expect("fields").extend(bounds);
        let texts = texts(&schema).await;
        assert!(!texts.is_empty(), "{schema}");
        for text in texts {
            let number: i128 = text.parse().unwrap_or_else(|_| panic!("{schema}: {text}"));
            assert!((least..=greatest).contains(&number), "{schema}: {number}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_by_name() {
    let integer = |bound: Value| json!({"guided_json": {"type": "integer", "minimum": bound}});
    refused(integer(json!(1e19)), &["`minimum` is 1e+19"]).await;
    let cases: [(Value, &[&str]); 7] = [
        (json!({"type": "number", "minimum": 1e18}), &["`minimum`"]),
        (
            json!({"const": u64::MAX}),
            &["`const`", "18446744073709551615"],
        ),
        (
            json!({"enum": [1, 9_007_199_254_740_993_i64]}),
            &["`enum`", "9007199254740993"],
        ),
        (
            json!({"type": "integer", "multipleOf": -1}),
            &["`multipleOf` must be greater than 0, got -1"],
        ),
        (
            json!({"type": "integer", "multipleOf": 0}),
            &["`multipleOf` must be greater than 0, got 0"],
        ),
        (
            json!({"type": "array", "minItems": 4_294_967_296_u64}),
            &["`minItems`"],
        ),
        (
            json!({"allOf": [{"type": "integer", "multipleOf": 65_537}, {"multipleOf": 65_539}]}),
            &["`multipleOf`"],
        ),
    ];
    for (schema, parts) in cases {
        refused(json!({"guided_json": schema}), parts).await;
    }
    // The same within a Lark grammar, and in the other dialect.
    let nested = "start: %json {\"type\": \"integer\", \"multipleOf\": -1}";
    refused(json!({"guided_grammar": nested}), &["greater than 0"]).await;
    let native = json!({
        "inputs": "a",
        "parameters": {"grammar": {"type": "json", "value": {"type": "integer", "multipleOf": -1}}},
    });
    let answer = SERVER.post("/generate", native).await;
    assert_eq!(answer.status, 422, "{}", answer.body);
    assert!(
        answer.message().contains("greater than 0"),
        "{}",
        answer.message()
    );
}

#[tokio::test]
async fn the_librarys_own_messages_are_not_told() {
    let lark = |text: &str| json!({"guided_grammar": text});
    refused(
        lark("start: \"a\" <|endoftext|>"),
        &["<|endoftext|> is a special token"],
    )
    .await;
    for text in [
        "start: <foo>",
        "start: A\nA: <foo>",
        "start: <[9999999]>",
        "start: @other",
    ] {
        let answer = post(lark(text)).await;
        assert_eq!(answer.status, 400, "{text}: {}", answer.body);
        for word in ["panic", "unwrap", "backtrace", ".rs:"] {
            let message = answer.message();
            assert!(!message.contains(word), "{text}: {message}");
        }
    }
}

/// Returns a grammar of a kilobyte whose terminals double.
fn doubling(levels: usize, leaf: &str) -> String {
    let names = (0..levels).map(|level| format!("T{level}: T{0} T{0}\n", level + 1));
    format!(
        "start: T0\n{}T{levels}: {leaf}\n",
        names.collect::<String>()
    )
}

#[tokio::test]
async fn expressions_are_as_long_as_what_they_stand_for() {
    for leaf in ["\"ab\"", "/[a-f]/", "\"a\" | \"b\""] {
        let grammar = json!({"guided_grammar": doubling(40, leaf)});
        refused(grammar, &["at most 16384 bytes"]).await;
    }
    // The cost of optional parts grows with the square of their number.
    for grammar in [
        json!({"guided_regex": ".?".repeat(2000)}),
        json!({"guided_json": {"type": "string", "pattern": "a*".repeat(2000)}}),
        json!({"guided_grammar": doubling(11, "\"a\"?")}),
    ] {
        refused(grammar, &["at most 1024 optional parts", "20"]).await;
    }
    refused(
        json!({"guided_regex": "(a{1000}){1000}"}),
        &["8192 bytes", "1000000"],
    )
    .await;
    let options = json!({"whitespace_pattern": "[ \n]?".repeat(4000)});
    let schema = json!({"type": "object", "x-guidance": options});
    refused(json!({"guided_json": schema}), &["at most 16384 bytes"]).await;
}

#[tokio::test]
async fn many_expensive_grammars_do_not_stop_a_small_one() {
    // All different, so that none is cached.
    let expensive = (100..300).map(|n| {
        let leaf = format!("\"{n}\"");
        post(json!({"guided_grammar": doubling(11, &leaf), "max_tokens": 1}))
    });
    let small = post(json!({"guided_regex": "yes|no", "max_tokens": 1}));
    let (answers, small) = tokio::join!(join_all(expensive), small);
    small.ok();
    let refused: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status == 429)
        .collect();
    assert!(!refused.is_empty(), "all 200 waited");
    for answer in refused {
        let seconds: u64 = answer.header("retry-after").parse().expect("seconds");
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    assert!(
        answers.iter().any(|answer| answer.status == 200),
        "none was compiled"
    );
    assert!(
        answers
            .iter()
            .all(|answer| [200, 400, 429].contains(&answer.status))
    );
}
