//! A request as read by its dialect, before [`Limits::admit`](super::Limits::admit).

use std::sync::Arc;

use super::{
    BeamParams, Deadline, InspectionWanted, LogprobsWanted, Output, Overflow, RequestId,
    SamplingOverrides, SamplingStyle, Tenant,
};
use crate::model::adapter::Adapter;
use crate::text::Grammar;

/// A request as read by its dialect: each field is checked against the dialect's own range, but
/// defaults are not filled in yet.
#[derive(Debug, Clone)]
pub struct RequestDraft {
    /// Name of the request.
    pub id: RequestId,
    /// The dialect's name for the prompt, in messages.
    pub prompt_field: &'static str,
    /// The dialect's name for the number of tokens to generate, in messages.
    pub max_tokens_field: &'static str,
    /// Sampling style of the dialect.
    pub style: SamplingStyle,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// The sampling fields that the request sets.
    pub sampling: SamplingOverrides,
    /// Maximum tokens to generate if neither the request nor the model sets it.
    pub default_max_tokens: usize,
    /// See [`StopConditions::min_tokens`](super::StopConditions::min_tokens).
    pub min_tokens: usize,
    /// See [`SamplingParams::presence_penalty`](super::SamplingParams::presence_penalty).
    pub presence_penalty: f32,
    /// See [`SamplingParams::frequency_penalty`](super::SamplingParams::frequency_penalty).
    pub frequency_penalty: f32,
    /// See [`SamplingParams::logit_bias`](super::SamplingParams::logit_bias).
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed; random if `None`.
    pub seed: Option<u64>,
    /// See [`RequestFields::beams`](super::RequestFields::beams).
    pub beams: Option<BeamParams>,
    /// See [`StopConditions::stop_tokens`](super::StopConditions::stop_tokens).
    pub stop_tokens: Vec<u32>,
    /// Texts that end the generation, given by the request.
    pub stop_strings: Vec<String>,
    /// Texts that end the generation, given by the chat template; exempt from limits.
    pub template_stops: Vec<String>,
    /// Whether generation continues after an end-of-text token.
    pub ignore_end_of_text: bool,
    /// Behaviour when the context reaches the model's window.
    pub overflow: Overflow,
    /// Token ids of the session that the request continues; `None` without a session.
    pub history: Option<Vec<u32>>,
    /// See [`RequestFields::tenant`](super::RequestFields::tenant).
    pub tenant: Tenant,
    /// See [`RequestFields::share`](super::RequestFields::share).
    pub share: Tenant,
    /// See [`RequestFields::priority`](super::RequestFields::priority).
    pub priority: i32,
    /// See [`RequestFields::keep_kv`](super::RequestFields::keep_kv).
    pub keep_kv: bool,
    /// The log-probabilities to report.
    pub logprobs: LogprobsWanted,
    /// See [`RequestFields::adapter`](super::RequestFields::adapter).
    pub adapter: Option<Arc<Adapter>>,
    /// The grammar that the text must follow. Its source has passed
    /// [`Limits::check_grammar`](super::Limits::check_grammar).
    pub grammar: Option<Grammar>,
    /// Kind of output that the engine returns.
    pub output: Output,
    /// Deadline of the answer.
    pub deadline: Option<Deadline>,
}

impl RequestDraft {
    /// Returns a draft without optional fields: `default_max_tokens` tokens after `prompt`.
    #[must_use]
    pub fn new(
        id: RequestId,
        prompt: Vec<u32>,
        default_max_tokens: usize,
        style: SamplingStyle,
    ) -> Self {
        Self {
            id,
            prompt_field: "prompt",
            max_tokens_field: "max_tokens",
            style,
            prompt,
            sampling: SamplingOverrides::default(),
            default_max_tokens,
            min_tokens: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            beams: None,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            template_stops: Vec::new(),
            ignore_end_of_text: false,
            overflow: Overflow::default(),
            history: None,
            tenant: Tenant::default(),
            share: Tenant::default(),
            priority: 0,
            keep_kv: false,
            logprobs: LogprobsWanted::default(),
            adapter: None,
            grammar: None,
            output: Output::default(),
            deadline: None,
        }
    }

    /// Returns a draft for the embedding of `input`.
    #[must_use]
    pub fn embedding(id: RequestId, input: Vec<u32>) -> Self {
        Self {
            prompt_field: "input",
            output: Output::Embedding,
            ..Self::new(id, input, 0, SamplingStyle::Greedy)
        }
    }

    /// Returns a draft that asks for an inspection of the pass over `tokens`.
    #[must_use]
    pub fn inspection(id: RequestId, tokens: Vec<u32>, wanted: InspectionWanted) -> Self {
        Self {
            prompt_field: "text",
            output: Output::Inspection(Arc::new(wanted)),
            ..Self::new(id, tokens, 0, SamplingStyle::Sample)
        }
    }

    /// Returns the number of context tokens before generation.
    pub(super) fn context(&self) -> usize {
        self.history.as_ref().map_or(0, Vec::len) + self.prompt.len()
    }
}
