//! The fields that completions and chat completions have in common, said and checked once.
//!
//! Nothing here may know what an endpoint generates from.

use std::sync::Arc;

use std::collections::HashSet;

use serde::Deserialize;
use serde::de::{Error, MapAccess};
use utoipa::ToSchema;

use super::logprobs::TokenForm;
use crate::http::body::Object;
use crate::http::error::ApiError;
use crate::http::fields::{above_zero, at_least, deadline, integer, number};
use crate::http::layers::Scope;
use crate::http::structured::{self, GrammarFields, ResponseFormat, StructuredOutputs};
use crate::http::wire::{LogitBias, StopStrings, Word};
use crate::model::adapter::Adapter;
use crate::request::{Overflow, RequestDraft, SamplingOverrides, SamplingStyle};
use crate::serving::Serving;

/// The fields that both endpoints read. Every field may be left out or null.
#[derive(Debug, Default, ToSchema)]
pub(in crate::http) struct SharedFields {
    /// The name of the served model; any other is 404 `model_not_found`. Default: the served one,
    /// for which `tgi` and `dummy` stand too.
    pub model: Option<String>,
    /// Divides the logits; 0 always takes the most likely token.
    #[schema(minimum = 0, maximum = 2, default = 1)]
    temperature: Option<f64>,
    /// Only the most likely tokens whose probabilities add up to this.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1)]
    top_p: Option<f64>,
    /// Choices per prompt. All prompts and choices of a request together: see `/info`.
    #[schema(minimum = 1, maximum = 128, default = 1)]
    n: Option<i64>,
    /// Answer with server-sent events.
    #[schema(default = false)]
    stream: Option<bool>,
    /// Only with `stream`.
    stream_options: Option<StreamOptions>,
    /// Texts that end the generation, not contained in the answer: at most 16, of at most 1024
    /// bytes each; none may be empty.
    #[schema(example = json!(["\n\n", "The End"]))]
    stop: Option<StopStrings>,
    /// Subtracted once from the logits of tokens already generated.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    presence_penalty: Option<f64>,
    /// Subtracted from the logits of generated tokens once per occurrence.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    frequency_penalty: Option<f64>,
    /// Added to the logits of tokens, by id; -100 to 100 each.
    logit_bias: Option<LogitBias>,
    /// 64 bits. Choice `i` of a prompt is drawn with `seed + i`. Default: a random one, which the
    /// answer names.
    seed: Option<i64>,
    /// Accepted, not used.
    user: Option<String>,
    /// Sample only from the K most likely tokens; 0 or -1 is all.
    #[schema(minimum = -1, default = 0)]
    top_k: Option<i64>,
    /// Only tokens at least this fraction as likely as the most likely.
    #[schema(minimum = 0, maximum = 1, default = 0)]
    min_p: Option<f64>,
    /// Locally typical sampling: probability mass kept.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1)]
    typical_p: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is none.
    #[schema(exclusive_minimum = 0, maximum = 100, default = 1)]
    repetition_penalty: Option<f64>,
    /// Until this many tokens are generated, no end-of-text or stop token is drawn, unless the
    /// text's grammar allows nothing else.
    #[schema(minimum = 0, default = 0)]
    min_tokens: Option<i64>,
    /// Go on after the model's end-of-text token. A text that follows a grammar then ends only
    /// where the grammar allows nothing else.
    #[schema(default = false)]
    ignore_eos: Option<bool>,
    /// Tokens that end the generation, not contained in the answer.
    stop_token_ids: Option<Vec<u32>>,
    /// Write the tokens of `logprobs` as `token_id:123` in place of their texts, as vLLM does. Offsets and
    /// bytes stay those of the texts.
    #[schema(default = false)]
    return_tokens_as_token_ids: Option<bool>,
    /// Format of the text. Only one of this, the `guided_…` fields and `structured_outputs` may be given.
    response_format: Option<ResponseFormat>,
    /// The text must be JSON that follows this JSON schema: an object, or one as a string. It has
    /// no whitespace between its parts, unless the schema's `x-guidance` says otherwise. A schema
    /// with keywords that can't be followed is refused.
    #[schema(value_type = Option<Object>)]
    guided_json: Option<serde_json::Value>,
    /// The text must match this regular expression, from its beginning to its end.
    #[schema(example = "[A-Z][a-z]{2,9}")]
    guided_regex: Option<String>,
    /// The text must be one of these.
    #[schema(example = json!(["yes", "no"]))]
    guided_choice: Option<Vec<String>>,
    /// The text must follow this context-free grammar, in llguidance's dialect of Lark.
    #[schema(example = "start: \"a\" start | \"b\"")]
    guided_grammar: Option<String>,
    /// The `guided_…` fields as newer clients of vLLM spell them.
    structured_outputs: Option<StructuredOutputs>,
    /// Keep only this number of tokens from the end of the prompt; -1: as many as fit the model's context
    /// beside the tokens to generate (a default counts as at most half the context).
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// Behavior when the context reaches the model's window. Default: `error` if the number of
    /// tokens to generate is given, otherwise `stop`.
    overflow: Option<Overflow>,
    /// Maximum seconds from the request's arrival to the end of the answer, time in the queue
    /// included. After that the request ends with 408 `timeout`, or with that error as the
    /// last event of a stream. Default: no limit.
    #[schema(minimum = 0.001, maximum = 86400)]
    timeout: Option<f64>,
    /// Waiting requests with a lower value begin earlier, regardless of their API key. A value below 0
    /// requires a key with that permission; otherwise the request is refused with 403
    /// `priority_not_allowed`.
    #[schema(minimum = -1000, maximum = 1000, default = 0)]
    priority: Option<i64>,
}

