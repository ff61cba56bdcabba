//! Samples one token from a row of logits.
//!
//! Sampling is specified exactly, so that a seed gives the same tokens wherever the logits are the
//! same. The steps, in order:
//!
//! 1. repetition penalty: for every token in prompt or output once, a positive logit is divided
//!    by it, a negative one multiplied (Keskar et al. 2019, <https://arxiv.org/abs/1909.05858>);
//! 2. frequency and presence penalty: `logit -= count * frequency + (count > 0) * presence`,
//!    counted over generated tokens (OpenAI);
//! 3. `logit += logit_bias`; tokens that can't be sampled yet (`min_tokens`), or that the request's
//!    grammar forbids, get -inf;
//! 4. at temperature 0, the token with the highest logit, the lowest id among equals. Otherwise
//!    every logit becomes `(logit - highest) * (1 / temperature)`, and its weight is `exp` of that
//!    (`kernels::math`);
//! 5. `top_k`: the k highest logits; `top_p`: the shortest run from the highest whose weights reach
//!    that share (Holtzman et al. 2019, <https://arxiv.org/abs/1904.09751>); `min_p`: weights of at
//!    least that share of the highest; `typical_p`: the shortest run from the one whose surprise is
//!    nearest to the entropy that reaches that share (Meister et al. 2022,
//!    <https://arxiv.org/abs/2202.00666>). Each filter applies to the tokens that the previous one
//!    kept; among equals the lower id comes first;
//! 6. the n-th token (from 0) of a request takes 64 bits at word position `2 n` of the `ChaCha20`
//!    stream whose 256-bit key is the seed in little endian, then zeros; their upper 53 bits over
//!    2^53 are `u`. The remaining tokens are walked in order of id, and the first whose running sum
//!    of weights (in f64) exceeds `u` times the total is sampled. Without filters the walk goes
//!    first over the sums of 64 tokens each (`rows::block_sums`), then within one of these blocks.
//!
//! A sampler must never read another request's row, and its result is a function of its arguments
//! alone, so a preempted request samples the same tokens when it resumes.

mod trace;

use std::collections::HashMap;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::candidates::{Candidate, Distribution};
use super::event::GenerateError;
use crate::kernels::rows;
use crate::request::SamplingParams;

/// Samples the tokens of one request.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha20Rng,
    /// Number of occurrences of each generated token.
    generated: HashMap<u32, u32>,
    /// The distinct tokens of prompt and output; empty without a repetition penalty.
    seen: Vec<u32>,
    is_seen: Vec<bool>,
}

/// Working memory for sampling from one row, reused from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    logits: Vec<f32>,
    distribution: Distribution,
}

