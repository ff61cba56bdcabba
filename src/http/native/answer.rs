//! The objects of the native dialect's answers, and their renderer.

use std::sync::Arc;

use axum::Json;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Form;
use super::request::ResponseOptions;
use crate::engine::{FinishReason, PromptToken, TokenLogprob};
use crate::http::error::ApiError;
use crate::http::generation::{
    CompletedGeneration, GenerationStep, ShownToken, Submission, TextStep,
};
use crate::http::renderer::Renderer;
use crate::http::sse;
use crate::request::GenerateRequest;
use crate::text::Tokenizer;

/// The answer to a request without streaming.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"generated_text": " there was a king"}))]
pub(in crate::http) struct GenerateAnswer {
    /// The text, including the stop string that ended it, if any.
    generated_text: String,
    /// True if the session starts anew because its stored history could not be read; otherwise absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    history_lost: bool,
    /// Details; absent unless requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

/// Details of a generated text.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Details {
    /// Finish reason: `length`, `eos_token` or `stop_sequence`.
    finish_reason: &'static str,
    /// Number of generated tokens, including the end-of-text token.
    generated_tokens: usize,
    /// Prompt tokens found in the KV cache, including those of a session's history.
    cached_tokens: usize,
    /// Seed of the sampling; null for greedy decoding.
    seed: Option<u64>,
    /// The prompt's tokens; empty unless `decoder_input_details`.
    prefill: Vec<PrefillToken>,
    /// The generated tokens.
    tokens: Vec<Token>,
    /// The most likely tokens at each position, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_tokens: Option<Vec<Vec<Token>>>,
    /// The other texts of `best_of`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    best_of_sequences: Option<Vec<BestOfSequence>>,
}

/// A text of `best_of` other than the best.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BestOfSequence {
    /// The text.
    generated_text: String,
    /// Details of the text.
    #[serde(flatten)]
    details: Details,
}

/// A token of the prompt.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PrefillToken {
    /// Token id.
    id: u32,
    /// Text of the token.
    text: String,
    /// Log-probability of the token given those before it; null for the first.
    logprob: Option<f32>,
}

/// A generated token.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct Token {
    /// Token id.
    id: u32,
    /// The token's part of the text; the name of a special token, which is not part of the text.
    text: String,
    /// Log-probability under the model's own distribution; null if it is not finite.
    logprob: f32,
    /// Whether the token is special, such as end-of-text.
    special: bool,
}

/// An event of a stream.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"index": 1, "token": {"id": 444, "text": " there", "logprob": -0.51, "special": false}, "generated_text": null, "details": null}))]
pub(in crate::http) struct StreamEvent {
    /// Number of the token, from 1.
    index: usize,
    /// The token.
    token: Token,
    /// The most likely tokens at its position, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_tokens: Option<Vec<Token>>,
    /// The whole text; only in the last event.
    generated_text: Option<String>,
    /// True in every event if the session starts anew because its stored history could not be read;
    /// otherwise absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    history_lost: bool,
    /// Details; only in the last event, if requested.
    details: Option<StreamDetails>,
}

/// Details of a streamed text.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct StreamDetails {
    /// Finish reason: `length`, `eos_token` or `stop_sequence`.
    finish_reason: &'static str,
    /// Number of generated tokens, including the end-of-text token.
    generated_tokens: usize,
    /// Prompt tokens, including those of a session's history.
    input_length: usize,
    /// Prompt tokens found in the KV cache.
    cached_tokens: usize,
    /// Seed of the sampling; null for greedy decoding.
    seed: Option<u64>,
}

/// Renders texts and tokens.
struct AnswerWriter {
    tokenizer: Arc<Tokenizer>,
    options: ResponseOptions,
    /// Seed of each generation; `None` for greedy decoding.
    seeds: Vec<Option<u64>>,
    history_lost: bool,
}

impl AnswerWriter {
    fn seed(&self, generation: usize) -> Option<u64> {
        self.seeds.get(generation).copied().flatten()
    }

