//! Observed passes: one chunk of an inspection in a pass of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tracing::error;

use super::Worker;
use super::active::Active;
use super::batch::build;
use super::inspector::Inspector;
use crate::engine::event::GenerateError;
use crate::engine::scheduler::Chunk;
use crate::panics;

impl Worker {
    /// Runs the model over a chunk and records its stages. A failure ends this request only.
    pub(super) fn run_observed(&mut self, chunk: &Chunk) {
        let active = self.active.get_mut(&chunk.request);
        let Some(mut inspector) = active.and_then(|active| active.inspector.take()) else {
            return;
        };
        let started = Instant::now();
        let pass = catch_unwind(AssertUnwindSafe(|| self.observe(chunk, &mut inspector)));
        self.inspection_share
            .inspected(started.elapsed(), self.beside_inspections());
        let failure = match pass {
            Ok(Ok(())) => return self.take_observed(chunk, inspector),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panics::message(&*panic).to_owned(),
        };
        error!(%failure, "inspection failed");
        self.fail(chunk.request, GenerateError::StepFailed(failure));
    }

    /// Returns the number of running requests that are not inspections.
    pub(super) fn beside_inspections(&self) -> usize {
        self.scheduler.running() - self.scheduler.inspecting()
    }

    /// Divides the time of a pass over `tokens` tokens between inspections, whose prefix it computes, and
    /// other requests.
    pub(super) fn share_time(&mut self, plan: &[Chunk], tokens: usize, took: Duration) {
        let inspects = |chunk: &&Chunk| {
            let active = self.active.get(&chunk.request);
            active.is_some_and(|active| active.inspector.is_some())
        };
        let inspected: usize = plan.iter().filter(inspects).map(|c| c.tokens).sum();
        let inspected = took.mul_f64(inspected as f64 / tokens.max(1) as f64);
        self.inspection_share
            .inspected(inspected, self.beside_inspections());
        self.inspection_share
            .others_ran(took.saturating_sub(inspected));
    }

    fn observe(&self, chunk: &Chunk, inspector: &mut Inspector) -> candle_core::Result<()> {
        let plan = std::slice::from_ref(chunk);
        self.call_step_hook(plan);
        let batch = build(plan, &self.scheduler, &self.active).batch;
        let request = self
            .active
            .get(&chunk.request)
            .map(|active| &active.request);
        let (Some(request), Some(span)) = (request, batch.spans.first().cloned()) else {
            return Ok(());
        };
        let mut observer = inspector.chunk(&self.model, &self.kv, request, span);
        self.model
            .forward_observed(batch, &self.kv, &mut |stage, x| observer.observe(stage, x))?;
        observer.end();
        Ok(())
    }

    /// Marks a chunk as computed; after the last one, reports the inspection and ends the request.
    fn take_observed(&mut self, chunk: &Chunk, inspector: Box<Inspector>) {
        self.status.steps += 1;
        self.status.step_tokens.observe(chunk.tokens);
        self.scheduler.computed(chunk);
        let Some(active) = self.active.get_mut(&chunk.request) else {
            return;
        };
        active.inspector = Some(inspector);
        if chunk.completes {
            self.published.offer(&self.status);
            Active::report_prompt(active, Instant::now());
            self.finish(chunk.request);
        }
    }
}
