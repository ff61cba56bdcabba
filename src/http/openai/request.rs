//! The body of `POST /v1/completions`, and how it becomes requests to the engine.

use serde::Deserialize;
use utoipa::ToSchema;

use super::beams::{BeamFields, EarlyStoppingField};
use super::prompt::{Prompt, TokenizedPrompt};
use crate::http::app::Serving;
use crate::http::body::object;
use crate::http::error::ApiError;
use crate::http::fields::{above_zero, at_least, integer, number, unsupported};
use crate::http::grammar::{self, GrammarFields, ResponseFormat, StructuredOutputs};
use crate::http::layers::Scope;
use crate::http::wire::{LogitBias, OverflowField, StopStrings};
use crate::request::{
    BeamParams, GenerateRequest, LogprobsWanted, Overflow, RequestDraft, SamplingStyle, SessionId,
};

/// `max_tokens` where it is left out.
const DEFAULT_MAX_TOKENS: usize = 16;

/// What to complete, and how. Every field may be left out or null; unknown fields are ignored.
/// Sampling fields left out take the model's defaults (`generation_config.json`), then those here.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"model": "fairy-tales", "prompt": "Once upon a time", "max_tokens": 64, "stream": true, "stream_options": {"include_usage": true}}))]
pub(in crate::http) struct CompletionRequest {
    /// The name of the served model; any other is 404 `model_not_found`. Default: the served one.
    pub model: Option<String>,
    /// What to complete. Default, and for `""`: the end-of-text token, after which the model begins
    /// a new text.
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
    /// log-probability; with `use_beam_search` the number of beams. At least `n`; not with
    /// `stream`, unless equal to `n`.
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
    /// Until so many tokens are generated, no end-of-text or stop token is drawn, unless the
    /// text's grammar allows nothing else.
    #[schema(minimum = 0, default = 0)]
    pub min_tokens: Option<i64>,
    /// Go on after the model's end-of-text token. A text that follows a grammar then ends only
    /// where the grammar allows nothing else.
    #[schema(default = false)]
    pub ignore_eos: Option<bool>,
    /// Tokens that end the generation, not contained in the answer.
    pub stop_token_ids: Option<Vec<u32>>,
    /// What the text must be. This, the `guided_…` fields and `structured_outputs`: one of them.
    #[serde(default, deserialize_with = "object")]
    pub response_format: Option<ResponseFormat>,
    /// The text must be JSON that follows this JSON schema: an object, or one as a string. It has
    /// no whitespace between its parts, unless the schema's `x-guidance` says otherwise. A schema
    /// with keywords that can't be followed is refused.
    #[schema(value_type = Option<Object>)]
    pub guided_json: Option<serde_json::Value>,
    /// The text must match this regular expression, from its beginning to its end.
    #[schema(example = "[A-Z][a-z]{2,9}")]
    pub guided_regex: Option<String>,
    /// The text must be one of these.
    #[schema(example = json!(["yes", "no"]))]
    pub guided_choice: Option<Vec<String>>,
    /// The text must follow this context-free grammar, in llguidance's dialect of Lark.
    #[schema(example = "start: \"a\" start | \"b\"")]
    pub guided_grammar: Option<String>,
    /// The `guided_…` fields as newer clients of vLLM spell them.
    #[serde(default, deserialize_with = "object")]
    pub structured_outputs: Option<StructuredOutputs>,
    /// Search for the most likely texts instead of drawing tokens: `best_of` beams (by default
    /// `n`), of which the best `n` are returned, best first, as Hugging Face's `generate` finds them
    /// with `num_beams` and `num_return_sequences`. Sampling fields must be left out or change
    /// nothing, the model's sampling defaults do not count, and `seed` is ignored. End-of-text,
    /// `stop_token_ids`, `min_tokens` and `max_tokens` (at least 1) end beams; `stop`, `stream`,
    /// `session_id` and `overflow: "slide"` are not possible. `completion_tokens` counts the beams
    /// returned.
    #[schema(default = false)]
    pub use_beam_search: Option<bool>,
    /// Beams are ranked by their log-probability divided by their length in tokens, the one that
    /// ends them included, to the power of this: above 0 favours longer texts. Only with
    /// `use_beam_search`.
    #[schema(minimum = -10, maximum = 10, default = 1)]
    pub length_penalty: Option<f64>,
    /// Only with `use_beam_search`.
    pub early_stopping: Option<EarlyStoppingField>,
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
    /// The requests to the engine: `best_of` for each prompt, in order, or one beam search.
    pub requests: Vec<GenerateRequest>,
    /// The prompts, in order.
    pub prompts: Vec<TokenizedPrompt>,
    /// Choices returned per prompt.
    pub n: usize,
    /// Choices generated per prompt, of which the best are returned; a beam search generates
    /// only those it returns.
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

impl Choices {
    /// Those that come out of the engine.
    fn generated(self, beams: Option<BeamParams>) -> Self {
        let best_of = beams.map_or(self.best_of, |beams| beams.returned);
        Self { best_of, ..self }
    }
}

impl CompletionRequest {
    /// Checks everything, tokenizes the prompts, and makes the requests to the engine.
    ///
    /// # Errors
    /// The first field that is not as it should be.
    pub(super) async fn plan(mut self, serving: &Serving, scope: &Scope) -> Result<Plan, ApiError> {
        check_model(self.model.as_deref(), serving)?;
        let stream = self.stream.unwrap_or(false);
        let include_usage = self.check_stream_options(stream)?;
        let choices = self.check_choices(serving, stream)?;
        let beams = self.beams(&choices, stream)?;
        let session = scope.session(self.session_id.as_deref())?;
        // No prompt is an empty one.
        let prompt = self.prompt.take().unwrap_or(Prompt::Text(String::new()));
        let prompts = prompt.split();
        // That a search has no session is said by `Limits::admit`.
        let one_choice = session.is_some() && beams.is_none();
        let total = check_total(prompts.len(), &choices, serving, one_choice)?;
        let mut draft = self.draft(serving, scope, session.clone())?;
        draft.beams = beams;
        draft.grammar = grammar::compile(self.grammar_fields().description()?, serving).await?;
        let choices = choices.generated(beams);
        let prompts = TokenizedPrompt::all(prompts, &serving.tokenizer, session.is_some()).await?;
        let mut requests = Vec::with_capacity(total);
        for prompt in &prompts {
            let draft = RequestDraft {
                prompt: prompt.ids.clone(),
                ..draft.clone()
            };
            let first = serving.limits.admit(draft)?;
            let requests_per_prompt = beams.map_or(choices.best_of, |_| 1);
            for choice in 0..requests_per_prompt {
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
        let best_of = integer("best_of", self.best_of, 1..=serving.limits.max_best_of)?;
        let best_of = best_of.unwrap_or(n);
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

    fn grammar_fields(&mut self) -> GrammarFields {
        GrammarFields {
            response_format: self.response_format.take(),
            guided_json: self.guided_json.take(),
            guided_regex: self.guided_regex.take(),
            guided_choice: self.guided_choice.take(),
            guided_grammar: self.guided_grammar.take(),
            structured_outputs: self.structured_outputs.take(),
        }
    }

    /// The beam search it asks for, if any.
    fn beams(&self, choices: &Choices, stream: bool) -> Result<Option<BeamParams>, ApiError> {
        let fields = BeamFields {
            use_beam_search: self.use_beam_search.unwrap_or(false),
            length_penalty: self.length_penalty,
            early_stopping: self.early_stopping,
            stream,
        };
        fields.checked(choices.best_of, choices.n)
    }

    /// Everything but the prompt, the beams and the grammar.
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
            Some(top_k) if top_k < 0 => {
                return Err(ApiError::invalid(
                    "top_k",
                    format!("`top_k` must be an integer of at least 0, or -1 for all, got {top_k}"),
                ));
            }
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
                limits.max_repetition_penalty,
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

/// A request may leave the model out, but not ask for another one.
///
/// # Errors
/// `model_not_found`.
pub(super) fn check_model(model: Option<&str>, serving: &Serving) -> Result<(), ApiError> {
    match model {
        Some(model) if !serving.info.is_called(model) => {
            Err(ApiError::model_not_found(model, &serving.info.id))
        }
        _ => Ok(()),
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
            if prompts > most { "prompt" } else { "n" },
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