    /// Returns the text of a token by itself.
    fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
    }

    fn token(&self, shown: &ShownToken) -> Token {
        Token {
            id: shown.token.id,
            text: if shown.special {
                self.token_text(shown.token.id)
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
                text: self.token_text(token.id),
                logprob: token.logprob,
                special: self.tokenizer.is_special(token.id),
            })
            .collect()
    }

    fn prefill(&self, id: u32, report: Option<&PromptToken>) -> PrefillToken {
        PrefillToken {
            id,
            text: self.token_text(id),
            logprob: report.map(|report| report.token.logprob),
        }
    }

    fn sequence(
        &self,
        generation: usize,
        completed: &CompletedGeneration,
        scores: &[Option<PromptToken>],
    ) -> BestOfSequence {
        let prompt = self.options.prompt.iter();
        let prefill = prompt
            .zip(scores)
            .map(|(&id, report)| self.prefill(id, report.as_ref()));
        let tokens = completed.tokens.iter();
        BestOfSequence {
            generated_text: format!("{}{}", self.options.full_text_prefix, completed.text),
            details: Details {
                finish_reason: finish_reason(completed.finish.reason),
                generated_tokens: completed.finish.generated,
                cached_tokens: completed.prompt.cached_tokens,
                seed: self.seed(generation),
                prefill: prefill.collect(),
                tokens: tokens.clone().map(|token| self.token(token)).collect(),
                top_tokens: (self.options.top_tokens)
                    .then(|| tokens.map(|token| self.top(&token.top)).collect()),
                best_of_sequences: None,
            },
        }
    }

    /// Returns the answer with all texts of `best_of`.
    ///
    /// # Errors
    /// If `completed` is empty, which never happens.
    fn answer(&self, completed: &[CompletedGeneration]) -> Result<GenerateAnswer, ApiError> {
        // The first generation scores the prompt for all.
        let scores = completed.first();
        let scores = scores.map(|first| first.prompt.logprobs.as_slice());
        let scores = scores.unwrap_or_default();
        let mut ranked: Vec<(usize, &CompletedGeneration)> = completed.iter().enumerate().collect();
        // Stable, so the first of several equal texts wins.
        ranked.sort_by(|(_, a), (_, b)| b.finish.mean_logprob.total_cmp(&a.finish.mean_logprob));
        let mut sequences = ranked
            .into_iter()
            .map(|(generation, completed)| self.sequence(generation, completed, scores));
        let best = sequences
            .next()
            .ok_or_else(|| ApiError::internal("nothing was generated"))?;
        let others: Vec<_> = sequences.collect();
        Ok(GenerateAnswer {
            generated_text: best.generated_text,
            history_lost: self.history_lost,
            details: self.options.details.then(|| Details {
                best_of_sequences: (!others.is_empty()).then_some(others),
                ..best.details
            }),
        })
    }
}

/// Renders answers in the native dialect.
pub(super) struct NativeRenderer {
    writer: AnswerWriter,
    form: Form,
    /// The whole text so far.
    text: String,
    /// Number of the last token, from 1.
    index: usize,
    input_length: usize,
    cached_tokens: usize,
    done: bool,
}

impl NativeRenderer {
    pub(super) fn new(
        tokenizer: Arc<Tokenizer>,
        options: ResponseOptions,
        submission: &Submission,
        form: Form,
    ) -> Self {
        let seed = |request: &GenerateRequest| {
            (request.sampling.temperature > 0.0).then_some(request.sampling.seed)
        };
        Self {
            text: options.full_text_prefix.clone(),
            writer: AnswerWriter {
                tokenizer,
                options,
                seeds: submission.requests.iter().map(seed).collect(),
                history_lost: submission.history_lost(),
            },
            form,
            index: 0,
            input_length: 0,
            cached_tokens: 0,
            done: false,
        }
    }

    fn event(&mut self, shown: &ShownToken) -> StreamEvent {
        self.index += 1;
        let writer = &self.writer;
        StreamEvent {
            index: self.index,
            token: writer.token(shown),
            top_tokens: (writer.options.top_tokens).then(|| writer.top(&shown.top)),
            generated_text: None,
            history_lost: writer.history_lost,
            details: None,
        }
    }

    fn text_step(&mut self, step: &TextStep) -> Vec<Event> {
        self.text.push_str(&step.text);
        let tokens = step.tokens.iter();
        let mut events: Vec<StreamEvent> = tokens.map(|token| self.event(token)).collect();
        if let Some(finish) = &step.finish {
            self.done = true;
            if let Some(last) = events.last_mut() {
                last.generated_text = Some(std::mem::take(&mut self.text));
                last.details = self.writer.options.details.then(|| StreamDetails {
                    finish_reason: finish_reason(finish.reason),
                    generated_tokens: finish.generated,
                    input_length: self.input_length,
                    cached_tokens: self.cached_tokens,
                    seed: self.writer.seed(0),
                });
            }
        }
        events.iter().map(sse::json).collect()
    }
}

impl Renderer for NativeRenderer {
    fn streams(&self) -> bool {
        self.form == Form::Stream
    }

    fn step(&mut self, _: usize, step: GenerationStep) -> Vec<Event> {
        match step {
            GenerationStep::Prompt(report) => {
                self.input_length = report.prompt_tokens;
                self.cached_tokens = report.cached_tokens;
                Vec::new()
            }
            GenerationStep::Text(step) => self.text_step(&step),
        }
    }

    fn error(&self, error: &ApiError) -> Event {
        sse::json(&error.native_event())
    }

    fn is_done(&self) -> bool {
        self.done
    }

    fn whole(self, generations: Vec<CompletedGeneration>) -> Result<Response, ApiError> {
        let answer = self.writer.answer(&generations)?;
        Ok(match self.form {
            Form::List => Json([answer]).into_response(),
            Form::Object | Form::Stream => Json(answer).into_response(),
        })
    }
}

/// Returns TGI's name of a finish reason.
fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfText | FinishReason::Complete => "eos_token",
        FinishReason::Stop => "stop_sequence",
    }
}
