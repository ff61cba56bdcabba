//! The body of the native dialect's requests, and its conversion to requests to the engine.

use std::sync::Arc;

use serde::Deserialize;
use utoipa::ToSchema;

use crate::http::body::object;
use crate::http::error::ApiError;
use crate::http::fields::{above_zero, at_least, deadline, integer, number, unsupported};
use crate::http::generation::{Submission, begin_turn, tokenize_continued, tokenize_prompt};
use crate::http::layers::Scope;
use crate::http::structured::{self, NativeGrammar};
use crate::http::wire::{StopStrings, optional_word};
use crate::model::adapter::Adapter;
use crate::request::{LogprobsWanted, Overflow, RequestDraft, SamplingOverrides, SamplingStyle};
use crate::serving::Serving;
use crate::session::IfBusy;

/// Default of `max_new_tokens`.
const DEFAULT_MAX_NEW_TOKENS: usize = 100;

/// A prompt and how to continue it. Unknown fields are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"inputs": "Once upon a time", "parameters": {"max_new_tokens": 64}, "stream": true}))]
pub(in crate::http) struct GenerateBody {
    /// The prompt. Must not be empty, unless it continues a session.
    pub inputs: String,
    /// Parameters of the generation.
    #[serde(default, deserialize_with = "object")]
    pub parameters: Option<Parameters>,
    /// Whether to answer with server-sent events.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// Session to continue or start: 1 to 128 of the characters `A-Z a-z 0-9 - _ . : @`. The session
    /// stores prompt and text, and the next request's `inputs` are appended to them.
    /// Default: the `X-Session-Id` header.
    #[schema(example = "bedtime-1", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")]
    pub session_id: Option<String>,
    /// Behavior if another request is using the session. Default: `wait`.
    #[serde(default, deserialize_with = "optional_word")]
    pub if_busy: Option<IfBusy>,
    /// Behavior when the context reaches the model's window. Default: `stop`.
    #[serde(default, deserialize_with = "optional_word")]
    pub overflow: Option<Overflow>,
}

/// Parameters of the generation. Every field may be left out or null. The defaults of sampling fields
/// are the model's (`generation_config.json`), then those given here.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::http) struct Parameters {
    /// Maximum tokens to generate.
    #[schema(minimum = 1, default = 100)]
    pub max_new_tokens: Option<i64>,
    /// Whether to sample; false always takes the most likely token. Default: true if `temperature`,
    /// `top_k`, `top_p` or `typical_p` is given, otherwise the model's default, otherwise false.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    pub temperature: Option<f64>,
    /// Number of the most likely tokens to sample from.
    #[schema(minimum = 1)]
    pub top_k: Option<i64>,
    /// Probability mass of the most likely tokens to sample from; 1 turns this off.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// Probability mass kept by locally typical sampling; 1 turns it off.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub typical_p: Option<f64>,
    /// Divisor of positive and factor of negative logits of tokens in the prompt or output; 1 turns
    /// this off.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    pub repetition_penalty: Option<f64>,
    /// Amount subtracted from the logit of a generated token for each of its occurrences.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f64>,
    /// Seed of the sampling, 64 bits. Default: a random seed, which `details` reports.
    #[schema(minimum = 1, format = "uint64")]
    pub seed: Option<u64>,
    /// Stop strings, which end the generation and are included in its text: at most 16, each of 1 to
    /// 1024 bytes.
    pub stop: Option<StopStrings>,
    /// Number of texts to generate. The one with the highest mean log-probability is returned, the
    /// others in `details`. Requires sampling; not available with streams.
    #[schema(minimum = 1, maximum = 20, default = 1)]
    pub best_of: Option<i64>,
    /// Whether to report each token, the finish reason, and the seed.
    #[schema(default = false)]
    pub details: Option<bool>,
    /// Whether to report the prompt's tokens too (implies `details`); not available with streams.
    #[schema(default = false)]
    pub decoder_input_details: Option<bool>,
    /// Whether the text begins with the prompt.
    #[schema(default = false)]
    pub return_full_text: Option<bool>,
    /// Number of tokens to keep from the end of the prompt.
    #[schema(minimum = 1)]
    pub truncate: Option<i64>,
    /// Number of the most likely tokens to report at each position.
    #[schema(minimum = 1, maximum = 20)]
    pub top_n_tokens: Option<i64>,
    /// Not supported; false is accepted.
    #[schema(default = false)]
    pub watermark: Option<bool>,
    /// Grammar of the text.
    #[serde(default, deserialize_with = "object")]
    pub grammar: Option<NativeGrammar>,
    /// Name of the adapter that the model runs with; one that is not loaded is 404 `not_found`.
    pub adapter_id: Option<String>,
    /// Maximum seconds from the request's arrival to the end of the answer, time in the queue
    /// included. After that the request ends with 408 `timeout`, or with that error as the
    /// last event of a stream. Default: no limit.
    #[schema(minimum = 0.001, maximum = 86400)]
    pub timeout: Option<f64>,
    /// Priority in the queue: requests with a lower value start earlier, regardless of their API key. A
    /// value below 0 requires a key with that permission; otherwise the request is refused with 403
    /// `priority_not_allowed`.
    #[schema(minimum = -1000, maximum = 1000, default = 0)]
    pub priority: Option<i64>,
}

