//! The OpenAI dialect: `/v1/completions`, `/v1/chat/completions`, `/v1/embeddings` and `/v1/models`.
//!
//! | module | what it is for |
//! |---|---|
//! | [`shared`] | the fields that both kinds of completions have |
//! | [`with_shared`] | a body with these and the endpoint's own |
//! | [`reply`] | how both are answered, at once or as a stream |
//! | [`chat`] | chat completions |
//! | [`request`] | the body of a completion request, and how it becomes requests to the engine |
//! | [`beams`] | its fields of beam search |
//! | [`answer`] | the objects of the answer |
//! | [`logprobs`] | the `logprobs` object of a choice |
//! | [`completions`] | the handler, and its words |
//! | [`embeddings`] | embeddings, from the body to the answer |
//! | [`prompt`] | the forms of `prompt` and `input` |
//! | [`models`] | the list of models |
//!
//! Nothing here may reach into the engine: generations run in [`super::generation`].

pub(super) mod answer;
mod beams;
pub(super) mod chat;
pub(super) mod completions;
pub(super) mod embeddings;
mod logprobs;
pub(super) mod models;
mod prompt;
pub(super) mod reply;
pub(super) mod request;
pub(super) mod shared;
mod with_shared;
