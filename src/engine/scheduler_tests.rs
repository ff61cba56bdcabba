//! The scheduler's behaviour in single cases, and its accounts over long random histories.

use proptest::prelude::*;

use super::*;

const WINDOW: usize = 64;

fn scheduler(max_batch: usize, max_step_tokens: usize, blocks: usize) -> Scheduler {
    let limits = StepLimits {
        max_batch,
        max_step_tokens,
        speculative_rows: 0,
    };
    Scheduler::new(limits, blocks)
}

fn sequence(id: u64, tokens: impl IntoIterator<Item = u32>) -> Sequence {
    Sequence::new(SequenceId(id), tokens.into_iter().collect(), WINDOW, true)
}

/// Runs one step as the worker does; the drawn token is always `token`.
fn step(scheduler: &mut Scheduler, token: u32) -> Vec<(u64, usize, bool)> {
    let plan = scheduler.plan(|_| true);
    for &part in &plan {
        scheduler.computed(part);
        if part.completes {
            scheduler.push_tokens(part.id, &[token]);
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
    assert_eq!(step(&mut s, 7), [(2, 1, true), (3, 4, true)]);
}

#[test]
fn a_known_prefix_is_not_computed_again_but_the_last_token_is() {
    let mut s = scheduler(2, 100, 100);
    s.add(sequence(1, 0..32));
    step(&mut s, 7);
    s.remove(SequenceId(1));
    s.add(sequence(2, 0..32));
    assert_eq!(step(&mut s, 7), [(2, 16, true)]);
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
    assert_eq!(step(&mut s, 7), [(1, 40, false)]);
    // Of the first's second part the fourth has nothing in common.
    assert_eq!(
        step(&mut s, 7),
        [(1, 20, true), (3, 4, true), (4, 10, true), (5, 4, true)]
    );
    assert_eq!(
        step(&mut s, 7),
        [
            (1, 1, true),
            (3, 1, true),
            (4, 1, true),
            (5, 1, true),
            (2, 12, true)
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
        [(2, 16)]
    );
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

#[derive(Debug, Clone)]
enum Action {
    Add { tokens: Vec<u32>, may_reuse: bool },
    Step { token: u32, stalled: u64 },
    Remove { nth: usize },
    Abort,
}

fn action() -> impl Strategy<Value = Action> {
    // Few different tokens, so that prefixes are often shared.
    let tokens = prop::collection::vec(0u32..2, 1..WINDOW * 2);
    prop_oneof![
        2 => (tokens, any::<bool>()).prop_map(|(tokens, may_reuse)| Action::Add { tokens, may_reuse }),
        8 => (0u32..2, 0u64..8).prop_map(|(token, stalled)| Action::Step { token, stalled }),
        1 => (0usize..8).prop_map(|nth| Action::Remove { nth }),
        1 => Just(Action::Abort),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// No block is leaked, released twice, or written while shared; whatever is planned has
    /// blocks; and when nothing more arrives everything that waits gets its turn.
    #[test]
    fn the_accounts_balance_over_any_history(
        actions in prop::collection::vec(action(), 1..150),
        blocks in WINDOW / BLOCK_SIZE..20,
        max_step_tokens in 1usize..50,
        speculative_rows in 0usize..7,
    ) {
        let limits = StepLimits { max_batch: 4, max_step_tokens, speculative_rows };
        let mut s = Scheduler::new(limits, blocks);
        let mut alive = Vec::new();
        let mut next = 0;
        for action in actions {
            match action {
                Action::Add { tokens, may_reuse } => {
                    let id = SequenceId(next);
                    next += 1;
                    s.add(Sequence::new(id, tokens, WINDOW, may_reuse));
                    alive.push(id);
                }
                Action::Step { token, stalled } => {
                    let plan = s.plan(|id| id.0 % 8 != stalled);
                    assert_written_blocks_are_not_shared(&s, &plan);
                    for part in plan {
                        s.computed(part);
                        if part.completes {
                            // Some of the guesses were right, then comes another token.
                            let right = part.drafted.min(token as usize % 3);
                            let draft = &s.sequence(part.id).unwrap().draft;
                            let drawn = [&draft[..right], &[token]].concat();
                            s.push_tokens(part.id, &drawn);
                        }
                    }
                }
                Action::Remove { nth } => {
                    if nth < alive.len() {
                        s.remove(alive.swap_remove(nth));
                    }
                }
                Action::Abort => {
                    for part in s.plan(|_| true) {
                        s.remove(part.id);
                        alive.retain(|&id| id != part.id);
                    }
                }
            }
            s.check();
        }
        for _ in 0..2000 {
            let Some(part) = s.plan(|_| true).into_iter().find(|p| p.completes) else {
                prop_assert!(!alive.is_empty() || s.running() + s.waiting() == 0);
                if s.running() + s.waiting() == 0 {
                    break;
                }
                step(&mut s, 0);
                continue;
            };
            s.remove(part.id);
            alive.retain(|&id| id != part.id);
        }
        prop_assert!(alive.is_empty(), "starved: {alive:?}");
        prop_assert_eq!(s.blocks().available(), blocks);
    }
}

/// Every block that a planned part writes to is held by its own sequence alone.
fn assert_written_blocks_are_not_shared(s: &Scheduler, plan: &[Part]) {
    for part in plan {
        let sequence = s.sequence(part.id).expect("a planned sequence runs");
        let last = part.first_position + part.tokens;
        assert!(sequence.table.len() * BLOCK_SIZE >= last);
        for position in part.first_position..last {
            let block = sequence.table[position / BLOCK_SIZE];
            let holders = s
                .running
                .iter()
                .filter(|o| o.table.contains(&block))
                .count();
            assert_eq!(holders, 1, "position {position} of {:?} is shared", part.id);
        }
    }
}

/// A sequence that repeats itself gets its guesses verified in the same step; the right ones are
/// kept, the wrong ones leave no trace.
#[test]
fn guesses_are_rows_of_a_step_and_only_right_ones_are_kept() {
    let limits = StepLimits {
        max_batch: 2,
        max_step_tokens: 100,
        speculative_rows: 8,
    };
    let mut s = Scheduler::new(limits, 100);
    s.add(sequence(1, (0..6).chain(0..6)));
    let plan = s.plan(|_| true);
    assert_eq!((plan[0].tokens, plan[0].drafted), (12, 0));
    s.computed(plan[0]);
    s.push_tokens(SequenceId(1), &[0]);
    let plan = s.plan(|_| true);
    assert_eq!((plan[0].tokens, plan[0].drafted), (7, 6));
    s.computed(plan[0]);
    // Two of the guesses 1, 2, 3, ... were right.
    s.push_tokens(SequenceId(1), &[1, 2, 9]);
    s.check();
    let sequence = s.sequence(SequenceId(1)).unwrap();
    assert_eq!(sequence.tokens().len(), 16);
    assert_eq!((sequence.computed, sequence.pending()), (15, 1));
}
