//! The mean of a sequence's hidden states, which is its embedding.
//!
//! Positions are added one after the other, in f64, in whatever chunks they are computed; so the
//! mean depends on the tokens alone, bit for bit. Pure arithmetic: it must never look at another
//! sequence's rows.

use std::collections::HashMap;

use super::active::Active;
use super::scheduler::Part;
use super::sequence::SequenceId;

/// Hidden states added up, position by position.
#[derive(Debug, Clone)]
pub(super) struct MeanPool {
    /// `[n_embd]`
    sum: Vec<f64>,
    /// Positions in it.
    positions: usize,
}

impl MeanPool {
    /// Nothing yet, of a model of this width.
    pub fn new(n_embd: usize) -> Self {
        Self {
            sum: vec![0.0; n_embd],
            positions: 0,
        }
    }

    /// Takes the hidden states from `first_position` on, `[rows, n_embd]`. Positions that were
    /// taken before, as they come again after a preemption, are passed over.
    pub fn add(&mut self, first_position: usize, hidden: &[f32]) {
        let known = self.positions.saturating_sub(first_position);
        for row in hidden.chunks_exact(self.sum.len()).skip(known) {
            for (sum, &feature) in self.sum.iter_mut().zip(row) {
                *sum += f64::from(feature);
            }
            self.positions += 1;
        }
    }

    /// The mean over all positions taken, `[n_embd]`.
    pub fn mean(&self) -> Vec<f32> {
        let positions = self.positions.max(1) as f64;
        let mean = self.sum.iter().map(|sum| (sum / positions) as f32);
        mean.collect()
    }
}

/// Adds a step's hidden states, `[rows, n_embd]` in the plan's order, to the sequences they were
/// computed for.
pub(super) fn pool_all(
    plan: &[Part],
    active: &mut HashMap<SequenceId, Box<Active>>,
    hidden: &[f32],
    n_embd: usize,
) {
    let mut rest = hidden;
    for part in plan {
        let active = active.get_mut(&part.id);
        let Some(pool) = active.and_then(|active| active.pool.as_mut()) else {
            continue;
        };
        let rows = (part.tokens - part.drafted) * n_embd;
        let (own, others) = rest.split_at(rows.min(rest.len()));
        pool.add(part.first_position, own);
        rest = others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_mean_is_over_positions_and_of_every_feature() {
        let mut pool = MeanPool::new(2);
        pool.add(0, &[1.0, 10.0, 2.0, 20.0]);
        pool.add(2, &[6.0, 0.0]);
        assert_eq!(pool.mean(), [3.0, 10.0]);
    }

    proptest! {
        #[test]
        fn chunks_and_preemptions_change_no_bit(
            rows in prop::collection::vec([-1e3f32..1e3, -1e-3f32..1e-3], 1..40),
            chunks in prop::collection::vec((1usize..9, prop::bool::weighted(0.2)), 1..40),
        ) {
            let mut whole = MeanPool::new(2);
            whole.add(0, rows.as_flattened());
            let mut pool = MeanPool::new(2);
            let mut next = 0;
            for (length, preempted) in chunks {
                if preempted {
                    next = 0;
                }
                let end = (next + length).min(rows.len());
                pool.add(next, rows[next..end].as_flattened());
                next = end;
            }
            pool.add(next, rows[next..].as_flattened());
            let bits = |pool: &MeanPool| pool.mean().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(&pool), bits(&whole));
        }
    }
}
