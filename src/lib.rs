//! Skald, an HTTP text-generation server for GPT-2 class language models.
//!
//! The way of a request: [`http`](crate) validates and tokenizes, [`engine`] runs it in a batch
//! with others, the front end turns the tokens back into text and streams it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`request`] | what every dialect's request becomes, and its validation |
//! | [`text`] | tokenizer, incremental detokenizer, stop strings |
//! | [`engine`] | the inference worker: scheduler, KV blocks, sessions, sampling |
//! | [`model`] | GPT-2, its configuration, weights and where they come from |
//! | [`kernels`] | the compute kernels, as candle custom ops |
//!
//! Dependencies point one way: `cli -> http -> request, text, engine -> model -> kernels`.

pub mod engine;
pub mod http;
pub mod kernels;
pub mod model;
pub mod request;
pub mod text;
