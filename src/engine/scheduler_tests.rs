//! The scheduler's behaviour in single cases.

use std::ops::{Deref, DerefMut};

use super::*;
use crate::engine::blocks::{BlockCopy, BlockId, PrefixId};
use crate::request::Tenant;

const WINDOW: usize = 64;

/// A scheduler whose steps all have the same budget.
struct Fixed {
    scheduler: Scheduler,
    max_step_tokens: usize,
}

impl Deref for Fixed {
    type Target = Scheduler;

    fn deref(&self) -> &Scheduler {
        &self.scheduler
    }
}

impl DerefMut for Fixed {
    fn deref_mut(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }
}

impl Fixed {
    fn plan(&mut self, ready: impl Fn(SequenceId) -> bool) -> Vec<Chunk> {
        self.scheduler.plan(self.max_step_tokens, true, ready)
    }
}

fn scheduler(max_batch: usize, max_step_tokens: usize, blocks: usize) -> Fixed {
    let limits = StepLimits {
        max_batch,
        speculative_rows: 0,
    };
    Fixed {
        scheduler: Scheduler::new(limits, blocks),
        max_step_tokens,
    }
}

fn sequence(id: u64, tokens: impl IntoIterator<Item = u32>) -> Sequence {
    Sequence::new(SequenceId(id), tokens.into_iter().collect(), WINDOW, true)
}

/// Runs one step as the worker does; the sampled token is always `token`.
fn step(scheduler: &mut Fixed, token: u32) -> Vec<(u64, usize, bool)> {
    let plan = scheduler.plan(|_| true);
    for chunk in &plan {
        scheduler.computed(chunk);
        if chunk.completes {
            scheduler.push_sampled(chunk, &[token]);
        }
    }
    scheduler.check();
    plan.iter()
        .map(|p| (p.id.0, p.tokens, p.completes))
        .collect()
}

#[test]
fn a_long_prompt_is_read_in_chunks_while_others_go_on() {
    let mut s = scheduler(8, 20, 100);
    s.add(sequence(1, 0..3));
    assert_eq!(step(&mut s, 7), [(1, 3, true)]);
    s.add(sequence(2, 100..140));
    assert_eq!(step(&mut s, 7), [(1, 1, true), (2, 19, false)]);
    assert_eq!(step(&mut s, 7), [(1, 1, true), (2, 19, false)]);
    assert_eq!(step(&mut s, 7), [(1, 1, true), (2, 2, true)]);
    assert_eq!(step(&mut s, 7), [(1, 1, true), (2, 1, true)]);
}

#[test]
fn requests_are_admitted_in_order_up_to_the_batch_size() {
    let mut s = scheduler(2, 100, 100);
    for id in 1..=3 {
        s.add(sequence(id, 0..4));
    }
    assert_eq!(step(&mut s, 7), [(1, 4, true), (2, 4, true)]);
    assert_eq!((s.running(), s.waiting()), (2, 1));
    s.remove(SequenceId(1));
    assert_eq!(step(&mut s, 7), [(2, 1, true), (3, 1, true)]);
}

#[test]
fn a_known_prefix_is_not_computed_again_but_the_last_token_is() {
    let mut s = scheduler(2, 100, 100);
    s.add(sequence(1, 0..32));
    step(&mut s, 7);
    s.remove(SequenceId(1));
    s.add(sequence(2, 0..32));
    assert_eq!(step(&mut s, 7), [(2, 1, true)]);
    s.add(sequence(3, (0..32).chain([9, 9])));
    assert_eq!(step(&mut s, 7), [(2, 1, true), (3, 2, true)]);
}

#[test]
fn what_a_step_computes_is_waited_for_and_not_computed_beside_it() {
    let mut s = scheduler(8, 40, 100);
    s.add(sequence(1, 0..60));
    s.add(sequence(2, 0..60));
    s.add(sequence(3, 100..104));
    s.add(sequence(4, (0..33).chain([9; 9])));
    s.add(Sequence::new(
        SequenceId(5),
        (0..4).collect(),
        WINDOW,
        false,
    ));
    // The third shares nothing with the first, and the last may not use what another computes.
    assert_eq!(
        step(&mut s, 7),
        [(1, 32, false), (3, 4, true), (5, 4, true)]
    );
    // The second and the fourth are in the batch, but wait for the first.
    assert_eq!((s.running(), s.waiting()), (5, 0));
    // A further token is not worth waiting for.
    assert_eq!(
        step(&mut s, 7),
        [(3, 1, true), (5, 1, true), (1, 28, true), (4, 10, true)]
    );
    assert_eq!(
        step(&mut s, 7),
        [
            (1, 1, true),
            (3, 1, true),
            (4, 1, true),
            (5, 1, true),
            (2, 1, true),
        ]
    );
}

