//! The events that the worker sends to the front end about one generation.

use std::time::{Duration, Instant};

use super::inspection::Inspection;
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
    /// A token was sampled.
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

/// The results of the prefill.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptReport {
    /// Tokens of the context before the first generated one, a session's history included.
    pub prompt_tokens: usize,
    /// Number of these tokens found in the KV cache.
    pub cached_tokens: usize,
    /// If requested, an entry for every token of the request's own prompt; `None` for a token without
    /// predecessor.
    pub logprobs: Vec<Option<PromptToken>>,
    /// If requested, the mean of the context's hidden states after the final norm, `[hidden_width]`.
    pub embedding: Option<Vec<f32>>,
    /// If requested, what the stages of the pass computed.
    pub inspection: Option<Box<Inspection>>,
    /// Set if no token is to be generated (`max_tokens` 0).
    pub finish: Option<FinishReason>,
}

/// The log-probability of one prompt token given those before it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// The token itself.
    pub token: TokenLogprob,
    /// If requested, its rank among all tokens, the most likely first.
    pub rank: Option<usize>,
    /// The most likely tokens at its position, most likely first, up to the requested number.
    pub top: Vec<TokenLogprob>,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    /// The sampled token. The token that ends the text (end-of-text, or a stop token) is reported
    /// too; the front end hides it. See [`FinishReason::ends_with_a_sign`].
    pub token: TokenLogprob,
    /// The most likely tokens at its position, most likely first, up to the requested number.
    pub top: Vec<TokenLogprob>,
    /// Set on the last token.
    pub finish: Option<FinishReason>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_tokens`, or the model's window.
    Length,
    /// The end-of-text token was sampled.
    EndOfText,
    /// A stop token or a stop string of the request.
    Stop,
    /// The text is complete and its grammar allows no further token; the last token is part of it.
    Complete,
}

impl FinishReason {
    /// Returns whether the last token only ends the text and is not part of it. (The front end finds
    /// stop strings, and knows which part of them belongs to the text.)
    #[must_use]
    pub fn ends_with_a_sign(self) -> bool {
        match self {
            Self::EndOfText | Self::Stop => true,
            Self::Length | Self::Complete => false,
        }
    }
}

impl FinishReason {
    /// Returns why a text of `generated` tokens ends with `token`, if it does.
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

/// An error that ends a generation or prevents it from starting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The queue of waiting requests is full.
    #[error("the server is busy: the request queue is full ({limit} waiting); retry later")]
    QueueFull {
        /// Maximum waiting requests.
        limit: usize,
        /// Time after which to retry.
        retry_after: Duration,
    },
    /// The request would not start within the queue timeout.
    #[error(
        "the server is busy: the estimated wait of {:.0}s exceeds the limit of {limit:?} (`--queue-timeout`; {waiting} waiting); retry later",
        wait.as_secs_f64()
    )]
    QueueTooSlow {
        /// Requests in the queue.
        waiting: usize,
        /// The estimated wait.
        wait: Duration,
        /// The queue timeout.
        limit: Duration,
        /// Time after which to retry.
        retry_after: Duration,
    },
    /// The request has waited too long.
    #[error(
        "the server is busy: the request did not start within {limit:?} (`--queue-timeout`); retry later"
    )]
    QueueTimeout {
        /// The queue timeout.
        limit: Duration,
        /// Time after which to retry.
        retry_after: Duration,
    },
    /// The client stopped reading, and the limit of stalled requests was reached.
    #[error("the client stopped reading, and the limit of {limit} stalled requests was reached")]
    Stalled {
        /// Maximum stalled requests.
        limit: usize,
    },
    /// The KV cache is too small for the request, even alone.
    #[error(
        "the request needs {needed} {unit} of {block_size} tokens; the cache has {available} in all (`--kv-memory` sets its size)"
    )]
    KvTooSmall {
        /// What there is too little of: `KV blocks`, or `window slots`.
        unit: &'static str,
        /// Number it needs at its longest.
        needed: usize,
        /// Number in the cache.
        available: usize,
        /// Tokens in each.
        block_size: usize,
    },
    /// Logits or hidden states of this request are not finite.
    #[error("the model's output for this request is not finite")]
    NotFinite,
    /// The generation ended without a finish reason.
    #[error("the generation ended before it was complete")]
    Incomplete,
    /// A beam search has more beams than a batch has places.
    #[error(
        "a search with {width} beams does not fit a batch of at most {max_batch} (`--max-batch` sets its size)"
    )]
    BatchTooSmall {
        /// Requested beams.
        width: usize,
        /// Maximum sequences per batch.
        max_batch: usize,
    },
    /// The parameters exclude every token.
    #[error("`logit_bias` and the other parameters exclude every token")]
    NoCandidates,
    /// Matching the grammar failed or exceeded its cost limit.
    #[error("the text's grammar could not be followed any further: {0}")]
    Grammar(String),
    /// A step failed while this request was in it.
    #[error("the inference step failed: {0}")]
    StepFailed(String),
    /// The worker thread has ended.
    #[error("the inference worker is not running")]
    EngineGone,
    /// The server is stopping, and the grace period of running streams is over.
    #[error("the server is shutting down")]
    ShuttingDown,
}
