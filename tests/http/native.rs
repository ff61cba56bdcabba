//! The native (TGI) dialect over a real socket, with the built-in model; and the token helpers.

use std::sync::LazyLock;

use crate::support::{Setup, TestServer};
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

fn body(inputs: &str, parameters: Value) -> Value {
    json!({"inputs": inputs, "parameters": parameters})
}

async fn generate(inputs: &str, parameters: Value) -> Value {
    SERVER
        .post("/generate", body(inputs, parameters))
        .await
        .ok()
}

#[tokio::test]
async fn the_three_endpoints_answer_each_in_its_way() {
    let request = body("Once upon a time", json!({"max_new_tokens": 6}));
    let object = SERVER.post("/generate", request.clone()).await.ok();
    let text = object["generated_text"].as_str().unwrap();
    assert_eq!(SERVER.ids(text).len(), 6);
    assert!(object.get("details").is_none());
    let in_list = SERVER.post("/", request.clone()).await.ok();
    assert_eq!(in_list, json!([object]));

    let mut streaming = request.clone();
    streaming["stream"] = json!(true);
    for (path, request) in [
        ("/generate", &streaming),
        ("/", &streaming),
        ("/generate_stream", &request),
    ] {
        let events = SERVER.stream(path, request.clone()).await;
        assert_eq!(events.data.len(), 6, "{path}: an event for each token");
        assert_eq!(events.native_text(), text);
        assert!(!events.done, "there is no [DONE] in this dialect");
        for (place, event) in events.data.iter().enumerate() {
            assert_eq!(event["index"], place + 1);
            assert!(event["token"]["id"].is_u64());
            assert!(event["token"]["logprob"].as_f64().unwrap() <= 0.0);
            let last = place == 5;
            assert_eq!(event["generated_text"] == *text, last);
            assert_eq!(event["generated_text"].is_null(), !last);
            assert_eq!(event["details"], Value::Null);
        }
    }
}

