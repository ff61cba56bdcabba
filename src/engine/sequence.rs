//! One generation's tokens, and how far they are in the KV cache.

use super::blocks::windows::{window_blocks, window_start};
use super::blocks::{BLOCK_SIZE, BlockId, PrefixId};
use super::speculate::Drafter;
use crate::request::Tenant;

/// The number of one generation, unique in the life of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Returns the start of the context in a history of `tokens` tokens that slides on past the window: the
/// smallest multiple of half a window that leaves at most a whole window.
///
/// When a token is added to a full window, the context becomes the window's last
/// `context_length / 2` tokens and the new one, at positions from 0. The context is a function of
/// the history's length alone: a resumed session and an uninterrupted stream see the same.
///
/// ```
/// use skald::engine::sequence::context_start;
/// assert_eq!(context_start(1024, 1024), 0);
/// assert_eq!(context_start(1025, 1024), 512);
/// assert_eq!(context_start(1536, 1024), 512);
/// assert_eq!(context_start(1537, 1024), 1024);
/// ```
#[must_use]
pub fn context_start(tokens: usize, context_length: usize) -> usize {
    let step = (context_length / 2).max(1);
    tokens.saturating_sub(context_length).div_ceil(step) * step
}

/// Returns the number of blocks of `width` sequences of `tokens` tokens that share `shared` full blocks.
#[must_use]
pub(super) fn blocks_of_beams(tokens: usize, width: usize, shared: usize) -> usize {
    let each = tokens.div_ceil(BLOCK_SIZE);
    each + (width - 1) * each.saturating_sub(shared)
}

/// Returns the number of window slots without which `width` sequences of `tokens` tokens that share `shared`
/// full blocks can't all continue, where the widest window is `window` positions.
#[must_use]
pub(super) fn slots_of_beams(tokens: usize, width: usize, shared: usize, window: usize) -> usize {
    let (each, windowed) = (tokens.div_ceil(BLOCK_SIZE), window_blocks(window));
    if width == 1 {
        return each.min(windowed);
    }
    // Beams keep the slots from the window before the first token that they do not share.
    let own = each.saturating_sub(shared);
    each.min(windowed + own) + (width - 1) * own
}

/// What makes a sequence one of several that together are one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Beam {
    request: SequenceId,
    /// Sequences the request can have at once.
    width: usize,
    /// Full blocks that they all begin with.
    shared: usize,
}

/// A token history and its place in the cache. Owned by the scheduler.
#[derive(Debug, Clone)]
pub struct Sequence {
    pub(super) id: SequenceId,
    pub(super) tokens: Vec<u32>,
    beam: Option<Beam>,
    /// The model's window.
    context_length: usize,
    /// Whether cached prefixes may stand in for its first tokens (not if their logits are wanted).
    pub(super) may_reuse: bool,
    /// The position from which on its passes are observed, apart from those of other sequences.
    pub(super) observed_from: Option<usize>,
    /// What its contexts start from: whose it is.
    pub(super) root: PrefixId,
    /// What is computed of it is worth keeping beyond the pool.
    pub(super) keep: bool,
    /// The tenant that its tokens are charged to.
    pub(super) share: Tenant,
    /// Those with a lower value run earlier.
    pub(super) priority: i32,
    /// The tokens before this have been charged.
    charged: usize,
    /// The tokens before this are outside the context.
    pub(super) start: usize,
    /// Tokens of the context whose keys and values are in the cache.
    pub(super) computed: usize,
    /// The blocks of the context, in order.
    pub(super) table: Vec<BlockId>,
    /// Its first block whose window slot it holds, and it holds those of all after it.
    pub(super) first_slot: usize,
    /// The prefixes that end with its full blocks; as long as what is computed has full blocks.
    pub(super) prefixes: Vec<PrefixId>,
    /// Guesses its next tokens.
    pub(super) drafter: Drafter,
    /// The guess that the present step verifies.
    pub(super) draft: Vec<u32>,
}

