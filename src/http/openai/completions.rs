//! `POST /v1/completions`, answered at once or as a stream.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};

use super::answer::{Choice, Completion, UsageField, finish_reason};
use super::logprobs::{Logprobs, PromptLogprobs};
use super::prompt::TokenizedPrompt;
use super::reply::{self, Reply, Wording};
use super::request::{Choices, CompletionBody, Telling};
use crate::engine::PromptToken;
use crate::http::app::App;
use crate::http::error::ApiError;
use crate::http::generation::{Finished, TextStep, Whole};
use crate::http::layers::Scope;
use crate::http::openapi::{OpenAiErrors, SessionErrors};
use crate::http::stream_schema::CompletionEvent;
use crate::http::{session_reset, sse};
use crate::serving::Serving;

/// Complete a prompt
///
/// One answer, or with `"stream": true` server-sent events: `data: {completion}` for each new
/// piece of text of one choice, then one with its `finish_reason`; with
/// `stream_options.include_usage` one with `"choices": []` and the usage; then `data: [DONE]`.
/// The choices of several prompts and of `n` come interleaved, told apart by `index`. Text never
/// splits a character and never shows part of a stop string. If generation fails after the stream
/// began, `data: {"error": …}` ends it, without `[DONE]`. A silent stream sends `: keep-alive`.
/// A client that goes away cancels the request.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "openai",
    request_body = CompletionBody,
    params(("X-Session-Id" = Option<String>, Header, description = "The session, where the body names none", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 200, description = "The completion, or its events", content(
            (Completion<'static> = "application/json"),
            (CompletionEvent = "text/event-stream", example = json!("data: {\"id\":\"cmpl-0f2c\",\"object\":\"text_completion\",\"created\":1764000000,\"model\":\"fairy-tales\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"text\":\" there\",\"logprobs\":null,\"finish_reason\":null}]}\n\ndata: {\"id\":\"cmpl-0f2c\",\"object\":\"text_completion\",\"created\":1764000000,\"model\":\"fairy-tales\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\",\"seed\":42}]}\n\ndata: [DONE]\n\n")),
        ), headers(("X-Skald-Session-Reset" = Option<String>, description = "`history-lost` where the session begins anew because its stored history could not be read"))),
        OpenAiErrors,
        SessionErrors,
    ),
)]
pub(in crate::http) async fn completions(
    State(app): State<App>,
    scope: Scope,
    body: CompletionBody,
) -> Result<Response, ApiError> {
    let (serving, in_flight) = app.begin(scope.share)?;
    let mut plan = body.plan(&serving, &scope).await?;
    let requests = std::mem::take(&mut plan.requests);
    let turn = plan.turn.take();
    let wording = Completions {
        reply: Reply::new(
            "cmpl",
            Arc::clone(&serving),
            plan.streaming,
            plan.choices.best_of,
            &requests,
        ),
        prompts: plan.prompts,
        choices: plan.choices,
        telling: plan.telling,
        history_lost: session_reset::is_told(turn.as_ref()),
    };
    reply::respond(&app, in_flight, wording, requests, turn, &scope).await
}

/// Completions in OpenAI's words.
struct Completions {
    reply: Reply,
    /// In order.
    prompts: Vec<TokenizedPrompt>,
    choices: Choices,
    telling: Telling,
    history_lost: bool,
}

impl Completions {
    fn serving(&self) -> &Serving {
        &self.reply.serving
    }

