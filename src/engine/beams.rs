//! A beam search as sequences in the batch: each live beam is one, and has one row in a step.
//!
//! What every row says is kept until all of a step are there; then [`BeamSearch`] chooses. The
//! first beam that continues a sequence stays in it, further ones branch off beside it, and
//! sequences that no beam continues are removed. If the search was preempted, only its first
//! sequence comes back, and the others branch off from it again. So the result does not depend on
//! what else is in the batch.
//!
//! It must never touch the KV cache: what beams share of it is the scheduler's business.

use super::beam::{Advance, BeamSearch, Branch, Hypothesis};
use super::event::TokenLogprob;
use super::scheduler::Scheduler;
use super::sequence::{Sequence, SequenceId, blocks_of_beams, slots_of_beams};
use crate::request::GenerateRequest;

/// Returns the number of sequence ids that a request takes: for a search, the beams of two steps.
pub(super) fn sequence_ids(request: &GenerateRequest) -> u64 {
    request.beams.map_or(1, |beams| 2 * beams.width as u64)
}

/// Returns the blocks that a request of `prompt` tokens needs at its longest.
pub(super) fn blocks_needed(request: &GenerateRequest, prompt: usize, longest: usize) -> usize {
    let width = request.beams.map_or(1, |beams| beams.width);
    blocks_of_beams(longest, width, prompt / super::blocks::BLOCK_SIZE)
}

/// Returns the window slots that a request of `prompt` tokens needs at its longest, where the widest window
/// is `window` positions.
pub(super) fn slots_needed(
    request: &GenerateRequest,
    prompt: usize,
    longest: usize,
    window: usize,
) -> usize {
    let width = request.beams.map_or(1, |beams| beams.width);
    slots_of_beams(longest, width, prompt / super::blocks::BLOCK_SIZE, window)
}

/// The sequences of one search.
pub(super) struct Beams {
    request: SequenceId,
    width: usize,
    /// The sequence that all begin as.
    root: Sequence,
    search: BeamSearch,
    /// The live beams, best first.
    live: Vec<LiveBeam>,
}

/// A live beam and its sequence.
struct LiveBeam {
    id: SequenceId,
    /// The most likely next tokens, once computed.
    row: Option<Vec<TokenLogprob>>,
}

/// The outcome of a row.
pub(super) enum SearchStep {
    /// The search continues.
    Next,
    /// The search has finished: the requested beams, best first.
    Done(Vec<Hypothesis>),
}

impl Beams {
    /// Creates a search that begins with the sequence `root`; `None` if the request asks for none. Makes the
    /// sequence its first beam.
    pub fn new(
        request: &GenerateRequest,
        root: &mut Sequence,
        max_tokens: usize,
    ) -> Option<Box<Self>> {
        let params = request.beams?;
        root.begin_beams(params.width);
        let (stop, top) = (request.stop.clone(), request.logprobs.top);
        let search = BeamSearch::new(params, stop, max_tokens, top);
        let id = root.id;
        let mut root = root.clone();
        // The logits of its prompt are wanted of the first alone.
        root.may_reuse = true;
        Some(Box::new(Self {
            request: id,
            width: params.width,
            root,
            search,
            live: vec![LiveBeam { id, row: None }],
        }))
    }

    /// Returns the number of the most likely tokens that a row must report.
    pub fn wanted(&self) -> usize {
        self.search.wanted()
    }

    /// Takes the most likely tokens after the sequence `id`, which is in the batch.
    pub fn take(
        &mut self,
        id: SequenceId,
        row: Vec<TokenLogprob>,
        scheduler: &mut Scheduler,
    ) -> SearchStep {
        if let Some(beam) = self.live.iter_mut().find(|beam| beam.id == id) {
            beam.row = Some(row);
        }
        if self.live.iter().any(|beam| beam.row.is_none()) {
            self.restore(id, scheduler);
            return SearchStep::Next;
        }
        let rows = self.live.iter_mut().filter_map(|beam| beam.row.take());
        match self.search.advance(&rows.collect::<Vec<_>>()) {
            Advance::Done(hypotheses) => SearchStep::Done(hypotheses),
            Advance::Continue(branches) => {
                self.branch(id, &branches, scheduler);
                SearchStep::Next
            }
        }
    }

    /// Branches off the beams again that a preemption has dropped, beside the one that came back.
    fn restore(&self, present: SequenceId, scheduler: &mut Scheduler) {
        let missing = self
            .live
            .iter()
            .enumerate()
            .filter(|(_, beam)| beam.row.is_none() && scheduler.sequence(beam.id).is_none());
        let missing: Vec<(usize, SequenceId)> =
            missing.map(|(rank, beam)| (rank, beam.id)).collect();
        for (rank, id) in missing {
            scheduler.branch(present, self.sequence(id, rank));
        }
    }

    /// Makes the sequences those of the next live beams. `present` is one that is in the batch.
    fn branch(&mut self, present: SequenceId, branches: &[Branch], scheduler: &mut Scheduler) {
        let before = std::mem::take(&mut self.live);
        let is_free = |id: &SequenceId| before.iter().all(|beam| beam.id != *id);
        let ids = (self.request.0..).take(2 * self.width).map(SequenceId);
        let mut free = ids.filter(is_free);
        let mut continued = Vec::new();
        for (rank, branch) in branches.iter().enumerate() {
            let parent = before[branch.parent].id;
            let is_there = scheduler.sequence(parent).is_some();
            let id = if is_there && !continued.contains(&parent) {
                scheduler.push_tokens(parent, &[branch.token]);
                continued.push(parent);
                parent
            } else {
                // At most `width` of the numbers were taken.
                let Some(id) = free.next() else { break };
                let beside = if is_there { parent } else { present };
                scheduler.branch(beside, self.sequence(id, rank));
                id
            };
            self.live.push(LiveBeam { id, row: None });
        }
        for beam in before {
            if !continued.contains(&beam.id) {
                scheduler.remove(beam.id);
            }
        }
    }

    /// Creates the sequence of the live beam of this rank.
    fn sequence(&self, id: SequenceId, rank: usize) -> Sequence {
        self.root.branch(id, &self.search.tokens(rank))
    }
}

#[cfg(test)]
#[path = "beams_tests.rs"]
mod tests;