impl Sequence {
    /// Creates a sequence without cached blocks, of the anonymous tenant.
    #[must_use]
    pub fn new(id: SequenceId, tokens: Vec<u32>, context_length: usize, may_reuse: bool) -> Self {
        let start = context_start(tokens.len(), context_length);
        Self {
            id,
            tokens,
            beam: None,
            context_length,
            may_reuse,
            observed_from: None,
            root: PrefixId::root(Tenant::ANONYMOUS),
            keep: false,
            share: Tenant::ANONYMOUS,
            priority: 0,
            charged: 0,
            start,
            computed: 0,
            table: Vec::new(),
            first_slot: 0,
            prefixes: Vec::new(),
            drafter: Drafter::default(),
            draft: Vec::new(),
        }
    }

    /// Sets the root that its prefixes start from.
    #[must_use]
    pub fn with_root(self, root: PrefixId) -> Self {
        Self { root, ..self }
    }

    /// Sets whether its blocks are exported on eviction.
    #[must_use]
    pub fn with_keep(self, keep: bool) -> Self {
        Self { keep, ..self }
    }

    /// Sets the position from which on its passes are observed. Its tokens must fit the window.
    #[must_use]
    pub fn with_observed_from(self, observed_from: Option<usize>) -> Self {
        Self {
            observed_from,
            ..self
        }
    }

    /// Sets its tenant and priority.
    #[must_use]
    pub fn with_share(self, share: Tenant, priority: i32) -> Self {
        Self {
            share,
            priority,
            ..self
        }
    }

    /// Takes the next `tokens` tokens of its context for charged; returns how many of them were not. What
    /// is computed again after a preemption was.
    pub(super) fn charge(&mut self, tokens: usize) -> usize {
        let computed = self.start + self.computed;
        let end = computed + tokens;
        let new = end.saturating_sub(self.charged.max(computed));
        self.charged = self.charged.max(end);
        new
    }

    /// Lets what has to be computed again be charged again.
    pub(super) fn forget_charged(&mut self) {
        self.charged = 0;
    }

    /// Makes it the first of up to `width` beams, which all begin with its present tokens. They are
    /// admitted and preempted as one.
    pub(super) fn begin_beams(&mut self, width: usize) {
        self.beam = Some(Beam {
            request: self.id,
            width,
            shared: self.tokens.len() / BLOCK_SIZE,
        });
    }

    /// Returns a further beam that continues this one, which has no blocks.
    pub(super) fn branch(&self, id: SequenceId, tokens: &[u32]) -> Self {
        let mut branch = self.clone();
        branch.id = id;
        branch.tokens.extend_from_slice(tokens);
        branch.start = context_start(branch.tokens.len(), branch.context_length);
        branch
    }

    /// Returns the request it belongs to: itself, unless it is a beam.
    #[must_use]
    pub fn request(&self) -> SequenceId {
        self.beam.map_or(self.id, |beam| beam.request)
    }

    /// Returns the number of sequences that its request can have in the batch at once.
    pub(super) fn width(&self) -> usize {
        self.beam.map_or(1, |beam| beam.width)
    }

    /// Returns the blocks that its request needs when its sequences are as long as this one.
    pub(super) fn blocks_of_request(&self) -> usize {
        let shared = self.beam.map_or(0, |beam| beam.shared);
        blocks_of_beams(self.context().len(), self.width(), shared)
    }

    /// Returns the window slots that its request needs when its sequences are as long as this one.
    pub(super) fn slots_of_request(&self, window: usize) -> usize {
        let shared = self.beam.map_or(0, |beam| beam.shared);
        slots_of_beams(self.context().len(), self.width(), shared, window)
    }

    /// Returns the blocks that its context still needs; those of all beams for the first of a search.
    pub(super) fn promised_blocks(&self) -> usize {
        let needed = if self.id == self.request() {
            self.blocks_of_request()
        } else {
            self.context().len().div_ceil(BLOCK_SIZE)
        };
        needed.saturating_sub(self.table.len())
    }

