//! The body of `POST /v1/chat/completions`, and how it becomes requests to the engine.

use serde::Deserialize;
use utoipa::ToSchema;

use super::conversation;
use super::messages::MessageField;
use crate::http::body::objects;
use crate::http::error::{ApiError, shown};
use crate::http::fields::{at_least, integer, unsupported};
use crate::http::generation::Submission;
use crate::http::layers::Scope;
use crate::http::openai::logprobs::TokenForm;
use crate::http::openai::shared::{Length, Streaming};
use crate::http::openai::with_shared::WithShared;
use crate::request::{LogprobsWanted, RequestDraft};
use crate::serving::Serving;

/// The body of a chat completion request.
pub(in crate::http) type ChatBody = WithShared<ChatRequest>;

/// A conversation, and how to continue it. Every field but `messages` may be left out or null;
/// unknown fields are ignored. Sampling fields left out take the model's defaults
/// (`generation_config.json`), then those here.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = ChatCompletionRequest, example = json!({"model": "fairy-tales", "messages": [{"role": "system", "content": "A tale told by the fire."}, {"role": "user", "content": "Who was the king?"}], "max_completion_tokens": 64, "stream": true}))]
pub(in crate::http) struct ChatRequest {
    /// The conversation so far: at least one message.
    #[serde(default, deserialize_with = "objects")]
    #[schema(value_type = Vec<MessageField>, min_items = 1, required = true)]
    messages: Option<Vec<MessageField>>,
    /// Tokens to generate at most; 0 only reads the conversation. Together with it they must fit
    /// the context, see `overflow`. Default: what fits; with `overflow: "slide"`, a whole context.
    #[schema(minimum = 0)]
    max_completion_tokens: Option<i64>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 0)]
    max_tokens: Option<i64>,
    /// Report the log-probability of each token.
    #[schema(default = false)]
    logprobs: Option<bool>,
    /// With `logprobs`: report this number of the most likely tokens in each place.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    /// Begin an assistant's message, which the model then writes.
    #[schema(default = true)]
    add_generation_prompt: Option<bool>,
    /// Continue the last message instead of beginning another; not with
    /// `add_generation_prompt: true`.
    #[schema(default = false)]
    continue_final_message: Option<bool>,
    /// Not supported: an empty list is accepted.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<serde_json::Value>>,
    /// `none` or `auto`, which without tools are the same.
    #[schema(value_type = Option<String>)]
    tool_choice: Option<serde_json::Value>,
    /// Not supported: an empty list is accepted.
    #[schema(value_type = Option<Vec<Object>>)]
    functions: Option<Vec<serde_json::Value>>,
    /// Not supported: each request has the whole conversation, and its earlier part is found in the KV
    /// cache automatically. An `X-Session-Id` header is ignored.
    session_id: Option<String>,
}

/// A checked chat completion request.
pub(super) struct PreparedChat {
    /// The requests to the engine, one for each choice.
    pub submission: Submission,
    /// How the tokens are written, where log-probabilities are reported.
    pub logprobs: Option<TokenForm>,
    /// Form of the answer.
    pub streaming: Streaming,
}

impl ChatBody {
    /// Checks all fields, renders the prompt, and creates the requests to the engine.
    ///
    /// # Errors
    /// The first field that is not valid, or the chat template's objection to the messages.
    pub(super) async fn prepare(
        self,
        serving: &Serving,
        scope: &Scope,
    ) -> Result<PreparedChat, ApiError> {
        let Self { own, shared } = self;
        shared.check_model(serving)?;
        own.refuse_unsupported()?;
        let streaming = shared.streaming()?;
        let n = shared.n(serving)?;
        let logprobs = own.logprobs(serving)?;
        let token_form = shared.token_form();
        let truncation = shared.truncation()?;
        let length = own.length(serving)?;
        let ending = conversation::ending(own.continue_final_message, own.add_generation_prompt)?;
        let messages = conversation::messages(own.messages)?;
        let mut draft = RequestDraft {
            prompt_field: "messages",
            logprobs: LogprobsWanted {
                top: logprobs.unwrap_or(0),
                ..LogprobsWanted::default()
            },
            ..shared.into_draft(serving, scope, length).await?
        };
        draft.template_stops = serving.chat.stops(&messages);
        let mut prompt = conversation::prompt(&scope.admission, serving, messages, ending).await?;
        if let Some(truncation) = truncation {
            let keep = truncation.keeps(serving, &draft);
            serving.tokenizer.keep_last(&mut prompt, keep);
        }
        draft.prompt = prompt;
        let first = serving.limits.admit(draft)?;
        let (limits, generated) = (&serving.limits, n.saturating_mul(first.stop.max_tokens));
        limits.check_total("n", n.saturating_mul(first.prompt.len()), generated)?;
        if let (Some(top), false) = (logprobs, streaming.stream) {
            limits.check_logprobs("top_logprobs", generated.saturating_mul(top + 1))?;
        }
        Ok(PreparedChat {
            submission: Submission {
                requests: first.choices(&scope.id, 0, n).collect(),
                per_prompt: n,
                turn: None,
                include_stop: false,
            },
            logprobs: logprobs.map(|_| token_form),
            streaming,
        })
    }
}

impl ChatRequest {
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        conversation::no_tools("tools", self.tools.as_deref())?;
        conversation::no_tools("functions", self.functions.as_deref())?;
        match &self.tool_choice {
            Some(choice) if choice != "none" && choice != "auto" => {
                return Err(unsupported(
                    "tool_choice",
                    shown(&choice.to_string()),
                    "this model does not call tools, so only \"none\" and \"auto\" are accepted",
                ));
            }
            _ => (),
        }
        if let Some(session) = &self.session_id {
            let shown: String = session.chars().take(40).collect();
            return Err(unsupported(
                "session_id",
                format!("{shown:?}"),
                "each request has the whole conversation, and its earlier part is found in the cache automatically",
            ));
        }
        Ok(())
    }

    fn logprobs(&self, serving: &Serving) -> Result<Option<usize>, ApiError> {
        let most = serving.limits.max_top_logprobs;
        let top = integer("top_logprobs", self.top_logprobs, 0..=most)?;
        match (self.logprobs, top) {
            (Some(true), top) => Ok(Some(top.unwrap_or(0))),
            (_, None | Some(0)) => Ok(None),
            (_, Some(top)) => Err(ApiError::invalid(
                "top_logprobs",
                format!("`top_logprobs` is only allowed with `logprobs: true`, got {top}"),
            )),
        }
    }

    fn length(&self, serving: &Serving) -> Result<Length, ApiError> {
        let newer = at_least("max_completion_tokens", self.max_completion_tokens, 0)?;
        let older = at_least("max_tokens", self.max_tokens, 0)?;
        if let (Some(newer), Some(older)) = (newer, older)
            && newer != older
        {
            return Err(ApiError::invalid(
                "max_tokens",
                format!(
                    "`max_tokens` is the older name of `max_completion_tokens` ({newer}); given both, they must be equal, got {older}"
                ),
            ));
        }
        Ok(Length {
            field: if newer.is_none() && older.is_some() {
                "max_tokens"
            } else {
                "max_completion_tokens"
            },
            given: newer.or(older),
            default: serving.limits.context_length,
        })
    }
}
