//! The scheduler and its blocks: runs a history of operations, and checks the accounts and the
//! contents of the memory after each.
//!
//! An input is seven bytes of settings, then operations of a byte and their arguments, a byte each.

use super::input::Input;
use crate::engine::blocks::BLOCK_SIZE;
use crate::engine::scheduler::StepLimits;
use crate::engine::scheduler::histories::{self, Action, Pool, TENANTS, WINDOW};

/// Maximum operations of one history.
const MAX_OPERATIONS: usize = 200;

pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let least = WINDOW.div_ceil(BLOCK_SIZE);
    let blocks = least + input.below(20 - least);
    let max_step_tokens = 1 + input.below(49);
    let limits = StepLimits {
        max_batch: 4,
        speculative_rows: input.below(7),
    };
    let share = input.flag();
    // No sliding layers in half of the histories.
    let window = (input.byte() / 2 % WINDOW as u8 * (input.byte() % 2)).into();
    let slots_beyond = input.below(10);
    let mut actions = Vec::new();
    while !input.is_empty() && actions.len() < MAX_OPERATIONS {
        actions.push(action(&mut input));
    }
    let pool = match window {
        0 => Pool {
            blocks,
            windows: None,
        },
        window => Pool::with_window(blocks, window, slots_beyond),
    };
    histories::run(limits, max_step_tokens, pool, share, actions);
}

fn action(input: &mut Input) -> Action {
    match input.byte() % 16 {
        0 => Action::Add {
            tenant: input.below(TENANTS),
            may_reuse: input.flag(),
            keep: input.flag(),
            tokens: tokens(input, 1, WINDOW * 2),
        },
        1 | 2 => Action::Fork {
            nth: input.below(256),
            cut: input.below(256),
            keep: input.flag(),
            tokens: tokens(input, 0, 20),
        },
        3 => Action::Remove {
            nth: input.below(8),
        },
        4 => Action::Import {
            nth: input.below(256),
            fails: input.flag().then(|| input.below(3)),
        },
        5 => Action::Abort,
        6 => Action::Search {
            nth: input.below(256),
            width: 1 + input.below(4),
            max_tokens: 1 + input.below(40),
        },
        7 => Action::Budget {
            tokens: 1 + input.below(49),
        },
        8 => Action::Inspect {
            nth: input.below(256),
            from: input.below(256),
        },
        _ => Action::Step {
            token: u32::from(input.flag()),
            stalled: u64::from(input.byte() % 8),
        },
    }
}

/// Returns at least `least` and fewer than `end` tokens of two kinds, so that prefixes are often
/// shared. One byte gives their number, another their pattern.
fn tokens(input: &mut Input, least: usize, end: usize) -> Vec<u32> {
    let count = least + input.below(end - least);
    let pattern = input.byte();
    let token = |n: usize| u32::from(pattern >> (n % 8) & 1);
    (0..count).map(token).collect()
}
