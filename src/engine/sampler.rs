//! From a row of logits to one token.
//!
//! The draw is specified, so that a seed gives the same tokens everywhere the logits are the
//! same. In this order:
//!
//! 1. repetition penalty: for every token in prompt or output once, a positive logit is divided
//!    by it, a negative one multiplied (Keskar et al. 2019, <https://arxiv.org/abs/1909.05858>);
//! 2. frequency and presence penalty: `logit -= count * frequency + (count > 0) * presence`,
//!    counted over generated tokens (OpenAI);
//! 3. `logit += logit_bias`; tokens that may not be drawn yet (`min_tokens`) get -inf;
//! 4. temperature 0: the highest logit, the lowest id among equals. Else every logit becomes
//!    `(logit - highest) / temperature`, and its weight is `exp` of that (`kernels::math`);
//! 5. `top_k`: the k highest logits; `top_p`: the shortest run from the highest whose weights
//!    reach that share (Holtzman et al. 2019, <https://arxiv.org/abs/1904.09751>); `min_p`:
//!    weights of at least that share of the highest; `typical_p`: the shortest run from the one
//!    whose surprise is nearest to the entropy that reaches that share (Meister et al. 2022,
//!    <https://arxiv.org/abs/2202.00666>). Each works on what the one before left; among equals
//!    the lower id goes first;
//! 6. the n-th token (from 0) of a request takes 64 bits at word position `2 n` of the `ChaCha20`
//!    stream whose 256-bit key is the seed in little endian, then zeros; their upper 53 bits over
//!    2^53 are `u`. The tokens left are walked in order of id, and the first whose running sum of
//!    weights (in f64) exceeds `u` times the whole sum is drawn.
//!
//! A sampler must never look at another request's row, and its work is a function of its
//! arguments alone: a preempted or resumed request draws what it would have drawn.

use std::cmp::Ordering;
use std::collections::HashMap;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::event::{GenerateError, TokenLogprob};
use crate::kernels::rows;
use crate::request::SamplingParams;

/// Draws the tokens of one request.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha20Rng,
    /// How often each token was generated.
    generated: HashMap<u32, u32>,
    /// Every token of prompt and output once; kept only where the repetition penalty needs it.
    seen: Vec<u32>,
    is_seen: Vec<bool>,
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    /// After temperature, less the highest: at most 0.
    logit: f32,
    weight: f32,
}

