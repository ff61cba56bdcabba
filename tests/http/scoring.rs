//! Scoring texts through `/v1/completions` (`echo`, `logprobs`, at most one generated token), as lm-eval's
//! `local-completions` does, against the results of Hugging Face transformers.

use std::sync::LazyLock;

use crate::support::TestServer;
use candle_core::{D, DType, Device, Tensor};
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

const PATH: &str = "/v1/completions";
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fairy-tales");
/// Maximum difference of log-probabilities between two implementations.
const TOLERANCE: f64 = 4e-4;

fn cases() -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{FIXTURES}/reference.json")).expect("references");
    serde_json::from_str(&text).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("ids").iter();
    ids.map(|id| u32::try_from(id.as_u64().expect("an id")).expect("32 bits"))
        .collect()
}

async fn complete(body: Value) -> Value {
    SERVER.post(PATH, body).await.ok()
}

/// Returns the request that lm-eval sends to score token ids.
fn lm_eval(prompts: &[Vec<u32>]) -> Value {
    json!({
        "model": "fairy-tales", "prompt": prompts, "temperature": 0, "max_tokens": 1,
        "logprobs": 1, "seed": 1234, "echo": true,
    })
}

fn list<'a>(choice: &'a Value, name: &str) -> &'a Vec<Value> {
    choice["logprobs"][name].as_array().expect("a list")
}

/// Asserts the log-probabilities of a choice's first tokens, including nulls.
fn check(choice: &Value, expected: &[Value]) {
    let found = list(choice, "token_logprobs");
    assert!(found.len() >= expected.len());
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        match (found.as_f64(), expected.as_f64()) {
            (None, None) => assert!(found.is_null()),
            (Some(found), Some(expected)) => {
                assert!((found - expected).abs() < TOLERANCE, "token {place}");
            }
            pair => panic!("token {place}: {pair:?}"),
        }
    }
}

/// Reads a choice as lm-eval does. Returns the sum over the continuation, and whether it is the greedy one.
fn loglikelihood(choice: &Value, context: usize) -> (f64, bool) {
    let range = context..list(choice, "tokens").len() - 1;
    let logprobs = &list(choice, "token_logprobs")[range.clone()];
    let tops = &list(choice, "top_logprobs")[range];
    let greedy = logprobs.iter().zip(tops).all(|(logprob, top)| {
        let top = top.as_object().expect("a map").values();
        let best = top.map(|p| p.as_f64().expect("a number"));
        logprob.as_f64() == best.max_by(f64::total_cmp)
    });
    let sum = logprobs.iter().map(|p| p.as_f64().expect("a number")).sum();
    (sum, greedy)
}

#[tokio::test]
async fn every_prompt_is_scored_as_the_reference_scores_it() {
    for case in cases() {
        let body = json!({"prompt": case["prompt"], "max_tokens": 0, "echo": true, "logprobs": 0});
        let scored = complete(body).await;
        let choice = &scored["choices"][0];
        let expected = case["prompt_logprobs"].as_array().expect("a list");
        assert_eq!(list(choice, "tokens").len(), expected.len());
        check(choice, expected);
        assert_eq!(choice["text"], case["prompt"]);
        assert_eq!(scored["usage"]["completion_tokens"], 0);
    }
}

#[tokio::test]
async fn many_prompts_in_one_request_are_scored_each_on_its_own() {
    let cases = cases();
    let prompts: Vec<Vec<u32>> = cases.iter().map(|case| ids(&case["ids"])).collect();
    for max_tokens in [0, 1] {
        let mut body = lm_eval(&prompts);
        body["max_tokens"] = json!(max_tokens);
        let scored = complete(body).await;
        assert_eq!(scored["choices"].as_array().unwrap().len(), cases.len());
        for (index, case) in cases.iter().enumerate() {
            let choice = &scored["choices"][index];
            assert_eq!(choice["index"], index);
            let expected = case["prompt_logprobs"].as_array().expect("a list");
            check(choice, expected);
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                assert_eq!(list(choice, name).len(), expected.len() + max_tokens);
            }
        }
    }
}

#[tokio::test]
async fn a_continuation_is_greedy_exactly_if_the_model_would_have_said_it() {
    let cases = cases();
    let continued = |case: &Value, wrong: bool| {
        let mut prompt = ids(&case["ids"]);
        prompt.extend(&ids(&case["greedy_ids"])[..8]);
        if wrong && let Some(last) = prompt.last_mut() {
            *last = (*last + 1) % 4000;
        }
        prompt
    };
    for wrong in [false, true] {
        let prompts: Vec<_> = cases.iter().map(|case| continued(case, wrong)).collect();
        let scored = complete(lm_eval(&prompts)).await;
        for (index, case) in cases.iter().enumerate() {
            let context = ids(&case["ids"]).len();
            let choice = &scored["choices"][index];
            let (sum, greedy) = loglikelihood(choice, context);
            assert_eq!(greedy, !wrong, "{}", case["prompt"]);
            // The sum over a part of the prompt equals the reference's.
            let expected = case["prompt_logprobs"].as_array().expect("a list");
            let (whole, _) = loglikelihood(choice, 1);
            let prompt: f64 = expected[1..].iter().map(|p| p.as_f64().unwrap()).sum();
            #[expect(clippy::cast_precision_loss, reason = "few tokens")]
            let tolerance = TOLERANCE * context as f64;
            assert!(
                (whole - sum - prompt).abs() < tolerance,
                "{}",
                case["prompt"]
            );
        }
    }
}

