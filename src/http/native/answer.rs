//! The objects of the native dialect's answers, and the writer of its streams.

use std::sync::Arc;

use axum::response::sse::Event;
use serde::Serialize;
use utoipa::ToSchema;

use super::request::Plan;
use crate::engine::{FinishReason, PromptToken, TokenLogprob};
use crate::http::error::ApiError;
use crate::http::generation::{Step, TextStep, Whole};
use crate::http::ledger::ShownToken;
use crate::http::sse::{self, Writer};
use crate::request::GenerateRequest;
use crate::text::Tokenizer;

/// The answer to a request that does not stream.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"generated_text": " there was a king"}))]
pub(in crate::http) struct GenerateAnswer {
    /// The text, with the stop string that ended it, if one did.
    generated_text: String,
    /// True where the session begins anew because its stored history could not be read; else absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    history_lost: bool,
    /// Only if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

/// How the text came about.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Details {
    /// `length`, `eos_token` or `stop_sequence`.
    finish_reason: &'static str,
    /// Tokens generated, the end-of-text token included.
    generated_tokens: usize,
    /// Tokens of the prompt that were in the KV cache already, a session's history included.
    cached_tokens: usize,
    /// The seed the text was drawn with; null if it was not drawn.
    seed: Option<u64>,
    /// The prompt's tokens; empty unless `decoder_input_details`.
    prefill: Vec<PrefillToken>,
    /// The generated tokens.
    tokens: Vec<Token>,
    /// For each of them the most likely tokens in its place, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_tokens: Option<Vec<Vec<Token>>>,
    /// The other texts of `best_of`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    best_of_sequences: Option<Vec<BestOfSequence>>,
}

/// One of the other texts of `best_of`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BestOfSequence {
    /// Its text.
    generated_text: String,
    /// How it came about.
    #[serde(flatten)]
    details: Details,
}

/// A token of the prompt.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PrefillToken {
    /// Token id.
    id: u32,
    /// Its text.
    text: String,
    /// Its log-probability given the tokens before it; null for the first.
    logprob: Option<f32>,
}

/// A generated token.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct Token {
    /// Token id.
    id: u32,
    /// Its part of the text; the name of a special token, which is no part of it.
    text: String,
    /// Its log-probability under the model's own distribution; null if it is not finite.
    logprob: f32,
    /// A special token, such as end-of-text.
    special: bool,
}

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"index": 1, "token": {"id": 444, "text": " there", "logprob": -0.51, "special": false}, "generated_text": null, "details": null}))]
pub(in crate::http) struct StreamEvent {
    /// The number of the token, from 1.
    index: usize,
    /// The token.
    token: Token,
    /// The most likely tokens in its place, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_tokens: Option<Vec<Token>>,
    /// The whole text; only in the last event.
    generated_text: Option<String>,
    /// True in every event where the session begins anew because its stored history could not be read; else absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    history_lost: bool,
    /// Only in the last event, and only if asked for.
    details: Option<StreamDetails>,
}

/// How a streamed text came about.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct StreamDetails {
    /// `length`, `eos_token` or `stop_sequence`.
    finish_reason: &'static str,
    /// Tokens generated, the end-of-text token included.
    generated_tokens: usize,
    /// Tokens of the prompt, a session's history included.
    input_length: usize,
    /// How many of them were in the KV cache already.
    cached_tokens: usize,
    /// The seed the text was drawn with; null if it was not drawn.
    seed: Option<u64>,
}

/// What of the answer was asked for.
pub(super) struct Wanted {
    plan: Plan,
    seeds: Vec<Option<u64>>,
    history_lost: bool,
}

impl Wanted {
    pub(super) fn new(plan: Plan, requests: &[GenerateRequest], history_lost: bool) -> Self {
        let drawn = |request: &GenerateRequest| {
            (request.sampling.temperature > 0.0).then_some(request.sampling.seed)
        };
        Self {
            plan,
            seeds: requests.iter().map(drawn).collect(),
            history_lost,
        }
    }

    fn seed(&self, generation: usize) -> Option<u64> {
        self.seeds.get(generation).copied().flatten()
    }
}

/// Writes tokens.
pub(super) struct Tokens(Arc<Tokenizer>);

