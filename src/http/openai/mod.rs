//! The OpenAI dialect: `/v1/completions`, `/v1/embeddings` and `/v1/models`.
//!
//! | module | what it is for |
//! |---|---|
//! | [`request`] | the body of a completion request, and how it becomes requests to the engine |
//! | [`beams`] | its fields of beam search |
//! | [`answer`] | the objects of the answer |
//! | [`logprobs`] | the `logprobs` object of a choice |
//! | [`completions`] | the handler, and the writer of streams |
//! | [`embeddings`] | embeddings, from the body to the answer |
//! | [`prompt`] | the forms of `prompt` and `input` |
//! | [`models`] | the list of models |
//!
//! Nothing here may reach into the engine: generations run in [`super::generation`].

pub(super) mod answer;
mod beams;
pub(super) mod completions;
pub(super) mod embeddings;
mod logprobs;
pub(super) mod models;
mod prompt;
pub(super) mod request;