    fn completion(&self, choices: Vec<Choice>, usage: UsageField) -> Completion<'_> {
        let info = &self.serving().info;
        Completion {
            id: &self.reply.id,
            object: "text_completion",
            created: self.reply.created,
            model: &info.id,
            system_fingerprint: &info.fingerprint,
            history_lost: self.history_lost,
            choices,
            usage,
        }
    }

    /// The prompt of a generation.
    fn prompt(&self, generation: usize) -> Option<&TokenizedPrompt> {
        self.prompts.get(self.reply.prompt(generation))
    }

    /// A choice with what is told of its prompt: text and log-probabilities as `echo` shows them,
    /// and `prompt_logprobs`.
    fn with_prompt(
        &self,
        index: usize,
        generation: usize,
        scores: &[Option<PromptToken>],
    ) -> Choice {
        let tokenizer = &self.serving().tokenizer;
        let mut choice = Choice::new(index);
        if let Some(top) = self.telling.prompt_logprobs {
            choice.prompt_logprobs = Some(PromptLogprobs::new(tokenizer, scores, top));
        }
        if let (true, Some(prompt)) = (self.telling.echo, self.prompt(generation)) {
            choice.text.clone_from(&prompt.text);
            choice.logprobs = self.telling.logprobs.map(|top| {
                let mut logprobs = Logprobs::default();
                let offsets = prompt.offsets(tokenizer);
                logprobs.push_prompt(tokenizer, &prompt.ids, &offsets, scores, top);
                logprobs
            });
        }
        choice
    }

    /// Characters of a generation's prompt.
    fn prompt_chars(&self, generation: usize) -> usize {
        self.prompt(generation).map_or(0, TokenizedPrompt::chars)
    }

    fn choice(
        &self,
        index: usize,
        generation: usize,
        whole: &Whole,
        scores: &[Option<PromptToken>],
    ) -> Choice {
        let mut choice = self.with_prompt(index, generation, scores);
        choice.text.push_str(&whole.text);
        if self.telling.logprobs.is_some() {
            let logprobs = choice.logprobs.get_or_insert_default();
            let base = self.prompt_chars(generation);
            logprobs.push(&self.serving().tokenizer, &whole.tokens, base);
        }
        choice.finish_reason = Some(finish_reason(whole.finish.reason));
        choice.seed = self.reply.seed(generation);
        choice
    }
}

impl Wording for Completions {
    type Choice = Choice;

    fn reply(&self) -> &Reply {
        &self.reply
    }

    fn scores_prompt(&self) -> bool {
        self.telling.scores_prompt()
    }

    fn begun(&self, generation: usize, scores: &[Option<PromptToken>]) -> Option<Choice> {
        let tells = self.telling.echo || self.telling.prompt_logprobs.is_some();
        tells.then(|| self.with_prompt(generation, generation, scores))
    }

    fn continued(&self, generation: usize, step: TextStep) -> Option<Choice> {
        let wanted = self.telling.logprobs.filter(|_| !step.tokens.is_empty());
        let logprobs = wanted.map(|_| {
            let mut logprobs = Logprobs::default();
            let base = self.prompt_chars(generation);
            logprobs.push(&self.serving().tokenizer, &step.tokens, base);
            logprobs
        });
        (!step.text.is_empty() || logprobs.is_some()).then(|| Choice {
            text: step.text,
            logprobs,
            ..Choice::new(generation)
        })
    }

    fn ended(&self, generation: usize, finish: &Finished) -> Choice {
        Choice {
            finish_reason: Some(finish_reason(finish.reason)),
            seed: self.reply.seed(generation),
            ..Choice::new(generation)
        }
    }

    fn event(&self, choices: Vec<Choice>, usage: UsageField) -> Event {
        sse::json(&self.completion(choices, usage))
    }

    fn whole(&self, wholes: Vec<Whole>) -> Response {
        let Choices { n, best_of } = self.choices;
        let usage = UsageField::Told(self.reply.usage(&wholes));
        let mut wholes = wholes;
        let scores: Vec<_> = wholes
            .iter_mut()
            .map(|whole| std::mem::take(&mut whole.prompt.logprobs))
            .collect();
        // Those of the first choice are those of all choices of its prompt.
        let scores = |generation| {
            let first = scores.get(self.reply.first(generation));
            first.map(Vec::as_slice).unwrap_or_default()
        };
        let mut candidates: Vec<(usize, Whole)> = wholes.into_iter().enumerate().collect();
        if best_of > n {
            candidates.sort_by(|(a, whole_a), (b, whole_b)| {
                let by_score = whole_b
                    .finish
                    .mean_logprob
                    .total_cmp(&whole_a.finish.mean_logprob);
                let (a, b) = (self.reply.prompt(*a), self.reply.prompt(*b));
                a.cmp(&b).then(by_score)
            });
        }
        let choices = candidates
            .iter()
            .enumerate()
            .filter(|(rank, _)| rank % best_of < n)
            .enumerate()
            .map(|(index, (_, (generation, whole)))| {
                self.choice(index, *generation, whole, scores(*generation))
            })
            .collect();
        Json(self.completion(choices, usage)).into_response()
    }
}
