//! Prefill: the contexts that get the rest of a step's budget, and the waiting sequences that start.
//!
//! The next tokens go to the tenant with the least service, counting what this step has given it, and within
//! a tenant in the order of `prefill_order`. The first waiting sequence without a place or blocks ends the
//! admission of all, so that a large one is not overtaken for ever. The blocks and slots that the running
//! sequences still need for their contexts are promised to them.

use super::cache::{Cached, attach};
use super::prefill_order::{Portion, Prefills, Stage, planned};
use super::{Chunk, Scheduler};
use crate::engine::blocks::BLOCK_SIZE;
use crate::engine::sequence::{Sequence, SequenceId};
use crate::fair::Waiting;

/// What a step can still spend on prefill.
#[derive(Debug, Clone, Copy)]
pub(super) struct PrefillBudget {
    /// Tokens.
    pub tokens: usize,
    /// Whether inspections may get tokens; at most one chunk of a step is observed.
    pub may_inspect: bool,
}

/// Outcome of admitting the next waiting sequence.
enum Admission {
    /// It runs.
    Began(SequenceId),
    /// An older sequence computes its prefix, and the batch or the pool has no room for it before that.
    WaitsForPrefix(Waiting<Sequence>),
    /// Batch or pool has no room for it.
    NoRoom(Waiting<Sequence>),
}

impl Scheduler {
    /// Spends up to `budget` on prefill.
    pub(super) fn plan_prefill(&mut self, plan: &mut Vec<Chunk>, mut budget: PrefillBudget) {
        let mut prefills = self.prefills();
        let mut passed_over = Vec::new();
        let mut is_open = true;
        while budget.tokens > 0 {
            // Blocks that a preemption has freed go to running sequences.
            is_open &= !self.is_short;
            let waiting = self.waiting.first().filter(|_| is_open);
            let waiting = waiting.map(|(priority, service, _)| (priority, service, Stage::Waiting));
            let next = prefills
                .iter_mut()
                .filter_map(|group| {
                    let service = self.waiting.service(group.share);
                    Some(((group.priority, service, group.stage()?), group))
                })
                .min_by_key(|(rank, _)| *rank)
                .filter(|(rank, _)| waiting.is_none_or(|waiting| *rank < waiting));
            if let Some((_, group)) = next {
                if let Some((id, portion)) = group.next() {
                    budget.tokens -= self.go_on(plan, id, budget.portion(portion));
                }
                continue;
            }
            if waiting.is_none() {
                break;
            }
            match self.admit(plan) {
                Some(Admission::Began(id)) => {
                    budget.tokens -= self.begin(plan, id, &mut prefills, budget);
                }
                Some(Admission::WaitsForPrefix(sequence)) => passed_over.push(sequence),
                Some(Admission::NoRoom(sequence)) => {
                    passed_over.push(sequence);
                    is_open = false;
                }
                None => is_open = false,
            }
        }
        for sequence in passed_over {
            self.waiting.put_back(sequence);
        }
    }

    /// Returns the running sequences in prefill by tenant and priority.
    fn prefills(&self) -> Vec<Prefills> {
        let mut prefills = Vec::new();
        for sequence in self.in_prefill() {
            Prefills::of(sequence, &mut prefills).add(sequence);
        }
        prefills
    }

    /// Returns the running sequences in prefill, the oldest first.
    pub(super) fn in_prefill(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().filter(|s| !s.decodes())
    }

    /// Plans the first tokens of a sequence that has just been admitted; returns their number.
    fn begin(
        &mut self,
        plan: &mut Vec<Chunk>,
        id: SequenceId,
        prefills: &mut Vec<Prefills>,
        budget: PrefillBudget,
    ) -> usize {
        let Some(sequence) = self.sequence(id) else {
            return 0;
        };
        let portion = Prefills::of(sequence, prefills).begin(sequence, plan);
        self.go_on(plan, id, budget.portion(portion))
    }

