//! `GET /metrics`: the figures of engine, front end and sessions, for Prometheus.
//!
//! | module | what it is for |
//! |---|---|
//! | [`observations`] | what the front end counts: requests, and the histograms of generations |
//! | [`families`] | every metric by name, type and help, with vLLM's name for it where it has one |
//! | [`keys`] | what each API key has used |
//! | [`format`] | which of the two text formats a scraper is sent |
//! | [`session_count`] | the number of stored sessions, without waiting for a slow store |
//!
//! Engine figures are read from [`EngineStatus`](crate::engine::EngineStatus) when they are asked
//! for. A scrape must answer at any time, also while the model loads or is gone, and must never wait
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
