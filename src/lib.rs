//! Skald, an HTTP text-generation server for small language models: GPT-2, Gemma, the Llama family.
//!
//! [`http`] validates and tokenizes a request, [`engine`] runs it in a batch with others, and [`http`]
//! decodes the tokens to text and streams it.
//!
//! | module | purpose |
//! |---|---|
//! | [`cli`] | the command line, one file per subcommand |
//! | [`config`] | settings: flags > environment > file > defaults |
//! | [`resources`] | limits of compute threads and memory |
//! | [`telemetry`] | logs, and traces to an OpenTelemetry collector |
//! | [`recency`], [`moving_average`] | orders of use, averages of measurements |
//! | [`panics`] | logs panics |
//! | [`regular_file`] | opens files that hold models and sessions |
//! | [`shown_url`] | URLs in messages, without secrets |
//! | [`tls`] | the HTTP clients' TLS |
//! | [`http`] | the front end: dialects, errors, streams, health, the API description |
//! | [`serving`] | the only start-up: from settings to a running engine |
//! | [`keys`] | API keys: the file, scopes, limits |
//! | [`request`] | the validated request that every dialect creates |
//! | [`text`] | tokenizer, incremental detokenizer, stop strings |
//! | [`session`] | named histories that clients continue: turns, files, KV blocks on disk |
//! | [`engine`] | the inference worker: scheduler, KV blocks, sampling |
//! | [`lane`] | bounded lanes for work outside the engine |
//! | [`fair`] | tenants, and their fair shares of limited resources |
//! | [`model`] | the architectures: the forward passes of GPT-2, Gemma and the Llama family |
//! | [`checkpoint`] | sources, files and content of models |
//! | [`backend`] | computation of a model's layers by the kernels or by candle's own operations |
//! | [`kernels`] | the compute kernels, as candle custom ops |
//!
//! Dependencies point one way: `cli -> http -> serving, keys -> session -> request, text, engine -> model -> checkpoint, backend -> kernels`.

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod engine;
pub mod fair;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod http;
pub mod kernels;
pub mod keys;
pub mod lane;
pub mod model;
pub mod moving_average;
pub mod panics;
pub mod recency;
pub mod regular_file;
pub mod request;
pub mod resources;
pub mod serving;
pub mod session;
pub mod shown_url;
pub mod telemetry;
pub mod text;
pub mod tls;