/// Parts of the answer that the request asks for.
pub(super) struct ResponseOptions {
    /// Token ids of the prompt, with `decoder_input_details`; else empty.
    pub prompt: Vec<u32>,
    /// The prompt's text, with `return_full_text`; else empty.
    pub full_text_prefix: String,
    /// Whether the answer has `details`.
    pub details: bool,
    /// Whether the answer has `top_tokens`.
    pub top_tokens: bool,
}

impl GenerateBody {
    /// Checks all fields, tokenizes the prompt, and creates the `best_of` requests to the engine.
    ///
    /// # Errors
    /// The first field that is not valid.
    pub(super) async fn prepare(
        self,
        serving: &Serving,
        scope: &Scope,
        stream: bool,
    ) -> Result<(Submission, ResponseOptions), ApiError> {
        let parameters = self.parameters.unwrap_or_default();
        parameters.refuse_unsupported()?;
        let best_of = parameters.best_of(serving, stream)?;
        let prefill = parameters.decoder_input_details.unwrap_or(false);
        if prefill && stream {
            return Err(ApiError::invalid(
                "decoder_input_details",
                "`decoder_input_details: true` is not possible with streams",
            ));
        }
        let truncate = at_least("truncate", parameters.truncate, 1)?;
        let session = scope.session(self.session_id.as_deref())?;
        if session.is_some() && best_of > 1 {
            return Err(ApiError::invalid(
                "best_of",
                format!("a session takes one text at a time, got `best_of` {best_of}"),
            ));
        }
        let mut options = ResponseOptions {
            prompt: Vec::new(),
            full_text_prefix: if parameters.return_full_text.unwrap_or(false) {
                self.inputs.clone()
            } else {
                String::new()
            },
            details: prefill || parameters.details.unwrap_or(false),
            top_tokens: parameters.top_n_tokens.is_some(),
        };
        let (mut draft, grammar) = parameters.into_draft(serving, scope)?;
        draft.overflow = self.overflow.unwrap_or_default();
        let grammar = grammar.map(NativeGrammar::description).transpose()?;
        draft.grammar = structured::compile(grammar, serving, scope.share).await?;
        let (admission, tokenizer) = (&scope.admission, &serving.tokenizer);
        let again = (session.is_some() && tokenizer.adds_space()).then(|| self.inputs.clone());
        draft.prompt = tokenize_prompt(admission, tokenizer, self.inputs).await?;
        let turn = begin_turn(serving, session, self.if_busy, &mut draft).await?;
        if draft
            .history
            .as_ref()
            .is_some_and(|history| !history.is_empty())
        {
            match again {
                Some(text) => draft.prompt = tokenize_continued(admission, tokenizer, text).await?,
                None => tokenizer.without_bos(&mut draft.prompt),
            }
        }
        if let Some(keep) = truncate {
            tokenizer.keep_last(&mut draft.prompt, keep);
        }
        let first = serving.limits.admit(draft)?;
        if best_of > 1 && first.sampling.temperature <= 0.0 {
            return Err(ApiError::invalid(
                "best_of",
                format!(
                    "`best_of` {best_of} needs sampling, otherwise all texts are the same; set `do_sample`"
                ),
            ));
        }
        let generated = best_of.saturating_mul(first.stop.max_tokens);
        let limits = &serving.limits;
        limits.check_total(
            "best_of",
            best_of.saturating_mul(first.prompt.len()),
            generated,
        )?;
        if !stream {
            let each = first.logprobs.top + 1;
            limits.check_logprobs("top_n_tokens", generated.saturating_mul(each))?;
        }
        if prefill {
            options.prompt.clone_from(&first.prompt);
        }
        let submission = Submission {
            requests: first.choices(&scope.id, 0, best_of).collect(),
            per_prompt: best_of,
            turn,
            include_stop: true,
        };
        Ok((submission, options))
    }
}

