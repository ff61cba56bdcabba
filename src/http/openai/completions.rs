//! `POST /v1/completions`, answered at once or as a stream.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};

use super::answer::{Choice, Completion, UsageField, finish_reason};
use super::logprobs::{Logprobs, PromptLogprobs, TokenNames};
use super::prompt::TokenizedPrompt;
use super::reply::{PromptScores, Reply};
use super::request::{Choices, CompletionBody, PreparedCompletion, ResponseOptions};
use crate::engine::{PromptReport, PromptToken};
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::documented_errors::{OpenAiErrors, SessionErrors};
use crate::http::error::ApiError;
use crate::http::generation::{CompletedGeneration, Finished, GenerationStep, TextStep};
use crate::http::layers::Scope;
use crate::http::renderer::Renderer;
use crate::http::respond::respond;
use crate::http::sse;
use crate::http::stream_schema::CompletionEvent;
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
    JsonBody(body): JsonBody<CompletionBody>,
) -> Result<Response, ApiError> {
    let (serving, in_flight) = app.begin(scope.share)?;
    let PreparedCompletion {
        submission,
        prompts,
        choices,
        options,
        streaming,
    } = body.prepare(&serving, &scope).await?;
    let renderer = CompletionRenderer {
        reply: Reply::new("cmpl", Arc::clone(&serving), streaming, &submission),
        prompts,
        choices,
        options,
        history_lost: submission.history_lost(),
        scores: PromptScores::default(),
    };
    respond(&app, in_flight, &serving, submission, &scope, renderer).await
}

/// Renders completions.
struct CompletionRenderer {
    reply: Reply,
    /// In order.
    prompts: Vec<TokenizedPrompt>,
    choices: Choices,
    options: ResponseOptions,
    history_lost: bool,
    /// Of a stream.
    scores: PromptScores,
}

impl CompletionRenderer {
    fn serving(&self) -> &Serving {
        &self.reply.serving
    }

    fn names(&self) -> TokenNames<'_> {
        TokenNames {
            tokenizer: &self.serving().tokenizer,
            form: self.options.token_form,
        }
    }

    fn completion(&self, choices: Vec<Choice>, usage: UsageField) -> Completion<'_> {
        let info = &self.serving().info;
        Completion {
            id: &self.reply.id,
            object: "text_completion",
            created: self.reply.created,
            model: &self.reply.model,
            system_fingerprint: &info.fingerprint,
            history_lost: self.history_lost,
            choices,
            usage,
        }
    }

    /// Returns the prompt of a generation.
    fn prompt(&self, generation: usize) -> Option<&TokenizedPrompt> {
        self.prompts.get(self.reply.prompt(generation))
    }

    /// Returns a choice with the parts about its prompt: text and log-probabilities with `echo`, and
    /// `prompt_logprobs`.
    fn with_prompt(
        &self,
        index: usize,
        generation: usize,
        scores: &[Option<PromptToken>],
    ) -> Choice {
        let tokenizer = &self.serving().tokenizer;
        let mut choice = Choice::new(index);
        if let Some(top) = self.options.prompt_logprobs {
            choice.prompt_logprobs = Some(PromptLogprobs::new(tokenizer, scores, top));
        }
        if let (true, Some(prompt)) = (self.options.echo, self.prompt(generation)) {
            choice.text.clone_from(&prompt.text);
            choice.logprobs = self.options.logprobs.map(|top| {
                let mut logprobs = Logprobs::default();
                let offsets = prompt.offsets(tokenizer);
                logprobs.push_prompt(self.names(), &prompt.ids, &offsets, scores, top);
                logprobs
            });
        }
        choice
    }

    /// Returns the number of characters of a generation's prompt.
    fn prompt_chars(&self, generation: usize) -> usize {
        self.prompt(generation).map_or(0, TokenizedPrompt::chars)
    }

    fn choice(
        &self,
        index: usize,
        generation: usize,
        completed: &CompletedGeneration,
        scores: &[Option<PromptToken>],
    ) -> Choice {
        let mut choice = self.with_prompt(index, generation, scores);
        choice.text.push_str(&completed.text);
        if self.options.logprobs.is_some() {
            let logprobs = choice.logprobs.get_or_insert_default();
            let base = self.prompt_chars(generation);
            logprobs.push(self.names(), &completed.tokens, base);
        }
        choice.finish_reason = Some(finish_reason(completed.finish.reason));
        choice.seed = self.reply.seed(generation);
        choice
    }

    /// Returns the first choice of a generation in a stream, if the answer has parts about the prompt.
    fn prefilled(&mut self, generation: usize, report: &PromptReport) -> Option<Choice> {
        self.reply.prefilled(generation, report);
        let has_prompt = self.options.echo || self.options.prompt_logprobs.is_some();
        has_prompt.then(|| {
            let scores = self.scores.of(self.reply.first(generation));
            self.with_prompt(generation, generation, scores)
        })
    }

    /// Returns the choice with new text or tokens, if there are any.
    fn continued(&self, generation: usize, step: TextStep) -> Option<Choice> {
        let wanted = self.options.logprobs.filter(|_| !step.tokens.is_empty());
        let logprobs = wanted.map(|_| {
            let mut logprobs = Logprobs::default();
            let base = self.prompt_chars(generation);
            logprobs.push(self.names(), &step.tokens, base);
            logprobs
        });
        (!step.text.is_empty() || logprobs.is_some()).then(|| Choice {
            text: step.text,
            logprobs,
            ..Choice::new(generation)
        })
    }

    /// Returns the last choice of a generation in a stream.
    fn finished(&mut self, generation: usize, finish: &Finished) -> Choice {
        self.reply.finished(finish);
        Choice {
            finish_reason: Some(finish_reason(finish.reason)),
            seed: self.reply.seed(generation),
            ..Choice::new(generation)
        }
    }

    fn event(&self, choices: Vec<Choice>, usage: UsageField) -> Event {
        sse::json(&self.completion(choices, usage))
    }

    /// Renders a step whose prompt is scored, where scores are asked for.
    fn render(&mut self, generation: usize, step: GenerationStep) -> Vec<Event> {
        let choices = match step {
            GenerationStep::Prompt(report) => [self.prefilled(generation, &report), None],
            GenerationStep::Text(mut step) => {
                let finish = step.finish.take();
                let continued = self.continued(generation, step);
                [
                    continued,
                    finish.map(|finish| self.finished(generation, &finish)),
                ]
            }
        };
        let choices = choices.into_iter().flatten();
        self.reply
            .events(choices, |choices, usage| self.event(choices, usage))
    }
}

