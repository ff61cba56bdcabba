//! The inference worker: the loop that turns requests into tokens, one step at a time.
//!
//! One step: take what has arrived; plan; one forward pass over all planned parts; record what is
//! computed; draw a token for every sequence that reached the end of its context; send. A panic
//! or error in the pass fails the requests that were in it, one in drawing a token only its own;
//! the loop goes on. It must never wait for a client.
//!
//! `beams` is what it does for searches, `logits` how it reads a pass's result.

mod beams;
mod logits;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error};

use super::EngineConfig;
use super::active::Active;
use super::batch::{StepBatch, build};
use super::beams::{Beams, blocks_needed};
use super::blocks::BLOCK_SIZE;
use super::budget::StepBudget;
use super::constraint::Masks;
use super::draw::{Row, draw_all, panic_message};
use super::event::{GenerateError, GeneratedToken};
use super::handle::{Command, Gauges, KeptOutput, SessionInfo, Submission};
use super::pooling::pool_all;
use super::scheduler::{Part, Scheduler, StepLimits};
use super::sequence::{Sequence, SequenceId, context_start};
use super::session::SessionStore;
use super::values::with_values;
use crate::kernels::kv::KvCache;
use crate::model::gpt2::{Gpt2, Outputs};
use crate::request::{Output, Overflow, SessionId, window_room};

/// How long the loop rests when every running request waits for its client.
const STALL_PAUSE: Duration = Duration::from_millis(2);

/// A finished generation on a session, until the front end says what its client received.
struct Unsettled {
    active: Box<Active>,
    tokens: Vec<u32>,
}

/// Owns everything inference needs. Lives on its own thread.
pub(super) struct Worker {
    model: Gpt2,
    kv: KvCache,
    config: EngineConfig,
    scheduler: Scheduler,
    budget: StepBudget,
    sessions: SessionStore,
    active: HashMap<SequenceId, Box<Active>>,
    unsettled: HashMap<SequenceId, Unsettled>,
    commands: mpsc::UnboundedReceiver<Command>,
    gauges: Arc<Gauges>,
    masks: Masks,
}

impl Worker {
    pub fn new(
        model: Gpt2,
        kv: KvCache,
        kv_blocks: usize,
        config: EngineConfig,
        commands: mpsc::UnboundedReceiver<Command>,
        gauges: Arc<Gauges>,
        masks: Masks,
    ) -> Self {
        let limits = StepLimits {
            max_batch: config.max_batch,
            max_step_tokens: config.max_step_tokens,
            speculative_rows: config.speculative_rows,
        };
        Self {
            scheduler: Scheduler::new(limits, kv_blocks),
            budget: StepBudget::new(config.max_step_tokens, config.step_time),
            sessions: SessionStore::new(config.max_sessions),
            active: HashMap::new(),
            unsettled: HashMap::new(),
            model,
            kv,
            config,
            commands,
            gauges,
            masks,
        }
    }

    /// Runs until it is told to stop or no handle is left.
    pub fn run(mut self) {
        self.model.pool().adopt_caller();
        while self.take_commands() {
            self.step();
            self.publish_gauges();
        }
        self.fail_everything(&GenerateError::ShuttingDown);
    }

