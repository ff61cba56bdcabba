//! The objects a chat completion is answered with.

use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::TokenLogprob;
use crate::http::generation::ShownToken;
use crate::http::openai::answer::{Usage, UsageField};
use crate::http::openai::logprobs::{TokenNames, finite};

/// A chat completion.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "chatcmpl-0f2c6a", "object": "chat.completion", "created": 1_764_000_000, "model": "fairy-tales",
    "system_fingerprint": "skald-0.1.0-f32",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": " He had three daughters.", "refusal": null}, "logprobs": null, "finish_reason": "stop", "seed": 42}],
    "usage": {"prompt_tokens": 18, "completion_tokens": 6, "total_tokens": 24, "prompt_tokens_details": {"cached_tokens": 0}}
}))]
pub(in crate::http) struct ChatCompletion<'a> {
    /// Its name.
    pub id: &'a str,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// When the request arrived, in seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: &'a str,
    /// Changes whenever the same seed could give another text.
    pub system_fingerprint: &'a str,
    /// As many as `n` asks for.
    pub choices: Vec<ChatChoice>,
    /// Tokens read and made.
    pub usage: Usage,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatChoice {
    /// Which one.
    pub index: usize,
    /// The generated message.
    pub message: AnswerMessage,
    /// Present if requested.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`: the text ended by itself or with a stop string; `length`: at
    /// `max_completion_tokens` or at the model's window.
    #[schema(example = "stop")]
    pub finish_reason: &'static str,
    /// The seed this choice was drawn with. The same request with this seed, and `n` 1, gives the
    /// same text.
    pub seed: Option<i64>,
}

/// The generated message.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AnswerMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text, as the model wrote it: in the plain form with a blank at its beginning.
    pub content: String,
    /// Always null: the model does not refuse.
    pub refusal: Option<String>,
}

/// A part of a chat completion, in a stream.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "chatcmpl-0f2c6a", "object": "chat.completion.chunk", "created": 1_764_000_000, "model": "fairy-tales",
    "system_fingerprint": "skald-0.1.0-f32",
    "choices": [{"index": 0, "delta": {"content": " He"}, "logprobs": null, "finish_reason": null}]
}))]
pub(in crate::http) struct ChatCompletionChunk<'a> {
    /// The same in all events of a stream.
    pub id: &'a str,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// When the request arrived, in seconds since 1970.
    pub created: u64,
    /// The model that answers.
    pub model: &'a str,
    /// Changes whenever the same seed could give another text.
    pub system_fingerprint: &'a str,
    /// One, or none in the event with the usage.
    pub choices: Vec<ChunkChoice>,
    /// Tokens read and made: only with `stream_options.include_usage`, and null in all events but
    /// the last.
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    #[schema(value_type = Option<Usage>)]
    pub usage: UsageField,
}

/// The new part of one choice.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct ChunkChoice {
    /// Which one.
    pub index: usize,
    /// The new part of its message.
    pub delta: Delta,
    /// Present if requested.
    pub logprobs: Option<ChatLogprobs>,
    /// As in a whole choice; null while generation continues.
    #[schema(example = "stop")]
    pub finish_reason: Option<&'static str>,
    /// The seed this choice was drawn with; with `finish_reason`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
}

/// The new part of a message: first its role, then its text piece by piece, finally an empty object.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct Delta {
    /// Always `assistant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// New text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Log-probabilities of an answer's tokens, under the model's own distribution (before penalties,
/// temperature and filters).
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatLogprobs {
    /// The tokens of the text; a special token that ended it is not among them.
    content: Vec<ChatToken>,
    /// Always null: the model does not refuse.
    refusal: Option<Vec<ChatToken>>,
}

/// A token of the text.
#[derive(Debug, Serialize, ToSchema)]
struct ChatToken {
    /// The token as text; one that is not whole UTF-8 is written `bytes:\xe2\x80`. With
    /// `return_tokens_as_token_ids`: `token_id:123`.
    token: String,
    /// Its log-probability.
    logprob: f32,
    /// Its bytes: those of several tokens together may be a character.
    bytes: Vec<u8>,
    /// The `top_logprobs` most likely tokens in its place, most likely first.
    top_logprobs: Vec<LikelyToken>,
}

/// A token that could have come.
#[derive(Debug, Serialize, ToSchema)]
struct LikelyToken {
    /// The token as text; one that is not whole UTF-8 is written `bytes:\xe2\x80`. With
    /// `return_tokens_as_token_ids`: `token_id:123`.
    token: String,
    /// Its log-probability.
    logprob: f32,
    /// Its bytes.
    bytes: Vec<u8>,
}

impl LikelyToken {
    fn new(names: TokenNames<'_>, token: TokenLogprob) -> Self {
        Self {
            token: names.of(token.id),
            logprob: finite(token.logprob),
            bytes: names
                .tokenizer
                .token_bytes(token.id)
                .unwrap_or_default()
                .to_vec(),
        }
    }
}

impl ChatLogprobs {
    /// Of tokens that were shown.
    pub(super) fn new(names: TokenNames<'_>, tokens: &[ShownToken]) -> Self {
        let content = tokens.iter().filter(|shown| !shown.special).map(|shown| {
            let LikelyToken {
                token,
                logprob,
                bytes,
            } = LikelyToken::new(names, shown.token);
            let top = shown.top.iter();
            ChatToken {
                token,
                logprob,
                bytes,
                top_logprobs: top.map(|&top| LikelyToken::new(names, top)).collect(),
            }
        });
        Self {
            content: content.collect(),
            refusal: None,
        }
    }

    /// Returns whether it has no tokens.
    pub(super) fn is_empty(&self) -> bool {
        self.content.is_empty()
    }
}
