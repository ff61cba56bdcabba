//! The body of `POST /v1/completions`, and how it becomes requests to the engine.

use serde::Deserialize;
use utoipa::ToSchema;

use super::prompt::{Prompt, TokenizedPrompt};
use crate::http::app::Serving;
use crate::http::body::object;
use crate::http::error::ApiError;
use crate::http::fields::{above_zero, at_least, integer, number, unsupported};
use crate::http::layers::Scope;
use crate::http::wire::{LogitBias, OverflowField, StopStrings};
use crate::request::{
    GenerateRequest, LogprobsWanted, Overflow, RequestDraft, SamplingStyle, SessionId,
};

/// `max_tokens` where it is left out.
const DEFAULT_MAX_TOKENS: usize = 16;
/// The most choices that can be generated per prompt to return the best of.
pub(in crate::http) const MAX_BEST_OF: usize = 20;
/// The largest repetition penalty.
pub(in crate::http) const MAX_REPETITION_PENALTY: f64 = 100.0;

/// What to complete, and how. Every field may be left out or null; unknown fields are ignored.
/// Sampling fields left out take the model's defaults (`generation_config.json`), then those here.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"model": "fairy-tales", "prompt": "Once upon a time", "max_tokens": 64, "stream": true, "stream_options": {"include_usage": true}}))]
pub(in crate::http) struct CompletionRequest {
    /// The name of the served model; any other is 404 `model_not_found`. Default: the served one.
    pub model: Option<String>,
    /// What to complete. Default: the end-of-text token, after which the model begins a new text.
    /// With a session it is appended to the session's history and may be left out.
    pub prompt: Option<Prompt>,
    /// Tokens to generate at most; 0 only reads the prompt (with `echo` and `logprobs`: scores
    /// it). Prompt and `max_tokens` together must fit the context, see `overflow`.
    #[schema(minimum = 0, default = 16)]
    pub max_tokens: Option<i64>,
    /// Divides the logits; 0 always takes the most likely token.
    #[schema(minimum = 0, maximum = 2, default = 1)]
    pub temperature: Option<f64>,
    /// Only the most likely tokens whose probabilities add up to this.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1)]
    pub top_p: Option<f64>,
    /// Choices per prompt. All prompts and choices of a request together: see `/info`.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    pub n: Option<i64>,
    /// Generates so many choices per prompt and returns the `n` with the highest mean
    /// log-probability. At least `n`; not with `stream`, unless equal to `n`.
    #[schema(minimum = 1, maximum = 20)]
    pub best_of: Option<i64>,
    /// Answer with server-sent events.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// Only with `stream`.
    #[serde(default, deserialize_with = "object")]
    pub stream_options: Option<StreamOptions>,
    /// Report the log-probability of each token, and so many of the most likely in its place.
    #[schema(minimum = 0, maximum = 20)]
    pub logprobs: Option<i64>,
    /// The prompt comes first in `text`, and in `logprobs`.
    #[schema(default = false)]
    pub echo: Option<bool>,
    /// Texts that end the generation, not contained in the answer: at most 16, of at most 1024
    /// bytes each; none may be empty.
    #[schema(example = json!(["\n\n", "The End"]))]
    pub stop: Option<StopStrings>,
    /// Subtracted once from the logits of tokens already generated.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub presence_penalty: Option<f64>,
    /// Subtracted from the logits of generated tokens as many times as they occurred.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub frequency_penalty: Option<f64>,
    /// Added to the logits of tokens, by id; -100 to 100 each.
    pub logit_bias: Option<LogitBias>,
    /// 64 bits. Choice `i` of a prompt is drawn with `seed + i`. Default: a random one, which the
    /// answer names.
    pub seed: Option<i64>,
    /// Not supported: GPT-2 cannot fill in.
    pub suffix: Option<String>,
    /// Accepted, not used.
    #[expect(dead_code, reason = "read to check its type")]
    pub user: Option<String>,
    /// Only the so many most likely tokens; 0 or -1 is all.
    #[schema(minimum = -1, default = 0)]
    pub top_k: Option<i64>,
    /// Only tokens at least this fraction as likely as the most likely.
    #[schema(minimum = 0, maximum = 1, default = 0)]
    pub min_p: Option<f64>,
    /// Locally typical sampling: probability mass kept.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1)]
    pub typical_p: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is none.
    #[schema(exclusive_minimum = 0, maximum = 100, default = 1)]
    pub repetition_penalty: Option<f64>,
    /// Until so many tokens are generated, no end-of-text or stop token is drawn.
    #[schema(minimum = 0, default = 0)]
    pub min_tokens: Option<i64>,
    /// Go on after the model's end-of-text token.
    #[schema(default = false)]
    pub ignore_eos: Option<bool>,
    /// Tokens that end the generation, not contained in the answer.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Continue (or start) this session: 1 to 128 of the characters `A-Z a-z 0-9 - _ . : @`. One
    /// prompt and one choice only. Default: the `X-Session-Id` header.
    #[schema(pattern = "^[A-Za-z0-9_.:@-]{1,128}$")]
    pub session_id: Option<String>,
    /// What happens when the context reaches the model's window. Default: `error` if `max_tokens`
    /// is given, otherwise `stop`.
    pub overflow: Option<OverflowField>,
}

