//! The body of `POST /v1/completions`, and how it becomes requests to the engine.

use std::sync::Arc;

use serde::Deserialize;
use utoipa::ToSchema;

use super::beams::{BeamFields, EarlyStoppingField};
use super::logprobs::TokenForm;
use super::prompt::{Prompt, TokenizedPrompt};
use super::shared::{Length, SharedFields, Streaming, Truncation};
use super::with_shared::WithShared;
use crate::http::error::ApiError;
use crate::http::fields::{at_least, integer, unsupported};
use crate::http::generation::{Submission, begin_turn};
use crate::http::layers::Scope;
use crate::http::wire::optional_word;
use crate::request::{
    BeamParams, GenerateRequest, InvalidRequest, Limits, LogprobsWanted, RequestDraft,
};
use crate::serving::Serving;
use crate::session::IfBusy;

/// `max_tokens` where it is left out.
const DEFAULT_MAX_TOKENS: usize = 16;

/// The body of a completion request.
pub(in crate::http) type CompletionBody = WithShared<CompletionRequest>;

/// What to complete, and how. Every field may be left out or null; unknown fields are ignored.
/// Sampling fields left out take the model's defaults (`generation_config.json`), then those here.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"model": "fairy-tales", "prompt": "Once upon a time", "max_tokens": 64, "stream": true, "stream_options": {"include_usage": true}}))]
pub(in crate::http) struct CompletionRequest {
    /// What to complete. Default, and for `""`: the token that begins a text, with GPT-2 the
    /// end-of-text token.
    /// With a session it is appended to the session's history and may be left out.
    pub prompt: Option<Prompt>,
    /// Tokens to generate at most; 0 only reads the prompt (with `echo` and `logprobs`: scores
    /// it). Prompt and `max_tokens` together must fit the context, see `overflow`.
    #[schema(minimum = 0, default = 16)]
    pub max_tokens: Option<i64>,
    /// Generates this number of choices per prompt and returns the `n` with the highest mean
    /// log-probability; with `use_beam_search` the number of beams. At least `n`; not with
    /// `stream`, unless equal to `n`.
    #[schema(minimum = 1, maximum = 20)]
    pub best_of: Option<i64>,
    /// Report the log-probability of each token, and this number of the most likely tokens in its place.
    #[schema(minimum = 0, maximum = 20)]
    pub logprobs: Option<i64>,
    /// The prompt comes first in `text`, and in `logprobs`.
    #[schema(default = false)]
    pub echo: Option<bool>,
    /// Not supported: the model cannot fill in.
    pub suffix: Option<String>,
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
    /// Behavior if another request is using the session. Default: `wait`.
    #[serde(default, deserialize_with = "optional_word")]
    pub if_busy: Option<IfBusy>,
    /// Report each prompt token's log-probability, its rank among all tokens, and this number of the
    /// most likely tokens in its place: the choice's `prompt_logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    pub prompt_logprobs: Option<i64>,
}

/// A checked completion request.
pub(super) struct PreparedCompletion {
    /// The requests to the engine: `best_of` for each prompt, in order, or one beam search.
    pub submission: Submission,
    /// The prompts, in order.
    pub prompts: Vec<TokenizedPrompt>,
    /// Choices returned and generated.
    pub choices: Choices,
    /// Parts of the answer besides the text.
    pub options: ResponseOptions,
    /// Form of the answer.
    pub streaming: Streaming,
}

/// Choices per prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choices {
    /// Returned.
    pub n: usize,
    /// Generated; a beam search generates only those it returns.
    pub best_of: usize,
}

impl Choices {
    /// Returns the choices that the engine generates.
    fn generated(self, beams: Option<BeamParams>) -> Self {
        let best_of = beams.map_or(self.best_of, |beams| beams.returned);
        Self { best_of, ..self }
    }
}

/// Parts of an answer besides the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResponseOptions {
    /// The prompt is part of the text.
    pub echo: bool,
    /// Log-probabilities are reported, with this number of the most likely tokens in each place.
    pub logprobs: Option<usize>,
    /// Those of the prompt are reported, with this number of the most likely tokens in each place.
    pub prompt_logprobs: Option<usize>,
    /// How the tokens of `logprobs` are written.
    pub token_form: TokenForm,
}

