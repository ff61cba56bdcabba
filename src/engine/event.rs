//! What the inference worker tells the front end about one generation.

use std::time::{Duration, Instant};

use crate::request::StopConditions;

/// A token with its log-probability under the model's own distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of its probability, at most 0.
    pub logprob: f32,
}

/// One step forward of a generation. The order is: one [`Prefilled`](Self::Prefilled), then
/// [`Token`](Self::Token)s; the last event has a finish reason or is [`Failed`](Self::Failed).
#[derive(Debug, Clone, PartialEq)]
pub enum TokenEvent {
    /// The prompt is in the KV cache.
    Prefilled(PromptReport),
    /// A token was drawn.
    Token(GeneratedToken),
    /// The generation ended early; other requests are not affected.
    Failed(GenerateError),
}

/// An event with its times, which are not part of it: an event is a function of the request alone,
/// bit for bit.
#[derive(Debug, Clone, PartialEq)]
pub struct TimedEvent {
    /// The event.
    pub event: TokenEvent,
    /// When its step was through, the same for all events of a step; independent of when the client
    /// gets to read it.
    pub at: Instant,
    /// Start of the first step the request was in, where its time in the queue ended; `None` if it
    /// was in none.
    pub first_step: Option<Instant>,
}

/// What is known once the prompt is read.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptReport {
    /// Tokens of the context before the first generated one, a session's history included.
    pub prompt_tokens: usize,
    /// How many of them came from the KV cache.
    pub cached_tokens: usize,
    /// Where asked for: an entry for every token of the request's own prompt; `None` for a token
    /// that has nothing before it.
    pub logprobs: Vec<Option<PromptToken>>,
    /// Where asked for: the mean of the context's hidden states after `ln_f`, `[n_embd]`.
    pub embedding: Option<Vec<f32>>,
    /// Set if no token is to be generated (`max_tokens` 0).
    pub finish: Option<FinishReason>,
}

/// The log-probability of one prompt token given those before it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// The token itself.
    pub token: TokenLogprob,
    /// Its place among all tokens, the most likely first; where asked for.
    pub rank: Option<usize>,
    /// The most likely tokens in its place, most likely first, as many as asked for.
    pub top: Vec<TokenLogprob>,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    /// The token drawn. The token that ends the text (end-of-text, or a stop token) is reported
    /// too; it is the front end that does not show it. See [`FinishReason::ends_with_a_sign`].
    pub token: TokenLogprob,
    /// The most likely tokens in its place, most likely first, as many as asked for.
    pub top: Vec<TokenLogprob>,
    /// Set on the last token.
    pub finish: Option<FinishReason>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_tokens`, or the model's window.
    Length,
    /// The model drew its end-of-text token.
    EndOfText,
    /// A stop token or a stop string of the request.
    Stop,
    /// The text is all that its grammar allows; the last token is part of it.
    Complete,
}

impl FinishReason {
    /// Whether the last token only says that the text ends, and is no part of it. (A stop string
    /// is found by the front end, which knows what is part of the text.)
    #[must_use]
    pub fn ends_with_a_sign(self) -> bool {
        match self {
            Self::EndOfText | Self::Stop => true,
            Self::Length | Self::Complete => false,
        }
    }
}

impl FinishReason {
    /// Why a text of `generated` tokens ends with this one, if it does.
    #[must_use]
    pub(super) fn after(
        token: u32,
        generated: usize,
        stop: &StopConditions,
        max_tokens: usize,
    ) -> Option<Self> {
        if stop.end_of_text.contains(&token) {
            Some(Self::EndOfText)
        } else if stop.stop_tokens.contains(&token) {
            Some(Self::Stop)
        } else {
            (generated >= max_tokens).then_some(Self::Length)
        }
    }
}

/// Why a generation could not go on, or never began.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The queue of waiting requests is full.
    #[error("the server is busy: the request queue is full ({limit} waiting); retry later")]
    QueueFull {
        /// The length of the queue.
        limit: usize,
        /// When to come back.
        retry_after: Duration,
    },
    /// The request would not begin in time.
    #[error(
        "the server is busy: the estimated wait of {:.0}s exceeds the limit of {limit:?} (`--queue-timeout`; {waiting} waiting); retry later",
        wait.as_secs_f64()
    )]
    QueueTooSlow {
        /// Requests in the queue.
        waiting: usize,
        /// The estimated wait.
        wait: Duration,
        /// The longest wait.
        limit: Duration,
        /// When to come back.
        retry_after: Duration,
    },
    /// The request has waited too long.
    #[error(
        "the server is busy: the request did not start within {limit:?} (`--queue-timeout`); retry later"
    )]
    QueueTimeout {
        /// The longest wait.
        limit: Duration,
        /// When to come back.
        retry_after: Duration,
    },
    /// Its client did not read, and too many others did not either.
    #[error("the client stopped reading, and the limit of {limit} stalled requests was reached")]
    Stalled {
        /// Requests that can be set aside.
        limit: usize,
    },
    /// The KV cache is too small for the request, even alone.
    #[error(
        "the request needs {needed} KV blocks of {block_size} tokens; the cache has {available} in all (`--kv-memory` sets its size)"
    )]
    KvTooSmall {
        /// Blocks it needs at its longest.
        needed: usize,
        /// Blocks there are.
        available: usize,
        /// Tokens per block.
        block_size: usize,
    },
    /// The model gave logits or hidden states that are not numbers for this request.
    #[error("the model's output for this request is not finite")]
    NotFinite,
    /// The generation ended without saying why.
    #[error("the generation ended before it was complete")]
    Incomplete,
    /// A beam search is wider than a batch can be.
    #[error(
        "a search with {width} beams does not fit a batch of at most {max_batch} (`--max-batch` sets its size)"
    )]
    BatchTooSmall {
        /// Beams wanted.
        width: usize,
        /// Sequences in a batch at most.
        max_batch: usize,
    },
    /// No token is left that may be drawn.
    #[error("`logit_bias` and the other parameters leave no token that may be drawn")]
    NoCandidates,
    /// What the grammar costs is more than the server gives for one request.
    #[error("the text's grammar could not be followed any further: {0}")]
    Grammar(String),
    /// A step failed while this request was in it.
    #[error("the inference step failed: {0}")]
    StepFailed(String),
    /// The worker thread is not there any more.
    #[error("the inference worker is not running")]
    EngineGone,
    /// The server stops, and the time for streams in flight is over.
    #[error("the server is shutting down")]
    ShuttingDown,
}
