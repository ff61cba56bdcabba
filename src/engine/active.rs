//! What the worker keeps beside the scheduler for every accepted request: its parameters, its
//! sampler, its client, and how far it is.

use std::time::Instant;

use tokio::sync::mpsc;

use super::beam::Hypothesis;
use super::beams::Beams;
use super::constraint::Constraint;
use super::event::{
    FinishReason, GenerateError, GeneratedToken, PromptReport, PromptToken, TimedEvent, TokenEvent,
};
use super::logprobs::logprobs;
use super::pooling::MeanPool;
use super::queue::Place;
use super::sampler::{Allowed, Sampler, Scratch};
use super::speculate::MAX_DRAFT;
use crate::model::ModelSpec;
use crate::request::{GenerateRequest, Output};

/// Events a step can send to one request: the prompt's report, tokens that were guessed right, the
/// one after them, and why it failed.
pub(super) const EVENTS_PER_STEP: usize = 3 + MAX_DRAFT;

/// One accepted request.
pub(super) struct Active {
    pub request: GenerateRequest,
    /// Its beams, if it searches instead of drawing.
    pub beams: Option<Box<Beams>>,
    /// One; of a search one for each beam it returns, best first.
    clients: Vec<mpsc::Sender<TimedEvent>>,
    /// Clients that have not closed their generation.
    open: usize,
    /// A client has not taken its events: the request is to be set aside.
    stalled: bool,
    sampler: Sampler,
    /// Follows the request's grammar, if it has one; not there while it is lent.
    constraint: Option<Constraint>,
    /// Its place in the queue, and then among the running ones.
    place: Place,
    /// Tokens of its session before its own prompt.
    history: usize,
    generated: usize,
    /// Context tokens that came from the cache; known once it was first planned.
    cached_tokens: Option<usize>,
    /// Start of the first step it was in.
    first_step: Option<Instant>,
    /// For every token of its own prompt, where asked for.
    prompt_logprobs: Vec<Option<PromptToken>>,
    reported_prompt: bool,
    /// Its hidden states so far, where their mean is asked for.
    pub pool: Option<MeanPool>,
}

impl Active {
    /// A request that continues `tokens`: its session's, then its own prompt.
    pub fn new(
        request: GenerateRequest,
        clients: Vec<mpsc::Sender<TimedEvent>>,
        place: Place,
        tokens: &[u32],
        model: &ModelSpec,
    ) -> Self {
        let constraint = request.grammar.clone().map(Constraint::new);
        let sampler = Sampler::new(request.sampling.clone(), tokens, model.vocab_size);
        let pool = match request.output {
            Output::Text => None,
            Output::Embedding => Some(MeanPool::new(model.hidden_width)),
        };
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
        }
    }

    /// Notes whether its clients take their events. One without room for those of a step is stalled
    /// until half of its channel is free, so that a slow reader does not come and go with each event.
    pub fn look_at_clients(&mut self) {
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

    /// Whether its clients took their events when it last [looked](Self::look_at_clients).
    pub fn can_receive(&self) -> bool {
        !self.stalled
    }

    /// A client has closed its generation; whether it was the last.
    pub fn leave(&mut self) -> bool {
        self.open = self.open.saturating_sub(1);
        self.open == 0
    }

    /// Notes that it is in the step that began at `at`, with so many context tokens already in the
    /// cache; whether it is the first time.
    pub fn planned(&mut self, first_position: usize, at: Instant) -> bool {
        self.place.begin();
        let is_first = self.cached_tokens.is_none();
        self.cached_tokens.get_or_insert(first_position);
        self.first_step.get_or_insert(at);
        is_first
    }

    /// Tokens before the first one it generates.
    pub fn prompt_tokens(&self) -> usize {
        self.history + self.request.prompt.len()
    }

    /// Whether the prompt may begin with what the prefix cache holds, which has neither logits nor
    /// hidden states.
    pub fn reuses_cache(&self) -> bool {
        !self.request.logprobs.prompt && self.request.output == Output::Text
    }

    /// Whether the logits after history token `index` are wanted to report the token after it.
    pub fn wants_prompt_logits(&self, index: usize) -> bool {
        let next = index + 1;
        (self.history..self.history + self.prompt_logprobs.len()).contains(&next)
    }

    /// Takes what the logits after history token `index` say of the token that follows.
    pub fn take_prompt_token(&mut self, index: usize, token: PromptToken) {
        if let Some(entry) = (index + 1)
            .checked_sub(self.history)
            .and_then(|at| self.prompt_logprobs.get_mut(at))
        {
            *entry = Some(token);
        }
    }

    /// Whether a token is drawn once the prompt is read.
    pub fn draws(&self) -> bool {
        self.request.stop.max_tokens > 0
    }

    /// Reports the prompt once it is read, by the step that was through at `at`. The reason is given
    /// if that was all.
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
            finish,
        };
        self.send(TokenEvent::Prefilled(report), at);
        finish
    }

    /// Draws the next token from the logits after the last one.
    pub fn draw(
        &mut self,
        logits: &[f32],
        scratch: &mut Scratch,
    ) -> Result<GeneratedToken, GenerateError> {
        let banned = self.banned();
        let mask = match &mut self.constraint {
            Some(constraint) => Some(constraint.allowed(&banned)?),
            None if self.request.grammar.is_some() => {
                return Err(GenerateError::Grammar("its state was lost".to_owned()));
            }
            None => None,
        };
        let allowed = mask
            .as_deref()
            .map_or(Allowed::AllBut(&banned), Allowed::Only);
        let id = self
            .sampler
            .draw(logits, self.generated, allowed, scratch)?;
        self.sampler.accept(id);
        self.generated += 1;
        let (token, top) = logprobs(logits, id, self.request.logprobs.top);
        let finish = self.finish_reason(id)?;
        Ok(GeneratedToken { token, top, finish })
    }

    /// Tokens that may not be drawn yet, or never.
    fn banned(&self) -> Vec<u32> {
        let stop = &self.request.stop;
        let mut banned = Vec::new();
        if self.generated < stop.min_tokens {
            banned.extend([&stop.end_of_text[..], &stop.stop_tokens[..]].concat());
        }
        if let Some(constraint) = &self.constraint
            && stop.end_of_text.is_empty()
        {
            // To go on after end-of-text means not to draw it while the grammar has anything else.
            banned.extend(constraint.end_of_text());
        }
        banned
    }

    /// Gives the constraint away to have worked out what may come next.
    pub fn lend_constraint(&mut self) -> Option<Constraint> {
        if self.draws() {
            self.constraint.take()
        } else {
            None
        }
    }

    /// Takes it back.
    pub fn return_constraint(&mut self, constraint: Constraint) {
        self.constraint = Some(constraint);
    }

    /// Sends a token that was drawn in the step that was through at `at`.
    pub fn deliver(&self, token: GeneratedToken, at: Instant) {
        self.send(TokenEvent::Token(token), at);
    }

    /// Clients that receive events: one, or one for each beam that is returned.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Sends each client of a search its beam, whole.
    pub fn deliver_beams(&self, beams: Vec<Hypothesis>, at: Instant) {
        for (client, beam) in self.clients.iter().zip(beams) {
            for token in beam.tokens {
                // There is room for a whole beam; a client that went away says so by itself.
                let _ = client.try_send(self.timed(TokenEvent::Token(token), at));
            }
        }
    }

    /// Takes in the token drawn; why it is the last one, if it is.
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

    /// Sends the last event of a generation that failed.
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

    /// Room was made sure of before the step; a client that went away says so by itself.
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