impl ResponseOptions {
    /// Returns whether the answer needs the prompt's text, or its length.
    fn needs_prompt_text(self) -> bool {
        self.echo || self.logprobs.is_some()
    }

    /// Returns whether the answer has log-probabilities of the prompt's tokens.
    pub(super) fn scores_prompt(self) -> bool {
        self.logprobs_wanted().prompt
    }

    /// Returns the log-probabilities that the engine must report.
    fn logprobs_wanted(self) -> LogprobsWanted {
        let echoed = self.logprobs.filter(|_| self.echo);
        LogprobsWanted {
            top: self.logprobs.unwrap_or(0),
            prompt: echoed.or(self.prompt_logprobs).is_some(),
            prompt_top: echoed.max(self.prompt_logprobs).unwrap_or(0),
            prompt_ranks: self.prompt_logprobs.is_some(),
        }
    }
}

impl CompletionBody {
    /// Checks all fields, tokenizes the prompts, and creates the requests to the engine.
    ///
    /// # Errors
    /// The first field that is not valid.
    pub(super) async fn prepare(
        self,
        serving: &Arc<Serving>,
        scope: &Scope,
    ) -> Result<PreparedCompletion, ApiError> {
        let Self { own, shared } = self;
        shared.check_model(serving)?;
        let streaming = shared.streaming()?;
        let choices = own.choices(shared.n(serving)?, streaming.stream, serving)?;
        let beams = own.beams(choices, streaming.stream)?;
        let session = scope.session(own.session_id.as_deref())?;
        // That a search has no session is said by `Limits::admit`.
        let one_choice = session.is_some() && beams.is_none();
        let total = check_total(own.prompts(), choices, serving, one_choice)?;
        let truncation = truncation(&shared, session.is_some())?;
        let options = own.response_options(shared.token_form(), serving)?;
        own.refuse_unsupported()?;
        let mut draft = RequestDraft {
            logprobs: options.logprobs_wanted(),
            beams,
            ..shared.into_draft(serving, scope, own.length()?).await?
        };
        // A request without a prompt has an empty one.
        let prompts = own.prompt.unwrap_or(Prompt::Text(String::new())).split();
        let choices = choices.generated(beams);
        let in_session = session.is_some();
        let admission = &scope.admission;
        let tokenizer = &serving.tokenizer;
        let mut prompts = TokenizedPrompt::all(prompts, admission, tokenizer, in_session).await?;
        let turn = begin_turn(serving, session, own.if_busy, &mut draft).await?;
        let mut requests = Vec::with_capacity(total);
        let mut answer = AnswerSize::default();
        let continues = draft
            .history
            .as_ref()
            .is_some_and(|history| !history.is_empty());
        for prompt in &mut prompts {
            if continues {
                prompt.continue_history(tokenizer)?;
            }
            if let Some(truncation) = truncation {
                let keep = truncation.keeps(serving, &draft);
                prompt.keep_last(tokenizer, keep);
            }
            let first = serving.limits.admit(RequestDraft {
                prompt: prompt.ids.clone(),
                ..draft.clone()
            })?;
            let count = beams.map_or(choices.best_of, |_| 1);
            // Before there are as many copies of it.
            answer.add(&first, choices.best_of, options);
            answer.check(&serving.limits, options, streaming)?;
            let before = requests.len();
            requests.extend(first.choices(&scope.id, before, count));
        }
        if options.needs_prompt_text() {
            let shown = if options.echo { choices.n } else { 1 };
            prompts = TokenizedPrompt::with_texts(prompts, shown, admission, serving).await?;
        }
        let submission = Submission {
            requests,
            per_prompt: choices.best_of,
            turn,
            include_stop: false,
        };
        Ok(PreparedCompletion {
            submission,
            prompts,
            choices,
            options,
            streaming,
        })
    }
}

/// How much all choices of a request take together.
#[derive(Debug, Default)]
struct AnswerSize {
    prompt_tokens: usize,
    tokens: usize,
    /// Log-probabilities of prompts' tokens.
    scored: usize,
    /// Those of generated tokens.
    drawn: usize,
}