#[tokio::test]
async fn a_prompt_that_fills_the_window_is_scored_to_its_last_token() {
    let references =
        candle_core::safetensors::load(format!("{FIXTURES}/reference.safetensors"), &Device::Cpu)
            .expect("references");
    let long = references["long.ids"].to_dtype(DType::U32).expect("ids");
    let long: Vec<u32> = long.to_vec1().expect("ids");
    let logits: &Tensor = &references["long.logits"];
    let normalizer = logits.log_sum_exp(D::Minus1).expect("sums");
    let logprobs = logits.broadcast_sub(&normalizer.unsqueeze(1).expect("a column"));
    let logprobs: Vec<Vec<f32>> = logprobs.expect("logprobs").to_vec2().expect("rows");
    // Row `i` belongs to the token after position 1016 + `i`.
    let expected = |place: usize| f64::from(logprobs[place - 1017][long[place] as usize]);

    let mut whole = lm_eval(std::slice::from_ref(&long));
    whole["max_tokens"] = json!(0);
    let scored = complete(whole).await;
    let found = list(&scored["choices"][0], "token_logprobs");
    assert_eq!(found.len(), 1024);
    for (place, found) in found.iter().enumerate().skip(1017) {
        let difference = found.as_f64().expect("a number") - expected(place);
        assert!(difference.abs() < TOLERANCE, "token {place}: {difference}");
    }

    // lm-eval reserves the one token that it requests; several such prompts in one request.
    let shorter = long[..1023].to_vec();
    let shifted = long[1..].to_vec();
    let scored = complete(lm_eval(&[shorter.clone(), shifted])).await;
    let choice = &scored["choices"][0];
    assert_eq!(list(choice, "tokens").len(), 1024);
    let found = list(choice, "token_logprobs");
    for (place, found) in found.iter().enumerate().take(1023).skip(1017) {
        let difference = found.as_f64().expect("a number") - expected(place);
        assert!(difference.abs() < TOLERANCE, "token {place}: {difference}");
    }
    let alone = complete(lm_eval(&[shorter])).await;
    assert_eq!(alone["choices"][0]["logprobs"], choice["logprobs"]);
    assert_eq!(scored["usage"]["prompt_tokens"], 2 * 1023);

    // One token more than the window holds is an error, not truncated.
    let refused = SERVER.post(PATH, lm_eval(&[long])).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.body["error"]["code"], "context_length_exceeded");
}

#[tokio::test]
async fn offsets_of_echoed_tokens_count_whole_characters() {
    let text = "Zwölf 🐉 龍 — «él»";
    let ids = SERVER.ids(text);
    let pieces: Vec<&[u8]> = ids
        .iter()
        .map(|&id| SERVER.tokenizer().token_bytes(id).expect("a token"))
        .collect();
    assert!(
        pieces
            .iter()
            .any(|piece| std::str::from_utf8(piece).is_err()),
        "characters over several tokens"
    );
    // Complete characters before each token.
    let expected: Vec<usize> = (0..ids.len())
        .map(|place| {
            let before = pieces[..place].concat();
            let whole = match std::str::from_utf8(&before) {
                Ok(whole) => whole,
                Err(error) => std::str::from_utf8(&before[..error.valid_up_to()]).unwrap(),
            };
            whole.chars().count()
        })
        .collect();
    let body = |prompt: Value| json!({"prompt": prompt, "max_tokens": 3, "temperature": 0, "echo": true, "logprobs": 1});
    let scored = complete(body(json!(text))).await;
    let choice = &scored["choices"][0];
    let offsets = list(choice, "text_offset");
    assert_eq!(json!(offsets[..ids.len()]), json!(expected));
    assert!(choice["text"].as_str().unwrap().starts_with(text));
    // Generated tokens continue after the prompt.
    assert_eq!(offsets[ids.len()], text.chars().count());
    // Every token that is valid text is at its offset.
    let chars: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    for (token, offset) in list(choice, "tokens").iter().zip(offsets) {
        let token: Vec<char> = token.as_str().unwrap().chars().collect();
        if !token.starts_with(&['b', 'y', 't', 'e', 's', ':']) {
            let at = usize::try_from(offset.as_u64().unwrap()).unwrap();
            assert_eq!(chars[at..at + token.len()], token);
        }
    }
    // The same with a prompt of ids, and streamed.
    let from_ids = complete(body(json!(ids))).await;
    assert_eq!(from_ids["choices"][0]["logprobs"], choice["logprobs"]);
    let mut streamed = body(json!(ids));
    streamed["stream"] = json!(true);
    let events = SERVER.stream(PATH, streamed).await;
    let streamed: Vec<&Value> = events
        .choices(0)
        .filter_map(|choice| choice["logprobs"]["text_offset"].as_array())
        .flatten()
        .collect();
    assert_eq!(json!(streamed), json!(offsets));
}
