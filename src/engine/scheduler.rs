//! Which sequences run in the next step, with how many tokens, and in which blocks.
//!
//! Each step is planned in two passes. Every running sequence that needs one token to go on (decode)
//! gets it. What is left of the token budget goes to prefill (`prefill`): running sequences that still
//! read their context, oldest first, then waiting ones in order of arrival; between tenants, those of
//! the one with the least service first. So no long prompt stalls the streams, no tenant waits for the
//! number of another's requests, and no sequence is overtaken for ever. Where a step computes the very
//! tokens that a waiting sequence would begin with, that one waits for them: the prompt of `n` choices
//! is read once, as is a beginning that many prompts share.
//!
//! A tenant's service is the tokens that were computed for it, prompts and generated ones alike. Where
//! the batch is full, a tenant with less than its share takes places from one with more (`share`).
//!
//! If blocks run out, a sequence is preempted: the youngest of the tenant with the most service gives
//! its blocks back and waits at the head of its tenant's queue. What it had computed stays in the prefix
//! cache while there is room and is computed again otherwise, with the same result. The oldest sequence
//! never gives way to that, and can always go on, because a request that cannot fit alone is refused
//! before it gets here.
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
mod prefill;
mod share;
mod stalled;

use super::blocks::{BLOCK_SIZE, BlockMove, BlockPool, Eviction};
use super::sequence::{Sequence, SequenceId};
use crate::fair::FairQueue;
use cache::{attach, release};
pub use import::Import;

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
    /// Of all tenants, with their service.
    waiting: FairQueue<Sequence>,
    /// Oldest first.
    running: Vec<Sequence>,
    /// Set aside until their clients read again; the longest stalled first.
    stalled: Vec<Sequence>,
    blocks: BlockPool,
    /// Blocks ran out in the present plan.
    is_short: bool,
    preemptions: usize,
    yields: usize,
}

impl Scheduler {
    /// An empty scheduler over a pool of `blocks` blocks.
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

    /// Puts a sequence at the end of its tenant's queue. Its longest context must fit the pool.
    pub fn add(&mut self, sequence: Sequence) {
        let (share, priority) = (sequence.share, sequence.priority);
        self.waiting.push(share, priority, sequence);
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
        self.is_short = false;
        let mut plan = Vec::with_capacity(self.running.len() + 1);
        self.plan_decodes(&mut plan);
        let prefill = self.limits.max_step_tokens.saturating_sub(plan.len());
        // A full batch of decodes must not keep the prompts out for ever.
        self.plan_prefill(&mut plan, prefill.max(BLOCK_SIZE));
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

    /// Gives the running sequences that need one token to go on that token.
    fn plan_decodes(&mut self, plan: &mut Vec<Part>) {
        let mut next = 0;
        while let Some(sequence) = self.running.get(next) {
            if sequence.pending() != 1 {
                next += 1;
                continue;
            }
            next = match self.reserve(next, 1, plan) {
                Ok(at) => {
                    self.push_part(plan, at, 1);
                    at + 1
                }
                Err(at) => at,
            };
        }
    }

    /// Plans the next `tokens` tokens of a running sequence, which has blocks for them.
    fn push_part(&mut self, plan: &mut Vec<Part>, at: usize, tokens: usize) {
        self.charge(at, tokens);
        plan.push(self.running[at].part(tokens));
    }

    /// Charges a tenant for the next `tokens` tokens of a running sequence.
    fn charge(&mut self, at: usize, tokens: usize) {
        let units = self.running[at].charge(tokens);
        self.waiting.charge(self.running[at].share, units);
    }

    /// Makes sure that a running sequence has blocks for its next `tokens` tokens, preempting others if
    /// need be. Returns where the sequence is then; an error if it had to be preempted itself, with
    /// where the one after it is.
    fn reserve(
        &mut self,
        mut index: usize,
        tokens: usize,
        plan: &mut Vec<Part>,
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

    /// Takes a request out of the batch and the plan; the first of its sequences waits for its return.
    /// Returns where its sequences were, and how many.
    fn preempt(&mut self, request: SequenceId, plan: &mut Vec<Part>) -> (usize, usize) {
        plan.retain(|part| part.request != request);
        let (at, beams) = self.take_out(request);
        let count = beams.len();
        if let Some(first) = beams.into_iter().next() {
            let (share, priority) = (first.share, first.priority);
            self.waiting.push_preempted(share, priority, first);
        }
        (at, count)
    }

    /// Takes a request's sequences out of the batch, without blocks; returns where they were.
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

    /// Places in the batch that are taken, by sequences or for beams to come.
    fn places(&self) -> usize {
        self.requests().map(Sequence::width).sum()
    }

    /// Returns the first sequence of each request in the batch, the oldest first.
    fn requests(&self) -> impl Iterator<Item = &Sequence> {
        let requests = self.running.chunk_by(|a, b| a.request() == b.request());
        requests.filter_map(|beams| beams.first())
    }

    /// Records that the model has computed a part, but for its guesses: full blocks become known
    /// prefixes.
    pub fn computed(&mut self, part: Part) {
        self.advance(part.id, part.tokens - part.drafted);
    }

    /// Appends the tokens drawn for a part: the guesses among them that were right, and one more.
    /// What the model computed for right guesses is kept.
    pub fn push_tokens(&mut self, id: SequenceId, tokens: &[u32]) {
        let at = self.running.iter().position(|s| s.id == id);
        if let Some(at) = at {
            self.charge(at, tokens.len().saturating_sub(1));
            let sequence = &mut self.running[at];
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
            self.waiting.remove(|s| s.id == id)?
        };
        release(&mut self.blocks, &mut sequence);
        Some(sequence)
    }

    /// Takes all sequences of a request out; gives the first.
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

    /// Takes all sequences out.
    pub fn remove_all(&mut self) {
        for mut sequence in self.running.drain(..).rev() {
            release(&mut self.blocks, &mut sequence);
        }
        self.waiting.clear();
        self.stalled.clear();
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

#[cfg(test)]
mod fairness_tests;
#[cfg(any(test, fuzzing))]
pub(crate) mod histories;
#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
