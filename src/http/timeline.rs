//! What happened to one generation and when, from its submission to its end: the one account from
//! which its log line is written, its metrics are observed and its spans are made.
//!
//! ```text
//! submitted ──queue──► first_step ──prefill──► prompt_read = first_token ──decode──► ended
//! ```
//!
//! Moments up to the last token are the worker's (the end of the step that sent the event), so a
//! client that reads slowly does not change them. A [`Timeline`] reports once, when the
//! generation is over; it must never hold text or token ids.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Span;

use super::metrics::{GenerationReport, Observations};
use crate::engine::{FinishReason, GeneratedToken, PromptReport};
use crate::request::{GenerateRequest, Output, RequestId};

/// How a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// By itself.
    Finished(FinishReason),
    /// The client went away, or another generation of its request failed.
    Cancelled,
    /// Its request's deadline came first.
    TimedOut,
    /// The engine failed it.
    Failed,
    /// Its text was complete, but its session could not be stored.
    NotStored,
}

impl Ending {
    /// Returns its name in the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Length) => "length",
            Self::Finished(FinishReason::EndOfText) => "end_of_text",
            Self::Finished(FinishReason::Stop) => "stop",
            Self::Finished(FinishReason::Complete) => "complete",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Failed => "failed",
            Self::NotStored => "not_stored",
        }
    }
}

/// A part of a generation's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Until the first step that it was in.
    Queue,
    /// Until its prompt was read.
    Prefill,
    /// Until its last token.
    Decode,
}

/// The trace that a generation's timeline is reported to.
pub(super) trait TimelineTrace: fmt::Debug + Send + Sync + 'static {
    /// Returns the index of the generation in its request.
    fn index(&self) -> usize;

    /// Records a generation that has ended.
    fn ended(&self, timeline: &Timeline);
}

/// What is known of a generation when its request is submitted.
#[derive(Debug, Clone)]
pub(super) struct Submitted {
    id: RequestId,
    trace: Arc<dyn TimelineTrace>,
    /// That of the HTTP request: a stream that is cancelled is dropped outside of it.
    log_span: Span,
    output: Output,
    /// Returns the tokens of the context, a session's history included.
    prompt_tokens: usize,
    at: Instant,
}

impl Submitted {
    /// Creates the record of a request submitted now.
    pub(super) fn now(request: &GenerateRequest, trace: impl TimelineTrace) -> Self {
        Self {
            id: request.id.clone(),
            trace: Arc::new(trace),
            log_span: Span::current(),
            output: request.output.clone(),
            prompt_tokens: request.history.len() + request.prompt.len(),
            at: Instant::now(),
        }
    }
}

/// The account of one accepted generation.
#[derive(Debug)]
pub(super) struct Timeline {
    submitted: Submitted,
    /// Start of the first step that read a part of the prompt.
    first_step: Option<Instant>,
    /// End of the step that read the last part of the prompt.
    prompt_read: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// When it was reported: its text was complete, it failed, or it was dropped before.
    ended: Option<Instant>,
    /// Prompt tokens from the KV cache.
    cached_tokens: usize,
    generated: usize,
    logprob_sum: f64,
    ending: Ending,
    observations: Arc<Observations>,
}

impl Timeline {
    /// Creates the timeline of an accepted generation.
    pub(super) fn new(submitted: Submitted, observations: &Arc<Observations>) -> Self {
        Self {
            submitted,
            first_step: None,
            prompt_read: None,
            first_token: None,
            last_token: None,
            ended: None,
            cached_tokens: 0,
            generated: 0,
            logprob_sum: 0.0,
            ending: Ending::Cancelled,
            observations: Arc::clone(observations),
        }
    }

    /// Records that the request was in a step, the first of which began at `at`.
    pub(super) fn begun(&mut self, at: Option<Instant>) {
        if self.first_step.is_none()
            && let Some(at) = at
        {
            self.first_step = Some(at);
            self.observations.queue_time(self.since_submitted(at));
        }
    }

    /// Records that prefill was completed by the step that ended at `at`.
    pub(super) fn prompt(&mut self, report: &PromptReport, at: Instant) {
        self.prompt_read = Some(at);
        self.cached_tokens = report.cached_tokens;
    }

    /// Records a token sampled in the step that ended at `at`.
    pub(super) fn token(&mut self, token: &GeneratedToken, at: Instant) {
        match self.last_token {
            None => {
                self.first_token = Some(at);
                self.observations.first_token(self.since_submitted(at));
            }
            // Accepted draft tokens and whole beams come at once: they are one arrival.
            Some(last) if last == at => (),
            Some(last) => self.observations.inter_token(at.duration_since(last)),
        }
        self.last_token = Some(at);
        self.generated += 1;
        self.logprob_sum += f64::from(token.token.logprob);
    }