impl AnswerSize {
    /// Adds the choices of one prompt.
    fn add(&mut self, request: &GenerateRequest, choices: usize, options: ResponseOptions) {
        let add = |sum: &mut usize, each: usize, top: usize| {
            let all = each.saturating_mul(choices).saturating_mul(top);
            *sum = sum.saturating_add(all);
        };
        let (prompt, tokens) = (request.prompt.len(), request.stop.max_tokens);
        add(&mut self.prompt_tokens, prompt, 1);
        add(&mut self.tokens, tokens, 1);
        if let Some(top) = options.logprobs {
            add(&mut self.drawn, tokens, top + 1);
        }
        if options.scores_prompt() {
            add(
                &mut self.scored,
                prompt,
                options.logprobs_wanted().prompt_top + 1,
            );
        }
    }

    /// # Errors
    /// If it is too much for one request, or for one answer. A stream is written as it comes, but for
    /// what it tells of the prompt.
    fn check(
        &self,
        limits: &Limits,
        options: ResponseOptions,
        streaming: Streaming,
    ) -> Result<(), InvalidRequest> {
        limits.check_total("n", self.prompt_tokens, self.tokens)?;
        let field = match options.prompt_logprobs {
            Some(_) => "prompt_logprobs",
            None => "logprobs",
        };
        let drawn = if streaming.stream { 0 } else { self.drawn };
        limits.check_logprobs(field, self.scored.saturating_add(drawn))
    }
}

impl CompletionRequest {
    fn choices(&self, n: usize, stream: bool, serving: &Serving) -> Result<Choices, ApiError> {
        let most = serving.limits.max_best_of;
        let best_of = integer("best_of", self.best_of, 1..=most)?.unwrap_or(n);
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
                    "`best_of` must equal `n` ({n}) with `stream: true`: the best choice is only known at the end, got {best_of}"
                ),
            ));
        }
        Ok(Choices { n, best_of })
    }

    /// Returns the requested beam search, if any.
    fn beams(&self, choices: Choices, stream: bool) -> Result<Option<BeamParams>, ApiError> {
        let fields = BeamFields {
            use_beam_search: self.use_beam_search.unwrap_or(false),
            length_penalty: self.length_penalty,
            early_stopping: self.early_stopping,
            stream,
        };
        fields.checked(choices.best_of, choices.n)
    }

    fn response_options(
        &self,
        token_form: TokenForm,
        serving: &Serving,
    ) -> Result<ResponseOptions, ApiError> {
        let most = serving.limits.max_top_logprobs;
        Ok(ResponseOptions {
            echo: self.echo.unwrap_or(false),
            logprobs: integer("logprobs", self.logprobs, 0..=most)?,
            prompt_logprobs: integer("prompt_logprobs", self.prompt_logprobs, 0..=most)?,
            token_form,
        })
    }

    /// Returns the number of prompts.
    fn prompts(&self) -> usize {
        self.prompt.as_ref().map_or(1, Prompt::len)
    }

    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        if let Some(suffix) = self.suffix.as_deref().filter(|suffix| !suffix.is_empty()) {
            let shown: String = suffix.chars().take(40).collect();
            return Err(unsupported(
                "suffix",
                format!("{shown:?}"),
                "this model can only continue text, not fill in a gap",
            ));
        }
        Ok(())
    }

    fn length(&self) -> Result<Length, ApiError> {
        Ok(Length {
            field: "max_tokens",
            given: at_least("max_tokens", self.max_tokens, 0)?,
            default: DEFAULT_MAX_TOKENS,
        })
    }
}

fn truncation(shared: &SharedFields, in_session: bool) -> Result<Option<Truncation>, ApiError> {
    let truncation = shared.truncation()?;
    if in_session && truncation == Some(Truncation::ToFit) {
        return Err(ApiError::invalid(
            "truncate_prompt_tokens",
            "`truncate_prompt_tokens` cannot be -1 with a session: the room beside its history is not known yet",
        ));
    }
    Ok(truncation)
}

/// Returns how many generations a request asks for.
fn check_total(
    prompts: usize,
    choices: Choices,
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