#[tokio::test]
async fn a_body_without_parameters_is_enough() {
    let answer = SERVER
        .post_text("/generate", r#"{"inputs":"A"}"#.to_owned())
        .await
        .ok();
    let text = answer["generated_text"].as_str().unwrap();
    assert!(!text.is_empty());
    let nulls = body(
        "A",
        json!({
            "max_new_tokens": 3, "do_sample": null, "temperature": null, "top_k": null,
            "top_p": null, "typical_p": null, "repetition_penalty": null,
            "frequency_penalty": null, "seed": null, "stop": null, "best_of": null,
            "details": null, "decoder_input_details": null, "return_full_text": null,
            "truncate": null, "top_n_tokens": null, "watermark": false, "grammar": null,
            "adapter_id": null, "unknown": [1, 2]
        }),
    );
    let nulls = SERVER.post("/generate", nulls).await.ok();
    assert!(text.starts_with(nulls["generated_text"].as_str().unwrap()));
}

#[tokio::test]
async fn details_tell_of_every_token() {
    let parameters = json!({
        "max_new_tokens": 5, "details": true, "decoder_input_details": true, "top_n_tokens": 2,
    });
    let answer = generate("The little girl", parameters).await;
    let details = &answer["details"];
    assert_eq!(details["finish_reason"], "length");
    assert_eq!(details["generated_tokens"], 5);
    assert_eq!(details["seed"], Value::Null, "nothing was drawn");
    let prefill = details["prefill"].as_array().unwrap();
    assert_eq!(prefill.len(), SERVER.ids("The little girl").len());
    assert_eq!(prefill[0]["logprob"], Value::Null);
    assert!(prefill[1]["logprob"].as_f64().unwrap() < 0.0);
    let joined: String = prefill
        .iter()
        .map(|t| t["text"].as_str().unwrap())
        .collect();
    assert_eq!(joined, "The little girl");
    let tokens = details["tokens"].as_array().unwrap();
    let joined: String = tokens.iter().map(|t| t["text"].as_str().unwrap()).collect();
    assert_eq!(answer["generated_text"], joined);
    let tops = details["top_tokens"].as_array().unwrap();
    assert_eq!(tops.len(), 5);
    for (token, top) in tokens.iter().zip(tops) {
        assert_eq!(top.as_array().unwrap().len(), 2);
        assert_eq!(top[0]["id"], token["id"], "greedy takes the most likely");
        assert_eq!(top[0]["logprob"], token["logprob"]);
    }
}

#[tokio::test]
async fn details_of_a_stream_come_with_its_last_event() {
    let parameters = json!({
        "max_new_tokens": 4, "details": true, "do_sample": true, "seed": 11, "top_n_tokens": 3,
    });
    let events = SERVER
        .stream("/generate_stream", body("A goose", parameters))
        .await;
    let last = events.data.last().unwrap();
    let input_length = SERVER.ids("A goose").len();
    // Other tests may have cached the same prefix, but the last token is always computed.
    let cached = last["details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached < input_length as u64);
    assert_eq!(
        last["details"],
        json!({
            "finish_reason": "length", "generated_tokens": 4,
            "input_length": input_length, "cached_tokens": cached, "seed": 11
        })
    );
    for event in &events.data {
        assert_eq!(event["top_tokens"].as_array().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn end_of_text_is_told_of_but_not_shown() {
    // The native dialect has no `logit_bias`, so a model that ends at once is used.
    let end = SERVER.tokenizer().end_of_text().unwrap();
    let script = crate::support::script::Script::new(&[SERVER.ids(" end")[0], end]);
    let server = TestServer::with(Setup {
        source: script.source(),
        ..Setup::default()
    });
    let parameters = json!({"max_new_tokens": 9, "details": true});
    let answer = server
        .post("/generate", body("!", parameters.clone()))
        .await
        .ok();
    assert_eq!(answer["generated_text"], " end");
    let details = &answer["details"];
    assert_eq!(details["finish_reason"], "eos_token");
    assert_eq!(details["generated_tokens"], 2);
    let special = &details["tokens"][1];
    assert_eq!(
        (&special["id"], &special["text"], &special["special"]),
        (&json!(end), &json!("<|endoftext|>"), &json!(true))
    );
    let events = server
        .stream("/generate_stream", body("!", parameters))
        .await;
    assert_eq!(events.native_text(), " end");
    let last = events.data.last().unwrap();
    assert_eq!(last["token"]["special"], true);
    assert_eq!(last["generated_text"], " end");
    assert_eq!(last["details"]["finish_reason"], "eos_token");
}

#[tokio::test]
async fn a_stop_string_is_part_of_the_text_it_ends() {
    let plain = generate("Once upon a time", json!({"max_new_tokens": 24})).await;
    let plain = plain["generated_text"].as_str().unwrap();
    let stop: String = plain.chars().skip(9).take(6).collect();
    let end = plain.find(&stop).unwrap() + stop.len();
    let parameters = json!({"max_new_tokens": 24, "stop": [stop], "details": true});
    let stopped = generate("Once upon a time", parameters.clone()).await;
    assert_eq!(stopped["generated_text"], plain[..end]);
    assert_eq!(stopped["details"]["finish_reason"], "stop_sequence");
    let events = SERVER
        .stream("/generate_stream", body("Once upon a time", parameters))
        .await;
    assert_eq!(events.native_text(), plain[..end]);
}

#[tokio::test]
async fn full_text_and_truncation() {
    let parameters = json!({"max_new_tokens": 3, "return_full_text": true});
    let full = generate("The cat", parameters.clone()).await;
    let full = full["generated_text"].as_str().unwrap();
    assert!(full.starts_with("The cat") && full.len() > "The cat".len());
    let events = SERVER
        .stream("/generate_stream", body("The cat", parameters))
        .await;
    assert_eq!(events.data.last().unwrap()["generated_text"], full);

    let long = "So it was told. The cat and the mouse";
    let keep = 4;
    let parameters = json!({"max_new_tokens": 5, "truncate": keep, "details": true, "decoder_input_details": true});
    let cut = generate(long, parameters).await;
    let ids = SERVER.ids(long);
    let kept = &ids[ids.len() - keep..];
    let prefill = cut["details"]["prefill"].as_array().unwrap();
    assert_eq!(prefill.len(), keep);
    assert_eq!(prefill[0]["id"], kept[0]);
}

#[tokio::test]
async fn drawing_is_on_when_asked_for_and_off_when_refused() {
    let text = |answer: &Value| answer["generated_text"].as_str().unwrap().to_owned();
    let greedy = text(&generate("The bird", json!({"max_new_tokens": 12})).await);
    let asked = |more: Value| async move {
        let mut parameters = json!({"max_new_tokens": 12, "seed": 3, "details": true});
        let more = more.as_object().unwrap().clone();
        parameters.as_object_mut().unwrap().extend(more);
        generate("The bird", parameters).await
    };
    for sampling in [
        json!({"do_sample": true}),
        json!({"temperature": 1.0}),
        json!({"top_k": 4000}),
        json!({"top_p": 0.999}),
        json!({"typical_p": 0.999}),
    ] {
        let answer = asked(sampling.clone()).await;
        assert_ne!(text(&answer), greedy, "{sampling}");
        assert_eq!(answer["details"]["seed"], 3);
        assert_eq!(text(&asked(sampling).await), text(&answer), "same seed");
    }
    let refused = asked(json!({"do_sample": false, "temperature": 1.5})).await;
    assert_eq!(text(&refused), greedy);
    assert_eq!(refused["details"]["seed"], Value::Null);
    let neither = asked(json!({})).await;
    assert_eq!(text(&neither), greedy, "a seed alone does not draw");
}

#[tokio::test]
async fn best_of_returns_the_likeliest_and_lists_the_others() {
    let parameters =
        json!({"max_new_tokens": 6, "do_sample": true, "seed": 21, "best_of": 3, "details": true});
    let best = generate("At night", parameters).await;
    let others = best["details"]["best_of_sequences"].as_array().unwrap();
    assert_eq!(others.len(), 2);
    let mean = |details: &Value| {
        let tokens = details["tokens"].as_array().unwrap();
        let sum: f64 = tokens.iter().map(|t| t["logprob"].as_f64().unwrap()).sum();
        #[allow(clippy::cast_precision_loss)]
        let mean = sum / tokens.len() as f64;
        mean
    };
    let mut seeds = vec![best["details"]["seed"].as_u64().unwrap()];
    for other in others {
        assert!(mean(other) <= mean(&best["details"]));
        assert!(other["generated_text"].is_string());
        seeds.push(other["seed"].as_u64().unwrap());
    }
    seeds.sort_unstable();
    assert_eq!(seeds, [21, 22, 23]);
}

#[tokio::test]
async fn the_models_own_defaults_fill_in_what_is_left_out() {
    let server = TestServer::with(Setup {
        model_defaults: true,
        ..Setup::default()
    });
    let ask = |parameters: Value| {
        let server = &server;
        async move {
            let answer = server
                .post("/generate", body("The bird", parameters))
                .await
                .ok();
            answer["details"]["seed"].clone()
        }
    };
    // The built-in model's `generation_config.json` asks for sampling.
    let drawn = ask(json!({"max_new_tokens": 2, "details": true})).await;
    assert!(drawn.is_u64());
    let refused = ask(json!({"max_new_tokens": 2, "details": true, "do_sample": false})).await;
    assert_eq!(refused, Value::Null);
    let info = server.get("/info").await.ok();
    assert_eq!(info["sampling_defaults"]["do_sample"], true);
}

#[tokio::test]
async fn tokens_and_back_as_llama_cpp_has_it() {
    let text = "Zwölf 🐉 and <|endoftext|>";
    let answer = SERVER
        .post("/tokenize", json!({"content": text}))
        .await
        .ok();
    assert_eq!(answer["tokens"], json!(SERVER.ids(text)));
    let back = json!({"tokens": answer["tokens"]});
    assert_eq!(SERVER.post("/detokenize", back).await.ok()["content"], text);

    let request = json!({"content": text, "with_pieces": true, "add_special": true});
    let pieces = SERVER.post("/tokenize", request).await.ok();
    let mut bytes = Vec::new();
    for piece in pieces["tokens"].as_array().unwrap() {
        match &piece["piece"] {
            Value::String(text) => bytes.extend(text.bytes()),
            Value::Array(list) => {
                bytes.extend(
                    list.iter()
                        .map(|b| u8::try_from(b.as_u64().unwrap()).unwrap()),
                );
            }
            other => panic!("a piece is {other}"),
        }
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), text);

    let end = SERVER.tokenizer().end_of_text().unwrap();
    assert!(answer["tokens"].as_array().unwrap().contains(&json!(end)));
    let request = json!({"content": text, "parse_special": false});
    let plain = SERVER.post("/tokenize", request).await.ok();
    assert!(!plain["tokens"].as_array().unwrap().contains(&json!(end)));
    assert_eq!(
        SERVER.post("/tokenize", json!({"content": ""})).await.ok()["tokens"],
        json!([])
    );
}

#[tokio::test]
async fn tokens_with_places_as_tgi_has_it() {
    let text = "Hänsel und Gretel";
    let tokens = SERVER.post("/tokenize", json!({"inputs": text})).await.ok();
    let chars: Vec<char> = text.chars().collect();
    let tokens = tokens.as_array().unwrap();
    assert_eq!(tokens.len(), SERVER.ids(text).len());
    for token in tokens {
        let at = |name: &str| usize::try_from(token[name].as_u64().unwrap()).unwrap();
        let place: String = chars[at("start")..at("stop")].iter().collect();
        assert_eq!(token["text"], place);
    }
    assert_eq!(tokens.last().unwrap()["stop"], chars.len());
}

#[tokio::test]
async fn a_long_text_is_tokenized_like_a_short_one() {
    let line = "There was once a miller who was poor, but he had a beautiful daughter.\n";
    let text = line.repeat(400);
    let answer = SERVER
        .post("/tokenize", json!({"content": text}))
        .await
        .ok();
    assert_eq!(answer["tokens"], json!(SERVER.ids(&text)));
}

/// All weight is on the most likely token, also if the reciprocal of the temperature is infinite.
#[tokio::test]
async fn the_smallest_temperatures_choose_what_is_most_likely() {
    let greedy = json!({"max_new_tokens": 12, "do_sample": false});
    let expected = generate("Once upon a time", greedy).await;
    for temperature in [1e-6, 1e-38, 2.9e-39, 1e-45, 1e-300] {
        let parameters = json!({
            "max_new_tokens": 12, "do_sample": true, "temperature": temperature, "seed": 3,
        });
        let told = generate("Once upon a time", parameters).await;
        assert_eq!(told, expected, "{temperature}");
        let body = json!({
            "prompt": "Once upon a time", "max_tokens": 12, "temperature": temperature,
            "top_p": 1e-45, "seed": 3,
        });
        let told = SERVER.post("/v1/completions", body).await.ok();
        let text = &told["choices"][0]["text"];
        assert_eq!(*text, expected["generated_text"], "{temperature}");
    }
}
