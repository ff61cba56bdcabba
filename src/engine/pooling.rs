//! The mean of a sequence's hidden states: its embedding.
//!
//! Positions are added in order, in f64, however they are chunked, so the mean depends on the tokens
//! alone, bit for bit. Pure arithmetic over one sequence's rows.

/// Sum of hidden states over positions.
#[derive(Debug, Clone)]
pub(super) struct MeanPool {
    /// Sum, `[hidden_width]`.
    sum: Vec<f64>,
    /// Number of positions in the sum.
    positions: usize,
}

impl MeanPool {
    /// Creates an empty sum of `hidden_width` features.
    pub fn new(hidden_width: usize) -> Self {
        Self {
            sum: vec![0.0; hidden_width],
            positions: 0,
        }
    }

    /// Adds the hidden states of positions from `first_position` on, `[rows, hidden_width]`.
    /// Positions that were added before are skipped, because a preempted sequence computes them
    /// again.
    pub fn add(&mut self, first_position: usize, hidden: &[f32]) {
        let known = self.positions.saturating_sub(first_position);
        for row in hidden.chunks_exact(self.sum.len()).skip(known) {
            for (sum, &feature) in self.sum.iter_mut().zip(row) {
                *sum += f64::from(feature);
            }
            self.positions += 1;
        }
    }

    /// Returns the mean over all positions, `[hidden_width]`.
    pub fn mean(&self) -> Vec<f32> {
        let positions = self.positions.max(1) as f64;
        let mean = self.sum.iter().map(|sum| (sum / positions) as f32);
        mean.collect()
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