#[test]
fn nobody_waits_for_a_sequence_that_stands_still() {
    let mut s = scheduler(2, 20, 100);
    s.add(sequence(1, 0..60));
    s.add(sequence(2, 0..60));
    assert_eq!(step(&mut s, 7), [(1, 20, false)]);
    let plan = s.plan(|id| id != SequenceId(1));
    assert_eq!(
        plan.iter()
            .map(|p| (p.id.0, p.first_position))
            .collect::<Vec<_>>(),
        [(2, 20)]
    );
}

#[test]
fn a_few_tokens_are_not_worth_waiting_for() {
    let mut s = scheduler(2, 100, 100);
    s.add(sequence(1, 0..60));
    s.add(sequence(2, (0..3).chain(50..60)));
    assert_eq!(step(&mut s, 7), [(1, 60, true), (2, 13, true)]);
}

/// The copies that the last plan needs.
fn copies(s: &mut Scheduler) -> Vec<(BlockId, BlockId)> {
    let moves = s.take_moves().into_iter();
    let copies = moves.map(|change| match change {
        BlockMove::Copy(BlockCopy { from, to }) => (from, to),
        BlockMove::Evict(_) | BlockMove::CopySlot { .. } => panic!("{change:?}"),
    });
    copies.collect()
}

#[test]
fn who_goes_on_after_a_finished_sequence_goes_on_in_its_last_block() {
    let mut s = scheduler(2, 100, 100);
    s.add(sequence(1, 0..20));
    step(&mut s, 7);
    let blocks = s.sequence(SequenceId(1)).unwrap().table.clone();
    s.remove(SequenceId(1));
    s.add(sequence(2, (0..20).chain([7, 8])));
    assert_eq!(step(&mut s, 9), [(2, 2, true)]);
    assert_eq!(s.sequence(SequenceId(2)).unwrap().table, blocks);
    assert_eq!(copies(&mut s), []);
}

#[test]
fn who_goes_on_in_the_middle_of_a_block_gets_a_copy_of_it() {
    let mut s = scheduler(4, 100, 100);
    s.add(sequence(1, 0..40));
    step(&mut s, 7);
    let blocks = s.sequence(SequenceId(1)).unwrap().table.clone();
    // In the middle of a full block, and of one that is still written to.
    s.add(sequence(2, (0..20).chain([9; 5])));
    s.add(sequence(3, (0..37).chain([9; 2])));
    assert_eq!(step(&mut s, 8), [(1, 1, true), (2, 5, true), (3, 2, true)]);
    let table = |s: &Scheduler, id| s.sequence(SequenceId(id)).unwrap().table.clone();
    let expected = [(blocks[1], table(&s, 2)[1]), (blocks[2], table(&s, 3)[2])];
    assert_eq!(copies(&mut s), expected);
    assert_eq!(table(&s, 2)[0], blocks[0]);
    // And of the last block of a finished one, which stays what it is.
    s.remove(SequenceId(1));
    s.add(sequence(4, (0..39).chain([9; 2])));
    assert_eq!(step(&mut s, 8), [(2, 1, true), (3, 1, true), (4, 2, true)]);
    assert_eq!(copies(&mut s), [(blocks[2], table(&s, 4)[2])]);
    s.add(sequence(5, (0..40).chain([7, 8, 1])));
    let last = step(&mut s, 8).pop();
    assert_eq!(last, Some((5, 1 + 1, true)));
    assert_eq!(table(&s, 5)[2], blocks[2]);
}

