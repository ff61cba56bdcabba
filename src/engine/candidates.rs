//! The candidates to sample from a row: the sampler's fifth step.
//!
//! The order of the filters is the [sampler](super::sampler)'s. None of them sorts the row: the
//! greatest weights of blocks of 64 tokens narrow down the candidates that can matter, and only
//! those are examined. The result is the same as with a full sort.

use std::cmp::Ordering;

use crate::kernels::rows;
use crate::request::SamplingParams;

/// A token that can be sampled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub id: u32,
    /// Logit after temperature, relative to the highest; at most 0.
    pub logit: f32,
    pub weight: f32,
}

/// A filter of sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// The most likely tokens.
    TopK,
    /// The most likely tokens that reach a share.
    TopP,
    /// The tokens that reach a share of the most likely one.
    MinP,
    /// The most typical tokens that reach a share.
    TypicalP,
}

/// The weights of a row, with sums and maxima of blocks to find the greatest.
#[derive(Debug, Default)]
pub(super) struct Distribution {
    weights: Vec<f32>,
    /// Sum of the weights of each block of 64 tokens.
    sums: Vec<f64>,
    greatest: Vec<f32>,
}

impl Distribution {
    /// Replaces logits with `(logit - highest) / temperature`, and computes their `exp` as weights.
    pub fn weigh(&mut self, logits: &mut [f32], highest: f32, temperature: f32) {
        rows::weigh(logits, highest, 1.0 / temperature, &mut self.weights);
        rows::block_sums(&self.weights, &mut self.sums);
    }

    /// Returns the bits of all weights, for tests.
    #[cfg(test)]
    pub(super) fn weight_bits(&self) -> Vec<u32> {
        self.weights.iter().map(|weight| weight.to_bits()).collect()
    }

    /// Returns the sum of all weights.
    pub fn total(&self) -> f64 {
        self.sums.iter().sum()
    }

    /// Returns the token at `u` of the cumulative weights of all tokens, in order of id.
    pub fn walk(&self, u: f64) -> Option<u32> {
        let threshold = u * self.total();
        let mut sum = 0.0;
        let block = self.sums.iter().position(|block| {
            let here = sum + block > threshold;
            if !here {
                sum += block;
            }
            here
        });
        let first = block? * rows::BLOCK;
        let end = self.weights.len().min(first + rows::BLOCK);
        let mut drawn = None;
        for (id, &weight) in (first..).zip(&self.weights[first..end]) {
            sum += f64::from(weight);
            if weight > 0.0 {
                drawn = Some(id);
            }
            if sum > threshold {
                break;
            }
        }
        u32::try_from(drawn?).ok()
    }

    /// Returns the tokens that remain after the filters, in order of id. `logits` are those passed
    /// to [`weigh`](Self::weigh).
    pub fn filtered(&mut self, logits: &[f32], params: &SamplingParams) -> Vec<Candidate> {
        rows::greatest_of_blocks(&self.weights, &mut self.greatest);
        let mut total = self.total();
        let mut candidates;
        if (1..logits.len()).contains(&params.top_k) {
            candidates = self.top_k(logits, params.top_k);
            total = total_weight(&candidates);
        } else if params.top_p < 1.0 {
            candidates = self.at_least_a_share(logits, f64::from(params.top_p) * total);
        } else {
            let floor = if params.min_p > 0.0 {
                params.min_p
            } else {
                f32::MIN_POSITIVE
            };
            candidates = self.at_least(logits, floor);
        }
        narrow(&mut candidates, total, params, |_, _| ());
        candidates
    }

    /// Returns what [`filtered`](Self::filtered) returns, and gives what each filter that is set leaves.
    /// Without filters, all tokens with a weight are left.
    pub fn filtered_in_steps(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        mut step: impl FnMut(Filter, &[Candidate]),
    ) -> Vec<Candidate> {
        rows::greatest_of_blocks(&self.weights, &mut self.greatest);
        let mut total = self.total();
        let mut candidates;
        if (1..logits.len()).contains(&params.top_k) {
            candidates = self.top_k(logits, params.top_k);
            total = total_weight(&candidates);
            step(Filter::TopK, &candidates);
        } else {
            candidates = self.at_least(logits, f32::MIN_POSITIVE);
        }
        narrow(&mut candidates, total, params, step);
        candidates
    }

