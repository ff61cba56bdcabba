//! How completions and chat completions are answered: what all parts of one answer share, and the
//! one writer of streams. What a choice looks like is the endpoint's business, by way of
//! [`Wording`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::Response;
use axum::response::sse::Event;
use futures_util::future::try_join_all;

use super::answer::{Usage, UsageField};
use super::shared::Streaming;
use crate::engine::{PromptReport, PromptToken};
use crate::http::app::{App, InFlight};
use crate::http::error::ApiError;
use crate::http::generation::{Finished, Step, TextGeneration, TextStep, Whole};
use crate::http::layers::Scope;
use crate::http::session_reset;
use crate::http::sse::{self, Writer};
use crate::request::GenerateRequest;
use crate::serving::Serving;
use crate::session::Turn;

/// What all parts of one answer share.
pub(super) struct Reply {
    /// The same in all of them.
    pub id: String,
    /// When the request arrived, in seconds since 1970.
    pub created: u64,
    /// The model.
    pub serving: Arc<Serving>,
    streaming: Streaming,
    /// Generations per prompt.
    per_prompt: usize,
    /// By generation; none of a beam search.
    seeds: Vec<i64>,
}

impl Reply {
    /// The reply to `requests`, of which `per_prompt` are for the same prompt.
    pub(super) fn new(
        prefix: &str,
        serving: Arc<Serving>,
        streaming: Streaming,
        per_prompt: usize,
        requests: &[GenerateRequest],
    ) -> Self {
        let seeds = requests.iter().filter(|request| request.beams.is_none());
        Self {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: unix_seconds(SystemTime::now()),
            serving,
            streaming,
            per_prompt: per_prompt.max(1),
            seeds: seeds
                .map(|request| request.sampling.seed.cast_signed())
                .collect(),
        }
    }

    /// The prompt of a generation, by number.
    pub(super) fn prompt(&self, generation: usize) -> usize {
        generation / self.per_prompt
    }

    /// The first generation of the same prompt, which scores it for all.
    pub(super) fn first(&self, generation: usize) -> usize {
        self.prompt(generation) * self.per_prompt
    }

    /// The seed of a generation.
    pub(super) fn seed(&self, generation: usize) -> Option<i64> {
        self.seeds.get(generation).copied()
    }

    /// Tokens read and made by all generations.
    pub(super) fn usage(&self, wholes: &[Whole]) -> Usage {
        let mut usage = Usage::default();
        for (generation, whole) in wholes.iter().enumerate() {
            self.count_prompt(&mut usage, generation, &whole.prompt);
            usage.add_completion(whole.finish.generated);
        }
        usage
    }

    /// A prompt counts once, whatever is generated from it.
    fn count_prompt(&self, usage: &mut Usage, generation: usize, report: &PromptReport) {
        if generation.is_multiple_of(self.per_prompt) {
            usage.add_prompt(report.prompt_tokens, report.cached_tokens);
        }
    }
}

/// How an endpoint puts what happens into its objects.
pub(super) trait Wording: Send + 'static {
    /// A choice in a stream.
    type Choice;

    /// What it answers to.
    fn reply(&self) -> &Reply;

    /// Whether it tells how likely the prompt's tokens are.
    fn scores_prompt(&self) -> bool;

    /// The prompt was read; `scores` are the log-probabilities of its tokens, where asked for.
    fn begun(&self, generation: usize, scores: &[Option<PromptToken>]) -> Option<Self::Choice>;

    /// There is new text, or there are new tokens.
    fn continued(&self, generation: usize, step: TextStep) -> Option<Self::Choice>;

    /// The generation is over.
    fn ended(&self, generation: usize, finish: &Finished) -> Self::Choice;

    /// An event of a stream.
    fn event(&self, choices: Vec<Self::Choice>, usage: UsageField) -> Event;

    /// The answer to a request that does not stream.
    fn whole(&self, wholes: Vec<Whole>) -> Response;
}