    /// Reports the end of the generation, before the client receives it.
    pub(super) fn end(&mut self, ending: Ending) {
        if self.ended.is_some() {
            return;
        }
        let now = Instant::now();
        self.ending = ending;
        self.ended = Some(now);
        self.log(now);
        self.observations.generation(&GenerationReport {
            output: self.submitted.output.clone(),
            ending,
            prompt_tokens: self.submitted.prompt_tokens,
            generated_tokens: self.generated,
            duration: self.since_submitted(now),
        });
        self.submitted.trace.ended(self);
    }

    /// Returns the name of the generation.
    pub(super) fn id(&self) -> &RequestId {
        &self.submitted.id
    }

    /// Returns the span in the log of the request that it is a part of.
    pub(super) fn log_span(&self) -> &Span {
        &self.submitted.log_span
    }

    /// Returns the index of the generation in its request.
    pub(super) fn index(&self) -> usize {
        self.submitted.trace.index()
    }

    /// Returns the kind of output.
    pub(super) fn output(&self) -> &Output {
        &self.submitted.output
    }

    /// Returns how it ended.
    pub(super) fn ending(&self) -> Ending {
        self.ending
    }

    /// Returns the tokens of the context, a session's history included.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.submitted.prompt_tokens
    }

    /// Returns the context tokens found in the KV cache.
    pub(super) fn cached_tokens(&self) -> usize {
        self.cached_tokens
    }

    /// Returns its time in the queue, once it is over.
    pub(super) fn queue_time(&self) -> Option<Duration> {
        self.first_step.map(|at| self.since_submitted(at))
    }

    /// Returns the time to its first token, once there is one.
    pub(super) fn first_token_time(&self) -> Option<Duration> {
        self.first_token.map(|at| self.since_submitted(at))
    }

    /// Returns the stages it got to, in order, with their first and last moments. One that ended before its
    /// prompt was read has the queue alone: the worker reports both stages with the prompt.
    pub(super) fn stages(&self) -> Vec<(Stage, Instant, Instant)> {
        let submitted = self.submitted.at;
        let ended = self.ended.unwrap_or_else(Instant::now);
        let (Some(first_step), Some(prompt_read)) = (self.first_step, self.prompt_read) else {
            return vec![(Stage::Queue, submitted, ended)];
        };
        let mut stages = vec![
            (Stage::Queue, submitted, first_step),
            (Stage::Prefill, first_step, prompt_read),
        ];
        let finished = matches!(self.ending, Ending::Finished(_));
        let last = if finished {
            self.last_token
        } else {
            Some(ended)
        };
        stages.extend(last.map(|last| (Stage::Decode, prompt_read, last)));
        stages
    }

    /// Returns the tokens generated so far, those that are not shown included.
    pub(super) fn generated(&self) -> usize {
        self.generated
    }

    /// Returns the mean log-probability of these tokens; 0 without tokens.
    pub(super) fn mean_logprob(&self) -> f64 {
        self.logprob_sum / self.generated.max(1) as f64
    }

    fn since_submitted(&self, at: Instant) -> Duration {
        at.duration_since(self.submitted.at)
    }

    fn log(&self, ended: Instant) {
        let ms = |at: Instant| self.since_submitted(at).as_secs_f64() * 1e3;
        let Submitted {
            output,
            prompt_tokens,
            log_span,
            ..
        } = &self.submitted;
        let _in_request = log_span.enter();
        match output {
            Output::Text => tracing::info!(
                generation = self.index(),
                outcome = self.ending.as_str(),
                prompt_tokens,
                cached_tokens = self.cached_tokens,
                generated_tokens = self.generated,
                queue_ms = self.first_step.map(ms),
                first_token_ms = self.first_token.map(ms),
                total_ms = ms(ended),
                "generation finished"
            ),
            // A request can have 2048 of them: it has a line of its own.
            Output::Embedding => tracing::debug!(
                generation = self.index(),
                outcome = self.ending.as_str(),
                prompt_tokens,
                cached_tokens = self.cached_tokens,
                queue_ms = self.first_step.map(ms),
                prompt_read_ms = self.prompt_read.map(ms),
                total_ms = ms(ended),
                "embedding finished"
            ),
            Output::Inspection(_) => tracing::info!(
                generation = self.index(),
                outcome = self.ending.as_str(),
                prompt_tokens,
                cached_tokens = self.cached_tokens,
                queue_ms = self.first_step.map(ms),
                total_ms = ms(ended),
                "inspection finished"
            ),
        }
    }
}

impl Drop for Timeline {
    /// Records that a generation without another ending was cancelled.
    fn drop(&mut self) {
        self.end(Ending::Cancelled);
    }
}