    /// Returns the tokens whose weight reaches `floor`.
    fn at_least(&self, logits: &[f32], floor: f32) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        rows::select_at_least(&self.weights, &self.greatest, floor, |id| {
            candidates.push(Candidate {
                id: id as u32,
                logit: logits[id],
                weight: self.weights[id],
            });
        });
        candidates
    }

    /// Returns the `k` tokens with the highest logits, without those whose weight is 0.
    fn top_k(&self, logits: &[f32], k: usize) -> Vec<Candidate> {
        let floor = rows::floor_of_greatest(&self.greatest, k).max(f32::MIN_POSITIVE);
        let mut candidates = self.at_least(logits, floor);
        if k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, |a, b| {
                b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
            });
            candidates.truncate(k);
            candidates.sort_unstable_by_key(|c| c.id);
        }
        candidates
    }

    /// Returns the tokens with the greatest weights, at least enough for their sum to reach
    /// `wanted`.
    fn at_least_a_share(&self, logits: &[f32], wanted: f64) -> Vec<Candidate> {
        // Floors from a thousandth of the highest weight down, in steps of a factor of 32.
        let floors = (2..).map(|n| 2f32.powi(-5 * n).max(f32::MIN_POSITIVE));
        for floor in floors {
            let candidates = self.at_least(logits, floor);
            // The margin covers the rounding of two sums over the same weights.
            let enough = total_weight(&candidates) > wanted * (1.0 + 1e-9);
            if enough || floor <= f32::MIN_POSITIVE {
                return candidates;
            }
        }
        Vec::new()
    }
}

/// Applies the filters after `top_k` to candidates of a `total` weight, and gives what each that is set
/// leaves.
fn narrow(
    candidates: &mut Vec<Candidate>,
    total: f64,
    params: &SamplingParams,
    mut step: impl FnMut(Filter, &[Candidate]),
) {
    if params.top_p < 1.0 {
        let wanted = f64::from(params.top_p) * total;
        keep_share(candidates, |c| -c.logit, wanted);
        step(Filter::TopP, candidates);
    }
    if params.min_p > 0.0 {
        candidates.retain(|c| c.weight >= params.min_p);
        step(Filter::MinP, candidates);
    }
    if params.typical_p < 1.0 {
        keep_typical(candidates, params.typical_p);
        step(Filter::TypicalP, candidates);
    }
}

/// Keeps the shortest run of candidates, from the one whose surprise is nearest to the entropy,
/// that reaches a share of their weight.
fn keep_typical(candidates: &mut Vec<Candidate>, share: f32) {
    let total = total_weight(candidates);
    let log_total = total.ln();
    let entropy = candidates
        .iter()
        .map(|c| f64::from(c.weight) / total * (log_total - f64::from(c.logit)))
        .sum::<f64>();
    let distance = |c: &Candidate| ((log_total - f64::from(c.logit) - entropy).abs()) as f32;
    keep_share(candidates, distance, f64::from(share) * total);
}

pub(super) fn total_weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