impl Sampler {
    /// A sampler for a request whose prompt, a session's history included, is `prompt`.
    #[must_use]
    pub fn new(params: SamplingParams, prompt: &[u32], vocab_size: usize) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&params.seed.to_le_bytes());
        #[allow(clippy::float_cmp)] // 1 is the exact value that means "none"
        let penalizes_repetition = params.repetition_penalty != 1.0;
        let mut sampler = Self {
            params,
            rng: ChaCha20Rng::from_seed(key),
            generated: HashMap::new(),
            seen: Vec::new(),
            is_seen: vec![false; if penalizes_repetition { vocab_size } else { 0 }],
        };
        for &token in prompt {
            sampler.see(token);
        }
        sampler
    }

    /// Takes note of a generated token.
    pub fn accept(&mut self, token: u32) {
        *self.generated.entry(token).or_default() += 1;
        self.see(token);
    }

    fn see(&mut self, token: u32) {
        if let Some(seen) = self.is_seen.get_mut(token as usize)
            && !*seen
        {
            *seen = true;
            self.seen.push(token);
        }
    }

    /// Draws the `n`-th token of the request (from 0). `logits` is the request's own row and is
    /// overwritten; tokens in `banned` are not drawn.
    ///
    /// # Errors
    /// [`GenerateError::NotFinite`] if the model's logits hold NaN or infinity,
    /// [`GenerateError::NoCandidates`] if nothing may be drawn.
    pub fn draw(
        &mut self,
        logits: &mut [f32],
        n: usize,
        banned: &[u32],
    ) -> Result<u32, GenerateError> {
        self.penalize(logits);
        if !rows::all_finite(logits) {
            return Err(GenerateError::NotFinite);
        }
        for &token in banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let (best, highest) = rows::argmax(logits).ok_or(GenerateError::NoCandidates)?;
        if highest == f32::NEG_INFINITY {
            return Err(GenerateError::NoCandidates);
        }
        if self.params.temperature <= 0.0 {
            return u32::try_from(best).map_err(|_| GenerateError::NoCandidates);
        }
        let u = self.uniform(n);
        for logit in logits.iter_mut() {
            *logit = (*logit - highest) / self.params.temperature;
        }
        let drawn = if self.filters() {
            let candidates = self.candidates(logits);
            pick(candidates.iter().map(|c| (c.id, c.weight)), u)
        } else {
            rows::exp_in_place(logits);
            pick((0..).zip(logits.iter().copied()), u)
        };
        drawn.ok_or(GenerateError::NoCandidates)
    }

    /// Whether step 5 has anything to do.
    fn filters(&self) -> bool {
        let params = &self.params;
        params.top_k > 0 || params.top_p < 1.0 || params.min_p > 0.0 || params.typical_p < 1.0
    }

    /// Steps 1 to 3, but for what is banned.
    fn penalize(&self, logits: &mut [f32]) {
        let penalty = self.params.repetition_penalty;
        for &token in &self.seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
        let (presence, frequency) = (self.params.presence_penalty, self.params.frequency_penalty);
        if presence != 0.0 || frequency != 0.0 {
            for (&token, &count) in &self.generated {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit -= count as f32 * frequency + presence;
                }
            }
        }
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }

    /// Step 5: what may be drawn of logits already divided by the temperature, less the highest;
    /// in order of id.
    fn candidates(&self, logits: &[f32]) -> Vec<Candidate> {
        let params = &self.params;
        let mut weights = logits.to_vec();
        rows::exp_in_place(&mut weights);
        let mut candidates: Vec<Candidate> = (0..)
            .zip(logits)
            .zip(&weights)
            .map(|((id, &logit), &weight)| Candidate { id, logit, weight })
            .collect();
        if (1..candidates.len()).contains(&params.top_k) {
            candidates.select_nth_unstable_by(params.top_k - 1, |a, b| {
                b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
            });
            candidates.truncate(params.top_k);
            candidates.sort_unstable_by_key(|c| c.id);
        }
        // A weight that vanishes can never be drawn.
        candidates.retain(|c| c.weight > 0.0);
        if params.top_p < 1.0 {
            keep_share(&mut candidates, |c| -c.logit, params.top_p);
        }
        if params.min_p > 0.0 {
            candidates.retain(|c| c.weight >= params.min_p);
        }
        if params.typical_p < 1.0 {
            let total = total_weight(&candidates);
            let log_total = total.ln();
            let entropy = candidates
                .iter()
                .map(|c| f64::from(c.weight) / total * (log_total - f64::from(c.logit)))
                .sum::<f64>();
            let distance =
                |c: &Candidate| ((log_total - f64::from(c.logit) - entropy).abs()) as f32;
            keep_share(&mut candidates, distance, params.typical_p);
        }
        candidates
    }

    /// Step 6's `u` for the `n`-th token, in [0, 1).
    fn uniform(&mut self, n: usize) -> f64 {
        self.rng.set_word_pos(2 * n as u128);
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn total_weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

/// Walks tokens and their weights in order of id to the one `u` falls on.
fn pick(candidates: impl Iterator<Item = (u32, f32)> + Clone, u: f64) -> Option<u32> {
    let total: f64 = candidates.clone().map(|c| f64::from(c.1)).sum();
    let threshold = u * total;
    let mut sum = 0.0;
    let mut last = None;
    for (id, weight) in candidates {
        sum += f64::from(weight);
        if sum > threshold {
            return Some(id);
        }
        if weight > 0.0 {
            last = Some(id);
        }
    }
    last
}

/// Keeps the shortest run of candidates, lowest `rank` first, whose weights reach `share` of the
/// whole; at least one. Instead of sorting them all, counts their weights into buckets by rank
/// and sorts only the bucket in which the share is reached.
fn keep_share(candidates: &mut Vec<Candidate>, rank: impl Fn(&Candidate) -> f32, share: f32) {
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
    #[allow(clippy::cast_sign_loss)] // `lowest` is the lowest
    let bucket = |c: &Candidate| (((rank(c) - lowest) * scale) as usize).min(BUCKETS - 1);
    let mut weights = [0.0f64; BUCKETS];
    for candidate in candidates.iter() {
        weights[bucket(candidate)] += f64::from(candidate.weight);
    }
    let wanted = f64::from(share) * weights.iter().sum::<f64>();
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

/// The log-probability of one token, and of the `top` most likely ones (the lower id first among
/// equals), under the distribution these logits stand for.
#[must_use]
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> (TokenLogprob, Vec<TokenLogprob>) {
    let normalizer = rows::log_sum_exp(logits);
    let logprob = |id: u32| TokenLogprob {
        id,
        logprob: logits
            .get(id as usize)
            .map_or(f32::NEG_INFINITY, |logit| logit - normalizer),
    };
    let best = most_likely(logits, top).into_iter().map(logprob).collect();
    (logprob(token), best)
}

/// The ids of the `n` highest logits, highest first.
fn most_likely(logits: &[f32], n: usize) -> Vec<u32> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(n + 1);
    if n == 0 {
        return Vec::new();
    }
    for (id, &logit) in (0..).zip(logits) {
        if best.len() == n && best.last().is_some_and(|&(worst, _)| logit <= worst) {
            continue;
        }
        let at = best.partition_point(|&(other, _)| other >= logit);
        best.insert(at, (logit, id));
        best.truncate(n);
    }
    best.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn params() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 1,
        }
    }

    fn kept(params: SamplingParams, logits: &[f32]) -> Vec<u32> {
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let temperature = params.temperature;
        let sampler = Sampler::new(params, &[], logits.len());
        let logits: Vec<f32> = logits.iter().map(|l| (l - highest) / temperature).collect();
        let candidates = sampler.candidates(&logits);
        candidates.iter().map(|c| c.id).collect()
    }

    /// Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 at ids 3, 1, 4, 0, 2.
    fn halves() -> Vec<f32> {
        [0.0625f32, 0.25, 0.0625, 0.5, 0.125].map(f32::ln).to_vec()
    }

    #[test]
    fn the_generator_is_the_one_specified() {
        // RFC 7539's ChaCha20 keystream for an all-zero key and nonce begins 76b8e0ada0f13d90.
        let mut sampler = Sampler::new(
            SamplingParams {
                seed: 0,
                ..params()
            },
            &[],
            4,
        );
        let bits = u64::from_le_bytes([0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
        let expected = (bits >> 11) as f64 / 2f64.powi(53);
        let later = sampler.uniform(7);
        assert_eq!(sampler.uniform(0).to_bits(), expected.to_bits());
        assert_eq!(sampler.uniform(7).to_bits(), later.to_bits());
    }

    #[test]
    fn filters_keep_what_their_papers_say() {
        let with = |change: &dyn Fn(&mut SamplingParams)| {
            let mut params = params();
            change(&mut params);
            kept(params, &halves())
        };
        assert_eq!(with(&|_| ()), [0, 1, 2, 3, 4]);
        assert_eq!(with(&|p| p.top_k = 2), [1, 3]);
        assert_eq!(with(&|p| p.top_k = 4), [0, 1, 3, 4]);
        assert_eq!(with(&|p| p.top_p = 0.7), [1, 3]);
        assert_eq!(with(&|p| p.top_p = 0.9), [0, 1, 3, 4]);
        assert_eq!(with(&|p| p.top_p = 0.01), [3]);
        assert_eq!(with(&|p| p.min_p = 0.2), [1, 3, 4]);
        // Entropy is 1.875 bits; surprises are 1, 2, 3, 4, 4: the nearest is the token of 2.
        assert_eq!(with(&|p| p.typical_p = 0.2), [1]);
        assert_eq!(with(&|p| p.typical_p = 0.7), [1, 3]);
    }

    #[test]
    fn penalties_and_bias_change_the_logits_they_name() {
        let mut sampler = Sampler::new(
            SamplingParams {
                repetition_penalty: 2.0,
                presence_penalty: 0.5,
                frequency_penalty: 0.25,
                logit_bias: vec![(3, 10.0)],
                ..params()
            },
            &[0, 1, 1],
            5,
        );
        sampler.accept(1);
        sampler.accept(2);
        sampler.accept(2);
        let mut logits = [1.0, -1.0, 1.0, 1.0, 1.0];
        sampler.penalize(&mut logits);
        assert_eq!(logits, [0.5, -2.75, -0.5, 11.0, 1.0]);
    }

    #[test]
    fn rows_that_allow_no_draw_are_errors_not_panics() {
        let mut sampler = Sampler::new(params(), &[], 2);
        let mut draw = |row: [f32; 2], banned: &[u32]| sampler.draw(&mut row.clone(), 0, banned);
        assert_eq!(draw([f32::NAN, 0.0], &[]), Err(GenerateError::NotFinite));
        assert_eq!(
            draw([f32::INFINITY, 0.0], &[]),
            Err(GenerateError::NotFinite)
        );
        assert_eq!(draw([0.0, 0.0], &[0, 1]), Err(GenerateError::NoCandidates));
        assert_eq!(draw([0.0, 0.0], &[0]), Ok(1));
    }

    #[test]
    fn draws_follow_the_distribution() {
        let mut sampler = Sampler::new(params(), &[], 5);
        let mut counts = [0u32; 5];
        for n in 0..16_000 {
            counts[sampler.draw(&mut halves(), n, &[]).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([1000, 4000, 1000, 8000, 2000]) {
            assert!(count.abs_diff(expected) < 200, "{counts:?}");
        }
    }

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let (token, top) = logprobs(&halves(), 4, 3);
        assert!((token.logprob - 0.125f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|t| t.id).collect::<Vec<_>>(), [3, 1, 4]);
        assert_eq!(most_likely(&[1.0, 2.0, 2.0, 0.0], 3), [1, 2, 0]);
        assert_eq!(most_likely(&[1.0], 5), [0]);
    }

    proptest! {
        /// The bucketed selection equals a full sort.
        #[test]
        fn a_nucleus_is_the_shortest_run_of_a_full_sort(
            logits in prop::collection::vec(-20f32..20.0, 1..300), top_p in 0.01f32..0.99,
        ) {
            let kept = kept(SamplingParams { top_p, ..params() }, &logits);
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
}
