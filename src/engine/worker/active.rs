//! The worker's state of an accepted request beside the scheduler's: parameters, sampler, constraint,
//! clients and progress.

use std::time::Instant;

use tokio::sync::mpsc;

use super::inspector::Inspector;
use crate::engine::beam::Hypothesis;
use crate::engine::beams::Beams;
use crate::engine::constraint::Constraint;
use crate::engine::event::{
    FinishReason, GenerateError, GeneratedToken, PromptReport, PromptToken, TimedEvent, TokenEvent,
};
use crate::engine::logprobs::logprobs;
use crate::engine::pooling::MeanPool;
use crate::engine::queue::Place;
use crate::engine::sampler::{Allowed, Sampler, Scratch};
use crate::engine::speculate::MAX_DRAFT;
use crate::model::ModelSpec;
use crate::request::{GenerateRequest, Output};

/// Maximum events that a step sends to a request: the prompt's report, accepted drafts, the token after
/// them, and an error.
const EVENTS_PER_STEP: usize = 3 + MAX_DRAFT;

/// One accepted request.
pub(super) struct Active {
    pub request: GenerateRequest,
    /// Its beams, if it is a beam search.
    pub beams: Option<Box<Beams>>,
    /// One client; of a beam search one per returned beam, the best first.
    clients: Vec<mpsc::Sender<TimedEvent>>,
    /// Clients that have not closed their generation.
    open: usize,
    /// Whether a client has no room for events: the request is to be set aside.
    stalled: bool,
    sampler: Sampler,
    /// State of the request's grammar; `None` also while it is lent.
    constraint: Option<Constraint>,
    /// Its place in the queue, then among the running requests.
    place: Place,
    /// Number of session tokens before its own prompt.
    history: usize,
    generated: usize,
    /// Number of context tokens found in the cache; known once the request was planned.
    cached_tokens: Option<usize>,
    /// Start of its first step.
    first_step: Option<Instant>,
    /// Per token of its own prompt, if requested.
    prompt_logprobs: Vec<Option<PromptToken>>,
    reported_prompt: bool,
    /// Sum of its hidden states, if an embedding is requested.
    pub pool: Option<MeanPool>,
    /// What its pass computes, if an inspection is requested; taken out while it is recorded.
    pub inspector: Option<Box<Inspector>>,
}

impl Active {
    /// Creates the state of a request that continues `tokens`: its session's, then its own prompt.
    pub fn new(
        request: GenerateRequest,
        clients: Vec<mpsc::Sender<TimedEvent>>,
        place: Place,
        tokens: &[u32],
        model: &ModelSpec,
    ) -> Self {
        let constraint = request.grammar.clone().map(Constraint::new);
        let sampler = Sampler::new(request.sampling.clone(), tokens, model.vocab_size);
        let pool = match &request.output {
            Output::Text | Output::Inspection(_) => None,
            Output::Embedding => Some(MeanPool::new(model.hidden_width)),
        };
        let inspected = request.output.inspection().cloned();
        let inspector = inspected.map(|wanted| Box::new(Inspector::new(wanted, model)));
        let prompt_logprobs = if request.logprobs.prompt {
            vec![None; request.prompt.len()]
        } else {
            Vec::new()
        };
        Self {
            history: request.history.len(),
            request,
            beams: None,
            open: clients.len(),
            stalled: false,
            clients,
            sampler,
            constraint,
            place,
            generated: 0,
            cached_tokens: None,
            first_step: None,
            prompt_logprobs,
            reported_prompt: false,
            pool,
            inspector,
        }
    }

    /// Checks whether its clients have room for the events of a step. A client without room counts as
    /// stalled until half of its channel is free, so that a slow reader does not alternate every step.
    pub fn check_clients(&mut self) {
        let stalled = self.stalled;
        let has_room = |client: &mpsc::Sender<TimedEvent>| {
            let needed = if stalled {
                client.max_capacity() / 2
            } else {
                EVENTS_PER_STEP
            };
            client.capacity() >= needed
        };
        self.stalled = !self.clients.iter().all(has_room);
    }

    /// Returns whether its clients had room at the last [check](Self::check_clients).
    pub fn can_receive(&self) -> bool {
        !self.stalled
    }

    /// Records that a client has closed its generation; returns whether it was the last.
    pub fn leave(&mut self) -> bool {
        self.open = self.open.saturating_sub(1);
        self.open == 0
    }

    /// Records that it is in the batch, where it may still wait for the prefix that another request computes;
    /// returns whether that is new.
    pub fn begin(&mut self) -> bool {
        self.place.begin()
    }

    /// Records that it is in the step that started at `at`, with `first_position` context tokens in the
    /// cache; returns whether this is its first step.
    pub fn planned(&mut self, first_position: usize, at: Instant) -> bool {
        let is_first = self.cached_tokens.is_none();
        self.cached_tokens.get_or_insert(first_position);
        self.first_step.get_or_insert(at);
        is_first
    }

    /// Returns the number of tokens before the first generated one.
    pub fn prompt_tokens(&self) -> usize {
        self.history + self.request.prompt.len()
    }

    /// Returns whether a cached prefix can be used: it has neither logits nor hidden states.
    pub fn reuses_cache(&self) -> bool {
        !self.request.logprobs.prompt && self.request.output != Output::Embedding
    }

    /// Returns whether the logits after history token `index` are needed to score the token after it.
    pub fn wants_prompt_logits(&self, index: usize) -> bool {
        let next = index + 1;
        (self.history..self.history + self.prompt_logprobs.len()).contains(&next)
    }