/// The tokens that may be sampled.
#[derive(Debug, Clone, Copy)]
pub enum Allowed<'a> {
    /// All except these.
    AllBut(&'a [u32]),
    /// Those whose bit is set: bit `id % 32` of word `id / 32`.
    Only(&'a [u32]),
}

impl Allowed<'_> {
    /// Returns the only allowed token, if exactly one is allowed.
    fn single(self) -> Option<u32> {
        let Self::Only(mask) = self else {
            return None;
        };
        let mut set = (0..).zip(mask).filter(|(_, word)| **word != 0);
        let (n, word) = set.next()?;
        (word.is_power_of_two() && set.next().is_none()).then(|| 32 * n + word.trailing_zeros())
    }

    /// Sets the logits of all other tokens to -inf.
    fn apply(self, row: &mut [f32]) {
        match self {
            Self::AllBut(banned) => {
                for &token in banned {
                    if let Some(logit) = row.get_mut(token as usize) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
            Self::Only(mask) => rows::keep(row, mask),
        }
    }
}

impl Sampler {
    /// Creates the sampler of a request whose prompt, a session's history included, is `prompt`.
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

    /// Records a generated token, for the penalties.
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

    /// Samples the `n`-th token of the request (from 0) from its own row of logits, among the
    /// `allowed` tokens.
    ///
    /// # Errors
    /// [`GenerateError::NotFinite`] if the model's logits hold NaN or infinity,
    /// [`GenerateError::NoCandidates`] if no token can be sampled.
    pub fn sample(
        &mut self,
        logits: &[f32],
        n: usize,
        allowed: Allowed<'_>,
        scratch: &mut Scratch,
    ) -> Result<u32, GenerateError> {
        let greedy = self.params.temperature <= 0.0;
        if greedy && matches!(allowed, Allowed::AllBut([])) && !self.penalizes() {
            return highest(logits).map(|(id, _)| id);
        }
        if let Some(only) = allowed.single() {
            // The only allowed token is sampled regardless of its weight.
            return if rows::all_finite(logits) {
                Ok(only)
            } else {
                Err(GenerateError::NotFinite)
            };
        }
        let row = &mut scratch.logits;
        row.clear();
        row.extend_from_slice(logits);
        self.penalize(row);
        if !rows::all_finite(row) {
            return Err(GenerateError::NotFinite);
        }
        allowed.apply(row);
        let (best, highest) = highest_of(row)?;
        if greedy {
            return Ok(best);
        }
        let u = self.uniform(n);
        let distribution = &mut scratch.distribution;
        distribution.weigh(row, highest, self.params.temperature);
        let drawn = if self.filters() {
            pick(&distribution.filtered(row, &self.params), u)
        } else {
            distribution.walk(u)
        };
        drawn.ok_or(GenerateError::NoCandidates)
    }

    /// Returns whether steps 1 to 3 change any logit.
    fn penalizes(&self) -> bool {
        let params = &self.params;
        !self.seen.is_empty()
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0
            || !params.logit_bias.is_empty()
    }

    /// Returns whether step 5 has any filter.
    fn filters(&self) -> bool {
        let params = &self.params;
        params.top_k > 0 || params.top_p < 1.0 || params.min_p > 0.0 || params.typical_p < 1.0
    }

    /// Applies steps 1 to 3, except for forbidden tokens.
    fn penalize(&self, logits: &mut [f32]) {
        self.penalize_repetition(logits);
        self.penalize_occurrence(logits);
        self.bias(logits);
    }

    /// Applies step 1.
    fn penalize_repetition(&self, logits: &mut [f32]) {
        let penalty = self.params.repetition_penalty;
        for &token in &self.seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                let penalized = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
                // A tiny penalty can make a finite logit overflow, which is not the model's fault.
                *logit = if logit.is_finite() {
                    penalized.clamp(f32::MIN, f32::MAX)
                } else {
                    penalized
                };
            }
        }
    }

    /// Applies step 2.
    fn penalize_occurrence(&self, logits: &mut [f32]) {
        let (presence, frequency) = (self.params.presence_penalty, self.params.frequency_penalty);
        if presence != 0.0 || frequency != 0.0 {
            for (&token, &count) in &self.generated {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit -= count as f32 * frequency + presence;
                }
            }
        }
    }

    /// Applies step 3, except for forbidden tokens.
    fn bias(&self, logits: &mut [f32]) {
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }

    /// Returns step 6's `u` for the `n`-th token, in [0, 1).
    fn uniform(&mut self, n: usize) -> f64 {
        self.rng.set_word_pos(2 * n as u128);
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Returns the token with the highest logit, and that logit, of a row from the model.
fn highest(logits: &[f32]) -> Result<(u32, f32), GenerateError> {
    if !rows::all_finite(logits) {
        return Err(GenerateError::NotFinite);
    }
    highest_of(logits)
}

/// Returns the token with the highest logit, and that logit; some but not all may be negative
/// infinity.
fn highest_of(logits: &[f32]) -> Result<(u32, f32), GenerateError> {
    rows::argmax(logits)
        .filter(|&(_, highest)| highest > f32::NEG_INFINITY)
        .and_then(|(id, highest)| Some((u32::try_from(id).ok()?, highest)))
        .ok_or(GenerateError::NoCandidates)
}

/// Returns the candidate at `u` of the cumulative weights, in order of id.
fn pick(candidates: &[Candidate], u: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let threshold = u * total;
    let mut sum = 0.0;
    let drawn = candidates.iter().find(|candidate| {
        sum += f64::from(candidate.weight);
        sum > threshold
    });
    drawn.or(candidates.last()).map(|candidate| candidate.id)
}

/// Returns neutral parameters, for tests of a single one.
#[cfg(test)]
pub(super) fn params() -> SamplingParams {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns logits with probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 at ids 3, 1, 4, 0, 2.
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
    fn the_smallest_penalty_leaves_something_to_draw() {
        let smallest = SamplingParams {
            repetition_penalty: f32::MIN_POSITIVE,
            ..params()
        };
        let mut sampler = Sampler::new(smallest, &[1, 2], 4);
        let mut draw =
            |row: [f32; 4]| sampler.sample(&row, 0, Allowed::AllBut(&[]), &mut Scratch::default());
        assert_eq!(draw([3.0, -2.0, 1.0, 2.0]), Ok(2));
        assert_eq!(
            draw([3.0, f32::INFINITY, 1.0, 2.0]),
            Err(GenerateError::NotFinite)
        );
    }

    #[test]
    fn rows_that_allow_no_draw_are_errors_not_panics() {
        let mut sampler = Sampler::new(params(), &[], 2);
        let mut draw = |row: [f32; 2], banned: &[u32]| {
            sampler.sample(&row, 0, Allowed::AllBut(banned), &mut Scratch::default())
        };
        assert_eq!(draw([f32::NAN, 0.0], &[]), Err(GenerateError::NotFinite));
        assert_eq!(
            draw([f32::INFINITY, 0.0], &[]),
            Err(GenerateError::NotFinite)
        );
        assert_eq!(draw([0.0, 0.0], &[0, 1]), Err(GenerateError::NoCandidates));
        assert_eq!(draw([0.0, 0.0], &[0]), Ok(1));
    }

    #[test]
    fn a_mask_leaves_its_tokens_and_their_shares() {
        let mut scratch = Scratch::default();
        let mut greedy = Sampler::new(
            SamplingParams {
                temperature: 0.0,
                ..params()
            },
            &[],
            5,
        );
        let mut sample =
            |mask: u32| greedy.sample(&halves(), 0, Allowed::Only(&[mask]), &mut scratch);
        assert_eq!(sample(0b11111), Ok(3));
        assert_eq!(sample(0b10111), Ok(1));
        assert_eq!(sample(0b00101), Ok(0), "the lower id among equals");
        assert_eq!(sample(0b00100), Ok(2));
        assert_eq!(sample(0), Err(GenerateError::NoCandidates));
        let mut sampler = Sampler::new(params(), &[], 5);
        let mut counts = [0u32; 5];
        for n in 0..12_000 {
            let allowed = Allowed::Only(&[0b01010]);
            counts[sampler.sample(&halves(), n, allowed, &mut scratch).unwrap() as usize] += 1;
        }
        assert!(counts[1].abs_diff(4000) < 200 && counts[1] + counts[3] == 12_000);
    }

    #[test]
    fn a_mask_of_one_token_is_no_draw_but_the_row_is_still_looked_at() {
        let mut sampler = Sampler::new(params(), &[], 40);
        let mut draw = |row: &[f32], mask: &[u32]| {
            sampler.sample(row, 0, Allowed::Only(mask), &mut Scratch::default())
        };
        assert_eq!(draw(&[0.0; 40], &[0, 0b10]), Ok(33));
        assert_eq!(
            draw(&[f32::NAN; 40], &[0, 0b10]),
            Err(GenerateError::NotFinite)
        );
    }

    #[test]
    fn draws_follow_the_distribution() {
        let mut sampler = Sampler::new(params(), &[], 5);
        let mut counts = [0u32; 5];
        let mut scratch = Scratch::default();
        for n in 0..16_000 {
            counts[sampler
                .sample(&halves(), n, Allowed::AllBut(&[]), &mut scratch)
                .unwrap() as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([1000, 4000, 1000, 8000, 2000]) {
            assert!(count.abs_diff(expected) < 200, "{counts:?}");
        }
    }
}
