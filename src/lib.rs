//! Skald, an HTTP text-generation server for GPT-2 class language models.
//!
//! The path of a request: [`http`] validates and tokenizes it, [`engine`] runs it in a batch with
//! others, and the front end turns the tokens back into text and streams it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`cli`] | the command line, one file per subcommand |
//! | [`config`] | settings: flags > environment > file > defaults |
//! | [`resources`] | compute threads and memory that the process may use |
//! | [`telemetry`] | logs, and traces to an OpenTelemetry collector |
//! | [`recency`], [`moving_average`] | order of use, averages of measurements |
//! | [`panics`] | panics in the logs |
//! | [`regular_file`] | opens files that hold models and sessions |
//! | [`shown_url`] | redaction of URLs in messages |
//! | [`tls`] | the HTTP clients' TLS |
//! | [`http`] | the front end: dialects, errors, streams, health, the contract |
//! | [`serving`] | start-up, from settings to a running engine |
//! | [`keys`] | API keys: the file, scopes, limits |
//! | [`request`] | the validated request of every dialect |
//! | [`text`] | tokenizer, incremental detokenizer, stop strings |
//! | [`session`] | named histories that clients extend: turns, files, KV blocks on disk |
//! | [`engine`] | the inference worker: scheduler, KV blocks, sampling |
//! | [`lane`] | bounded lanes for work outside the engine |
//! | [`fair`] | tenants, and the fair sharing of bounded resources |
//! | [`model`] | the architectures: GPT-2's forward pass |
//! | [`checkpoint`] | the source of a model, its files and their content |
//! | [`backend`] | the computation of a model's layers: the kernels, or candle's own operations |
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
