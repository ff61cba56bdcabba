//! What every dialect's request becomes: [`GenerateRequest`], and the one way to it.
//!
//! A dialect fills a [`RequestDraft`] (everything optional, nothing checked across fields) after
//! checking the ranges its own specification gives its own fields. [`Limits::admit`] applies the
//! model's defaults and the server's limits and is the only place that makes a
//! [`GenerateRequest`], so what was validated can't be confused with what arrived.
//!
//! Nothing here may know a wire format, and nothing here may touch the engine.

mod beam;
mod deadline;
mod draft;
mod limits;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

pub use crate::fair::Tenant;
use crate::text::Grammar;
pub use beam::{BeamParams, EarlyStopping};
pub use deadline::Deadline;
pub use draft::{RequestDraft, SamplingStyle};
pub use limits::{Limits, SamplingDefaults};

/// The name of one request, in logs, headers and the engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Takes over a name given from outside, or made with [`RequestId::random`].
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }

    /// A new name that no other request has.
    #[must_use]
    pub fn random() -> Self {
        Self::new(&uuid::Uuid::new_v4().simple().to_string())
    }

    /// The `n`-th of several generations that one HTTP request asked for.
    #[must_use]
    pub fn child(&self, n: usize) -> Self {
        Self(format!("{}/{n}", self.0).into())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a session: 1 to 128 of the characters `A-Z a-z 0-9 - _ . : @`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// The longest name a session may have, in characters.
    pub const MAX_LENGTH: usize = 128;

    /// Checks and takes over a name.
    ///
    /// # Errors
    /// If the name is empty, too long, or has a character that is not allowed.
    pub fn parse(name: &str) -> Result<Self, InvalidRequest> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
        if name.is_empty() || name.len() > Self::MAX_LENGTH || !name.chars().all(allowed) {
            let shown: String = name.chars().take(Self::MAX_LENGTH).collect();
            return Err(InvalidRequest::new(
                "session_id",
                format!(
                    "`session_id` must be 1 to {} of the characters A-Z a-z 0-9 - _ . : @, got {shown:?}",
                    Self::MAX_LENGTH
                ),
            ));
        }
        Ok(Self(Arc::from(name)))
    }

    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What happens when the context reaches the model's window (`n_positions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// Generation ends with [`FinishReason::Length`](crate::engine::FinishReason::Length).
    #[default]
    Stop,
    /// The request is refused up front if prompt and `max_tokens` together cannot fit.
    Error,
    /// Generation goes on: see [`context_start`](crate::engine::sequence::context_start) for
    /// which tokens are then the context.
    Slide,
}

/// How the next token is drawn from the logits. The order in which the steps are applied, and
/// the random generator, are specified in [`crate::engine::sampler`].
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 is all.
    pub top_k: usize,
    /// The most likely tokens whose probabilities add up to this; 1 is all.
    pub top_p: f32,
    /// Tokens at least this fraction as likely as the most likely; 0 is all.
    pub min_p: f32,
    /// Locally typical sampling (Meister et al. 2022): probability mass kept; 1 is all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output (Keskar et
    /// al. 2019); 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens already generated.
    pub presence_penalty: f32,
    /// Subtracted from the logits of generated tokens as many times as they occurred.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The random numbers of this request are a function of this alone.
    pub seed: u64,
}

/// When a generation ends.
#[derive(Debug, Clone, PartialEq)]
pub struct StopConditions {
    /// Tokens to generate at most; 0 only reads the prompt.
    pub max_tokens: usize,
    /// Until so many tokens are generated, no end-of-text or stop token is drawn.
    pub min_tokens: usize,
    /// Tokens that end the text: the model's end-of-text tokens, none if the request ignores them.
    pub end_of_text: Vec<u32>,
    /// Further tokens that end the generation, given by the request.
    pub stop_tokens: Vec<u32>,
    /// Texts that end the generation; matched by the front end, which then closes the generation.
    pub stop_strings: Vec<String>,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// The tokens that follow the prompt.
    #[default]
    Text,
    /// The mean of the prompt's hidden states after the last layer norm. Nothing is drawn.
    Embedding,
}

