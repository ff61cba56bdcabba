//! The inference worker: the loop that turns requests into tokens, one step at a time.
//!
//! One step: take what has arrived; plan; one forward pass over all planned parts; record what is
//! computed; sample a token for every sequence that reached the end of its context; send. A panic
//! or error in the pass fails all requests in it, one in sampling only its own request;
//! the loop goes on. It must never wait for a client.
//!
//! `beams` is what it does for searches, `observed` the passes that an `inspector` records, `score` how prompt
//! tokens are scored, `outputs` how it reads a pass's result, `exchange` what moves in the KV memory beside the
//! passes.

mod active;
mod batch;
mod beams;
mod exchange;
mod inspector;
mod observed;
mod outputs;
mod requests;
mod sample;
mod score;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::error;

use self::active::Active;
use self::batch::{StepBatch, build};
use super::EngineConfig;
use super::budget::StepBudget;
use super::commands::Command;
use super::event::{GenerateError, PromptToken};
use super::heartbeat::Heartbeat;
use super::inspection_share::InspectionShare;
use super::masks::{LentConstraints, Masks};
use super::queue::BeginRate;
use super::scheduler::{Chunk, Scheduler, StepLimits};
use super::sequence::SequenceId;
use super::status::{EngineStatus, Published};
use crate::kernels::kv::KvCache;
use crate::model::Model;
use crate::model::batch::Outputs;
use crate::panics;

/// How long the loop rests when a step is empty.
const STALL_PAUSE: Duration = Duration::from_millis(2);

/// Owns everything inference needs. Lives on its own thread.
pub(super) struct Worker {
    model: Model,
    kv: KvCache,
    config: EngineConfig,
    scheduler: Scheduler,
    budget: StepBudget,
    begin_rate: BeginRate,
    active: HashMap<SequenceId, Box<Active>>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Its statistics, published once a step.
    status: EngineStatus,
    published: Arc<Published>,
    heartbeat: Arc<Heartbeat>,
    masks: Masks,
    inspection_share: InspectionShare,
}

/// The results of a step's pass.
struct Pass {
    step: StepBatch,
    outputs: Outputs,
    /// Scores of the step's prompt tokens, in the plan's order.
    scored: Vec<PromptToken>,
}

impl Worker {
    pub fn new(
        model: Model,
        (kv, window): (KvCache, Option<usize>),
        config: EngineConfig,
        commands: mpsc::UnboundedReceiver<Command>,
        (published, heartbeat): (Arc<Published>, Arc<Heartbeat>),
        masks: Masks,
    ) -> Self {
        let limits = StepLimits {
            max_batch: config.max_batch,
            speculative_rows: config.speculative_rows,
        };
        let status = published.get();
        let mut scheduler = Scheduler::new(limits, status.kv_blocks);
        if let Some(window) = window {
            scheduler = scheduler.with_windows(window, status.kv_slots);
        }
        Self {
            scheduler,
            budget: StepBudget::new(config.max_step_tokens, config.step_time),
            begin_rate: BeginRate::default(),
            active: HashMap::new(),
            model,
            kv,
            config,
            commands,
            status,
            published,
            heartbeat,
            masks,
            inspection_share: InspectionShare::default(),
        }
    }

    /// Runs until it is told to stop or no handle is left.
    pub fn run(mut self) {
        self.model.pool().adopt_caller();
        while self.take_commands() {
            if self.step() {
                self.heartbeat.beat();
            }
            self.measure();
            self.published.offer(&self.status);
        }
        self.end();
    }

    /// Fails what is there and what is on its way, and then gives the KV cache away.
    fn end(&mut self) {
        self.commands.close();
        self.fail_everything(&GenerateError::ShuttingDown);
        while self.commands.try_recv().is_ok() {}
        self.export_rest();
    }

