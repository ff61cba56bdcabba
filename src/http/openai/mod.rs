//! The OpenAI dialect: `/v1/completions`, `/v1/chat/completions` and `/v1/models`.
//!
//! | module | what it is for |
//! |---|---|
//! | [`shared`] | the fields that both kinds of completions have |
//! | [`reply`] | how both are answered, at once or as a stream |
//! | [`chat`] | chat completions |
//! | [`request`] | the body of a completion request, and how it becomes requests to the engine |
//! | [`answer`] | the objects of the answer |
//! | [`logprobs`] | the `logprobs` object of a choice |
//! | [`completions`] | the handler, and its words |
//! | [`models`] | the list of models |
//!
//! Nothing here may reach into the engine: generations run in [`super::generation`].

pub(super) mod answer;
pub(super) mod chat;
pub(super) mod completions;
mod logprobs;
pub(super) mod models;
mod prompt;
pub(super) mod reply;
pub(super) mod request;
pub(super) mod shared;
