//! Who runs in the next step, with how many tokens, and in which blocks.
//!
//! Each step is planned in three passes: every running sequence that needs one token to go on
//! (decode) gets it; running sequences that still read their context (prefill) share what is
//! left of the token budget, oldest first; then waiting ones are admitted in order of arrival.
//! So no long prompt stalls the streams, and no one is overtaken for ever. Where a step computes the
//! very tokens that a waiting sequence would begin with, that one waits for them: the prompt of `n`
//! choices is read once, as is a beginning that many prompts share.
//!
//! If blocks run out, the youngest sequence is preempted: it gives its blocks back and waits at
//! the head of the queue. What it had computed stays in the prefix cache while there is room and
//! is computed again otherwise, with the same result. The oldest sequence can always go on,
//! because a request that cannot fit alone is refused before it gets here.
//!
//! The beams of a search are sequences that stand beside each other in the batch, in places that are
//! set aside from the start. They are preempted together: one of them waits for all, the
//! others are dropped, and whoever leads the search [`branch`](Scheduler::branch)es them off anew.
//! So two searches can never wait for each other.
//!
//! A request whose client takes no tokens is set aside like a preempted one (`stalled`), so that the
//! others have its place and its blocks.
//!
//! Pure policy over plain data: it must never touch a tensor, a thread, a clock or a channel.

mod cache;
mod import;
mod stalled;

use std::collections::VecDeque;

use super::blocks::{BLOCK_SIZE, BlockMove, BlockPool, Eviction, common};
use super::sequence::{Sequence, SequenceId};
use cache::{Cached, attach, release};
pub use import::Import;

/// Tokens that must be saved for a sequence to wait a step for them.
const WORTH_WAITING: usize = 4;

/// The bounds of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Sequences in a batch at most.
    pub max_batch: usize,
    /// Tokens in a step at most; decodes always go in, prefills fill up the rest.
    pub max_step_tokens: usize,
    /// A step that only decodes is filled up to so many rows with guesses to verify; 0 for none.
    pub speculative_rows: usize,
}

/// One sequence's share of a step: the next `tokens` tokens of its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which sequence.
    pub id: SequenceId,
    /// Of which request: the same, unless it is a beam.
    pub request: SequenceId,
    /// The position of the first of them in the context.
    pub first_position: usize,
    /// How many, at least 1; of these the last `drafted` are the sequence's guesses.
    pub tokens: usize,
    /// How many are guesses.
    pub drafted: usize,
    /// They reach the end of the context: a token can be drawn.
    pub completes: bool,
}

/// All waiting and running sequences and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    limits: StepLimits,
    /// Preempted ones first.
    waiting: VecDeque<Sequence>,
    /// How many of `waiting` were preempted.
    preempted: usize,
    /// Oldest first.
    running: Vec<Sequence>,
    /// Set aside until their clients read again; the longest stalled first.
    stalled: Vec<Sequence>,
    blocks: BlockPool,
    preemptions: usize,
}