    /// Takes what has arrived; waits for something if there is nothing to do. `false`: stop.
    fn take_commands(&mut self) -> bool {
        loop {
            let idle = self.scheduler.running() + self.scheduler.waiting() == 0;
            let command = if idle {
                self.measure();
                self.published.set(&self.status);
                self.heartbeat.rest();
                let Some(command) = self.commands.blocking_recv() else {
                    return false;
                };
                self.heartbeat.beat();
                command
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(mpsc::error::TryRecvError::Empty) => return true,
                    Err(mpsc::error::TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Submit(submission) => self.submit(submission),
                Command::Close(id) => self.close(id),
                Command::Exchange(exchange) => self.exchange(exchange),
                // A step brings the stalled request back.
                Command::Wake => return true,
                Command::Stop => return false,
            }
        }
    }

    /// Runs one step; returns whether any request could run.
    fn step(&mut self) -> bool {
        let tokens = self.budget.tokens(self.scheduler.decoding());
        for active in self.active.values_mut() {
            active.check_clients();
        }
        let active = &self.active;
        let may_inspect = self.inspection_share.is_due(self.beside_inspections());
        let plan = self.scheduler.plan(tokens, may_inspect, |id| {
            active.get(&id).is_some_and(|active| active.can_receive())
        });
        self.limit_stalled();
        if plan.is_empty() {
            self.inspection_share.others_are_idle();
            std::thread::sleep(STALL_PAUSE);
            return false;
        }
        if self.carry_out_moves() {
            self.run_passes(plan);
        }
        true
    }

    /// Runs a plan: one pass over all chunks but the observed one, which has a pass of its own.
    fn run_passes(&mut self, plan: Vec<Chunk>) {
        self.note_begun(&plan);
        let (observed, plan): (Vec<_>, Vec<_>) = plan.into_iter().partition(|chunk| chunk.observed);
        if !plan.is_empty() {
            self.run_pass(plan);
        }
        for chunk in observed {
            self.run_observed(&chunk);
        }
    }

    /// Runs the model over a plan, and hands out what comes of it.
    fn run_pass(&mut self, plan: Vec<Chunk>) {
        let lent = self.lend_constraints(&plan);
        let started = Instant::now();
        let pass = catch_unwind(AssertUnwindSafe(|| self.forward(&plan)));
        let tokens = plan.iter().map(|chunk| chunk.tokens).sum();
        self.budget.measured(tokens, started.elapsed());
        self.share_time(&plan, tokens, started.elapsed());
        if lent {
            let constraints = self.masks.take_back();
            self.return_constraints(constraints);
        }
        let failure = match pass {
            Ok(Ok(pass)) => return self.take_outputs(&plan, pass),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panics::message(&*panic).to_owned(),
        };
        error!(%failure, requests = plan.len(), "a step failed");
        for chunk in plan {
            self.fail(chunk.request, GenerateError::StepFailed(failure.clone()));
        }
    }

    /// Lends the constraints of all requests that this step samples for; returns whether there are any.
    fn lend_constraints(&mut self, plan: &[Chunk]) -> bool {
        let mut lent = LentConstraints::new();
        for chunk in plan.iter().filter(|chunk| chunk.completes) {
            let active = self.active.get_mut(&chunk.id);
            let constraint = active.and_then(|active| active.lend_constraint());
            lent.extend(constraint.map(|constraint| (chunk.id, constraint)));
        }
        if lent.is_empty() {
            return false;
        }
        let refused = self.masks.lend(lent).err();
        let is_lent = refused.is_none();
        self.return_constraints(refused.unwrap_or_default());
        is_lent
    }

    fn return_constraints(&mut self, lent: LentConstraints) {
        for (id, constraint) in lent {
            if let Some(active) = self.active.get_mut(&id) {
                active.return_constraint(constraint);
            }
        }
    }

    /// Counts the requests that have entered the batch, how fast they do, and the prompts of those whose
    /// first tokens are in this plan.
    fn note_begun(&mut self, plan: &[Chunk]) {
        let now = Instant::now();
        let mut begun = 0;
        for request in self.scheduler.admitted() {
            if let Some(active) = self.active.get_mut(&request)
                && active.begin()
            {
                begun += 1;
            }
        }
        for chunk in plan {
            if let Some(active) = self.active.get_mut(&chunk.request)
                && active.planned(chunk.first_position, now)
            {
                self.status.prompt_tokens += active.prompt_tokens();
                if active.reuses_cache() {
                    self.status.cache_queried_tokens += active.prompt_tokens();
                    self.status.cached_tokens += chunk.first_position;
                }
            }
        }
        let others_wait = self.scheduler.waiting() > self.scheduler.preempted();
        self.begin_rate.observe(now, begun, others_wait);
    }

    fn forward(&self, plan: &[Chunk]) -> candle_core::Result<Pass> {
        self.call_step_hook(plan);
        let mut step = build(plan, &self.scheduler, &self.active);
        let batch = std::mem::take(&mut step.batch);
        let outputs = self.model.forward(batch, &self.kv)?;
        let scored = self.score_prompts(plan, &step, &outputs.scored)?;
        Ok(Pass {
            step,
            outputs,
            scored,
        })
    }

    fn call_step_hook(&self, plan: &[Chunk]) {
        if let Some(hook) = &self.config.step_hook {
            let requests = plan.iter();
            let requests = requests.filter_map(|chunk| self.active.get(&chunk.request));
            let ids: Vec<_> = requests.map(|active| active.request.id.clone()).collect();
            hook(&ids);
        }
    }

    /// Updates the statistics that are read from other state, not counted.
    fn measure(&mut self) {
        let blocks = self.scheduler.blocks();
        let status = &mut self.status;
        status.running = self.scheduler.running();
        status.stalled = self.scheduler.stalled();
        // The handle adds the requests in the queue, which it knows without the worker.
        status.waiting = self.scheduler.preempted();
        status.preemptions = self.scheduler.preemptions();
        status.yields = self.scheduler.yields();
        status.kv_blocks_used = blocks.capacity() - blocks.available();
        status.kv_blocks_cached = blocks.idle();
        if let Some(windows) = blocks.windows() {
            status.kv_slots_used = windows.capacity() - windows.available();
            status.kv_slots_cached = windows.idle();
        }
        status.begun_per_second = self.begin_rate.per_second();
        status.prefill_seconds_per_token = self.budget.seconds_per_token();
    }
}