impl Parameters {
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        if self.watermark == Some(true) {
            return Err(unsupported("watermark", true, "texts are not watermarked"));
        }
        Ok(())
    }

    fn best_of(&self, serving: &Serving, stream: bool) -> Result<usize, ApiError> {
        let most = serving.limits.max_best_of;
        let best_of = integer("best_of", self.best_of, 1..=most)?.unwrap_or(1);
        if stream && best_of > 1 {
            return Err(ApiError::invalid(
                "best_of",
                format!(
                    "`best_of` must be 1 with streams: the best text is only known at the end, got {best_of}"
                ),
            ));
        }
        Ok(best_of)
    }

    /// Returns the adapter that is asked for; an empty name is none.
    fn adapter(&self, serving: &Serving) -> Result<Option<Arc<Adapter>>, ApiError> {
        let Some(name) = self.adapter_id.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let adapter = serving.adapters.get(name);
        let missing = || ApiError::model_not_found("adapter_id", name, &serving.served());
        adapter.map(Some).ok_or_else(missing)
    }

    /// Returns the draft without prompt, grammar and overflow, and the grammar's description.
    fn into_draft(
        self,
        serving: &Serving,
        scope: &Scope,
    ) -> Result<(RequestDraft, Option<NativeGrammar>), ApiError> {
        let max_tokens = at_least("max_new_tokens", self.max_new_tokens, 1)?;
        if self.seed == Some(0) {
            return Err(ApiError::invalid(
                "seed",
                format!("`seed` must be an integer from 1 to {}, got 0", u64::MAX),
            ));
        }
        let limits = &serving.limits;
        let top = integer(
            "top_n_tokens",
            self.top_n_tokens,
            1..=limits.max_top_logprobs,
        )?;
        let draft = RequestDraft {
            adapter: self.adapter(serving)?,
            prompt_field: "inputs",
            max_tokens_field: "max_new_tokens",
            sampling: SamplingOverrides {
                do_sample: self.do_sample,
                temperature: above_zero("temperature", self.temperature, limits.max_temperature)?,
                top_k: at_least("top_k", self.top_k, 1)?,
                top_p: above_zero("top_p", self.top_p, 1.0)?,
                typical_p: above_zero("typical_p", self.typical_p, 1.0)?,
                repetition_penalty: above_zero(
                    "repetition_penalty",
                    self.repetition_penalty,
                    limits.max_repetition_penalty,
                )?,
                max_new_tokens: max_tokens,
                ..SamplingOverrides::default()
            },
            frequency_penalty: number("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?
                .unwrap_or(0.0),
            seed: self.seed,
            stop_strings: self.stop.unwrap_or_default().into_vec(),
            tenant: scope.tenant,
            share: scope.share,
            priority: scope.priority(self.priority)?,
            deadline: deadline(self.timeout)?,
            logprobs: LogprobsWanted {
                top: top.unwrap_or(0),
                prompt: self.decoder_input_details.unwrap_or(false),
                ..LogprobsWanted::default()
            },
            ..RequestDraft::new(
                scope.id.clone(),
                Vec::new(),
                DEFAULT_MAX_NEW_TOKENS,
                SamplingStyle::Greedy,
            )
        };
        Ok((draft, self.grammar))
    }
}
