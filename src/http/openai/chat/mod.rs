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
use self::request::ChatBody;
use super::answer::{Usage, UsageField, finish_reason};
use super::reply::{self, Reply, Wording};
use crate::engine::PromptToken;
use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::generation::{Finished, TextStep, Whole};
use crate::http::layers::Scope;
use crate::http::ledger::ShownToken;
use crate::http::openapi::OpenAiErrors;
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
/// GPT-2 itself has no chat template. Such a model is given the plain form: messages of system and
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
    body: ChatBody,
) -> Result<Response, ApiError> {
    let (serving, in_flight) = app.begin(scope.share)?;
    let plan = body.plan(&serving, &scope).await?;
    let per_prompt = plan.requests.len();
    let wording = Chat {
        reply: Reply::new(
            "chatcmpl",
            Arc::clone(&serving),
            plan.streaming,
            per_prompt,
            &plan.requests,
        ),
        with_logprobs: plan.logprobs.is_some(),
    };
    reply::respond(&app, in_flight, wording, plan.requests, None, &scope).await
}

/// Chat completions in OpenAI's words.
struct Chat {
    reply: Reply,
    with_logprobs: bool,
}

impl Chat {
    fn logprobs(&self, tokens: &[ShownToken]) -> Option<ChatLogprobs> {
        let tokenizer = &self.reply.serving.tokenizer;
        self.with_logprobs
            .then(|| ChatLogprobs::new(tokenizer, tokens))
    }

    fn choice(&self, index: usize, whole: Whole) -> ChatChoice {
        ChatChoice {
            index,
            logprobs: self.logprobs(&whole.tokens),
            message: AnswerMessage {
                role: ASSISTANT,
                content: whole.text,
                refusal: None,
            },
            finish_reason: finish_reason(whole.finish.reason),
            seed: self.reply.seed(index),
        }
    }

    fn completion(&self, choices: Vec<ChatChoice>, usage: Usage) -> ChatCompletion<'_> {
        let info = &self.reply.serving.info;
        ChatCompletion {
            id: &self.reply.id,
            object: "chat.completion",
            created: self.reply.created,
            model: &info.id,
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
            model: &info.id,
            system_fingerprint: &info.fingerprint,
            choices,
            usage,
        }
    }
}

impl Wording for Chat {
    type Choice = ChunkChoice;

    fn reply(&self) -> &Reply {
        &self.reply
    }

    fn scores_prompt(&self) -> bool {
        false
    }

    fn begun(&self, generation: usize, _: &[Option<PromptToken>]) -> Option<ChunkChoice> {
        Some(ChunkChoice {
            index: generation,
            delta: Delta {
                role: Some(ASSISTANT),
                content: Some(String::new()),
            },
            ..ChunkChoice::default()
        })
    }

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

    fn ended(&self, generation: usize, finish: &Finished) -> ChunkChoice {
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

    fn whole(&self, wholes: Vec<Whole>) -> Response {
        let usage = self.reply.usage(&wholes);
        let wholes = wholes.into_iter().enumerate();
        let choices = wholes.map(|(index, whole)| self.choice(index, whole));
        Json(self.completion(choices.collect(), usage)).into_response()
    }
}