/// Runs the requests and answers in the endpoint's words, at once or as a stream.
///
/// # Errors
/// What the engine says before the answer has begun.
pub(super) async fn respond<W: Wording>(
    app: &App,
    in_flight: InFlight,
    wording: W,
    requests: Vec<GenerateRequest>,
    turn: Option<Turn>,
    scope: &Scope,
) -> Result<Response, ApiError> {
    let Reply {
        serving,
        per_prompt,
        ..
    } = wording.reply();
    scope.trace.asks(&serving.info.id, &requests, *per_prompt);
    let charge = scope.meter.take_prompts(&requests, *per_prompt)?;
    let history_lost = session_reset::is_told(turn.as_ref());
    let generations = TextGeneration::start_all(app, serving, requests, turn, scope, false).await?;
    charge.keep();
    if wording.reply().streaming.stream {
        let writer = Chunks {
            wording,
            usage: Usage::default(),
            scores: BTreeMap::new(),
            held: Vec::new(),
            open: generations.len(),
            done: false,
        };
        let keep_alive = app.config().keep_alive;
        let response = sse::respond(generations, writer, in_flight, keep_alive);
        return Ok(session_reset::tell(response, history_lost));
    }
    let wholes = try_join_all(generations.into_iter().map(TextGeneration::whole)).await?;
    Ok(session_reset::tell(wording.whole(wholes), history_lost))
}

/// Writes a stream.
struct Chunks<W> {
    wording: W,
    usage: Usage,
    /// Log-probabilities of the prompts' tokens, by the generation that scored them.
    scores: BTreeMap<usize, Vec<Option<PromptToken>>>,
    /// Steps of generations whose prompt is not scored yet.
    held: Vec<(usize, Step)>,
    /// Generations that have not ended.
    open: usize,
    done: bool,
}

impl<W: Wording> Chunks<W> {
    fn event(&self, choice: W::Choice) -> Event {
        let usage = if self.wording.reply().streaming.include_usage {
            UsageField::Null
        } else {
            UsageField::Absent
        };
        self.wording.event(vec![choice], usage)
    }

    /// Writes a step, and with it those that have waited for it.
    fn written(&mut self, generation: usize, step: Step) -> Vec<Event> {
        let first = self.wording.reply().first(generation);
        let is_first = generation == first;
        if self.wording.scores_prompt() && !is_first && !self.scores.contains_key(&first) {
            self.held.push((generation, step));
            return Vec::new();
        }
        let mut report = match step {
            Step::Prompt(report) => report,
            Step::Text(step) => return self.go_on(generation, step),
        };
        if is_first {
            let scores = std::mem::take(&mut report.logprobs);
            self.scores.insert(first, scores);
        }
        let mut events = self.begin(generation, first, &report);
        if is_first {
            for (generation, step) in std::mem::take(&mut self.held) {
                events.append(&mut self.written(generation, step));
            }
        }
        events
    }

    fn begin(&mut self, generation: usize, first: usize, report: &PromptReport) -> Vec<Event> {
        let reply = self.wording.reply();
        reply.count_prompt(&mut self.usage, generation, report);
        let scores = self.scores.get(&first);
        let scores = scores.map(Vec::as_slice).unwrap_or_default();
        let choice = self.wording.begun(generation, scores);
        choice
            .map(|choice| self.event(choice))
            .into_iter()
            .collect()
    }

    fn go_on(&mut self, generation: usize, mut step: TextStep) -> Vec<Event> {
        let finish = step.finish.take();
        let choice = self.wording.continued(generation, step);
        let mut events: Vec<Event> = choice
            .map(|choice| self.event(choice))
            .into_iter()
            .collect();
        let Some(finish) = finish else {
            return events;
        };
        self.usage.add_completion(finish.generated);
        events.push(self.event(self.wording.ended(generation, &finish)));
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            if self.wording.reply().streaming.include_usage {
                let usage = UsageField::Told(self.usage);
                events.push(self.wording.event(Vec::new(), usage));
            }
            events.push(Event::default().data("[DONE]"));
            self.done = true;
        }
        events
    }
}

impl<W: Wording> Writer for Chunks<W> {
    fn step(&mut self, index: usize, step: Result<Step, ApiError>) -> Vec<Event> {
        match step {
            Ok(step) => self.written(index, step),
            Err(error) => {
                self.done = true;
                vec![sse::json(&error.openai())]
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
