//! `POST /v1/chat/completions`: conversations, answered at once or as a stream.
//!
//! | module | what it is for |
//! |---|---|
//! | [`request`] | the body, and how it becomes requests to the engine |
//! | [`messages`] | the messages in it |
//! | [`conversation`] | how messages become a prompt, also for `/tokenize` |
//! | [`answer`] | the objects of the answer |
//!
//! How messages become a prompt is [`crate::text::template`]'s business.

pub(in crate::http) mod answer;
pub(in crate::http) mod conversation;
pub(in crate::http) mod messages;
mod request;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};

use self::answer::{
    AnswerMessage, ChatChoice, ChatCompletion, ChatCompletionChunk, ChatLogprobs, ChunkChoice,
    Delta,
};
use self::request::{ChatBody, PreparedChat};
use super::answer::{Usage, UsageField, finish_reason};
use super::logprobs::{TokenForm, TokenNames};
use super::reply::Reply;
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::documented_errors::OpenAiErrors;
use crate::http::error::ApiError;
use crate::http::generation::{
    CompletedGeneration, Finished, GenerationStep, ShownToken, TextStep,
};
use crate::http::layers::Scope;
use crate::http::renderer::Renderer;
use crate::http::respond::respond;
use crate::http::sse;
use crate::http::stream_schema::ChatCompletionEvent;

const ASSISTANT: &str = "assistant";

/// Answer a conversation
///
/// The messages become a prompt by the chat template that comes with the model
/// (`chat_template.jinja`, or `chat_template` in `tokenizer_config.json`) or that the server was
/// given; `/info` tells which. A template may refuse messages, their order say: that is a 400 with
/// what it said. Special tokens written in a message are plain text.
///
/// Some models, as GPT-2 itself, have no chat template. Such a model is given the plain form: messages of system and
/// developer as paragraphs, those of others after `User: ` (or the message's `name` and `: `) or
/// `Assistant: `, white space around them trimmed, an empty line after each, and at last
/// `Assistant:`. As it has no token for the end of its turn, its answer also ends where the line of
/// another speaker would begin. Messages of tools are refused in this form.
///
/// One answer, or with `"stream": true` server-sent events: `data: {chunk}` with the role of each
/// choice, then with each new piece of its text, then with its `finish_reason`; with
/// `stream_options.include_usage` one with `"choices": []` and the usage; then `data: [DONE]`.
/// Choices come interleaved, told apart by `index`. If generation fails after the stream began,
/// `data: {"error": …}` ends it, without `[DONE]`. A silent stream sends `: keep-alive`. A client
/// that goes away cancels the request.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "chat_completions",
    tag = "openai",
    request_body = ChatBody,
    responses(
        (status = 200, description = "The answer, or its events", content(
            (ChatCompletion<'static> = "application/json"),
            (ChatCompletionEvent = "text/event-stream", example = json!("data: {\"id\":\"chatcmpl-0f2c\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,\"model\":\"fairy-tales\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\ndata: {\"id\":\"chatcmpl-0f2c\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,\"model\":\"fairy-tales\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" He\"},\"logprobs\":null,\"finish_reason\":null}]}\n\ndata: {\"id\":\"chatcmpl-0f2c\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,\"model\":\"fairy-tales\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\",\"seed\":42}]}\n\ndata: [DONE]\n\n")),
        )),
        OpenAiErrors,
    ),
)]
pub(in crate::http) async fn completions(
    State(app): State<App>,
    scope: Scope,
    JsonBody(body): JsonBody<ChatBody>,
) -> Result<Response, ApiError> {
    let (serving, in_flight) = app.begin(scope.share)?;
    let PreparedChat {
        submission,
        logprobs,
        streaming,
    } = body.prepare(&serving, &scope).await?;
    let renderer = ChatRenderer {
        reply: Reply::new("chatcmpl", Arc::clone(&serving), streaming, &submission),
        logprobs,
    };
    respond(&app, in_flight, &serving, submission, &scope, renderer).await
}

/// Renders chat completions.
struct ChatRenderer {
    reply: Reply,
    /// How tokens are written, where log-probabilities are reported.
    logprobs: Option<TokenForm>,
}

