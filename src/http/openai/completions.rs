//! `POST /v1/completions`, answered at once or as a stream.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;

use super::answer::{Choice, Completion, Usage, UsageField, finish_reason};
use super::logprobs::Logprobs;
use super::prompt::TokenizedPrompt;
use super::request::{CompletionRequest, Plan};
use crate::engine::{GenerateError, PromptReport};
use crate::http::app::{App, Serving};
use crate::http::body::JsonBody;
use crate::http::error::ApiError;
use crate::http::generation::{Step, TextGeneration, TextStep, Whole};
use crate::http::layers::Scope;
use crate::http::openapi::OpenAiErrors;
use crate::http::sse::{self, Writer};

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
    request_body = CompletionRequest,
    params(("X-Session-Id" = Option<String>, Header, description = "The session, where the body names none", pattern = "^[A-Za-z0-9_.:@-]{1,128}$")),
    responses(
        (status = 200, description = "The completion, or its events", content(
            (Completion<'static> = "application/json"),
            (Completion<'static> = "text/event-stream", example = json!("data: {\"id\":\"cmpl-0f2c\",\"object\":\"text_completion\",\"created\":1764000000,\"model\":\"fairy-tales\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"text\":\" there\",\"logprobs\":null,\"finish_reason\":null}]}\n\ndata: {\"id\":\"cmpl-0f2c\",\"object\":\"text_completion\",\"created\":1764000000,\"model\":\"fairy-tales\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\",\"seed\":42}]}\n\ndata: [DONE]\n\n")),
        )),
        OpenAiErrors,
    ),
)]
pub(in crate::http) async fn completions(
    State(app): State<App>,
    scope: Scope,
    JsonBody(body): JsonBody<CompletionRequest>,
) -> Result<Response, ApiError> {
    let (serving, in_flight) = app.begin()?;
    let mut plan = body.plan(&serving, &scope).await?;
    let requests = std::mem::take(&mut plan.requests);
    let drawn = requests.iter().filter(|request| request.beams.is_none());
    let seeds = drawn
        .map(|request| request.sampling.seed.cast_signed())
        .collect();
    let generations = TextGeneration::start_all(&serving, requests, false).await?;
    let reply = Reply::new(serving, plan, seeds);
    if reply.plan.stream {
        let writer = Chunks::new(reply, generations.len());
        let events = sse::events(generations, writer, in_flight);
        return Ok(sse::respond(events, app.config().keep_alive));
    }
    let wholes = try_join_all(generations.into_iter().map(TextGeneration::whole)).await?;
    Ok(reply.whole(wholes))
}

/// What all parts of one answer share.
struct Reply {
    id: String,
    created: u64,
    serving: Arc<Serving>,
    plan: Plan,
    /// By generation.
    seeds: Vec<i64>,
}

impl Reply {
    fn new(serving: Arc<Serving>, plan: Plan, seeds: Vec<i64>) -> Self {
        Self {
            id: format!("cmpl-{}", uuid::Uuid::new_v4().simple()),
            created: unix_seconds(SystemTime::now()),
            serving,
            plan,
            seeds,
        }
    }

