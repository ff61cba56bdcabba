//! Chooses the sequences of the next step, the number of tokens of each, and their blocks.
//!
//! Each step is planned in two passes. Every running sequence that has one pending token (decode) gets
//! it. The rest of the token budget goes to prefill (`prefill`): between tenants, to the one with the least
//! service first; within a tenant, half to the oldest context that is partly computed, half to shorter ones
//! and to waiting sequences in order of arrival (`prefill_order`). So a long prompt stalls neither the
//! streams nor short prompts, a tenant does not wait for the number of another tenant's requests, and no
//! sequence is overtaken for ever. A sequence that begins as an older one in prefill waits for it: the
//! prompt of `n` choices is computed once, as is a common prefix of many prompts.
//!
//! A tenant's service is the number of tokens computed for it, of prompts and generated alike. If the
//! batch is full, a tenant with less than its share takes places from one with more (`share`).
//!
//! If blocks run out, a sequence is preempted: the youngest of the tenant with the most service releases
//! its blocks and waits at the head of its tenant's queue. Its computed blocks stay in the prefix cache
//! while there is room, and are otherwise computed again with the same result. The oldest sequence is
//! not preempted for blocks, and can always continue, because a request that does not fit alone is
//! refused before it is added.
//!
//! The beams of a search are adjacent sequences in the batch, in places reserved from the start. They are
//! preempted together: one of them waits for all, the others are dropped and
//! [`branch`](Scheduler::branch)ed off again later. So two searches never wait for each other.
//!
//! A request whose client does not read is set aside like a preempted one (`stalled`); its place and its
//! blocks go to other requests.
//!
//! Pure policy over plain data: it must never touch a tensor, a thread, a clock or a channel.

mod cache;
mod import;
mod prefill;
mod prefill_order;
mod share;
mod speculation;
mod stalled;
mod windows;

use std::collections::HashMap;

use super::blocks::{BLOCK_SIZE, BlockMove, BlockPool, Eviction};
use super::sequence::{Sequence, SequenceId};
use crate::fair::FairQueue;
use cache::{attach, release};
pub use import::{Import, StoredParts};
use prefill::PrefillBudget;
use windows::pass_slots;

/// The limits of every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Maximum sequences per batch.
    pub max_batch: usize,
    /// Maximum rows of a step that only decodes and is filled up with drafts; 0 turns drafts off.
    pub speculative_rows: usize,
}

/// The tokens of one sequence in a step: the next `tokens` tokens of its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// The sequence.
    pub id: SequenceId,
    /// Its request: the same id, unless the sequence is a beam.
    pub request: SequenceId,
    /// Place of the sequence in the batch when the step was planned.
    index: usize,
    /// Position of the first token in the context.
    pub first_position: usize,
    /// Number of tokens, at least 1; the last `drafted` of them are drafts.
    pub tokens: usize,
    /// Number of drafted tokens.
    pub drafted: usize,
    /// Whether the tokens reach the end of the context, so that the next one can be sampled.
    pub completes: bool,
    /// Whether the tokens need a pass of their own, which is observed.
    pub observed: bool,
}

/// All waiting and running sequences and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    limits: StepLimits,
    /// Waiting sequences of all tenants, with the tenants' service.
    waiting: FairQueue<Sequence>,
    /// Running sequences, oldest first.
    running: Vec<Sequence>,
    /// Sequences set aside until their clients read again; the longest stalled first.
    stalled: Vec<Sequence>,
    blocks: BlockPool,
    /// Whether blocks ran out in the current plan.
    is_short: bool,
    preemptions: usize,
    yields: usize,
}

impl Scheduler {
    /// Creates an empty scheduler over a pool of `blocks` blocks.
    #[must_use]
    pub fn new(limits: StepLimits, blocks: usize) -> Self {
        Self {
            limits,
            waiting: FairQueue::default(),
            running: Vec::new(),
            stalled: Vec::new(),
            blocks: BlockPool::new(blocks),
            is_short: false,
            preemptions: 0,
            yields: 0,
        }
    }

    /// Returns the block pool.
    #[must_use]
    pub fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    /// Returns the number of sequences in the batch.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Returns the number of waiting sequences, preempted ones included.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the number of preempted sequences that wait.
    #[must_use]
    pub fn preempted(&self) -> usize {
        self.waiting.resumed()
    }