impl Renderer for CompletionRenderer {
    fn streams(&self) -> bool {
        self.reply.streams
    }

    fn step(&mut self, generation: usize, step: GenerationStep) -> Vec<Event> {
        if !self.options.scores_prompt() {
            return self.render(generation, step);
        }
        let reply = &self.reply;
        let first = |generation| reply.first(generation);
        let ready = self.scores.ready(first, generation, step).into_iter();
        ready
            .flat_map(|(generation, step)| self.render(generation, step))
            .collect()
    }

    fn error(&self, error: &ApiError) -> Event {
        sse::json(&error.openai())
    }

    fn is_done(&self) -> bool {
        self.reply.is_done()
    }

    fn whole(self, generations: Vec<CompletedGeneration>) -> Result<Response, ApiError> {
        let Choices { n, best_of } = self.choices;
        let usage = UsageField::Present(self.reply.total_usage(&generations));
        // The first choice of a prompt scores it for all.
        let scores = |generation| {
            let first = generations.get(self.reply.first(generation));
            let scores = first.map(|first| first.prompt.logprobs.as_slice());
            scores.unwrap_or_default()
        };
        let mut candidates: Vec<(usize, &CompletedGeneration)> =
            generations.iter().enumerate().collect();
        if best_of > n {
            candidates.sort_by(|(a, completed_a), (b, completed_b)| {
                let mean = |completed: &CompletedGeneration| completed.finish.mean_logprob;
                let by_score = mean(completed_b).total_cmp(&mean(completed_a));
                let (a, b) = (self.reply.prompt(*a), self.reply.prompt(*b));
                a.cmp(&b).then(by_score)
            });
        }
        let choices = candidates
            .into_iter()
            .enumerate()
            .filter(|(rank, _)| rank % best_of < n)
            .enumerate()
            .map(|(index, (_, (generation, completed)))| {
                self.choice(index, generation, completed, scores(generation))
            })
            .collect();
        Ok(Json(self.completion(choices, usage)).into_response())
    }
}
