//! A request as a dialect understood it.

use super::{BeamParams, Deadline, LogprobsWanted, Output, Overflow, RequestId, Tenant};
use crate::text::Grammar;

/// How a dialect samples where neither the request nor the model's defaults say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplingStyle {
    /// At temperature 1, as OpenAI.
    Sample,
    /// The most likely token, as TGI.
    Greedy,
}

/// A request as a dialect understood it: ranges of single fields checked by the dialect, nothing
/// filled in yet.
#[derive(Debug, Clone)]
pub struct RequestDraft {
    /// Its name.
    pub id: RequestId,
    /// What the dialect calls the prompt, for messages.
    pub prompt_field: &'static str,
    /// What the dialect calls the number of tokens to generate, for messages.
    pub max_tokens_field: &'static str,
    /// How the dialect samples by default.
    pub style: SamplingStyle,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Whether `max_tokens` was given by the request rather than by the dialect's default.
    pub max_tokens_given: bool,
    /// See [`StopConditions::min_tokens`].
    pub min_tokens: usize,
    /// `Some(false)`: greedy, whatever the other fields say; `Some(true)`: sampled.
    pub do_sample: Option<bool>,
    /// See [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// See [`SamplingParams::top_k`].
    pub top_k: Option<usize>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplingParams::typical_p`].
    pub typical_p: Option<f32>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`SamplingParams::presence_penalty`].
    pub presence_penalty: f32,
    /// See [`SamplingParams::frequency_penalty`].
    pub frequency_penalty: f32,
    /// See [`SamplingParams::logit_bias`].
    pub logit_bias: Vec<(u32, f32)>,
    /// Drawn at random where `None`.
    pub seed: Option<u64>,
    /// See [`GenerateRequest::beams`].
    pub beams: Option<BeamParams>,
    /// See [`StopConditions::stop_tokens`].
    pub stop_tokens: Vec<u32>,
    /// See [`StopConditions::stop_strings`].
    pub stop_strings: Vec<String>,
    /// Go on after end-of-text.
    pub ignore_end_of_text: bool,
    /// Past the window.
    pub overflow: Overflow,
    /// Token ids of the session it continues; `None` if it is on none.
    pub history: Option<Vec<u32>>,
    /// Whose it is.
    pub tenant: Tenant,
    /// See [`GenerateRequest::share`](super::GenerateRequest::share).
    pub share: Tenant,
    /// See [`GenerateRequest::priority`](super::GenerateRequest::priority).
    pub priority: i32,
    /// See [`GenerateRequest::keep_kv`](super::GenerateRequest::keep_kv).
    pub keep_kv: bool,
    /// The log-probabilities to report.
    pub logprobs: LogprobsWanted,
    /// What the text must follow; its description went through [`Limits::check_grammar`].
    pub grammar: Option<Grammar>,
    /// What it is for.
    pub output: Output,
    /// When it is to be answered.
    pub deadline: Option<Deadline>,
}

impl RequestDraft {
    /// A draft that asks for the embedding of `input`.
    #[must_use]
    pub fn embedding(id: RequestId, input: Vec<u32>) -> Self {
        Self {
            prompt_field: "input",
            output: Output::Embedding,
            ..Self::new(id, input, 0, SamplingStyle::Greedy)
        }
    }

    /// A draft that asks for nothing but `max_tokens` tokens after `prompt`.
    #[must_use]
    pub fn new(id: RequestId, prompt: Vec<u32>, max_tokens: usize, style: SamplingStyle) -> Self {
        Self {
            id,
            prompt_field: "prompt",
            max_tokens_field: "max_tokens",
            style,
            prompt,
            max_tokens,
            max_tokens_given: true,
            min_tokens: 0,
            do_sample: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            typical_p: None,
            repetition_penalty: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            beams: None,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            ignore_end_of_text: false,
            overflow: Overflow::default(),
            history: None,
            tenant: Tenant::default(),
            share: Tenant::default(),
            priority: 0,
            keep_kv: false,
            logprobs: LogprobsWanted::default(),
            grammar: None,
            output: Output::default(),
            deadline: None,
        }
    }
}
