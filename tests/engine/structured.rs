//! Requests whose text follows a grammar: exact, batch invariant, and without effect on other requests.

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use skald::engine::{EngineConfig, FinishReason};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::request::RequestDraft;
use skald::text::{Grammar, GrammarSource, Grammars, Tokenizer};

use crate::model::{Outcome, engine, files, gpt2_in, greedy, prompt, run, run_all, sampled};

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(files().tokenizer));
static GRAMMARS: LazyLock<Grammars> =
    LazyLock::new(|| Grammars::new(Arc::clone(&TOKENIZER), 8192, &[8191]));

/// Compiles a grammar for the built-in model.
pub fn compile(source: &GrammarSource) -> Grammar {
    GRAMMARS
        .compile(source)
        .unwrap_or_else(|error| panic!("{source:?}: {error}"))
}

fn regex(text: &str) -> Grammar {
    compile(&GrammarSource::Regex(text.to_owned()))
}

fn schema(schema: &Value) -> Grammar {
    compile(&GrammarSource::JsonSchema(schema.to_string()))
}

/// Returns the text of all tokens except end-of-text.
pub fn text_of(tokenizer: &Tokenizer, outcome: &Outcome) -> String {
    let mut ids = outcome.ids();
    if outcome.finish.ends_with_a_sign() {
        ids.pop();
    }
    tokenizer.decode(&ids)
}

fn text(outcome: &Outcome) -> String {
    text_of(&TOKENIZER, outcome)
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "friends": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 4},
        },
        "required": ["name", "age", "friends"],
        "additionalProperties": false,
    })
}

/// Returns requests with and without grammars, greedy and sampled, some of which are cut off.
fn mixed_requests() -> Vec<RequestDraft> {
    (0..16u32)
        .map(|i| {
            let prompt = prompt(3 + (i as usize * 13) % 60, i);
            let mut draft = sampled(&prompt, 40, u64::from(i) + 1);
            draft.sampling.temperature = Some(if i % 3 == 0 { 0.0 } else { 1.0 });
            let grammar = match i % 5 {
                0 | 1 => None,
                2 => Some(regex("([a-z]{1,6} ){3,20}end")),
                3 => Some(compile(&GrammarSource::JsonObject)),
                _ => Some(schema(&person())),
            };
            RequestDraft { grammar, ..draft }
        })
        .collect()
}

#[tokio::test]
async fn alone_or_among_others_with_and_without_grammars_the_outcome_is_the_same() {
    let engine = engine(EngineConfig::default());
    let mut alone = Vec::new();
    for draft in mixed_requests() {
        alone.push(run(&engine, draft).await);
    }
    let together = run_all(&engine, mixed_requests()).await;
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone.tokens, together.tokens);
    }
    // Requests without a grammar give the same as in a batch without any grammar.
    let plain = mixed_requests().into_iter().map(|draft| RequestDraft {
        grammar: None,
        ..draft
    });
    let plain = run_all(
        &crate::model::engine(EngineConfig::default()),
        plain.collect(),
    )
    .await;
    for (i, draft) in mixed_requests().iter().enumerate() {
        if draft.grammar.is_none() {
            assert_eq!(plain[i].tokens, together[i].tokens);
        } else {
            assert_ne!(plain[i].tokens, together[i].tokens);
        }
    }
}

#[tokio::test]
async fn preempted_requests_go_on_where_their_grammar_was() {
    let requests = || -> Vec<RequestDraft> {
        (0..6u32)
            .map(|i| RequestDraft {
                grammar: Some(regex("([a-z]{1,6} ){30,80}end")),
                ..sampled(&prompt(60, i), 60, 1 + u64::from(i))
            })
            .collect()
    };
    let roomy = run_all(&engine(EngineConfig::default()), requests()).await;
    let block = gpt2_in(WeightDtype::F32).kv_block_bytes(KvDtype::F32) as u64;
    let tight = engine(EngineConfig {
        kv_memory: bytesize::ByteSize::b(block * 24),
        ..EngineConfig::default()
    });
    for (roomy, tight) in roomy.iter().zip(run_all(&tight, requests()).await) {
        assert_eq!(roomy.tokens, tight.tokens);
    }
}

