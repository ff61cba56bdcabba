//! The HTTP server from outside, over real sockets with real models.

#![allow(
    clippy::needless_pass_by_value,
    reason = "json!() in a call reads better without a reference"
)]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod adapters;
mod beam;
mod begin_of_text;
mod bounds;
mod chat;
mod completions_and_chat;
mod connections;
mod contract;
mod device;
mod docs;
mod embeddings;
mod fair;
mod faults;
mod fields;
mod grammar_bounds;
mod inspect;
mod key_limits;
mod keys;
mod limits;
mod metrics;
mod native;
mod native_details;
mod openai;
mod overload;
mod page;
mod probes;
mod prompt;
mod scoring;
mod server;
mod sessions;
mod stalled;
mod stop;
mod structured;
mod text;
mod tls;
mod token_ids;
mod traces;
mod validation;
