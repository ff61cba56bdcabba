//! The inference engine: one worker thread that owns the model, the KV cache and the sessions,
//! and the handle by which the front end reaches it.
//!
//! ```text
//! EngineHandle ──commands──► worker: take what arrived ─► plan ─► forward ─► sample ─► commit
//!      Generation ◄──TokenEvents── (one bounded channel per request) ◄────────┘
//! ```
//!
//! - [`scheduler`] and [`blocks`] decide who runs and where its KV lives: pure, no tensors, no
//!   threads.
//! - [`sequence`] is the token history of one generation and its place in the cache.
//! - [`sampler`] turns logits into a token.
//! - [`session`] keeps named histories.
//! - [`worker`] is the loop around them.
//!
//! The engine must never know of HTTP, and nothing but the worker thread may touch model, cache
//! or sessions: the front end sends messages.

pub mod blocks;
pub mod event;
pub mod handle;
pub mod scheduler;
pub mod sequence;

pub use event::{
    FinishReason, GenerateError, GeneratedToken, PromptReport, PromptToken, TokenEvent,
    TokenLogprob,
};
pub use handle::{EngineHandle, EngineStatus, Generation, KeptOutput, SessionInfo};