/// How to stream.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::http) struct StreamOptions {
    /// Send an event with the usage before `[DONE]`.
    #[schema(default = false)]
    pub include_usage: Option<bool>,
}

/// How to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Streaming {
    /// With events.
    pub stream: bool,
    /// With usage, if with events.
    pub include_usage: bool,
}

/// Which part of a prompt is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truncation {
    /// So many of its last tokens.
    Last(usize),
    /// As many of its last tokens as fit.
    ToFit,
}

/// What is to be generated, as the endpoint itself has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Length {
    /// Its field, for messages.
    pub field: &'static str,
    /// What the request says.
    pub given: Option<usize>,
    /// Where it says nothing.
    pub default: usize,
}

/// Reads the value of a field, if `$key` names one of those listed: `$field`, or `$field: Wrapper` for a
/// value that is read by way of a wrapper.
macro_rules! read_field {
    ($self:ident, $key:ident, $map:ident, $seen:ident, $($field:ident $(: $wrapper:ident)?),* $(,)?) => {
        match $key {
            $(stringify!($field) => {
                if !$seen.insert(stringify!($field)) {
                    return Err(A::Error::duplicate_field(stringify!($field)));
                }
                $self.$field = read_field!(@value $map $($wrapper)?);
                Ok(true)
            })*
            _ => Ok(false),
        }
    };
    (@value $map:ident) => { $map.next_value()? };
    (@value $map:ident $wrapper:ident) => {
        $map.next_value::<Option<$wrapper<_>>>()?.map(|$wrapper(value)| value)
    };
}