    fn completion(&self, choices: Vec<Choice>, usage: UsageField) -> Completion<'_> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.serving.info.id,
            system_fingerprint: &self.serving.info.fingerprint,
            choices,
            usage,
        }
    }

    /// The prompt of a generation.
    fn prompt(&self, generation: usize) -> Option<&TokenizedPrompt> {
        self.plan.prompts.get(generation / self.plan.best_of)
    }

    fn seed(&self, generation: usize) -> Option<i64> {
        self.seeds.get(generation).copied()
    }

    /// Text and log-probabilities of the prompt, as `echo` shows them.
    fn echo(&self, generation: usize, report: &PromptReport) -> (String, Option<Logprobs>) {
        let mut logprobs = self.plan.logprobs.then(Logprobs::default);
        if !self.plan.echo {
            return (String::new(), logprobs);
        }
        let Some(prompt) = self.prompt(generation) else {
            return (String::new(), logprobs);
        };
        if let Some(logprobs) = &mut logprobs {
            let tokenizer = &self.serving.tokenizer;
            let offsets = prompt.offsets(tokenizer);
            logprobs.push_prompt(tokenizer, &prompt.ids, &offsets, &report.logprobs);
        }
        (prompt.text.clone(), logprobs)
    }

    /// Characters of a generation's prompt.
    fn prompt_chars(&self, generation: usize) -> usize {
        self.prompt(generation).map_or(0, TokenizedPrompt::chars)
    }

    /// The answer to a request that does not stream.
    fn whole(&self, wholes: Vec<Whole>) -> Response {
        let mut usage = Usage::default();
        let mut candidates: Vec<(usize, Whole)> = wholes.into_iter().enumerate().collect();
        for (generation, whole) in &candidates {
            if generation % self.plan.best_of == 0 {
                usage.add_prompt(whole.prompt.prompt_tokens, whole.prompt.cached_tokens);
            }
            usage.add_completion(whole.finish.generated);
        }
        if self.plan.best_of > self.plan.n {
            candidates.sort_by(|(a, whole_a), (b, whole_b)| {
                let prompt = |generation| generation / self.plan.best_of;
                let by_score = whole_b
                    .finish
                    .mean_logprob
                    .total_cmp(&whole_a.finish.mean_logprob);
                prompt(*a).cmp(&prompt(*b)).then(by_score)
            });
        }
        let choices = candidates
            .iter()
            .enumerate()
            .filter(|(rank, _)| rank % self.plan.best_of < self.plan.n)
            .enumerate()
            .map(|(index, (_, (generation, whole)))| self.choice(index, *generation, whole))
            .collect();
        Json(self.completion(choices, UsageField::Told(usage))).into_response()
    }

    fn choice(&self, index: usize, generation: usize, whole: &Whole) -> Choice {
        let (mut text, mut logprobs) = self.echo(generation, &whole.prompt);
        text.push_str(&whole.text);
        if let Some(logprobs) = &mut logprobs {
            let base = self.prompt_chars(generation);
            logprobs.push(&self.serving.tokenizer, &whole.tokens, base);
        }
        Choice {
            index,
            text,
            logprobs,
            finish_reason: Some(finish_reason(whole.finish.reason)),
            seed: self.seed(generation),
        }
    }
}

/// Writes a stream.
struct Chunks {
    reply: Reply,
    usage: Usage,
    /// Generations that have not ended.
    open: usize,
    done: bool,
}

impl Chunks {
    fn new(reply: Reply, generations: usize) -> Self {
        Self {
            reply,
            usage: Usage::default(),
            open: generations,
            done: false,
        }
    }

    fn event(&self, choices: Vec<Choice>, usage: Option<Usage>) -> Event {
        let usage = match usage {
            Some(usage) => UsageField::Told(usage),
            None if self.reply.plan.include_usage => UsageField::Null,
            None => UsageField::Absent,
        };
        sse::json(&self.reply.completion(choices, usage))
    }

    fn text(&self, index: usize, text: String, logprobs: Option<Logprobs>) -> Event {
        let choice = Choice {
            index,
            text,
            logprobs,
            finish_reason: None,
            seed: None,
        };
        self.event(vec![choice], None)
    }

    fn prompt(&mut self, index: usize, report: &PromptReport) -> Vec<Event> {
        if index.is_multiple_of(self.reply.plan.best_of) {
            self.usage
                .add_prompt(report.prompt_tokens, report.cached_tokens);
        }
        if !self.reply.plan.echo {
            return Vec::new();
        }
        let (text, logprobs) = self.reply.echo(index, report);
        vec![self.text(index, text, logprobs)]
    }

    fn step(&mut self, index: usize, step: TextStep) -> Vec<Event> {
        let mut events = Vec::new();
        let logprobs = (self.reply.plan.logprobs && !step.tokens.is_empty()).then(|| {
            let mut logprobs = Logprobs::default();
            let base = self.reply.prompt_chars(index);
            logprobs.push(&self.reply.serving.tokenizer, &step.tokens, base);
            logprobs
        });
        if !step.text.is_empty() || logprobs.is_some() {
            events.push(self.text(index, step.text, logprobs));
        }
        let Some(finish) = step.finish else {
            return events;
        };
        self.usage.add_completion(finish.generated);
        let last = Choice {
            index,
            text: String::new(),
            logprobs: None,
            finish_reason: Some(finish_reason(finish.reason)),
            seed: self.reply.seed(index),
        };
        events.push(self.event(vec![last], None));
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            if self.reply.plan.include_usage {
                events.push(self.event(Vec::new(), Some(self.usage)));
            }
            events.push(Event::default().data("[DONE]"));
            self.done = true;
        }
        events
    }
}

impl Writer for Chunks {
    fn step(&mut self, index: usize, step: Result<Step, GenerateError>) -> Vec<Event> {
        match step {
            Ok(Step::Prompt(report)) => self.prompt(index, &report),
            Ok(Step::Text(step)) => Self::step(self, index, step),
            Err(error) => {
                self.done = true;
                vec![sse::json(&ApiError::from(error).openai())]
            }
        }
    }

    fn done(&self) -> bool {
        self.done
    }
}

/// Seconds since 1970.
pub(in crate::http) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
