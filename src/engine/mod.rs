//! The inference engine: one worker thread that owns the model and the KV cache, and the handle by
//! which the front end reaches it.
//!
//! ```text
//! EngineHandle ──commands──► worker: take what arrived ─► plan ─► forward ─► draw ─► send
//!      Generation ◄──TokenEvents── (one bounded channel per request) ◄────────────────┘
//! ```
//!
//! - [`scheduler`] and [`blocks`] decide who runs and where its KV lives: pure, no tensors, no
//!   threads.
//! - [`sequence`] is the token history of one generation and its place in the cache.
//! - [`beam`] chooses the beams of a search, `beams` makes them sequences that share their blocks.
//! - [`sampler`] turns logits into a token, `candidates` are the tokens its filters leave;
//!   [`logprobs`] says how likely tokens were. `draw` does both for all rows of a step at once.
//! - `constraint` follows a request's grammar and says which tokens may come next.
//! - `pooling` is the mean of a sequence's hidden states, its embedding; `values` reads tensors.
//! - `queue` is who waits in front of the batch, and for how long.
//! - [`bulk`] submits many requests of one client, each in its turn.
//! - `budget` says how many tokens a step may have, `speculate` guesses tokens from a sequence's own history.
//! - [`exchange`] is how keys and values leave the engine and come back.
//! - [`figures`] is what the worker publishes of itself once a step, `heartbeat` since when it has made
//!   none.
//! - `worker` is the loop around them; `active` is what it knows of each request, `batch` how a
//!   plan becomes the model's input.
//!
//! The engine must never know of HTTP or of sessions, and nothing but the worker thread may touch
//! model or cache: the front end sends messages.

pub mod admission;
pub mod beam;
mod beams;
pub mod blocks;
mod budget;
pub mod bulk;
mod candidates;
mod commands;
mod constraint;
pub mod event;
pub mod exchange;
pub mod handle;
mod heartbeat;
pub mod logprobs;
mod masks;
mod pooling;
mod queue;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
mod speculate;
pub mod status;
mod values;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::sync::mpsc;
use tracing::error;

pub use admission::EngineLimits;
pub use blocks::PrefixId;
pub use bulk::Bulk;
#[cfg(any(test, fuzzing))]
pub(crate) use constraint::Constraint;
pub use event::{
    FinishReason, GenerateError, GeneratedToken, PromptReport, PromptToken, TimedEvent, TokenEvent,
    TokenLogprob,
};
pub use exchange::EvictedBlock;
pub use handle::{EngineHandle, Generation};
pub use status::EngineStatus;

use crate::kernels::kv::KvDtype;
use crate::model::Model;
use crate::request::RequestId;

/// Events a client may be behind before its request sits steps out.
const EVENT_CAPACITY: usize = 256;

/// Called with the requests of a step before its forward pass, on the worker thread. A panic in
/// it is a panic in the step: that is how tests make one.
pub type StepHook = Arc<dyn Fn(&[RequestId]) + Send + Sync>;

/// How the engine is set up.
#[derive(Clone)]
pub struct EngineConfig {
    /// Memory for the KV cache.
    pub kv_memory: ByteSize,
    /// How it holds keys and values.
    pub kv_dtype: KvDtype,
    /// Requests in a batch at most.
    pub max_batch: usize,
    /// Tokens in a step at most; long prompts are read in chunks of what is left of it.
    pub max_step_tokens: usize,
    /// How long a step should take at most while requests wait for their next token; the chunks
    /// of prompts are made to fit.
    pub step_time: Duration,
    /// A step that only decodes is filled up to so many rows with guesses to verify; 0 for none.
    pub speculative_rows: usize,
    /// Requests that may wait; more are refused.
    pub queue_limit: usize,
    /// How long a request may wait; one that would wait longer is refused.
    pub queue_timeout: Duration,
    /// All use what anyone has computed. Else only requests of the same tenant share prefixes: what
    /// others asked cannot be seen by the time an answer takes.
    pub share_prefixes: bool,
    /// Takes the blocks of requests that want theirs [kept](crate::request::GenerateRequest::keep_kv)
    /// when the cache has no more room for them, and when the worker ends. It is never waited for
    /// while requests run: where it is full, the block is lost.
    pub evicted: Option<SyncSender<EvictedBlock>>,
    /// See [`StepHook`].
    pub step_hook: Option<StepHook>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            kv_memory: ByteSize::gib(1),
            kv_dtype: KvDtype::F32,
            max_batch: 64,
            max_step_tokens: 512,
            step_time: Duration::from_millis(100),
            speculative_rows: 8,
            queue_limit: 256,
            queue_timeout: Duration::from_secs(30),
            share_prefixes: false,
            evicted: None,
            step_hook: None,
        }
    }
}

/// Why the engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The KV cache holds no block.
    #[error(
        "`kv-memory` is {kv_memory}; it must be at least {block_bytes}, the size of one block of {block_size} tokens"
    )]
    NoKvMemory {
        /// What was given.
        kv_memory: ByteSize,
        /// Tokens per block.
        block_size: usize,
        /// What a block takes.
        block_bytes: ByteSize,
    },
    /// The KV cache could not be allocated.
    #[error("the KV cache could not be allocated: {0}")]
    KvCache(#[from] candle_core::Error),
    /// The operating system gave no thread.
    #[error("the inference threads could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts the worker thread.
///
/// # Errors
/// [`EngineError`] if there is no memory for the KV cache or no thread to be had.
pub fn start(model: Model, config: EngineConfig) -> Result<EngineHandle, EngineError> {
    let block_bytes = model.kv_block_bytes(config.kv_dtype);
    let kv_blocks = usize::try_from(config.kv_memory.as_u64()).unwrap_or(usize::MAX) / block_bytes;
    if kv_blocks == 0 {
        return Err(EngineError::NoKvMemory {
            kv_memory: config.kv_memory,
            block_size: blocks::BLOCK_SIZE,
            block_bytes: ByteSize::b(block_bytes as u64),
        });
    }
    let kv = model.kv_cache(config.kv_dtype, kv_blocks)?;
    let (sender, commands) = mpsc::unbounded_channel();
    let status = EngineStatus {
        kv_blocks,
        kv_block_bytes: block_bytes,
        ..EngineStatus::default()
    };
    let published = Arc::new(status::Published::new(status));
    let heartbeat = Arc::new(heartbeat::Heartbeat::new());
    let handle = EngineHandle::new(
        sender,
        EngineLimits {
            max_batch: config.max_batch,
            max_step_tokens: config.max_step_tokens,
            max_queue: config.queue_limit,
            queue_timeout: config.queue_timeout,
        },
        EVENT_CAPACITY,
        Arc::clone(&published),
        Arc::clone(&heartbeat),
    );
    let masks = masks::Masks::start()?;
    let published = (published, heartbeat);
    let worker = worker::Worker::new(model, kv, config, commands, published, masks);
    std::thread::Builder::new()
        .name("skald-inference".to_owned())
        // It follows grammars.
        .stack_size(crate::text::grammar::STACK)
        .spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
                error!("the inference worker died");
            }
        })?;
    Ok(handle)
}
