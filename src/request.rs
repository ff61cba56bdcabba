//! The validated request of every dialect: [`GenerateRequest`].
//!
//! A dialect fills a [`RequestDraft`] (everything optional, nothing checked across fields) after
//! checking its own fields against the ranges in its specification. [`Limits::admit`] applies the
//! model's defaults and the server's limits. It is the only function that creates a
//! [`GenerateRequest`], which never changes afterwards, so a validated request can't be confused
//! with a received one.
//!
//! This module must never know a wire format or access the engine.

mod beam;
mod deadline;
mod draft;
mod id;
mod inspection;
mod invalid;
mod limits;
mod sampling;

use std::ops::Deref;
use std::sync::Arc;

use serde::Deserialize;
use utoipa::ToSchema;

pub use self::beam::{BeamParams, EarlyStopping};
pub use self::deadline::Deadline;
pub use self::draft::RequestDraft;
pub use self::id::{RequestId, SessionId};
pub use self::inspection::{
    AttentionWanted, EmbeddingWanted, InspectionWanted, NeuronsWanted, SamplingWanted,
};
pub use self::invalid::{InvalidRequest, in_range, short};
pub use self::limits::Limits;
pub use self::sampling::{SamplingOverrides, SamplingParams, SamplingStyle};
pub use crate::fair::Tenant;
use crate::model::adapter::Adapter;
use crate::text::Grammar;

/// What happens when the context reaches the model's window: `stop` ends the generation with reason
/// `length`; `error` refuses the request up front if prompt and tokens to generate do not fit; `slide`
/// drops the first half of the context whenever it is full and continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = OverflowField)]
pub enum Overflow {
    /// Generation ends with [`FinishReason::Length`](crate::engine::FinishReason::Length).
    #[default]
    Stop,
    /// The request is refused if prompt and `max_tokens` together do not fit.
    Error,
    /// Generation continues: [`context_start`](crate::engine::sequence::context_start) says which
    /// tokens are then the context.
    Slide,
}

/// When a generation ends.
#[derive(Debug, Clone, PartialEq)]
pub struct StopConditions {
    /// Maximum tokens to generate; 0 only reads the prompt.
    pub max_tokens: usize,
    /// Tokens to generate before an end-of-text or stop token can be sampled.
    pub min_tokens: usize,
    /// Tokens that end the text: the model's end-of-text tokens, none if the request ignores them.
    pub end_of_text: Vec<u32>,
    /// Further tokens that end the generation, given by the request; sorted, without duplicates.
    pub stop_tokens: Vec<u32>,
    /// Texts that end the generation. The front end matches them and then closes the generation.
    pub stop_strings: Vec<String>,
}

/// The kind of output that the engine returns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Output {
    /// The tokens that follow the prompt.
    #[default]
    Text,
    /// The mean of the prompt's hidden states after the last layer norm. No token is sampled.
    Embedding,
    /// What the stages of the pass over the prompt compute. No token is generated.
    Inspection(Arc<InspectionWanted>),
}

impl Output {
    /// Returns what an inspection shows.
    #[must_use]
    pub fn inspection(&self) -> Option<&Arc<InspectionWanted>> {
        match self {
            Self::Inspection(wanted) => Some(wanted),
            Self::Text | Self::Embedding => None,
        }
    }
}

/// The log-probabilities to report, under the model's own distribution, before any penalty,
/// temperature or filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogprobsWanted {
    /// Number of most likely tokens to report for each generated token.
    pub top: usize,
    /// Whether the tokens of the prompt are reported too (each given those before it).
    pub prompt: bool,
    /// Number of most likely tokens to report for each token of the prompt.
    pub prompt_top: usize,
    /// Whether the rank of each token of the prompt among all tokens is reported.
    pub prompt_ranks: bool,
}

impl LogprobsWanted {
    /// Returns the same settings without log-probabilities of the prompt.
    fn without_prompt(self) -> Self {
        Self {
            top: self.top,
            ..Self::default()
        }
    }
}

/// A validated request, ready for the engine.
///
/// Its fields can be read through [`Deref`] but never written: only [`Limits::admit`] creates one,
/// and [`GenerateRequest::choices`] copies it.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest(RequestFields);

/// The fields of a [`GenerateRequest`].
#[derive(Debug, Clone, PartialEq)]
pub struct RequestFields {
    /// Name of the request.
    pub id: RequestId,
    /// Token ids of the session that the request continues; the prompt follows them in the context.
    pub history: Vec<u32>,
    /// Token ids of the prompt, each below the vocabulary size; empty only after a history.
    pub prompt: Vec<u32>,
    /// Sampling parameters.
    pub sampling: SamplingParams,
    /// The search for the most likely texts that replaces sampling.
    pub beams: Option<BeamParams>,
    /// Conditions that end generation.
    pub stop: StopConditions,
    /// Behaviour when the context reaches the model's window.
    pub overflow: Overflow,
    /// The tenant that the request belongs to.
    pub tenant: Tenant,
    /// The tenant whose share of the server the request uses: its own, or [`Tenant::ANONYMOUS`] where
    /// clients can invent tenants.
    pub share: Tenant,
    /// Order among waiting requests, regardless of their tenants: lower values begin earlier.
    pub priority: i32,
    /// Whether its keys and values are exported on eviction, for a session.
    pub keep_kv: bool,
    /// The log-probabilities to report.
    pub logprobs: LogprobsWanted,
    /// The adapter that the model runs with.
    pub adapter: Option<Arc<Adapter>>,
    /// The grammar that the text must follow.
    pub grammar: Option<Grammar>,
    /// Kind of output that the engine returns.
    pub output: Output,
    /// Deadline of the answer.
    pub deadline: Option<Deadline>,
}

impl Deref for GenerateRequest {
    type Target = RequestFields;

    fn deref(&self) -> &RequestFields {
        &self.0
    }
}

impl GenerateRequest {
    /// Returns the requests for `count` choices of one prompt of the HTTP request `id`, after
    /// `before` choices of other prompts. They are equal except for names and seeds, and only the
    /// first scores the prompt, since the score is the same in all of them.
    pub fn choices(
        &self,
        id: &RequestId,
        before: usize,
        count: usize,
    ) -> impl Iterator<Item = Self> {
        (0..count).map(move |choice| {
            let Self(mut fields) = self.clone();
            fields.id = id.child(before + choice);
            fields.sampling.seed = self.sampling.seed.wrapping_add(choice as u64);
            if choice > 0 {
                fields.logprobs = fields.logprobs.without_prompt();
            }
            Self(fields)
        })
    }
}

/// Returns the tokens that can still be generated after `context` tokens; `None` is unlimited.
///
/// The last generated token does not need a position, but a continued session would, so the bound
/// is the one that users expect: prompt + completion <= window.
#[must_use]
pub fn window_room(context_length: usize, context: usize, overflow: Overflow) -> Option<usize> {
    (overflow != Overflow::Slide).then(|| context_length.saturating_sub(context))
}