/// How to stream.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::http) struct StreamOptions {
    /// An event with the usage comes before `[DONE]`.
    #[schema(default = false)]
    pub include_usage: Option<bool>,
}

/// A checked completion request.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of the request"
)]
pub(super) struct Plan {
    /// The requests to the engine: `best_of` for each prompt, in order.
    pub requests: Vec<GenerateRequest>,
    /// The prompts, in order.
    pub prompts: Vec<TokenizedPrompt>,
    /// Choices returned per prompt.
    pub n: usize,
    /// Choices generated per prompt.
    pub best_of: usize,
    /// The prompt is part of the text.
    pub echo: bool,
    /// Log-probabilities were asked for.
    pub logprobs: bool,
    /// Answer with events.
    pub stream: bool,
    /// With usage.
    pub include_usage: bool,
}

/// Choices per prompt, returned and generated.
struct Choices {
    n: usize,
    best_of: usize,
}

impl CompletionRequest {
    /// Checks everything, tokenizes the prompts, and makes the requests to the engine.
    ///
    /// # Errors
    /// The first field that is not as it should be.
    pub(super) async fn plan(mut self, serving: &Serving, scope: &Scope) -> Result<Plan, ApiError> {
        self.check_model(serving)?;
        let stream = self.stream.unwrap_or(false);
        let include_usage = self.check_stream_options(stream)?;
        let choices = self.check_choices(serving, stream)?;
        let session = scope.session(self.session_id.as_deref())?;
        // No prompt is an empty one.
        let prompt = self.prompt.take().unwrap_or(Prompt::Text(String::new()));
        let prompts = prompt.split();
        let total = check_total(prompts.len(), &choices, serving, session.is_some())?;
        let draft = self.draft(serving, scope, session.clone())?;
        let prompts = TokenizedPrompt::all(prompts, &serving.tokenizer, session.is_some()).await?;
        let mut requests = Vec::with_capacity(total);
        for prompt in &prompts {
            let draft = RequestDraft {
                prompt: prompt.ids.clone(),
                ..draft.clone()
            };
            let first = serving.limits.admit(draft)?;
            for choice in 0..choices.best_of {
                let mut request = first.clone();
                request.id = scope.id.child(requests.len());
                request.sampling.seed = first.sampling.seed.wrapping_add(choice as u64);
                requests.push(request);
            }
        }
        Ok(Plan {
            requests,
            prompts,
            n: choices.n,
            best_of: choices.best_of,
            echo: self.echo.unwrap_or(false),
            logprobs: self.logprobs.is_some(),
            stream,
            include_usage,
        })
    }

    fn check_model(&self, serving: &Serving) -> Result<(), ApiError> {
        match &self.model {
            Some(model) if !serving.info.is_called(model) => {
                Err(ApiError::model_not_found(model, &serving.info.id))
            }
            _ => Ok(()),
        }
    }

    fn check_stream_options(&self, stream: bool) -> Result<bool, ApiError> {
        match &self.stream_options {
            Some(_) if !stream => Err(ApiError::invalid(
                "stream_options",
                "`stream_options` is only allowed with `stream: true`",
            )),
            Some(options) => Ok(options.include_usage.unwrap_or(false)),
            None => Ok(false),
        }
    }