    /// Plans up to `budget` further tokens of a running sequence; returns their number.
    fn go_on(&mut self, plan: &mut Vec<Chunk>, id: SequenceId, budget: PrefillBudget) -> usize {
        // It may have been preempted for another one.
        let Some(at) = self.running.iter().position(|s| s.id == id) else {
            return 0;
        };
        if self.running[at].table.is_empty() {
            if self.waits_for_prefix(&self.running[at], &self.running[..at]) {
                return 0;
            }
            let cached = self.cached(&self.running[at]);
            attach(&mut self.blocks, &mut self.running[at], &cached);
        }
        let before = planned(plan, id);
        let tokens = self.next_tokens(&self.running[at], plan, before, budget);
        if tokens <= before {
            return 0;
        }
        let Ok(at) = self.reserve(at, tokens, plan) else {
            return 0;
        };
        let chunk = plan.iter().position(|chunk| chunk.id == id);
        match chunk {
            Some(chunk) => {
                self.charge(at, tokens);
                plan[chunk] = self.running[at].chunk(tokens);
            }
            None => self.push_chunk(plan, at, tokens),
        }
        tokens - before
    }

    /// Admits the next waiting sequence if batch and pool have room, or can make room, for its whole
    /// context and for the beams that will branch off from it.
    fn admit(&mut self, plan: &mut Vec<Chunk>) -> Option<Admission> {
        let next = self.waiting.pop()?;
        if !self.has_places(&next.item) && self.over_share(&next.item).is_none() {
            return Some(Admission::NoRoom(next));
        }
        if self.waits_for_prefix(&next.item, &self.running) {
            let has_room =
                self.has_places(&next.item) && self.has_room(&next.item, &Cached::default());
            return Some(if has_room {
                self.enter(next.item, &Cached::default())
            } else {
                Admission::WaitsForPrefix(next)
            });
        }
        loop {
            if self.has_places(&next.item) {
                let cached = self.cached(&next.item);
                if self.has_room(&next.item, &cached) {
                    return Some(self.enter(next.item, &cached));
                }
            }
            let Some(request) = self.over_share(&next.item) else {
                return Some(Admission::NoRoom(next));
            };
            self.preempt(request, plan);
            self.yields += 1;
        }
    }

    fn enter(&mut self, mut sequence: Sequence, cached: &Cached) -> Admission {
        let id = sequence.id;
        attach(&mut self.blocks, &mut sequence, cached);
        self.running.push(sequence);
        Admission::Began(id)
    }

    /// Returns the number of next tokens of a sequence that the step computes: up to `budget` more than the
    /// `before` that are planned already. A chunk is observed whole or not at all; an observed chunk has at
    /// most a block of tokens and is the only one of its step.
    fn next_tokens(
        &self,
        sequence: &Sequence,
        plan: &[Chunk],
        before: usize,
        budget: PrefillBudget,
    ) -> usize {
        let room = (before + budget.tokens).min(self.room_in_slots(sequence));
        let tokens = sequence.pending().min(room);
        match sequence.observed_from {
            None => tokens,
            Some(_) if !budget.may_inspect => 0,
            Some(from) if sequence.computed < from => tokens.min(from - sequence.computed),
            Some(_) if plan.iter().any(|chunk| chunk.observed) => 0,
            Some(_) => tokens.min(BLOCK_SIZE),
        }
    }

    /// Returns whether the batch has places for a sequence and its beams.
    fn has_places(&self, sequence: &Sequence) -> bool {
        self.places() + sequence.width() <= self.limits.max_batch
    }

    /// Returns whether the pool has blocks for the part of a context that is not cached, beside those that
    /// are promised.
    fn has_room(&self, sequence: &Sequence, cached: &Cached) -> bool {
        let full = &cached.full;
        let idle = full.iter().filter(|c| self.blocks.is_idle(c.0)).count();
        let needed = sequence.blocks_of_request() - full.len();
        let promised = self.in_prefill().map(Sequence::promised_blocks);
        needed + idle + promised.sum::<usize>() <= self.blocks.available()
            && self.has_slots(sequence, cached)
    }
}

impl PrefillBudget {
    fn portion(self, portion: Portion) -> Self {
        let tokens = match portion {
            Portion::All => self.tokens,
            Portion::Half => self.tokens.div_ceil(2),
            Portion::Block => self.tokens.min(BLOCK_SIZE),
        };
        Self { tokens, ..self }
    }
}