impl Tokens {
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self(tokenizer)
    }

    /// The text of a token on its own.
    fn alone(&self, id: u32) -> String {
        String::from_utf8_lossy(self.0.token_bytes(id).unwrap_or_default()).into_owned()
    }

    fn shown(&self, shown: &ShownToken) -> Token {
        Token {
            id: shown.token.id,
            text: if shown.special {
                self.alone(shown.token.id)
            } else {
                shown.text.clone()
            },
            logprob: shown.token.logprob,
            special: shown.special,
        }
    }

    fn top(&self, top: &[TokenLogprob]) -> Vec<Token> {
        top.iter()
            .map(|token| Token {
                id: token.id,
                text: self.alone(token.id),
                logprob: token.logprob,
                special: self.0.is_special(token.id),
            })
            .collect()
    }

    fn prefill(&self, id: u32, report: Option<&PromptToken>) -> PrefillToken {
        PrefillToken {
            id,
            text: self.alone(id),
            logprob: report.map(|report| report.token.logprob),
        }
    }

    fn sequence(
        &self,
        wanted: &Wanted,
        generation: usize,
        whole: &Whole,
        scores: &[Option<PromptToken>],
    ) -> BestOfSequence {
        let prompt = wanted.plan.prompt.iter();
        let prefill = prompt
            .zip(scores)
            .map(|(&id, report)| self.prefill(id, report.as_ref()));
        BestOfSequence {
            generated_text: format!("{}{}", wanted.plan.full_text_prefix, whole.text),
            details: Details {
                finish_reason: finish_reason(whole.finish.reason),
                generated_tokens: whole.finish.generated,
                cached_tokens: whole.prompt.cached_tokens,
                seed: wanted.seed(generation),
                prefill: prefill.collect(),
                tokens: whole.tokens.iter().map(|token| self.shown(token)).collect(),
                top_tokens: wanted.plan.top_tokens.then(|| {
                    let tops = whole.tokens.iter().map(|token| self.top(&token.top));
                    tops.collect()
                }),
                best_of_sequences: None,
            },
        }
    }

    /// The answer made of all texts of `best_of`.
    ///
    /// # Errors
    /// Never: there is at least one text.
    pub(super) fn answer(
        &self,
        wanted: &Wanted,
        wholes: Vec<Whole>,
    ) -> Result<GenerateAnswer, ApiError> {
        let mut wholes = wholes;
        // The first has scored the prompt of all.
        let scores = wholes.first_mut();
        let scores = scores.map(|first| std::mem::take(&mut first.prompt.logprobs));
        let scores = scores.unwrap_or_default();
        let mut ranked: Vec<(usize, Whole)> = wholes.into_iter().enumerate().collect();
        // Stable: of equals the first wins.
        ranked.sort_by(|(_, a), (_, b)| b.finish.mean_logprob.total_cmp(&a.finish.mean_logprob));
        let mut sequences = ranked
            .iter()
            .map(|(generation, whole)| self.sequence(wanted, *generation, whole, &scores));
        let best = sequences
            .next()
            .ok_or_else(|| ApiError::internal("nothing was generated"))?;
        let others: Vec<_> = sequences.collect();
        Ok(GenerateAnswer {
            generated_text: best.generated_text,
            history_lost: wanted.history_lost,
            details: wanted.plan.details.then(|| Details {
                best_of_sequences: (!others.is_empty()).then_some(others),
                ..best.details
            }),
        })
    }
}

/// Writes a stream.
pub(super) struct Events {
    tokens: Tokens,
    wanted: Wanted,
    /// The whole text so far.
    text: String,
    index: usize,
    input_length: usize,
    cached_tokens: usize,
    done: bool,
}

impl Events {
    pub(super) fn new(tokens: Tokens, wanted: Wanted) -> Self {
        Self {
            text: wanted.plan.full_text_prefix.clone(),
            tokens,
            wanted,
            index: 0,
            input_length: 0,
            cached_tokens: 0,
            done: false,
        }
    }

    fn step(&mut self, step: TextStep) -> Vec<Event> {
        self.text.push_str(&step.text);
        let mut events: Vec<StreamEvent> = step
            .tokens
            .iter()
            .map(|shown| {
                self.index += 1;
                StreamEvent {
                    index: self.index,
                    token: self.tokens.shown(shown),
                    top_tokens: self
                        .wanted
                        .plan
                        .top_tokens
                        .then(|| self.tokens.top(&shown.top)),
                    generated_text: None,
                    history_lost: self.wanted.history_lost,
                    details: None,
                }
            })
            .collect();
        if let Some(finish) = step.finish {
            self.done = true;
            if let Some(last) = events.last_mut() {
                last.generated_text = Some(std::mem::take(&mut self.text));
                last.details = self.wanted.plan.details.then(|| StreamDetails {
                    finish_reason: finish_reason(finish.reason),
                    generated_tokens: finish.generated,
                    input_length: self.input_length,
                    cached_tokens: self.cached_tokens,
                    seed: self.wanted.seed(0),
                });
            }
        }
        events.iter().map(sse::json).collect()
    }
}

impl Writer for Events {
    fn step(&mut self, _: usize, step: Result<Step, ApiError>) -> Vec<Event> {
        match step {
            Ok(Step::Prompt(report)) => {
                self.input_length = report.prompt_tokens;
                self.cached_tokens = report.cached_tokens;
                Vec::new()
            }
            Ok(Step::Text(step)) => Self::step(self, step),
            Err(error) => {
                self.done = true;
                vec![sse::json(&error.native_event())]
            }
        }
    }

    fn done(&self) -> bool {
        self.done
    }
}

/// TGI's names.
fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfText | FinishReason::Complete => "eos_token",
        FinishReason::Stop => "stop_sequence",
    }
}