#[test]
fn tenants_share_nothing_and_do_not_wait_for_each_other() {
    let mut s = scheduler(4, 100, 100);
    let other = PrefixId::root(Tenant::of_key(b"another"));
    s.add(sequence(1, 0..40));
    s.add(sequence(2, 0..40).with_root(other));
    assert_eq!(step(&mut s, 7), [(1, 40, true), (2, 40, true)]);
    s.add(sequence(3, 0..40).with_root(PrefixId::root(Tenant::of_key(b"a third"))));
    s.add(sequence(4, 0..40).with_root(other));
    assert_eq!(
        step(&mut s, 7),
        [(1, 1, true), (2, 1, true), (3, 40, true), (4, 1, true)]
    );
    let table = |id| &s.sequence(SequenceId(id)).unwrap().table;
    assert_eq!(table(2)[..2], table(4)[..2]);
    assert!(table(1).iter().all(|block| !table(2).contains(block)));
}

#[test]
fn the_youngest_gives_way_when_blocks_run_out_and_comes_back() {
    let mut s = scheduler(2, 100, 3);
    s.add(sequence(1, 0..16));
    s.add(sequence(2, 100..115));
    assert_eq!(step(&mut s, 7), [(1, 16, true), (2, 15, true)]);
    // The first needs a second block for its 17th token, the second is content with its own.
    assert_eq!(step(&mut s, 7), [(1, 1, true), (2, 1, true)]);
    // Now the second needs one, and there is none.
    assert_eq!(step(&mut s, 7), [(1, 1, true)]);
    assert_eq!((s.running(), s.waiting(), s.preemptions()), (1, 1, 1));
    s.remove(SequenceId(1));
    // Its first block was still known: only the token after it is computed.
    assert_eq!(step(&mut s, 7), [(2, 1, true)]);
}

#[test]
fn a_client_that_cannot_take_more_sits_out_without_holding_up_others() {
    let mut s = scheduler(2, 100, 100);
    s.add(sequence(1, 0..4));
    s.add(sequence(2, 0..4));
    step(&mut s, 7);
    let plan = s.plan(|id| id != SequenceId(1));
    assert_eq!(plan.iter().map(|p| p.id.0).collect::<Vec<_>>(), [2]);
}

#[test]
fn past_the_window_the_context_is_read_anew_from_half_a_window() {
    let mut s = scheduler(1, 100, 100);
    s.add(sequence(1, 0..64));
    assert_eq!(step(&mut s, 7), [(1, 64, true)]);
    // Blocks 2 and 3 hold the same tokens, but after another prefix: nothing can be reused.
    assert_eq!(step(&mut s, 7), [(1, 33, true)]);
    assert_eq!(step(&mut s, 7), [(1, 1, true)]);
}

#[test]
fn a_context_that_slides_on_is_read_anew_in_chunks_while_others_go_on() {
    let mut s = scheduler(2, 20, 100);
    s.add(sequence(1, 100..104));
    step(&mut s, 7);
    s.add(sequence(2, 0..64));
    while s
        .sequence(SequenceId(2))
        .is_none_or(|s| s.tokens().len() < 65)
    {
        step(&mut s, 7);
    }
    // The 65th token does not fit the window: now half a window and that token are to be read.
    for (tokens, completes) in [(19, false), (14, true), (1, true)] {
        assert_eq!(step(&mut s, 7), [(1, 1, true), (2, tokens, completes)]);
    }
}

/// The drafts of a sequence that repeats itself are verified in the same step; accepted ones are kept,
/// rejected ones leave no trace.
#[test]
fn drafts_are_rows_of_a_step_and_only_accepted_ones_are_kept() {
    let limits = StepLimits {
        max_batch: 2,
        speculative_rows: 8,
    };
    let mut s = Fixed {
        scheduler: Scheduler::new(limits, 100),
        max_step_tokens: 100,
    };
    s.add(sequence(1, (0..6).chain(0..6)));
    let plan = s.plan(|_| true);
    assert_eq!((plan[0].tokens, plan[0].drafted), (12, 0));
    s.computed(&plan[0]);
    s.push_tokens(SequenceId(1), &[0]);
    let plan = s.plan(|_| true);
    assert_eq!((plan[0].tokens, plan[0].drafted), (7, 6));
    s.computed(&plan[0]);
    // Two of the drafts 1, 2, 3, ... are accepted.
    s.push_sampled(&plan[0], &[1, 2, 9]);
    s.check();
    let sequence = s.sequence(SequenceId(1)).unwrap();
    assert_eq!(sequence.tokens().len(), 16);
    assert_eq!((sequence.computed, sequence.pending()), (15, 1));
}