/// Which log-probabilities are reported. They are those of the model's own distribution, before
/// any penalty, temperature or filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogprobsWanted {
    /// How many of the most likely tokens to report beside each token.
    pub top: usize,
    /// Also for the tokens of the prompt (each given those before it).
    pub prompt: bool,
    /// How many of the most likely tokens to report beside each token of the prompt.
    pub prompt_top: usize,
    /// Also the place of each token of the prompt among all tokens.
    pub prompt_ranks: bool,
}

impl LogprobsWanted {
    /// The same without those of the prompt.
    #[must_use]
    pub fn without_prompt(self) -> Self {
        Self {
            top: self.top,
            ..Self::default()
        }
    }
}

/// A validated request: the engine can run it as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Its name.
    pub id: RequestId,
    /// Token ids of the session it continues, if any. The context is these and then the prompt.
    pub history: Vec<u32>,
    /// Token ids, each below the vocabulary's size; empty only where there is a history.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Search for the most likely texts instead.
    pub beams: Option<BeamParams>,
    /// When it ends.
    pub stop: StopConditions,
    /// Past the window.
    pub overflow: Overflow,
    /// Whose it is.
    pub tenant: Tenant,
    /// The tenant whose share of the server it uses: its own, or [`Tenant::ANONYMOUS`] where clients can
    /// invent tenants.
    pub share: Tenant,
    /// Waiting requests with a lower value begin earlier, regardless of their tenant.
    pub priority: i32,
    /// Its keys and values are worth keeping beyond the KV cache: a session will go on from them.
    pub keep_kv: bool,
    /// The log-probabilities to report.
    pub logprobs: LogprobsWanted,
    /// What the text must follow, if anything.
    pub grammar: Option<Grammar>,
    /// What it is for.
    pub output: Output,
    /// When it is to be answered.
    pub deadline: Option<Deadline>,
}

/// Why a request was refused before it reached the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidRequest {
    /// The field at fault, as the dialect names it.
    pub field: String,
    /// Names field, value and limit, for the person who sent it.
    pub message: String,
    /// Prompt and completion together do not fit the model's window.
    pub context_length_exceeded: bool,
}

impl InvalidRequest {
    /// A refusal that concerns one field.
    #[must_use]
    pub fn new(field: &str, message: String) -> Self {
        Self {
            field: field.to_owned(),
            message,
            context_length_exceeded: false,
        }
    }

    fn context_length(field: &str, message: String) -> Self {
        Self {
            context_length_exceeded: true,
            ..Self::new(field, message)
        }
    }

    /// The same refusal where the field is a list and its `n`-th element is at fault.
    #[must_use]
    pub fn of_element(self, n: usize) -> Self {
        let element = format!("{}[{n}]", self.field);
        Self {
            message: self
                .message
                .replace(&format!("`{}`", self.field), &format!("`{element}`")),
            field: element,
            ..self
        }
    }
}

/// Tokens that can still be generated after `context` tokens; `None` if there is no end to it.
/// The last generated token needs no position of its own, but a session that goes on would need
/// it, so the bound is the one users reckon with: prompt + completion <= window.
#[must_use]
pub fn window_room(n_positions: usize, context: usize, overflow: Overflow) -> Option<usize> {
    (overflow != Overflow::Slide).then(|| n_positions.saturating_sub(context))
}

/// Checks that a number lies in a range; the message names field, value and range.
///
/// # Errors
/// [`InvalidRequest`] if it does not, or is not a number.
pub fn in_range<T: PartialOrd + fmt::Debug>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, InvalidRequest> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(InvalidRequest::new(
        field,
        format!(
            "`{field}` must be {} to {}, got {}",
            short(range.start()),
            short(range.end()),
            short(value)
        ),
    ))
}

/// Returns a number as errors show it: `0.5`, `2`, `1e-300`. Without an exponent, floats can take
/// hundreds of digits.
#[must_use]
pub fn short<T: fmt::Debug>(number: T) -> String {
    let mut text = format!("{number:?}");
    if text.ends_with(".0") {
        text.truncate(text.len() - 2);
    }
    text
}
