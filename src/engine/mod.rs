//! The inference engine: one worker thread that owns the model and the KV cache, and the front end's
//! handle to it.
//!
//! ```text
//! EngineHandle ──commands──► worker: take commands ─► plan ─► forward ─► sample ─► send
//!      Generation ◄──TokenEvents── (one bounded channel per request) ◄──────────────┘
//! ```
//!
//! - [`scheduler`] and [`blocks`] choose the sequences of each step and the place of their KV: pure, no
//!   tensors, no threads.
//! - [`sequence`] is the token history of one generation and its place in the cache.
//! - [`beam`] chooses the beams of a search, `beams` turns them into sequences that share blocks.
//! - [`sampler`] turns logits into a token, `candidates` holds the tokens that its filters keep;
//!   [`logprobs`] computes log-probabilities.
//! - `constraint` follows a request's grammar, `masks` is the thread that computes the tokens it allows.
//! - [`inspection`] is what an inspection finds: the stages of a pass as plain numbers.
//! - `pooling` computes the mean of a sequence's hidden states, its embedding; `values` reads tensors.
//! - [`admission`] holds the limits, `queue` the places in front of the batch and their estimated waits.
//! - [`bulk`] submits many requests of one client, each in its turn.
//! - `budget` limits the tokens of a step, `inspection_share` the time of inspections, `speculate` drafts tokens from a sequence's own history.
//! - [`kv_memory`] divides the memory of the KV cache between global and sliding layers.
//! - [`handle`] is the front end's side, `commands` its messages to the worker, [`exchange`] the import and
//!   eviction of keys and values, [`stored`] what leaves and comes back.
//! - [`status`] is published by the worker once a step; `heartbeat` records the time of its last step.
//! - `worker` is the loop around them, and owns the state of every running request.
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
pub mod inspection;
mod inspection_share;
pub mod kv_memory;
pub mod logprobs;
mod masks;
mod pooling;
mod queue;
pub mod sampler;
#[cfg(test)]
mod sampler_vectors;
pub mod scheduler;
pub mod sequence;
mod speculate;
pub mod status;
pub mod stored;
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
pub use handle::{EngineHandle, Generation};
pub use inspection::Inspection;
pub use status::EngineStatus;
pub use stored::{EvictedBlock, StoredBlock};

use self::kv_memory::{BatchLimits, KvCounts, KvLayout};
use crate::kernels::kv::KvDtype;
use crate::model::{Model, ModelSpec};
use crate::request::RequestId;

/// Capacity of a client's event channel; a request whose channel is full is stalled.
const EVENT_CAPACITY: usize = 256;

/// Called with the requests of a step before its forward pass, on the worker thread. A panic in it is
/// a panic in the step, for tests.
pub type StepHook = Arc<dyn Fn(&[RequestId]) + Send + Sync>;

/// The engine's configuration.
#[derive(Clone)]
pub struct EngineConfig {
    /// Memory for the KV cache.
    pub kv_memory: ByteSize,
    /// Data type of the cached keys and values.
    pub kv_dtype: KvDtype,
    /// Maximum positions of a context; `None`, and more than the model has, is what the model has.
    pub max_context: Option<usize>,
    /// Maximum sequences per batch.
    pub max_batch: usize,
    /// Maximum tokens per step; long prompts are prefilled in chunks of the remaining tokens.
    pub max_step_tokens: usize,
    /// Target duration of a step while requests decode; limits the chunks of prompts.
    pub step_time: Duration,
    /// Maximum rows of a step that only decodes and is filled up with drafts; 0 turns drafts off.
    pub speculative_rows: usize,
    /// Maximum waiting requests; more are refused.
    pub queue_limit: usize,
    /// Maximum time a request waits; one that would wait longer is refused.
    pub queue_timeout: Duration,
    /// Whether tenants share cached prefixes. If not, a tenant cannot tell from the latency of a
    /// response what other tenants have sent.
    pub share_prefixes: bool,
    /// Receives the evicted blocks of requests with
    /// [`keep_kv`](crate::request::GenerateRequest::keep_kv), and the remaining ones when the worker ends.
    /// The worker never waits for it while requests run: if it is full, the block is lost.
    pub evicted: Option<SyncSender<EvictedBlock>>,
    /// See [`StepHook`].
    pub step_hook: Option<StepHook>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            kv_memory: ByteSize::gib(1),
            kv_dtype: KvDtype::F32,
            max_context: None,
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

impl EngineConfig {
    /// Returns the maximum positions of a context of this model.
    pub(crate) fn context_length(&self, model: &ModelSpec) -> usize {
        let positions = model.context_length;
        self.max_context
            .map_or(positions, |tokens| tokens.min(positions))
    }
}

/// An error that prevents the engine from starting.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The KV cache does not hold a single block.
    #[error(
        "`kv-memory` is {} bytes; it must be at least {block_bytes} bytes, which hold {block_size} tokens",
        kv_memory.as_u64()
    )]
    NoKvMemory {
        /// The configured size.
        kv_memory: ByteSize,
        /// Tokens per block.
        block_size: usize,
        /// Bytes that a block takes, with its window slot.
        block_bytes: u64,
    },
    /// The KV cache could not be allocated.
    #[error("the KV cache could not be allocated: {0}")]
    KvCache(#[from] candle_core::Error),
    /// The operating system could not start a thread.
    #[error("the inference threads could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts the worker thread.
///
/// # Errors
/// [`EngineError`] if the KV cache cannot be allocated or a thread cannot be started.
pub fn start(model: Model, config: EngineConfig) -> Result<EngineHandle, EngineError> {
    let context_length = config.context_length(model.spec());
    let layout = KvLayout::of(&model, config.kv_dtype, context_length);
    let counts = layout.divide(
        config.kv_memory.as_u64(),
        BatchLimits {
            context_length,
            max_batch: config.max_batch,
            max_step_tokens: config.max_step_tokens,
        },
    );
    if counts.blocks == 0 || (layout.windows.is_some() && counts.slots == 0) {
        let block_bytes = layout.context_bytes(1, config.max_step_tokens);
        return Err(EngineError::NoKvMemory {
            kv_memory: config.kv_memory,
            block_size: blocks::BLOCK_SIZE,
            block_bytes,
        });
    }
    let KvCounts { blocks, slots } = counts;
    let kv = model.divided_kv_cache(config.kv_dtype, &layout.parts, blocks, slots)?;
    let window = layout.windows.map(|windows| windows.window);
    let (sender, commands) = mpsc::unbounded_channel();
    let status = EngineStatus {
        kv_blocks: blocks,
        kv_block_bytes: layout.block_bytes,
        kv_slots: slots,
        kv_slot_bytes: layout.windows.map_or(0, |windows| windows.slot_bytes),
        ..EngineStatus::default()
    };
    let published = Arc::new(status::Published::new(status));
    let heartbeat = Arc::new(heartbeat::Heartbeat::new());
    let handle = EngineHandle::new(
        sender,
        EngineLimits {
            context_length: config.context_length(model.spec()),
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
    let worker = worker::Worker::new(model, (kv, window), config, commands, published, masks);
    std::thread::Builder::new()
        .name("skald-inference".to_owned())
        // Grammars are matched on this thread.
        .stack_size(crate::text::grammar::STACK)
        .spawn(move || {
            if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
                error!("the inference worker died");
            }
        })?;
    Ok(handle)
}