/// The text repeats itself, so that many drafts are accepted and others are forbidden by the grammar.
#[tokio::test]
async fn guesses_are_verified_each_with_what_its_place_allows() {
    let without = engine(EngineConfig {
        speculative_rows: 0,
        ..EngineConfig::default()
    });
    let with = engine(EngineConfig::default());
    let repeating = json!({
        "type": "array", "minItems": 12, "maxItems": 12,
        "items": {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"], "additionalProperties": false},
    });
    let drafts = [
        RequestDraft {
            grammar: Some(schema(&repeating)),
            ..greedy(&prompt(9, 1), 300)
        },
        RequestDraft {
            grammar: Some(schema(&repeating)),
            ..sampled(&prompt(9, 1), 300, 4)
        },
        RequestDraft {
            grammar: Some(regex("(ab ){9}(ac ){9}x")),
            ..sampled(&prompt(9, 2), 300, 4)
        },
    ];
    for draft in drafts {
        let expected = run(&without, draft.clone()).await;
        let found = run(&with, draft).await;
        assert_eq!(expected.tokens, found.tokens);
        assert_eq!(found.finish, FinishReason::Complete, "{}", text(&found));
    }
    let status = with.status();
    assert!(status.accepted > 20, "{status:?}");
    assert!(status.drafted > status.accepted, "{status:?}");
    assert!(status.steps < without.status().steps);
}

#[tokio::test]
async fn log_probabilities_are_the_models_own() {
    let engine = engine(EngineConfig::default());
    let ids = prompt(10, 3);
    let mut draft = RequestDraft {
        grammar: Some(schema(&person())),
        ..sampled(&ids, 60, 9)
    };
    draft.logprobs.top = 3;
    let outcome = run(&engine, draft).await;
    let all = [&ids[..], &outcome.ids()].concat();
    let mut scored = greedy(&all, 0);
    scored.logprobs.prompt_top = 3;
    scored.logprobs.prompt = true;
    let scored = run(&engine, scored).await.prompt.logprobs;
    for (token, scored) in outcome.tokens.iter().zip(&scored[ids.len()..]) {
        let scored = scored.as_ref().expect("a token with something before it");
        assert_eq!(token.token, scored.token);
        assert_eq!(token.top, scored.top);
    }
}

#[tokio::test]
async fn a_text_ends_when_its_grammar_does_whatever_else_is_asked() {
    let engine = engine(EngineConfig::default());
    let drafts = |grammar: Option<Grammar>| {
        let ends = RequestDraft {
            ignore_end_of_text: false,
            ..sampled(&prompt(5, 1), 40, 2)
        };
        let ends = RequestDraft { grammar, ..ends };
        [
            ends.clone(),
            RequestDraft {
                ignore_end_of_text: true,
                ..ends.clone()
            },
            RequestDraft {
                min_tokens: 40,
                ..ends.clone()
            },
            RequestDraft {
                logit_bias: vec![(8191, -100.0)],
                ..ends
            },
        ]
    };
    for draft in drafts(Some(regex("(once|twice)"))) {
        let outcome = run(&engine, draft).await;
        assert!(
            ["once", "twice"].contains(&text(&outcome).as_str()),
            "{}",
            text(&outcome)
        );
        assert_eq!(outcome.finish, FinishReason::Complete);
    }
    // Where the text may end or continue, only the request that ends as early as possible ends.
    for draft in drafts(Some(regex("[ab]+"))).into_iter().skip(1) {
        let outcome = run(&engine, draft).await;
        assert_eq!(
            (outcome.finish, outcome.tokens.len()),
            (FinishReason::Length, 40)
        );
    }
}

#[tokio::test]
async fn a_text_that_may_end_ends_with_the_models_own_end() {
    let engine = engine(EngineConfig::default());
    let draft = RequestDraft {
        grammar: Some(regex("[ab]+")),
        logit_bias: vec![(8191, 100.0)],
        ignore_end_of_text: false,
        ..sampled(&prompt(5, 1), 40, 2)
    };
    let outcome = run(&engine, draft).await;
    assert_eq!(outcome.finish, FinishReason::EndOfText);
    assert!(
        text(&outcome).starts_with(['a', 'b']),
        "at least one comes before the end"
    );
}

#[tokio::test]
async fn max_tokens_cuts_a_text_in_the_middle_of_its_grammar() {
    let engine = engine(EngineConfig::default());
    let draft = RequestDraft {
        grammar: Some(schema(&person())),
        ..sampled(&prompt(5, 1), 4, 2)
    };
    let outcome = run(&engine, draft).await;
    assert_eq!(
        (outcome.finish, outcome.tokens.len()),
        (FinishReason::Length, 4)
    );
    let text = text(&outcome);
    let common = text.len().min("{\"name\":\"".len());
    assert_eq!(text[..common], "{\"name\":\""[..common]);
    assert!(common > 4, "{text}");
    // A text that is complete with its last token is complete.
    let draft = RequestDraft {
        grammar: Some(regex("a")),
        ..sampled(&prompt(5, 1), 1, 2)
    };
    assert_eq!(run(&engine, draft).await.finish, FinishReason::Complete);
}

#[tokio::test]
async fn a_grammar_constrains_the_prompts_continuation_not_the_session() {
    let engine = engine(EngineConfig::default());
    let draft = RequestDraft {
        grammar: Some(regex("[0-9]{3}")),
        ..greedy(&prompt(8, 1), 20)
    };
    let first = run(&engine, draft.clone()).await;
    let history = [prompt(8, 1), first.ids()].concat();
    let second = run(&engine, crate::model::after(&history, draft)).await;
    for outcome in [&first, &second] {
        assert!(text(outcome).parse::<u16>().is_ok(), "{}", text(outcome));
    }
    assert_eq!(second.prompt.prompt_tokens, 16 + first.tokens.len());
}