/// Keeps the shortest run of candidates, lowest `rank` first, whose weights reach `wanted`; at
/// least one. Instead of sorting them all, counts their weights into buckets by rank and sorts
/// only the bucket in which it is reached.
fn keep_share(candidates: &mut Vec<Candidate>, rank: impl Fn(&Candidate) -> f32, wanted: f64) {
    const BUCKETS: usize = 512;
    let by_rank = |a: &Candidate, b: &Candidate| -> Ordering {
        rank(a).total_cmp(&rank(b)).then(a.id.cmp(&b.id))
    };
    let (lowest, highest) = candidates
        .iter()
        .map(&rank)
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), r| {
            (lo.min(r), hi.max(r))
        });
    let scale = BUCKETS as f32 / (highest - lowest).max(f32::MIN_POSITIVE);
    #[allow(clippy::cast_sign_loss)] // no rank is below `lowest`
    let bucket = |c: &Candidate| (((rank(c) - lowest) * scale) as usize).min(BUCKETS - 1);
    let mut weights = [0.0f64; BUCKETS];
    for candidate in candidates.iter() {
        weights[bucket(candidate)] += f64::from(candidate.weight);
    }
    let mut reached = 0.0;
    let Some(last_bucket) = weights.iter().position(|weight| {
        let enough = reached + weight >= wanted;
        if !enough {
            reached += weight;
        }
        enough
    }) else {
        return;
    };
    let mut in_bucket: Vec<Candidate> = candidates
        .iter()
        .copied()
        .filter(|c| bucket(c) == last_bucket)
        .collect();
    in_bucket.sort_unstable_by(by_rank);
    let cutoff = in_bucket
        .iter()
        .find(|c| {
            reached += f64::from(c.weight);
            reached >= wanted
        })
        .or(in_bucket.last())
        .copied();
    if let Some(cutoff) = cutoff {
        candidates.retain(|c| by_rank(c, &cutoff) != Ordering::Greater);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sampler::params;
    use super::*;
    use proptest::prelude::*;

    fn kept(params: &SamplingParams, logits: &[f32]) -> Vec<u32> {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut distribution = Distribution::default();
        let mut logits = logits.to_vec();
        distribution.weigh(&mut logits, highest, params.temperature);
        let candidates = distribution.filtered(&logits, params);
        candidates.iter().map(|c| c.id).collect()
    }

    /// Returns logits with probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 at ids 3, 1, 4, 0, 2.
    fn halves() -> Vec<f32> {
        [0.0625f32, 0.25, 0.0625, 0.5, 0.125].map(f32::ln).to_vec()
    }

    #[test]
    fn filters_keep_what_their_papers_say() {
        let with = |change: &dyn Fn(&mut SamplingParams)| {
            let mut params = params();
            change(&mut params);
            kept(&params, &halves())
        };
        assert_eq!(with(&|_| ()), [0, 1, 2, 3, 4]);
        assert_eq!(with(&|p| p.top_k = 2), [1, 3]);
        assert_eq!(with(&|p| p.top_k = 4), [0, 1, 3, 4]);
        assert_eq!(with(&|p| p.top_p = 0.7), [1, 3]);
        assert_eq!(with(&|p| p.top_p = 0.9), [0, 1, 3, 4]);
        assert_eq!(with(&|p| p.top_p = 0.01), [3]);
        assert_eq!(with(&|p| p.min_p = 0.2), [1, 3, 4]);
        // The entropy is 1.875 bits and the surprises are 1, 2, 3, 4, 4, so the token of 2 bits is nearest.
        assert_eq!(with(&|p| p.typical_p = 0.2), [1]);
        assert_eq!(with(&|p| p.typical_p = 0.7), [1, 3]);
    }

    /// Compares a walk over blocks with a plain one.
    #[test]
    fn a_walk_reaches_every_token_and_no_other() {
        let mut logits: Vec<f32> = (0..150).map(|i| (i % 7) as f32).collect();
        logits[3] = f32::NEG_INFINITY;
        let mut distribution = Distribution::default();
        distribution.weigh(&mut logits, 6.0, 1.0);
        let mut sum = 0.0;
        let total: f64 = distribution.weights.iter().map(|&w| f64::from(w)).sum();
        for (id, &weight) in (0..).zip(&distribution.weights) {
            if id == 3 {
                continue;
            }
            let middle = (sum + f64::from(weight) / 2.0) / total;
            assert_eq!(distribution.walk(middle), Some(id));
            sum += f64::from(weight);
        }
        assert_eq!(distribution.walk(1.0 - f64::EPSILON), Some(149));
    }

    proptest! {
        /// Compares the bucketed selection with a full sort.
        #[test]
        fn a_nucleus_is_the_shortest_run_of_a_full_sort(
            logits in prop::collection::vec(-20f32..20.0, 1..300), top_p in 0.01f32..0.99,
        ) {
            let kept = kept(&SamplingParams { top_p, ..params() }, &logits);
            let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sorted: Vec<(usize, f64)> = logits.iter().enumerate()
                .map(|(id, l)| (id, f64::from((l - highest).exp()))).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let total: f64 = sorted.iter().map(|s| s.1).sum();
            let mass: f64 = sorted.iter().take(kept.len()).map(|s| s.1).sum();
            let without_last: f64 = sorted.iter().take(kept.len() - 1).map(|s| s.1).sum();
            let wanted = f64::from(top_p) * total;
            prop_assert!(mass >= wanted - 1e-4 && without_last <= wanted + 1e-4);
            let mut expected: Vec<u32> = sorted.iter().take(kept.len()).map(|s| s.0 as u32).collect();
            expected.sort_unstable();
            prop_assert_eq!(kept, expected);
        }
    }

    proptest! {
        /// Compares the selection by blocks with a full sort.
        #[test]
        fn the_k_highest_are_those_of_a_full_sort(
            logits in prop::collection::vec(-8i8..8, 1..400), k in 1usize..50,
        ) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
            sorted.sort_by(|&a, &b| {
                logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
            });
            sorted.truncate(k);
            sorted.sort_unstable();
            prop_assert_eq!(kept(&SamplingParams { top_k: k, ..params() }, &logits), sorted);
        }
    }
}
