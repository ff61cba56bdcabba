//! `GET /metrics`: the figures of engine, front end and sessions, for Prometheus.
//!
//! | module | what it is for |
//! |---|---|
//! | [`observations`] | the front end's counts of requests and histograms of generations |
//! | [`families`] | every metric by name, type and help, with vLLM's name for it where it has one |
//! | [`keys`] | usage of each API key |
//! | [`format`] | choice between the two text formats |
//! | [`session_count`] | the number of stored sessions, without waiting for a slow store |
//!
//! Engine values are read from [`EngineStatus`](crate::engine::EngineStatus) at the scrape. A scrape
//! must be answered at any time, even while the model is loading or has failed, and must never wait
//! for the engine or for a session store.

pub(super) mod endpoint;
mod families;
mod format;
mod keys;
mod observations;
mod session_count;

pub use observations::Observations;
pub(super) use observations::{ConnectionCounts, GenerationReport};
pub(super) use session_count::SessionCount;