    /// Records the score of the token after history token `index`.
    pub fn take_prompt_token(&mut self, index: usize, token: PromptToken) {
        if let Some(entry) = (index + 1)
            .checked_sub(self.history)
            .and_then(|at| self.prompt_logprobs.get_mut(at))
        {
            *entry = Some(token);
        }
    }

    /// Returns whether tokens are generated after the prompt.
    pub fn samples(&self) -> bool {
        self.request.stop.max_tokens > 0
    }

    /// Sends the prompt's report once prefill is complete, by the step that ended at `at`. Returns the
    /// reason if the generation ends with it.
    pub fn report_prompt(&mut self, at: Instant) -> Option<FinishReason> {
        if self.reported_prompt {
            return None;
        }
        self.reported_prompt = true;
        let finish = (self.request.stop.max_tokens == 0).then_some(FinishReason::Length);
        let embedding = self.pool.take().map(|pool| pool.mean());
        if embedding
            .iter()
            .flatten()
            .any(|feature| !feature.is_finite())
        {
            self.fail(GenerateError::NotFinite);
            return finish;
        }
        let report = PromptReport {
            prompt_tokens: self.prompt_tokens(),
            cached_tokens: self.cached_tokens.unwrap_or(0),
            logprobs: std::mem::take(&mut self.prompt_logprobs),
            embedding,
            inspection: self
                .inspector
                .take()
                .map(|record| Box::new(record.finish())),
            finish,
        };
        self.send(TokenEvent::Prefilled(report), at);
        finish
    }

    /// Samples the next token from the logits after the last one.
    pub fn sample(
        &mut self,
        logits: &[f32],
        scratch: &mut Scratch,
    ) -> Result<GeneratedToken, GenerateError> {
        let banned = self.banned();
        let mask = match &mut self.constraint {
            Some(constraint) => Some(constraint.allowed(&banned)?),
            None if self.request.grammar.is_some() => {
                return Err(GenerateError::Grammar("its state is lost".to_owned()));
            }
            None => None,
        };
        let allowed = mask
            .as_deref()
            .map_or(Allowed::AllBut(&banned), Allowed::Only);
        let id = self
            .sampler
            .sample(logits, self.generated, allowed, scratch)?;
        self.sampler.accept(id);
        self.generated += 1;
        let (token, top) = logprobs(logits, id, self.request.logprobs.top);
        let finish = self.finish_reason(id)?;
        Ok(GeneratedToken { token, top, finish })
    }

    /// Returns the tokens that must not be sampled at this point.
    fn banned(&self) -> Vec<u32> {
        let stop = &self.request.stop;
        let mut banned = Vec::new();
        if self.generated < stop.min_tokens {
            banned.extend([&stop.end_of_text[..], &stop.stop_tokens[..]].concat());
        }
        if let Some(constraint) = &self.constraint
            && stop.end_of_text.is_empty()
        {
            // `ignore_eos`: end-of-text is not sampled while the grammar allows any other token.
            banned.extend(constraint.end_of_text());
        }
        banned
    }

    /// Takes the constraint out, to have its next mask computed.
    pub fn lend_constraint(&mut self) -> Option<Constraint> {
        if self.samples() {
            self.constraint.take()
        } else {
            None
        }
    }

    /// Puts the constraint back.
    pub fn return_constraint(&mut self, constraint: Constraint) {
        self.constraint = Some(constraint);
    }

    /// Sends a token that was sampled in the step that ended at `at`.
    pub fn deliver(&self, token: GeneratedToken, at: Instant) {
        self.send(TokenEvent::Token(token), at);
    }

    /// Returns the number of clients: one, or one per returned beam.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Sends each client of a beam search its whole beam.
    pub fn deliver_beams(&self, beams: Vec<Hypothesis>, at: Instant) {
        for (client, beam) in self.clients.iter().zip(beams) {
            for token in beam.tokens {
                // The channel has room for a whole beam; a client that is gone sends a `Close`.
                let _ = client.try_send(self.timed(TokenEvent::Token(token), at));
            }
        }
    }

    /// Advances by the sampled token; returns the reason if it is the last.
    fn finish_reason(&mut self, token: u32) -> Result<Option<FinishReason>, GenerateError> {
        let stop = &self.request.stop;
        let finish = FinishReason::after(token, self.generated, stop, self.request.stop.max_tokens);
        let Some(constraint) = &mut self.constraint else {
            return Ok(finish);
        };
        if finish.is_some_and(FinishReason::ends_with_a_sign) {
            return Ok(finish);
        }
        if constraint.end_of_text().contains(&token) {
            return Ok(Some(FinishReason::EndOfText));
        }
        let complete = constraint.accept(token)?;
        Ok(complete.then_some(FinishReason::Complete).or(finish))
    }

    /// Sends the error that ends a generation.
    pub fn fail(&self, error: GenerateError) {
        self.send(TokenEvent::Failed(error), Instant::now());
    }

    fn timed(&self, event: TokenEvent, at: Instant) -> TimedEvent {
        TimedEvent {
            event,
            at,
            first_step: self.first_step,
        }
    }

    /// Sends an event to all clients. Their room was checked before the step; a client that is gone
    /// sends a `Close`.
    fn send(&self, event: TokenEvent, at: Instant) {
        let timed = self.timed(event, at);
        if let [client] = &self.clients[..] {
            let _ = client.try_send(timed);
            return;
        }
        for client in &self.clients {
            let _ = client.try_send(timed.clone());
        }
    }
}