impl SharedFields {
    /// Reads the value of the field `key` from `map`; returns false if it is not a shared field. `seen` has the
    /// fields read before.
    ///
    /// # Errors
    /// A value of the wrong type, or a field that was read before.
    pub(super) fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        map: &mut A,
        seen: &mut HashSet<&'static str>,
    ) -> Result<bool, A::Error> {
        read_field!(
            self, key, map, seen,
            model, temperature, top_p, n, stream, stream_options: Object, stop, presence_penalty,
            frequency_penalty, logit_bias, seed, user, top_k, min_p, typical_p, repetition_penalty,
            min_tokens, ignore_eos, stop_token_ids, return_tokens_as_token_ids, response_format: Object,
            guided_json, guided_regex, guided_choice, guided_grammar, structured_outputs: Object,
            truncate_prompt_tokens, overflow: Word, timeout, priority,
        )
    }

    /// # Errors
    /// If it asks for a model that is not served.
    pub(super) fn check_model(&self, serving: &Serving) -> Result<(), ApiError> {
        adapter(self.model.as_deref(), serving).map(drop)
    }

    /// Returns how the tokens of log-probabilities are written.
    pub(super) fn token_form(&self) -> TokenForm {
        match self.return_tokens_as_token_ids {
            Some(true) => TokenForm::Id,
            _ => TokenForm::Text,
        }
    }

    /// # Errors
    /// If options are given for a stream that is not asked for.
    pub(super) fn streaming(&self) -> Result<Streaming, ApiError> {
        let stream = self.stream.unwrap_or(false);
        let options = self.stream_options.as_ref();
        if options.is_some() && !stream {
            return Err(ApiError::invalid(
                "stream_options",
                "`stream_options` is only allowed with `stream: true`",
            ));
        }
        Ok(Streaming {
            stream,
            include_usage: options
                .and_then(|options| options.include_usage)
                .unwrap_or(false),
        })
    }

    /// Choices per prompt.
    ///
    /// # Errors
    /// If it is out of range.
    pub(super) fn n(&self, serving: &Serving) -> Result<usize, ApiError> {
        let n = integer("n", self.n, 1..=serving.limits.max_choices)?;
        Ok(n.unwrap_or(1))
    }

    /// # Errors
    /// If it is out of range.
    pub(super) fn truncation(&self) -> Result<Option<Truncation>, ApiError> {
        match self.truncate_prompt_tokens {
            None => Ok(None),
            Some(-1) => Ok(Some(Truncation::ToFit)),
            Some(keep) => match usize::try_from(keep) {
                Ok(keep @ 1..) => Ok(Some(Truncation::Last(keep))),
                _ => Err(ApiError::invalid(
                    "truncate_prompt_tokens",
                    format!(
                        "`truncate_prompt_tokens` must be an integer of at least 1, or -1 for what fits, got {keep}"
                    ),
                )),
            },
        }
    }

    /// Returns a draft with sampling, length, stopping and grammar.
    ///
    /// # Errors
    /// The first field that is out of range, or a grammar that can't be followed.
    pub(super) async fn into_draft(
        self,
        serving: &Serving,
        scope: &Scope,
        length: Length,
    ) -> Result<RequestDraft, ApiError> {
        let grammar_fields = GrammarFields {
            response_format: self.response_format,
            guided_json: self.guided_json,
            guided_regex: self.guided_regex,
            guided_choice: self.guided_choice,
            guided_grammar: self.guided_grammar,
            structured_outputs: self.structured_outputs,
        };
        let grammar = grammar_fields.description()?;
        let grammar = structured::compile(grammar, serving, scope.share).await?;
        let absent = if length.given.is_some() {
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
            adapter: adapter(self.model.as_deref(), serving)?,
            max_tokens_field: length.field,
            grammar,
            min_tokens: at_least("min_tokens", self.min_tokens, 0)?.unwrap_or(0),
            sampling: SamplingOverrides {
                do_sample: None,
                temperature: number("temperature", self.temperature, 0.0..=2.0)?,
                top_k,
                top_p: above_zero("top_p", self.top_p, 1.0)?,
                min_p: number("min_p", self.min_p, 0.0..=1.0)?,
                typical_p: above_zero("typical_p", self.typical_p, 1.0)?,
                repetition_penalty: above_zero(
                    "repetition_penalty",
                    self.repetition_penalty,
                    serving.limits.max_repetition_penalty,
                )?,
                max_new_tokens: length.given,
            },
            presence_penalty: number("presence_penalty", self.presence_penalty, -2.0..=2.0)?
                .unwrap_or(0.0),
            frequency_penalty: number("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?
                .unwrap_or(0.0),
            logit_bias: self.logit_bias.unwrap_or_default().checked()?,
            seed: self.seed.map(i64::cast_unsigned),
            stop_tokens: self.stop_token_ids.unwrap_or_default(),
            stop_strings: self.stop.unwrap_or_default().into_vec(),
            ignore_end_of_text: self.ignore_eos.unwrap_or(false),
            overflow: self.overflow.unwrap_or(absent),
            tenant: scope.tenant,
            share: scope.share,
            priority: scope.priority(self.priority)?,
            deadline: deadline(self.timeout)?,
            ..RequestDraft::new(
                scope.id.clone(),
                Vec::new(),
                length.default,
                SamplingStyle::Sample,
            )
        })
    }
}

/// Returns the adapter that a request means by `model`; `None` is the model itself. A request may leave the
/// model out, but not ask for one that is not served.
///
/// # Errors
/// `model_not_found`.
pub(in crate::http) fn adapter(
    model: Option<&str>,
    serving: &Serving,
) -> Result<Option<Arc<Adapter>>, ApiError> {
    match model {
        Some(name) if !serving.info.is_called(name) => match serving.adapters.get(name) {
            Some(adapter) => Ok(Some(adapter)),
            None => Err(ApiError::model_not_found("model", name, &serving.served())),
        },
        _ => Ok(None),
    }
}

impl Truncation {
    /// Returns how many of a prompt's last tokens are kept.
    pub(super) fn keeps(self, serving: &Serving, draft: &RequestDraft) -> usize {
        match self {
            Self::Last(tokens) => tokens,
            Self::ToFit => serving.limits.prompt_room(draft),
        }
    }
}