impl Scheduler {
    /// An empty scheduler over a pool of `blocks` blocks.
    #[must_use]
    pub fn new(limits: StepLimits, blocks: usize) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            preempted: 0,
            running: Vec::new(),
            stalled: Vec::new(),
            blocks: BlockPool::new(blocks),
            preemptions: 0,
        }
    }

    /// The block accounts, to read.
    #[must_use]
    pub fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    /// Sequences in the batch.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait to be admitted, preempted ones included.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences that wait because they were preempted.
    #[must_use]
    pub fn preempted(&self) -> usize {
        self.preempted
    }

    /// How often a sequence was preempted.
    #[must_use]
    pub fn preemptions(&self) -> usize {
        self.preemptions
    }

    /// Running sequences that need one token to go on.
    #[must_use]
    pub fn decoding(&self) -> usize {
        self.running.iter().filter(|s| s.pending() == 1).count()
    }

    /// Changes the number of tokens in a step.
    pub fn set_max_step_tokens(&mut self, tokens: usize) {
        self.limits.max_step_tokens = tokens;
    }

    /// A running sequence.
    #[must_use]
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().find(|sequence| sequence.id == id)
    }

    /// Puts a sequence at the end of the queue. Its longest context must fit the pool.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Puts a beam into the batch, beside another one of its request that is there. What that one
    /// has computed of the same tokens it need not compute again.
    pub fn branch(&mut self, beside: SequenceId, mut beam: Sequence) {
        let cached = self.cached(&beam);
        attach(&mut self.blocks, &mut beam, &cached);
        let at = self.running.iter().position(|s| s.id == beside);
        let next = at.map_or(self.running.len(), |at| at + 1);
        self.running.insert(next, beam);
    }

    /// What has to be done to the blocks since the last call, in order, before anything else is
    /// written to them: before the pass over a plan, and before an import.
    pub fn take_moves(&mut self) -> Vec<BlockMove> {
        self.blocks.take_moves()
    }

    /// The blocks no one holds that are worth keeping and not kept yet, the last used first.
    pub fn unsaved(&self) -> impl Iterator<Item = Eviction> {
        self.blocks.unsaved()
    }

    /// Forgets what is in the blocks, of which no sequence may hold any.
    pub fn forget_blocks(&mut self) {
        self.blocks.forget_all();
    }

    /// Chooses the next step. `ready` says whether a request's client can take what a step sends;
    /// one that can't is set aside, without blocks, until it can.
    pub fn plan(&mut self, ready: impl Fn(SequenceId) -> bool) -> Vec<Part> {
        self.set_aside(&ready);
        self.bring_back(&ready);
        for sequence in &mut self.running {
            sequence.draft.clear();
        }
        let mut plan = Vec::with_capacity(self.running.len() + 1);
        let preemptions = self.preemptions;
        self.plan_running(&mut plan, usize::MAX, |s| s.pending() == 1);
        let prefill = self.limits.max_step_tokens.saturating_sub(plan.len());
        // A full batch of decodes must not keep the prompts out for ever.
        let prefill = prefill.max(BLOCK_SIZE);
        let left = self.plan_running(&mut plan, prefill, |s| s.pending() > 1);
        if self.preemptions == preemptions {
            self.admit(&mut plan, left);
        }
        self.speculate(&mut plan);
        plan
    }

    /// Adds guesses to a step that is bound by reading the weights: one with few rows, each
    /// sequence's next token. They only take blocks that nobody else wants.
    fn speculate(&mut self, plan: &mut [Part]) {
        let mut spare = self.limits.speculative_rows.saturating_sub(plan.len());
        if plan.iter().any(|part| part.tokens > 1 || !part.completes) {
            return;
        }
        for part in plan {
            let sequence = self.running.iter_mut().find(|s| s.id == part.id);
            let Some(sequence) = sequence.filter(|_| spare > 0) else {
                return;
            };
            sequence.guess(spare);
            let positions = sequence.computed + 1 + sequence.draft.len();
            while sequence.table.len() < positions.div_ceil(BLOCK_SIZE) {
                match self.blocks.allocate() {
                    Some(block) => sequence.table.push(block),
                    None => sequence.draft.clear(),
                }
                if sequence.draft.is_empty() {
                    break;
                }
            }
            part.drafted = sequence.draft.len();
            part.tokens += part.drafted;
            spare -= part.drafted;
        }
    }

    /// Gives the running sequences that `eligible` picks their next tokens, up to `budget` in
    /// all; returns what is left of it.
    fn plan_running(
        &mut self,
        plan: &mut Vec<Part>,
        mut budget: usize,
        eligible: impl Fn(&Sequence) -> bool,
    ) -> usize {
        let mut next = 0;
        while next < self.running.len() && budget > 0 {
            if eligible(&self.running[next]) {
                let tokens = self.running[next].pending().min(budget);
                if !self.reserve(next, tokens, plan) {
                    // It was itself the youngest, and is now the head of the queue.
                    break;
                }
                plan.push(self.running[next].part(tokens));
                budget -= tokens;
            }
            next += 1;
        }
        budget
    }

    /// Makes sure that the sequence has blocks for its next `tokens` tokens, preempting younger
    /// ones if need be; `false` if it had to be preempted itself.
    fn reserve(&mut self, index: usize, tokens: usize, plan: &mut Vec<Part>) -> bool {
        let needed = (self.running[index].computed + tokens).div_ceil(BLOCK_SIZE);
        while self.running[index].table.len() < needed {
            if let Some(block) = self.blocks.allocate() {
                self.running[index].table.push(block);
            } else {
                let Some(youngest) = self.running.last().map(Sequence::request) else {
                    return false;
                };
                plan.retain(|part| part.request != youngest);
                self.preempt(youngest);
                if self.running.len() <= index {
                    return false;
                }
            }
        }
        true
    }

    /// Takes the youngest request out of the batch; the first of its sequences waits for its return.
    fn preempt(&mut self, youngest: SequenceId) {
        self.preemptions += 1;
        self.preempted += 1;
        while let Some(mut sequence) = self.running.pop_if(|s| s.request() == youngest) {
            release(&mut self.blocks, &mut sequence);
            let is_first = self.running.last().map(Sequence::request) != Some(youngest);
            if is_first {
                self.waiting.push_front(sequence);
            }
        }
    }

    /// Places in the batch that are taken, by sequences or for beams to come.
    fn places(&self) -> usize {
        let requests = self.running.chunk_by(|a, b| a.request() == b.request());
        requests
            .filter_map(|beams| beams.first().map(Sequence::width))
            .sum()
    }

    /// Lets waiting sequences in while the batch, the budget and the pool have room for their
    /// whole present context, and for the beams that are to branch off from them.
    fn admit(&mut self, plan: &mut Vec<Part>, mut budget: usize) {
        let mut next = 0;
        while budget > 0 {
            let Some(sequence) = self.waiting.get(next) else {
                break;
            };
            if self.places() + sequence.width() > self.limits.max_batch {
                break;
            }
            if self.computes_more(plan, sequence) {
                next += 1;
                continue;
            }
            let cached = self.cached(sequence);
            if !self.has_room(sequence, &cached) {
                break;
            }
            let Some(mut sequence) = self.waiting.remove(next) else {
                break;
            };
            self.preempted -= usize::from(next < self.preempted);
            attach(&mut self.blocks, &mut sequence, &cached);
            let tokens = sequence.pending().min(budget);
            self.running.push(sequence);
            if !self.reserve(self.running.len() - 1, tokens, plan) {
                break;
            }
            if let Some(sequence) = self.running.last() {
                plan.push(sequence.part(tokens));
            }
            budget -= tokens;
        }
    }

    /// Whether the pool has blocks for what a sequence does not begin with.
    fn has_room(&self, sequence: &Sequence, cached: &Cached) -> bool {
        let full = &cached.full;
        let idle = full.iter().filter(|c| self.blocks.is_idle(c.0)).count();
        let needed = sequence.blocks_of_request() - full.len();
        needed <= self.blocks.available() - idle
    }

    /// Whether a part of the step computes tokens that `waiting` could begin with in the next step,
    /// more than it could now. As it does not wait without that, it never waits for one that stands
    /// still.
    fn computes_more(&self, plan: &[Part], waiting: &Sequence) -> bool {
        let wanted = waiting.reusable();
        let mut parts = plan.iter().filter(|part| part.tokens >= WORTH_WAITING);
        parts.any(|part| {
            let sequence = self.sequence(part.id);
            let Some(sequence) = sequence.filter(|s| s.root == waiting.root) else {
                return false;
            };
            let end = part.first_position + part.tokens - part.drafted;
            let common = common(&sequence.context()[..end], wanted);
            if common < part.first_position + WORTH_WAITING {
                return false;
            }
            // So they have the part's full blocks before it in common.
            let (parent, full) = (sequence.last_prefix(), sequence.prefixes.len());
            let known = full * BLOCK_SIZE + self.cached_after(waiting, parent, full).tokens();
            common >= known + WORTH_WAITING
        })
    }

    /// Records that the model has computed a part, but for its guesses: full blocks become known
    /// prefixes.
    pub fn computed(&mut self, part: Part) {
        self.advance(part.id, part.tokens - part.drafted);
    }

    /// Appends the tokens drawn for a part: the guesses among them that were right, and one more.
    /// What the model computed for right guesses is kept.
    pub fn push_tokens(&mut self, id: SequenceId, tokens: &[u32]) {
        if let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) {
            let proposed = std::mem::take(&mut sequence.draft).len();
            sequence
                .drafter
                .judge(proposed, tokens.len().saturating_sub(1));
        }
        for (n, &token) in tokens.iter().enumerate() {
            self.push_token(id, token);
            if n + 1 < tokens.len() {
                self.advance(id, 1);
            }
        }
    }

    /// Takes the next `tokens` tokens of a sequence for computed.
    fn advance(&mut self, id: SequenceId, tokens: usize) {
        let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) else {
            return;
        };
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
    }

    /// Appends a drawn token to a running sequence. If its context slides on, its blocks are
    /// given back and as much as possible of the new context is taken from the cache.
    fn push_token(&mut self, id: SequenceId, token: u32) {
        let Some(at) = self.running.iter().position(|s| s.id == id) else {
            return;
        };
        if self.running[at].push(token) {
            release(&mut self.blocks, &mut self.running[at]);
            self.running[at].slide();
            let cached = self.cached(&self.running[at]);
            attach(&mut self.blocks, &mut self.running[at], &cached);
        }
    }

    /// Takes a sequence out, wherever it is; its blocks stay in the cache as far as they are
    /// known prefixes.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let mut sequence = if let Some(at) = self.running.iter().position(|s| s.id == id) {
            self.running.remove(at)
        } else if let Some(at) = self.stalled.iter().position(|s| s.id == id) {
            self.stalled.remove(at)
        } else {
            let at = self.waiting.iter().position(|s| s.id == id)?;
            self.preempted -= usize::from(at < self.preempted);
            self.waiting.remove(at)?
        };
        release(&mut self.blocks, &mut sequence);
        Some(sequence)
    }

    /// Takes all sequences of a request out; gives the first.
    pub fn remove_request(&mut self, request: SequenceId) -> Option<Sequence> {
        let all = self.running.iter().chain(&self.waiting);
        let all = all.chain(&self.stalled);
        let its = all.filter(|s| s.request() == request).map(|s| s.id);
        let its: Vec<SequenceId> = its.collect();
        let mut removed = its.into_iter().filter_map(|id| self.remove(id));
        let first = removed.next();
        removed.for_each(drop);
        first
    }

    /// Takes all sequences out.
    pub fn remove_all(&mut self) {
        for mut sequence in self.running.drain(..).rev() {
            release(&mut self.blocks, &mut sequence);
        }
        self.waiting.clear();
        self.stalled.clear();
        self.preempted = 0;
    }
}

impl Sequence {
    fn part(&self, tokens: usize) -> Part {
        Part {
            id: self.id,
            request: self.request(),
            first_position: self.computed,
            tokens,
            drafted: 0,
            completes: tokens == self.pending(),
        }
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod histories;
#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