    fn check_choices(&self, serving: &Serving, stream: bool) -> Result<Choices, ApiError> {
        let n = integer("n", self.n, 1..=serving.limits.max_choices)?.unwrap_or(1);
        let best_of = integer("best_of", self.best_of, 1..=MAX_BEST_OF)?.unwrap_or(n);
        if best_of < n {
            return Err(ApiError::invalid(
                "best_of",
                format!("`best_of` must be at least `n` ({n}), got {best_of}"),
            ));
        }
        if stream && best_of > n {
            return Err(ApiError::invalid(
                "best_of",
                format!(
                    "`best_of` must equal `n` ({n}) with `stream: true`: which choice is best is known at the end, got {best_of}"
                ),
            ));
        }
        Ok(Choices { n, best_of })
    }

    /// Everything but the prompt.
    fn draft(
        &mut self,
        serving: &Serving,
        scope: &Scope,
        session: Option<SessionId>,
    ) -> Result<RequestDraft, ApiError> {
        if let Some(suffix) = self.suffix.as_deref().filter(|suffix| !suffix.is_empty()) {
            let shown: String = suffix.chars().take(40).collect();
            return Err(unsupported(
                "suffix",
                format!("{shown:?}"),
                "this model only writes on, it cannot fill in",
            ));
        }
        let limits = &serving.limits;
        let max_tokens = at_least("max_tokens", self.max_tokens, 0)?;
        let logprobs = integer("logprobs", self.logprobs, 0..=limits.max_top_logprobs)?;
        let absent = if max_tokens.is_some() {
            Overflow::Error
        } else {
            Overflow::Stop
        };
        let top_k = match self.top_k {
            Some(-1) => Some(0),
            top_k => at_least("top_k", top_k, 0)?,
        };
        Ok(RequestDraft {
            max_tokens_given: max_tokens.is_some(),
            min_tokens: at_least("min_tokens", self.min_tokens, 0)?.unwrap_or(0),
            temperature: number("temperature", self.temperature, 0.0..=2.0)?,
            top_k,
            top_p: above_zero("top_p", self.top_p, 1.0)?,
            min_p: number("min_p", self.min_p, 0.0..=1.0)?,
            typical_p: above_zero("typical_p", self.typical_p, 1.0)?,
            repetition_penalty: above_zero(
                "repetition_penalty",
                self.repetition_penalty,
                MAX_REPETITION_PENALTY,
            )?,
            presence_penalty: number("presence_penalty", self.presence_penalty, -2.0..=2.0)?
                .unwrap_or(0.0),
            frequency_penalty: number("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?
                .unwrap_or(0.0),
            logit_bias: self.logit_bias.take().unwrap_or_default().checked()?,
            seed: self.seed.map(i64::cast_unsigned),
            stop_tokens: self.stop_token_ids.take().unwrap_or_default(),
            stop_strings: self.stop.take().unwrap_or_default().into_vec(),
            ignore_end_of_text: self.ignore_eos.unwrap_or(false),
            overflow: self.overflow.map_or(absent, Overflow::from),
            session,
            logprobs: LogprobsWanted {
                top: logprobs.unwrap_or(0),
                prompt: logprobs.is_some() && self.echo.unwrap_or(false),
            },
            ..RequestDraft::new(
                scope.id.clone(),
                Vec::new(),
                max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
                SamplingStyle::Sample,
            )
        })
    }
}

/// How many generations a request asks for.
fn check_total(
    prompts: usize,
    choices: &Choices,
    serving: &Serving,
    in_session: bool,
) -> Result<usize, ApiError> {
    let total = prompts.saturating_mul(choices.best_of);
    let most = serving.limits.max_choices;
    if total > most {
        return Err(ApiError::invalid(
            "n",
            format!(
                "{prompts} prompts with {} choices each are {total} generations; one request can ask for at most {most}",
                choices.best_of
            ),
        ));
    }
    if in_session && total > 1 {
        return Err(ApiError::invalid(
            if prompts > 1 { "prompt" } else { "n" },
            format!("a session takes one prompt and one choice at a time, got {total}"),
        ));
    }
    Ok(total)
}
