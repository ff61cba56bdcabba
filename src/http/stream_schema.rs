//! Schemas of the events of streams: each event is one of the stream's own, or the error that ends it.
//!
//! These types are never constructed: the streams write their events and errors themselves.

use serde::Serialize;
use utoipa::ToSchema;

use super::error::{NativeError, OpenAiError};
use super::native::answer::StreamEvent;
use super::openai::answer::Completion;
use super::openai::chat::answer::ChatCompletionChunk;

/// An event of `/generate_stream`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for its description")]
pub(super) enum GenerateEvent {
    /// A token.
    Token(StreamEvent),
    /// The error that ends the stream.
    Error(NativeError),
}

/// An event of a streamed completion.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for its description")]
pub(super) enum CompletionEvent {
    /// A piece of the text.
    Chunk(Completion<'static>),
    /// The error that ends the stream.
    Error(OpenAiError),
}

/// An event of a streamed chat completion.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for its description")]
pub(super) enum ChatCompletionEvent {
    /// A piece of the answer.
    Chunk(ChatCompletionChunk<'static>),
    /// The error that ends the stream.
    Error(OpenAiError),
}