    /// Returns how often a request was preempted because blocks ran out.
    #[must_use]
    pub fn preemptions(&self) -> usize {
        self.preemptions
    }

    /// Returns how often a request was preempted because another tenant had less than its share.
    #[must_use]
    pub fn yields(&self) -> usize {
        self.yields
    }

    /// Returns the number of running sequences that have one pending token.
    #[must_use]
    pub fn decoding(&self) -> usize {
        self.running.iter().filter(|s| s.decodes()).count()
    }

    /// Returns the number of running sequences whose passes are observed.
    #[must_use]
    pub fn inspecting(&self) -> usize {
        let observed = self.running.iter();
        observed.filter(|s| s.observed_from.is_some()).count()
    }

    /// Returns the requests in the batch, the oldest first.
    pub fn admitted(&self) -> impl Iterator<Item = SequenceId> {
        self.requests().map(Sequence::request)
    }

    /// Returns a running sequence.
    #[must_use]
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().find(|sequence| sequence.id == id)
    }

    /// Returns the running sequence of a chunk.
    #[must_use]
    pub fn sequence_of(&self, chunk: &Chunk) -> Option<&Sequence> {
        self.running.get(self.position(chunk)?)
    }

    /// Returns the place of a chunk's sequence in the batch: that of the plan, unless sequences before
    /// it have left the batch since.
    fn position(&self, chunk: &Chunk) -> Option<usize> {
        let is_its = |sequence: &Sequence| sequence.id == chunk.id;
        if self.running.get(chunk.index).is_some_and(is_its) {
            return Some(chunk.index);
        }
        self.running.iter().position(is_its)
    }

    /// Appends a sequence to its tenant's queue. Its longest context must fit the pool.
    pub fn add(&mut self, sequence: Sequence) {
        let (share, priority) = (sequence.share, sequence.priority);
        self.waiting.push(share, priority, sequence);
    }

    /// Inserts a beam into the batch, next to a running one of its request. Their common computed tokens
    /// are not computed again.
    pub fn branch(&mut self, beside: SequenceId, mut beam: Sequence) {
        let cached = self.cached(&beam);
        attach(&mut self.blocks, &mut beam, &cached);
        let at = self.running.iter().position(|s| s.id == beside);
        let next = at.map_or(self.running.len(), |at| at + 1);
        self.running.insert(next, beam);
    }

    /// Takes the block moves since the last call, in order. They must be carried out before the blocks are
    /// written to: before the pass over a plan, and before an import.
    pub fn take_moves(&mut self) -> Vec<BlockMove> {
        self.blocks.take_moves()
    }

    /// Returns the idle blocks that are to be kept and are not stored yet, the last used first.
    pub fn unsaved(&self) -> impl Iterator<Item = Eviction> {
        self.blocks.unsaved()
    }

    /// Forgets the contents of all blocks; no sequence may hold any.
    pub fn forget_blocks(&mut self) {
        self.blocks.forget_all();
    }

    /// Plans the next step, of at most `max_tokens` tokens; decodes are always planned, prefill gets the
    /// rest, but at least one block. `ready` returns whether a request's client has room for the events
    /// of a step; a request that is not ready is set aside, without blocks, until it is. At most one chunk
    /// is observed, and inspections get no tokens unless `may_inspect`.
    pub fn plan(
        &mut self,
        max_tokens: usize,
        may_inspect: bool,
        ready: impl Fn(SequenceId) -> bool,
    ) -> Vec<Chunk> {
        self.set_aside(&ready);
        self.bring_back(&ready);
        for sequence in &mut self.running {
            sequence.draft.clear();
        }
        self.is_short = false;
        let mut plan = Vec::with_capacity(self.running.len() + 1);
        self.plan_decodes(&mut plan);
        let tokens = max_tokens.saturating_sub(plan.len());
        let budget = PrefillBudget {
            // A full batch of decodes must not block prefill for ever.
            tokens: tokens.max(BLOCK_SIZE),
            may_inspect,
        };
        self.plan_prefill(&mut plan, budget);
        self.index(&mut plan);
        self.speculate(&mut plan);
        plan
    }

    /// Notes the place of every chunk's sequence in the batch, once preemptions can't change it any more.
    fn index(&self, plan: &mut [Chunk]) {
        let places = self.running.iter().enumerate();
        let places: HashMap<SequenceId, usize> = places.map(|(at, s)| (s.id, at)).collect();
        for chunk in plan {
            chunk.index = places.get(&chunk.id).copied().unwrap_or(usize::MAX);
        }
    }

    /// Plans one token for every running sequence that has one pending token.
    fn plan_decodes(&mut self, plan: &mut Vec<Chunk>) {
        let mut next = 0;
        while let Some(sequence) = self.running.get(next) {
            if !sequence.decodes() {
                next += 1;
                continue;
            }
            next = match self.reserve(next, 1, plan) {
                Ok(at) => {
                    self.push_chunk(plan, at, 1);
                    at + 1
                }
                Err(at) => at,
            };
        }
    }

    /// Plans the next `tokens` tokens of a running sequence, which has blocks for them.
    fn push_chunk(&mut self, plan: &mut Vec<Chunk>, at: usize, tokens: usize) {
        self.charge(at, tokens);
        plan.push(self.running[at].chunk(tokens));
    }

    /// Charges a tenant for the next `tokens` tokens of a running sequence.
    fn charge(&mut self, at: usize, tokens: usize) {
        let units = self.running[at].charge(tokens);
        self.waiting.charge(self.running[at].share, units);
    }

    /// Allocates blocks for the next `tokens` tokens of a running sequence, preempting others if
    /// necessary. Returns the sequence's place afterwards; if the sequence itself was preempted, an error
    /// with the place of the next one.
    fn reserve(
        &mut self,
        mut index: usize,
        tokens: usize,
        plan: &mut Vec<Chunk>,
    ) -> Result<usize, usize> {
        let needed = (self.running[index].computed + tokens).div_ceil(BLOCK_SIZE);
        while self.running[index].table.len() < needed {
            if let Some(block) = self.blocks.allocate() {
                self.running[index].table.push(block);
                continue;
            }
            self.is_short = true;
            let Some(request) = self.gives_way() else {
                return Err(index);
            };
            let is_itself = self.running[index].request() == request;
            let (at, beams) = self.preempt(request, plan);
            self.preemptions += 1;
            if is_itself {
                return Err(at);
            }
            if at < index {
                index -= beams;
            }
        }
        Ok(index)
    }

    /// Removes a request from the batch and the plan, and queues the first of its sequences. Returns the
    /// place of its first sequence, and their number.
    fn preempt(&mut self, request: SequenceId, plan: &mut Vec<Chunk>) -> (usize, usize) {
        plan.retain(|chunk| chunk.request != request);
        let (at, beams) = self.take_out(request);
        let count = beams.len();
        if let Some(first) = beams.into_iter().next() {
            let (share, priority) = (first.share, first.priority);
            self.waiting.push_preempted(share, priority, first);
        }
        (at, count)
    }

    /// Removes a request's sequences from the batch and releases their blocks; returns the place of the
    /// first.
    fn take_out(&mut self, request: SequenceId) -> (usize, Vec<Sequence>) {
        let is_its = |s: &Sequence| s.request() == request;
        let Some(at) = self.running.iter().position(is_its) else {
            return (self.running.len(), Vec::new());
        };
        let beams = self.running[at..].iter().take_while(|s| is_its(s)).count();
        let mut beams: Vec<Sequence> = self.running.drain(at..at + beams).collect();
        for beam in beams.iter_mut().rev() {
            release(&mut self.blocks, beam);
        }
        (at, beams)
    }

    /// Returns the number of occupied places in the batch, those reserved for beams included.
    fn places(&self) -> usize {
        self.requests().map(Sequence::width).sum()
    }

    /// Returns the first sequence of each request in the batch, the oldest first.
    fn requests(&self) -> impl Iterator<Item = &Sequence> {
        let requests = self.running.chunk_by(|a, b| a.request() == b.request());
        requests.filter_map(|beams| beams.first())
    }

    /// Records that the model has computed a chunk, except its drafts: full blocks become known prefixes.
    pub fn computed(&mut self, chunk: &Chunk) {
        if let Some(at) = self.position(chunk) {
            self.advance(at, chunk.tokens - chunk.drafted);
        }
    }

    /// Appends the tokens sampled after a chunk: the accepted drafts, and one more. The keys and values
    /// of accepted drafts are kept.
    pub fn push_sampled(&mut self, chunk: &Chunk, tokens: &[u32]) {
        if let Some(at) = self.position(chunk) {
            self.push_at(at, tokens);
        }
    }

    /// Appends tokens to a running sequence.
    pub fn push_tokens(&mut self, id: SequenceId, tokens: &[u32]) {
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            self.push_at(at, tokens);
        }
    }

    fn push_at(&mut self, at: usize, tokens: &[u32]) {
        let accepted = tokens.len().saturating_sub(1);
        self.charge(at, accepted);
        let sequence = &mut self.running[at];
        let proposed = std::mem::take(&mut sequence.draft).len();
        sequence.drafter.judge(proposed, accepted);
        for (n, &token) in tokens.iter().enumerate() {
            self.push_token(at, token);
            if n + 1 < tokens.len() {
                self.advance(at, 1);
            }
        }
    }

    /// Marks the next `tokens` tokens of the sequence at place `at` as computed.
    fn advance(&mut self, at: usize, tokens: usize) {
        let sequence = &mut self.running[at];
        sequence.computed += tokens;
        while sequence.prefixes.len() < sequence.computed / BLOCK_SIZE {
            let n = sequence.prefixes.len();
            let Some(tokens) = sequence.block_tokens(n) else {
                break;
            };
            let (parent, keep) = (sequence.last_prefix(), sequence.keep);
            let (block, prefix) = self
                .blocks
                .publish(sequence.table[n], parent, &tokens, keep);
            sequence.table[n] = block;
            sequence.prefixes.push(prefix);
        }
        pass_slots(&mut self.blocks, sequence);
    }

    /// Appends a token to the sequence at place `at`. If its context slides, its blocks are released and
    /// as much as possible of the new context is taken from the cache.
    fn push_token(&mut self, at: usize, token: u32) {
        if self.running[at].push(token) {
            release(&mut self.blocks, &mut self.running[at]);
            self.running[at].slide();
            let cached = self.cached(&self.running[at]);
            attach(&mut self.blocks, &mut self.running[at], &cached);
        }
    }

    /// Removes a sequence, running, stalled or waiting; its blocks of known prefixes stay in the cache.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let mut sequence = if let Some(at) = self.running.iter().position(|s| s.id == id) {
            self.running.remove(at)
        } else if let Some(at) = self.stalled.iter().position(|s| s.id == id) {
            self.stalled.remove(at)
        } else {
            self.waiting.remove(|s| s.id == id)?
        };
        release(&mut self.blocks, &mut sequence);
        Some(sequence)
    }

    /// Removes all sequences of a request; returns the first.
    pub fn remove_request(&mut self, request: SequenceId) -> Option<Sequence> {
        let all = self.running.iter().chain(self.waiting.iter());
        let all = all.chain(&self.stalled);
        let its = all.filter(|s| s.request() == request).map(|s| s.id);
        let its: Vec<SequenceId> = its.collect();
        let mut removed = its.into_iter().filter_map(|id| self.remove(id));
        let first = removed.next();
        removed.for_each(drop);
        first
    }

    /// Removes all sequences.
    pub fn remove_all(&mut self) {
        for mut sequence in self.running.drain(..).rev() {
            release(&mut self.blocks, &mut sequence);
        }
        self.waiting.clear();
        self.stalled.clear();
    }
}

impl Sequence {
    fn chunk(&self, tokens: usize) -> Chunk {
        Chunk {
            id: self.id,
            request: self.request(),
            // Known when the plan is complete.
            index: usize::MAX,
            first_position: self.computed,
            tokens,
            drafted: 0,
            completes: tokens == self.pending(),
            observed: self.is_observed(),
        }
    }
}

#[cfg(test)]
mod fairness_tests;
#[cfg(any(test, fuzzing))]
pub(crate) mod histories;
#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
