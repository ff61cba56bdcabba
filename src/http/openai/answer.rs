//! The objects a completion is answered with, and those that chat completions are too.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::{Logprobs, PromptLogprobs};
use crate::engine::FinishReason;

/// A completion; in a stream, a part of one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "cmpl-0f2c6a", "object": "text_completion", "created": 1_764_000_000, "model": "fairy-tales",
    "system_fingerprint": "skald-0.1.0-f32",
    "choices": [{"index": 0, "text": " there was a king", "logprobs": null, "finish_reason": "length", "seed": 42}],
    "usage": {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 0}}
}))]
pub(in crate::http) struct Completion<'a> {
    /// The same in all events of a stream.
    pub id: &'a str,
    /// Always `text_completion`.
    pub object: &'static str,
    /// When the request arrived, in seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: &'a str,
    /// Changes whenever the same seed could give another text.
    pub system_fingerprint: &'a str,
    /// True, in all events of a stream, where the session begins anew because its stored history could not be read; else absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub history_lost: bool,
    /// One for each choice of each prompt, `index = prompt * n + choice`. In a stream one event
    /// has one choice with its new text, and the event with the usage has none.
    pub choices: Vec<Choice>,
    /// Tokens read and made. In a stream only with `stream_options.include_usage`, and null in
    /// all events but the last.
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: UsageField,
}

/// One choice.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Choice {
    /// Which one.
    pub index: usize,
    /// The text, or the new part of it.
    pub text: String,
    /// Present if requested.
    pub logprobs: Option<Logprobs>,
    /// Present if requested; in a stream with the first event of the choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// `stop`: the text ended by itself or with a stop string, or is all its grammar allows; `length`: at `max_tokens` or at
    /// the model's window; null while it goes on.
    #[schema(example = "stop")]
    pub finish_reason: Option<&'static str>,
    /// The seed this choice was drawn with; with `finish_reason`. The same request with this
    /// seed, and `n` 1, gives the same text. A beam is not drawn and has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
}

impl Choice {
    /// Creates an empty choice.
    pub(super) fn new(index: usize) -> Self {
        Self {
            index,
            text: String::new(),
            logprobs: None,
            prompt_logprobs: None,
            finish_reason: None,
            seed: None,
        }
    }
}

/// The three states of `usage`.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(in crate::http) enum UsageField {
    /// Left out: a stream without `include_usage`.
    Absent,
    /// Null: a later event has it.
    Null,
    /// Present.
    Present(Usage),
}

impl UsageField {
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// Tokens read and made.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(in crate::http) struct Usage {
    /// Tokens of all prompts, each counted once; with a session its history included.
    pub prompt_tokens: usize,
    /// Tokens generated, for all choices, those not returned included.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Of the prompt's tokens.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// Of the prompt's tokens.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(in crate::http) struct PromptTokensDetails {
    /// How many were in the KV cache already.
    pub cached_tokens: usize,
}

impl Usage {
    /// Adds a prompt.
    pub(super) fn add_prompt(&mut self, tokens: usize, cached: usize) {
        self.prompt_tokens += tokens;
        self.total_tokens += tokens;
        self.prompt_tokens_details.cached_tokens += cached;
    }

    /// Adds a choice.
    pub(super) fn add_completion(&mut self, tokens: usize) {
        self.completion_tokens += tokens;
        self.total_tokens += tokens;
    }
}

/// Returns OpenAI's name of a reason.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfText | FinishReason::Stop | FinishReason::Complete => "stop",
    }
}