    /// Returns the window slots that its context still needs; those of all beams for the first of a search.
    pub(super) fn promised_slots(&self, window: usize) -> usize {
        let needed = if self.id == self.request() {
            self.slots_of_request(window)
        } else {
            let blocks = self.context().len().div_ceil(BLOCK_SIZE);
            blocks.min(window_blocks(window))
        };
        needed.saturating_sub(self.table.len() - self.first_slot)
    }

    /// Returns the first block whose window slot it needs to continue at `position`. Beams also need those
    /// that others branch off from, so that no beam is computed twice.
    pub(super) fn slots_from(&self, window: usize, position: usize) -> usize {
        let beam = self.beam.filter(|beam| beam.width > 1);
        let last = beam.map_or(position, |beam| position.min(beam.shared * BLOCK_SIZE));
        window_start(window, last / BLOCK_SIZE)
    }

    /// Guesses up to `limit` next tokens, as far as they and the one after them have room in the
    /// window. A beam has no drafts: its next token is not sampled.
    pub(super) fn guess(&mut self, limit: usize) {
        if self.beam.is_some() {
            return;
        }
        let room = self.context_length - self.context().len();
        self.draft = self.drafter.draft(&self.tokens, limit.min(room));
    }

    /// Returns whether its next token is sampled after one pending token.
    #[must_use]
    pub fn decodes(&self) -> bool {
        self.pending() == 1 && self.observed_from.is_none()
    }

    /// Returns whether the pass over its next token is observed.
    #[must_use]
    pub fn is_observed(&self) -> bool {
        self.observed_from.is_some_and(|from| self.computed >= from)
    }

    /// Returns the tokens the next one depends on.
    #[must_use]
    pub fn context(&self) -> &[u32] {
        &self.tokens[self.start..]
    }

    /// Returns the number of tokens to compute before the next one can be sampled; at least 1.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.context().len() - self.computed
    }

    /// Returns the whole history.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends a token; `true` if the context has to start anew: then the caller must take back the
    /// blocks, and let it [`slide`](Self::slide).
    #[must_use]
    pub(super) fn push(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        context_start(self.tokens.len(), self.context_length) != self.start
    }

    /// Lets the context start where it has to; nothing of it is computed.
    pub(super) fn slide(&mut self) {
        self.start = context_start(self.tokens.len(), self.context_length);
        self.forget_charged();
    }

    /// Returns the part of its context that it may find in the cache. Its last token is always left to
    /// compute: it is the one whose logits are wanted. So are those whose pass is observed.
    pub(super) fn reusable(&self) -> &[u32] {
        let context = self.context();
        if self.may_reuse {
            let end = context.len().saturating_sub(1);
            &context[..self.observed_from.map_or(end, |from| from.min(end))]
        } else {
            &[]
        }
    }

    /// Returns the prefix that ends with its last full block.
    pub(super) fn last_prefix(&self) -> PrefixId {
        self.prefixes.last().copied().unwrap_or(self.root)
    }

    /// Returns its last block and the tokens computed of it, if the block is not full.
    pub(super) fn tail(&self) -> Option<(BlockId, &[u32])> {
        let full = self.prefixes.len();
        let tokens = self.context().get(full * BLOCK_SIZE..self.computed)?;
        let block = *self.table.get(full)?;
        (!tokens.is_empty()).then_some((block, tokens))
    }

    /// Returns the tokens of the `n`-th block of the context, if it is full.
    pub(super) fn block_tokens(&self, n: usize) -> Option<[u32; BLOCK_SIZE]> {
        self.context().as_chunks().0.get(n).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sliding_context_is_never_empty_nor_longer_than_the_window(
            tokens in 1usize..5000, context_length in 1usize..300,
        ) {
            let start = context_start(tokens, context_length);
            prop_assert!(start < tokens);
            prop_assert!(tokens - start <= context_length);
            let was = context_start(tokens - 1, context_length);
            prop_assert!(start == was || (start == was + (context_length / 2).max(1)));
            if start != was {
                prop_assert_eq!(tokens - 1 - was, context_length);
            }
        }
    }
}
