//! Prefill: the contexts that get the rest of a step's budget, and the waiting sequences that start.
//!
//! The next tokens go to the tenant with the least service, counting what this step has given it: to its
//! running sequences, oldest first, and then to its waiting ones. The first waiting sequence without a
//! place or blocks ends the admission of all, so that a large one is not overtaken for ever.

use super::cache::{Cached, attach};
use super::{Chunk, Scheduler};
use crate::engine::blocks::{BLOCK_SIZE, common};
use crate::engine::sequence::{Sequence, SequenceId};
use crate::fair::Waiting;
use crate::request::Tenant;

/// Minimum tokens saved for a sequence to wait a step.
const WORTH_WAITING: usize = 4;

/// What a step can still spend on prefill.
#[derive(Debug, Clone, Copy)]
pub(super) struct PrefillBudget {
    /// Tokens.
    pub tokens: usize,
    /// Whether inspections may get tokens; at most one chunk of a step is observed.
    pub may_inspect: bool,
}

/// Running sequences of one tenant and priority in prefill, the youngest first.
struct Reading {
    share: Tenant,
    priority: i32,
    ids: Vec<SequenceId>,
}

/// Outcome of admitting the next waiting sequence.
enum Admission {
    /// It runs, with this number of planned tokens.
    Began(usize),
    /// The step computes its prefix.
    WaitsForPrefix(Waiting<Sequence>),
    /// Batch or pool has no room for it.
    NoRoom(Option<Waiting<Sequence>>),
}

impl Scheduler {
    /// Spends up to `budget` on prefill.
    pub(super) fn plan_prefill(&mut self, plan: &mut Vec<Chunk>, mut budget: PrefillBudget) {
        let mut reading = self.reading();
        let mut passed_over = Vec::new();
        let mut is_open = true;
        while budget.tokens > 0 {
            // Blocks that a preemption has freed go to running sequences.
            is_open &= !self.is_short;
            let waiting = self.waiting.first().filter(|_| is_open);
            let waiting = waiting.map(|(priority, service, _)| (priority, service));
            let next = reading
                .iter_mut()
                .rev()
                .filter(|group| !group.ids.is_empty())
                .map(|group| ((group.priority, self.waiting.service(group.share)), group))
                .min_by_key(|(rank, _)| *rank)
                .filter(|(rank, _)| waiting.is_none_or(|waiting| *rank <= waiting));
            if let Some((_, group)) = next {
                let id = group.ids.pop();
                budget.tokens -= id.map_or(0, |id| self.go_on(plan, id, budget));
                continue;
            }
            if waiting.is_none() {
                break;
            }
            match self.admit(plan, budget) {
                Some(Admission::Began(tokens)) => budget.tokens -= tokens,
                Some(Admission::WaitsForPrefix(sequence)) => passed_over.push(sequence),
                Some(Admission::NoRoom(sequence)) => {
                    passed_over.extend(sequence);
                    is_open = false;
                }
                None => is_open = false,
            }
        }
        for sequence in passed_over {
            self.waiting.put_back(sequence);
        }
    }

    /// Returns the running sequences in prefill.
    fn reading(&self) -> Vec<Reading> {
        let mut groups: Vec<Reading> = Vec::new();
        for sequence in self.running.iter().rev().filter(|s| !s.decodes()) {
            let (share, priority) = (sequence.share, sequence.priority);
            let its = |group: &&mut Reading| (group.share, group.priority) == (share, priority);
            match groups.iter_mut().find(its) {
                Some(group) => group.ids.push(sequence.id),
                None => groups.push(Reading {
                    share,
                    priority,
                    ids: vec![sequence.id],
                }),
            }
        }
        groups
    }

    /// Plans the next tokens of a running sequence, up to `budget`; returns their number.
    fn go_on(&mut self, plan: &mut Vec<Chunk>, id: SequenceId, budget: PrefillBudget) -> usize {
        // It may have been preempted for another one.
        let Some(at) = self.running.iter().position(|s| s.id == id) else {
            return 0;
        };
        let tokens = self.next_tokens(&self.running[at], plan, budget);
        if tokens == 0 {
            return 0;
        }
        let Ok(at) = self.reserve(at, tokens, plan) else {
            return 0;
        };
        self.push_chunk(plan, at, tokens);
        tokens
    }

    /// Admits the next waiting sequence if batch and pool have room, or can make room, for its whole
    /// context and for the beams that will branch off from it.
    fn admit(&mut self, plan: &mut Vec<Chunk>, budget: PrefillBudget) -> Option<Admission> {
        let next = self.waiting.pop()?;
        if !self.has_places(&next.item) && self.over_share(&next.item).is_none() {
            return Some(Admission::NoRoom(Some(next)));
        }
        if self.computes_more(plan, &next.item) {
            return Some(Admission::WaitsForPrefix(next));
        }
        let cached = loop {
            if self.has_places(&next.item) {
                let cached = self.cached(&next.item);
                if self.has_room(&next.item, &cached) {
                    break cached;
                }
            }
            let Some(request) = self.over_share(&next.item) else {
                return Some(Admission::NoRoom(Some(next)));
            };
            self.preempt(request, plan);
            self.yields += 1;
        };
        let mut sequence = next.item;
        attach(&mut self.blocks, &mut sequence, &cached);
        let tokens = self.next_tokens(&sequence, plan, budget);
        self.running.push(sequence);
        if tokens == 0 {
            return Some(Admission::Began(0));
        }
        match self.reserve(self.running.len() - 1, tokens, plan) {
            Ok(at) => {
                self.push_chunk(plan, at, tokens);
                Some(Admission::Began(tokens))
            }
            Err(_) => Some(Admission::NoRoom(None)),
        }
    }

    /// Returns the number of next tokens of a sequence that the step computes, of `budget`. A chunk is
    /// observed whole or not at all; an observed chunk has at most a block of tokens and is the only one of
    /// its step.
    fn next_tokens(&self, sequence: &Sequence, plan: &[Chunk], budget: PrefillBudget) -> usize {
        let room = budget.tokens.min(self.room_in_slots(sequence));
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

    /// Returns whether the pool has blocks for the part of a context that is not cached.
    fn has_room(&self, sequence: &Sequence, cached: &Cached) -> bool {
        let full = &cached.full;
        let idle = full.iter().filter(|c| self.blocks.is_idle(c.0)).count();
        let needed = sequence.blocks_of_request() - full.len();
        needed <= self.blocks.available() - idle && self.has_slots(sequence, cached)
    }

    /// Returns whether a chunk of the step computes more of the prefix of `waiting` than is cached now. It
    /// waits only for chunks that are being computed, so it never waits for a sequence that stands still.
    fn computes_more(&self, plan: &[Chunk], waiting: &Sequence) -> bool {
        let wanted = waiting.reusable();
        let mut chunks = plan.iter().filter(|chunk| chunk.tokens >= WORTH_WAITING);
        chunks.any(|chunk| {
            let sequence = self.sequence(chunk.id);
            let Some(sequence) = sequence.filter(|s| s.root == waiting.root) else {
                return false;
            };
            let end = chunk.first_position + chunk.tokens - chunk.drafted;
            let common = common(&sequence.context()[..end], wanted);
            if common < chunk.first_position + WORTH_WAITING {
                return false;
            }
            // So they have the full blocks before the chunk in common.
            let (parent, full) = (sequence.last_prefix(), sequence.prefixes.len());
            let known = full * BLOCK_SIZE + self.cached_after(waiting, parent, full).tokens();
            common >= known + WORTH_WAITING
        })
    }
}