    /// Takes what has arrived; waits for something if there is nothing to do. `false`: stop.
    fn take_commands(&mut self) -> bool {
        loop {
            let idle = self.scheduler.running() + self.scheduler.waiting() == 0;
            let command = if idle {
                self.publish_gauges();
                match self.commands.blocking_recv() {
                    Some(command) => command,
                    None => return false,
                }
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(mpsc::error::TryRecvError::Empty) => return true,
                    Err(mpsc::error::TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Submit(submission) => self.submit(submission),
                Command::Close { id, kept, done } => self.close(id, kept.as_ref(), done),
                Command::Session { id, reply } => {
                    let _ = reply.send(self.session_info(&id));
                }
                Command::Sessions { reply } => {
                    let ids = self.sessions.list().into_iter().map(|(id, _)| id.clone());
                    let ids: Vec<SessionId> = ids.collect();
                    let infos = ids.iter().filter_map(|id| self.session_info(id));
                    let _ = reply.send(infos.collect());
                }
                Command::DeleteSession { id, reply } => {
                    let waited = self.sessions.delete(&id);
                    let _ = reply.send(waited.is_some());
                    for submission in waited.into_iter().flatten() {
                        self.submit(submission);
                    }
                }
                Command::Stop => return false,
            }
        }
    }

    /// Accepts a request, or lets it wait for its session, or says why it can never run.
    fn submit(&mut self, submission: Box<Submission>) {
        let (submission, history) = match submission.request.session.clone() {
            None => (submission, Vec::new()),
            Some(session) => match self.sessions.begin(&session, submission) {
                Some(begun) => begun,
                None => return,
            },
        };
        let id = submission.id;
        let session = submission.request.session.clone();
        if let Err(refusal) = self.accept(submission, history)
            && let Some(session) = session
        {
            debug!(%session, %refusal, "refused");
            self.settle(&session, id, None);
        }
    }

    fn accept(
        &mut self,
        submission: Box<Submission>,
        history: Vec<u32>,
    ) -> Result<(), GenerateError> {
        let Submission {
            id,
            request,
            verdict,
            clients,
            place,
        } = *submission;
        let n_positions = self.model.config().n_positions;
        let fits = self.check_fit(&request, history.len());
        let max_tokens = match fits {
            Ok(max_tokens) => max_tokens,
            Err(refusal) => {
                let _ = verdict.send(Err(refusal.clone()));
                return Err(refusal);
            }
        };
        let history_length = history.len();
        let mut tokens = history;
        tokens.extend_from_slice(&request.prompt);
        // What is in the cache has neither logits nor hidden states.
        let may_reuse = !request.logprobs.prompt && request.output == Output::Text;
        let mut active = Active::new(
            request,
            clients,
            place,
            &tokens,
            history_length,
            max_tokens,
            self.model.config(),
        );
        let mut sequence = Sequence::new(id, tokens, n_positions, may_reuse);
        active.beams = Beams::new(&active.request, &mut sequence, max_tokens);
        self.active.insert(id, Box::new(active));
        self.scheduler.add(sequence);
        // If the client is gone already, a `Close` follows.
        let _ = verdict.send(Ok(()));
        Ok(())
    }

    /// How many tokens a request may generate after `history` session tokens; or why it can
    /// never run.
    fn check_fit(
        &self,
        request: &crate::request::GenerateRequest,
        history: usize,
    ) -> Result<usize, GenerateError> {
        let n_positions = self.model.config().n_positions;
        let wanted = request.stop.max_tokens;
        let total = history + request.prompt.len();
        if total == 0 {
            return Err(GenerateError::NothingToContinue);
        }
        let max_tokens = match window_room(n_positions, total, request.overflow) {
            None => wanted,
            Some(room) => {
                let refused = total > n_positions
                    || (room == 0 && wanted > 0)
                    || (request.overflow == Overflow::Error && wanted > room);
                if refused {
                    return Err(GenerateError::ContextLength {
                        history,
                        prompt: request.prompt.len(),
                        max_tokens: wanted,
                        n_positions,
                    });
                }
                wanted.min(room)
            }
        };
        let longest = if total + max_tokens > n_positions {
            n_positions
        } else {
            total - context_start(total, n_positions) + max_tokens
        };
        self.check_width(request)?;
        let needed = blocks_needed(request, total, longest);
        let available = self.scheduler.blocks().capacity();
        if needed > available {
            return Err(GenerateError::KvTooSmall {
                needed,
                available,
                block_size: BLOCK_SIZE,
            });
        }
        Ok(max_tokens)
    }

    /// One step of everything that can run.
    fn step(&mut self) {
        let tokens = self.budget.tokens(self.scheduler.decoding());
        self.scheduler.set_max_step_tokens(tokens);
        let active = &self.active;
        let plan = self
            .scheduler
            .plan(|id| active.get(&id).is_some_and(|active| active.can_receive()));
        if plan.is_empty() {
            std::thread::sleep(STALL_PAUSE);
            return;
        }
        for part in &plan {
            if let Some(active) = self.active.get_mut(&part.request) {
                active.planned(part.first_position);
            }
        }
        let lent = self.masks.lend(&plan, &mut self.active);
        let started = Instant::now();
        let pass = catch_unwind(AssertUnwindSafe(|| self.forward(&plan)));
        let tokens = plan.iter().map(|part| part.tokens).sum();
        self.budget.measured(tokens, started.elapsed());
        if lent {
            self.masks.take_back(&mut self.active);
        }
        let failure = match pass {
            Ok(Ok((batch, outputs))) => return self.take_outputs(&plan, &batch, &outputs),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic_message(&*panic),
        };
        error!(%failure, requests = plan.len(), "a step failed");
        for part in plan {
            self.fail(part.request, GenerateError::StepFailed(failure.clone()));
        }
    }

    fn forward(&self, plan: &[Part]) -> candle_core::Result<(StepBatch, Outputs)> {
        if let Some(hook) = &self.config.step_hook {
            let ids: Vec<_> = plan
                .iter()
                .filter_map(|part| self.active.get(&part.request))
                .map(|active| active.request.id.clone())
                .collect();
            hook(&ids);
        }
        let batch = build(plan, &self.scheduler, &self.active);
        let outputs = self.model.forward(&batch.batch, &self.kv)?;
        Ok((batch, outputs))
    }

    /// Hands every row of hidden states and of logits to the request it belongs to.
    fn take_outputs(&mut self, plan: &[Part], batch: &StepBatch, outputs: &Outputs) {
        self.gauges.steps.fetch_add(1, Ordering::Relaxed);
        for &part in plan {
            self.scheduler.computed(part);
        }
        let (n_embd, vocab_size) = {
            let config = self.model.config();
            (config.n_embd, config.vocab_size)
        };
        let pooled = with_values(&outputs.hidden, |hidden| {
            pool_all(plan, &mut self.active, hidden, n_embd);
        });
        let mut rows = self.rows(plan, batch);
        let pool = self.model.pool();
        let read = with_values(&outputs.logits, |logits| {
            draw_all(pool, &mut rows, logits, vocab_size);
        });
        let mut rows = rows.into_iter();
        for (part, wanted) in plan.iter().zip(&batch.prompt_rows) {
            let prompt: Vec<Row> = rows.by_ref().take(wanted.len()).collect();
            let drawn = part.completes.then(|| rows.next()).flatten();
            match drawn {
                Some(Row::Draw {
                    active,
                    drawn,
                    failed,
                    ..
                }) => {
                    self.active.insert(part.id, active);
                    self.take_prompt_rows(part.id, wanted, prompt);
                    self.advance(*part, drawn, failed);
                }
                Some(Row::Rank { ranked, .. }) => {
                    self.take_prompt_rows(part.request, wanted, prompt);
                    self.advance_beams(*part, ranked);
                }
                _ => self.take_prompt_rows(part.request, wanted, prompt),
            }
        }
        if let Err(error) = pooled.and(read) {
            for part in plan {
                self.fail(part.request, GenerateError::StepFailed(error.to_string()));
            }
        }
    }

    /// What is wanted of the step's rows of logits, in their order.
    fn rows(&mut self, plan: &[Part], batch: &StepBatch) -> Vec<Row> {
        let mut rows = Vec::with_capacity(batch.batch.logits_rows.len());
        for (part, wanted) in plan.iter().zip(&batch.prompt_rows) {
            let active = self.active.get(&part.request);
            let asked = active.map_or_else(Default::default, |active| active.request.logprobs);
            rows.extend(wanted.iter().map(|&(_, next)| Row::Prompt {
                next,
                top: asked.prompt_top,
                ranked: asked.prompt_ranks,
                found: None,
            }));
            let beams = active.and_then(|active| active.beams.as_ref());
            if let Some(beams) = beams {
                let wanted = beams.wanted();
                rows.extend(part.completes.then_some(Row::Rank {
                    wanted,
                    ranked: None,
                }));
                continue;
            }
            // A request has one such row at most: its prompt's rows are behind it already.
            if part.completes
                && let Some(active) = self.active.remove(&part.id)
            {
                let sequence = self.scheduler.sequence(part.id);
                rows.push(Row::Draw {
                    active,
                    draft: sequence.map(|s| s.draft.clone()).unwrap_or_default(),
                    drawn: Vec::new(),
                    failed: None,
                });
            }
        }
        rows
    }

    /// Sends one sequence the tokens drawn for it, and takes them in.
    fn advance(&mut self, part: Part, drawn: Vec<GeneratedToken>, failed: Option<GenerateError>) {
        let id = part.id;
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        if active.report_prompt().is_some() {
            return self.finish(id);
        }
        let right = drawn.len().saturating_sub(1);
        self.gauges
            .drafted
            .fetch_add(part.drafted, Ordering::Relaxed);
        self.gauges.accepted.fetch_add(right, Ordering::Relaxed);
        let tokens: Vec<u32> = drawn.iter().map(|token| token.token.id).collect();
        let finished = drawn.last().is_some_and(|token| token.finish.is_some());
        for token in drawn {
            active.deliver(token);
        }
        self.scheduler.push_tokens(id, &tokens);
        if finished {
            self.finish(id);
        } else if let Some(error) = failed {
            error!(request = %active.request.id, %error, "a request failed");
            self.fail(id, error);
        }
    }

    fn fail(&mut self, id: SequenceId, error: GenerateError) {
        if let Some(active) = self.active.get(&id) {
            active.fail(error);
        }
        self.finish(id);
    }

    /// Takes a generation out of the batch; on a session, its tokens are kept until it is closed.
    fn finish(&mut self, id: SequenceId) {
        let sequence = self.scheduler.remove_request(id);
        let active = self.active.remove(&id);
        if let (Some(sequence), Some(active)) = (sequence, active)
            && active.request.session.is_some()
        {
            let tokens = sequence.tokens;
            self.unsettled.insert(id, Unsettled { active, tokens });
        }
    }

    /// The front end is done with a generation, finished or not.
    fn close(
        &mut self,
        id: SequenceId,
        kept: Option<&KeptOutput>,
        done: Option<oneshot::Sender<()>>,
    ) {
        let stays = self
            .active
            .get_mut(&id)
            .is_some_and(|active| !active.leave());
        if !stays {
            self.finish(id);
        }
        if let Some(Unsettled { active, tokens }) = self.unsettled.remove(&id) {
            if let Some(session) = &active.request.session {
                let history = kept.map(|kept| active.history_to_keep(&tokens, kept));
                self.settle(session, id, history);
            }
        } else {
            self.sessions.withdraw(id);
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    fn settle(&mut self, session: &SessionId, id: SequenceId, history: Option<Vec<u32>>) {
        if let Some(next) = self.sessions.settle(session, id, history) {
            self.submit(next);
        }
    }

    fn session_info(&self, id: &SessionId) -> Option<SessionInfo> {
        let session = self.sessions.get(id)?;
        let start = context_start(session.tokens.len(), self.model.config().n_positions);
        let cached = self
            .scheduler
            .blocks()
            .find_prefix(&session.tokens[start..]);
        Some(SessionInfo {
            id: id.clone(),
            tokens: session.tokens.clone(),
            cached_tokens: cached.len() * BLOCK_SIZE,
            created: session.created,
            last_used: session.last_used,
            busy: session.is_busy(),
        })
    }

    fn fail_everything(&mut self, error: &GenerateError) {
        for active in self.active.values() {
            active.fail(error.clone());
        }
        self.active.clear();
        for submission in self.sessions.drain_queues() {
            let _ = submission.verdict.send(Err(error.clone()));
        }
        self.publish_gauges();
    }

    fn publish_gauges(&self) {
        let blocks = self.scheduler.blocks();
        let gauges = &self.gauges;
        let set = |gauge: &std::sync::atomic::AtomicUsize, value| {
            gauge.store(value, Ordering::Relaxed);
        };
        set(&gauges.running, self.scheduler.running());
        set(&gauges.preempted, self.scheduler.preempted());
        set(
            &gauges.kv_blocks_used,
            blocks.capacity() - blocks.available(),
        );
        set(&gauges.kv_blocks_cached, blocks.idle());
        set(&gauges.sessions, self.sessions.len());
    }
}
