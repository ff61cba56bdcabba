//! Who runs in the next step, with how many tokens, and in which blocks.
//!
//! Each step is planned in three passes: every running sequence that needs one token to go on
//! (decode) gets it; running sequences that still read their context (prefill) share what is
//! left of the token budget, oldest first; then waiting ones are admitted in order of arrival.
//! So no long prompt stalls the streams, and no one is overtaken for ever.
//!
//! If blocks run out, the youngest sequence is preempted: it gives its blocks back and waits at
//! the head of the queue. What it had computed stays in the prefix cache while there is room and
//! is computed again otherwise, with the same result. The oldest sequence can always go on,
//! because a request that cannot fit alone is refused before it gets here.
//!
//! Pure policy over plain data: it must never touch a tensor, a thread, a clock or a channel.

use std::collections::VecDeque;

use super::blocks::{BLOCK_SIZE, BlockId, BlockPool, PrefixId};
use super::sequence::{Sequence, SequenceId};

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

    /// Chooses the next step. `ready` says whether a sequence's client can take another token;
    /// one that can't keeps its blocks and sits the step out.
    pub fn plan(&mut self, ready: impl Fn(SequenceId) -> bool) -> Vec<Part> {
        for sequence in &mut self.running {
            sequence.draft.clear();
        }
        let mut plan = Vec::with_capacity(self.running.len() + 1);
        let preemptions = self.preemptions;
        self.plan_running(&mut plan, usize::MAX, |s| s.pending() == 1 && ready(s.id));
        let prefill = self.limits.max_step_tokens.saturating_sub(plan.len());
        // A full batch of decodes must not keep the prompts out for ever.
        let prefill = prefill.max(BLOCK_SIZE);
        let left = self.plan_running(&mut plan, prefill, |s| s.pending() > 1 && ready(s.id));
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
                let Some(youngest) = self.running.pop() else {
                    return false;
                };
                plan.retain(|part| part.id != youngest.id);
                self.preempt(youngest);
                if self.running.len() == index {
                    return false;
                }
            }
        }
        true
    }

    fn preempt(&mut self, mut sequence: Sequence) {
        self.preemptions += 1;
        self.preempted += 1;
        release(&mut self.blocks, &mut sequence);
        self.waiting.push_front(sequence);
    }

    /// Lets waiting sequences in while the batch, the budget and the pool have room for their
    /// whole present context.
    fn admit(&mut self, plan: &mut Vec<Part>, mut budget: usize) {
        while budget > 0 && self.running.len() < self.limits.max_batch {
            let Some(sequence) = self.waiting.front() else {
                break;
            };
            let cached = reusable_prefix(&self.blocks, sequence);
            let idle = cached.iter().filter(|c| self.blocks.is_idle(c.0)).count();
            let needed = sequence.context().len().div_ceil(BLOCK_SIZE) - cached.len();
            if needed > self.blocks.available() - idle {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else {
                break;
            };
            self.preempted = self.preempted.saturating_sub(1);
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
            let parent = sequence.prefixes.last().copied().unwrap_or(PrefixId::EMPTY);
            let Some(tokens) = sequence.block_tokens(n) else {
                break;
            };
            let (block, prefix) = self.blocks.publish(sequence.table[n], parent, tokens);
            sequence.table[n] = block;
            sequence.prefixes.push(prefix);
        }
    }

    /// Appends a drawn token to a running sequence. If its context slides on, its blocks are
    /// given back and as much as possible of the new context is taken from the cache.
    fn push_token(&mut self, id: SequenceId, token: u32) {
        let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) else {
            return;
        };
        if sequence.push(token) {
            release(&mut self.blocks, sequence);
            let cached = reusable_prefix(&self.blocks, sequence);
            attach(&mut self.blocks, sequence, &cached);
        }
    }

    /// Takes a sequence out, wherever it is; its blocks stay in the cache as far as they are
    /// known prefixes.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let mut sequence = if let Some(at) = self.running.iter().position(|s| s.id == id) {
            self.running.remove(at)
        } else {
            let at = self.waiting.iter().position(|s| s.id == id)?;
            self.preempted -= usize::from(at < self.preempted);
            self.waiting.remove(at)?
        };
        release(&mut self.blocks, &mut sequence);
        Some(sequence)
    }

    /// Checks every invariant of the accounts; for tests.
    ///
    /// # Panics
    /// If one does not hold.
    #[cfg(test)]
    pub fn check(&self) {
        self.blocks
            .check(self.running.iter().map(|s| s.table.as_slice()));
        for sequence in &self.running {
            assert!(sequence.computed < sequence.context().len() || sequence.pending() == 0);
            assert!(sequence.table.len() * BLOCK_SIZE >= sequence.computed);
            assert_eq!(sequence.prefixes.len(), sequence.computed / BLOCK_SIZE);
        }
        for sequence in &self.waiting {
            assert!(sequence.table.is_empty() && sequence.computed == 0);
        }
    }
}

impl Sequence {
    fn part(&self, tokens: usize) -> Part {
        Part {
            id: self.id,
            first_position: self.computed,
            tokens,
            drafted: 0,
            completes: tokens == self.pending(),
        }
    }
}

/// The known blocks a sequence can start from. Its last token is always left to compute: it is
/// the one whose logits are wanted.
fn reusable_prefix(blocks: &BlockPool, sequence: &Sequence) -> Vec<(BlockId, PrefixId)> {
    if !sequence.may_reuse {
        return Vec::new();
    }
    let context = sequence.context();
    blocks.find_prefix(&context[..context.len().saturating_sub(1)])
}

fn attach(blocks: &mut BlockPool, sequence: &mut Sequence, cached: &[(BlockId, PrefixId)]) {
    for &(block, prefix) in cached {
        blocks.hold(block);
        sequence.table.push(block);
        sequence.prefixes.push(prefix);
    }
    sequence.computed = cached.len() * BLOCK_SIZE;
}

/// Gives all blocks back, the last first (see [`BlockPool::release`]).
fn release(blocks: &mut BlockPool, sequence: &mut Sequence) {
    while let Some(block) = sequence.table.pop() {
        blocks.release(block);
    }
    sequence.prefixes.clear();
    sequence.draft.clear();
    sequence.computed = 0;
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
