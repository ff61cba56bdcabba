//! The life of requests in the worker: accepted or refused, finished, failed, closed.

use super::Worker;
use super::active::Active;
use crate::engine::beams::{Beams, blocks_needed, slots_needed};
use crate::engine::blocks::BLOCK_SIZE;
use crate::engine::commands::Submission;
use crate::engine::event::GenerateError;
use crate::engine::sequence::{Sequence, SequenceId, context_start};
use crate::request::GenerateRequest;

impl Worker {
    /// Accepts a request, or refuses it if it can never run.
    pub(super) fn submit(&mut self, submission: Box<Submission>) {
        let Submission {
            id,
            request,
            verdict,
            clients,
            place,
        } = *submission;
        if let Err(refusal) = self.check_fit(&request) {
            let _ = verdict.send(Err(refusal));
            return;
        }
        let spec = self.model.spec();
        let max_tokens = request.stop.max_tokens;
        let tokens = [&request.history[..], &request.prompt].concat();
        let mut active = Active::new(request, clients, place, &tokens, spec);
        let mut root = self.root(active.request.tenant);
        if let Some(adapter) = &active.request.adapter {
            root = root.adapted(adapter.digest());
        }
        let keep = active.request.keep_kv && self.config.evicted.is_some();
        let context_length = self.config.context_length(spec);
        let sequence = Sequence::new(id, tokens, context_length, active.reuses_cache());
        let sequence = sequence.with_root(root).with_keep(keep);
        let inspected = active.request.output.inspection();
        let sequence = sequence.with_observed_from(inspected.map(|wanted| wanted.observed_from()));
        let (share, priority) = (active.request.share, active.request.priority);
        let mut sequence = sequence.with_share(share, priority);
        active.beams = Beams::new(&active.request, &mut sequence, max_tokens);
        self.active.insert(id, Box::new(active));
        self.scheduler.add(sequence);
        // A client that is gone sends a `Close`.
        let _ = verdict.send(Ok(()));
    }

    /// Checks that the request could run alone.
    fn check_fit(&self, request: &GenerateRequest) -> Result<(), GenerateError> {
        self.check_width(request)?;
        let context_length = self.config.context_length(self.model.spec());
        let total = request.history.len() + request.prompt.len();
        let max_tokens = request.stop.max_tokens;
        let longest = if total + max_tokens > context_length {
            context_length
        } else {
            total - context_start(total, context_length) + max_tokens
        };
        let blocks = self.scheduler.blocks();
        let too_small = |unit, needed, available| GenerateError::KvTooSmall {
            unit,
            needed,
            available,
            block_size: BLOCK_SIZE,
        };
        let (needed, available) = (blocks_needed(request, total, longest), blocks.capacity());
        if needed > available {
            return Err(too_small("KV blocks", needed, available));
        }
        if let Some(windows) = blocks.windows() {
            let needed = slots_needed(request, total, longest, windows.window());
            if needed > windows.capacity() {
                return Err(too_small("window slots", needed, windows.capacity()));
            }
        }
        Ok(())
    }

    pub(super) fn fail(&mut self, id: SequenceId, error: GenerateError) {
        if let Some(active) = self.active.get(&id) {
            active.fail(error);
        }
        self.finish(id);
    }

    /// Fails the requests that stalled first if too many are set aside.
    pub(super) fn limit_stalled(&mut self) {
        let limit = self.config.queue_limit;
        while let Some(id) = self.scheduler.stalled_beyond(limit) {
            self.fail(id, GenerateError::Stalled { limit });
        }
    }

    /// Removes a generation.
    pub(super) fn finish(&mut self, id: SequenceId) {
        self.scheduler.remove_request(id);
        self.active.remove(&id);
    }

    /// Handles a generation that the front end has dropped.
    pub(super) fn close(&mut self, id: SequenceId) {
        let stays = self
            .active
            .get_mut(&id)
            .is_some_and(|active| !active.leave());
        if !stays {
            self.finish(id);
        }
    }

    pub(super) fn fail_everything(&mut self, error: &GenerateError) {
        for active in self.active.values() {
            active.fail(error.clone());
        }
        self.active.clear();
        self.measure();
        self.published.set(&self.status);
    }
}