impl ChatRenderer {
    fn logprobs(&self, tokens: &[ShownToken]) -> Option<ChatLogprobs> {
        let tokenizer = &self.reply.serving.tokenizer;
        self.logprobs
            .map(|form| ChatLogprobs::new(TokenNames { tokenizer, form }, tokens))
    }

    fn choice(&self, index: usize, completed: CompletedGeneration) -> ChatChoice {
        ChatChoice {
            index,
            logprobs: self.logprobs(&completed.tokens),
            message: AnswerMessage {
                role: ASSISTANT,
                content: completed.text,
                refusal: None,
            },
            finish_reason: finish_reason(completed.finish.reason),
            seed: self.reply.seed(index),
        }
    }

    fn completion(&self, choices: Vec<ChatChoice>, usage: Usage) -> ChatCompletion<'_> {
        let info = &self.reply.serving.info;
        ChatCompletion {
            id: &self.reply.id,
            object: "chat.completion",
            created: self.reply.created,
            model: &self.reply.model,
            system_fingerprint: &info.fingerprint,
            choices,
            usage,
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: UsageField) -> ChatCompletionChunk<'_> {
        let info = &self.reply.serving.info;
        ChatCompletionChunk {
            id: &self.reply.id,
            object: "chat.completion.chunk",
            created: self.reply.created,
            model: &self.reply.model,
            system_fingerprint: &info.fingerprint,
            choices,
            usage,
        }
    }

    /// Returns the choice with new text or tokens, if there are any.
    fn continued(&self, generation: usize, step: TextStep) -> Option<ChunkChoice> {
        let logprobs = self.logprobs(&step.tokens);
        let logprobs = logprobs.filter(|logprobs| !logprobs.is_empty());
        (!step.text.is_empty() || logprobs.is_some()).then(|| ChunkChoice {
            index: generation,
            delta: Delta {
                role: None,
                content: Some(step.text),
            },
            logprobs,
            ..ChunkChoice::default()
        })
    }

    /// Returns the last choice of a generation in a stream.
    fn finished(&mut self, generation: usize, finish: &Finished) -> ChunkChoice {
        self.reply.finished(finish);
        ChunkChoice {
            index: generation,
            finish_reason: Some(finish_reason(finish.reason)),
            seed: self.reply.seed(generation),
            ..ChunkChoice::default()
        }
    }

    fn event(&self, choices: Vec<ChunkChoice>, usage: UsageField) -> Event {
        sse::json(&self.chunk(choices, usage))
    }
}

impl Renderer for ChatRenderer {
    fn streams(&self) -> bool {
        self.reply.streams
    }

    fn step(&mut self, generation: usize, step: GenerationStep) -> Vec<Event> {
        let choices = match step {
            GenerationStep::Prompt(report) => {
                self.reply.prefilled(generation, &report);
                [Some(first_choice(generation)), None]
            }
            GenerationStep::Text(mut step) => {
                let finish = step.finish.take();
                let continued = self.continued(generation, step);
                [
                    continued,
                    finish.map(|finish| self.finished(generation, &finish)),
                ]
            }
        };
        let choices = choices.into_iter().flatten();
        self.reply
            .events(choices, |choices, usage| self.event(choices, usage))
    }

    fn error(&self, error: &ApiError) -> Event {
        sse::json(&error.openai())
    }

    fn is_done(&self) -> bool {
        self.reply.is_done()
    }

    fn whole(self, generations: Vec<CompletedGeneration>) -> Result<Response, ApiError> {
        let usage = self.reply.total_usage(&generations);
        let completed = generations.into_iter().enumerate();
        let choices = completed.map(|(index, completed)| self.choice(index, completed));
        Ok(Json(self.completion(choices.collect(), usage)).into_response())
    }
}

/// Returns the first choice of a generation in a stream, which has the role.
fn first_choice(generation: usize) -> ChunkChoice {
    ChunkChoice {
        index: generation,
        delta: Delta {
            role: Some(ASSISTANT),
            content: Some(String::new()),
        },
        ..ChunkChoice::default()
    }
}
