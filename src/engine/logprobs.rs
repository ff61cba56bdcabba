//! Log-probabilities under the model's own distribution, before sampling parameters.

use super::event::{GenerateError, TokenLogprob};
use crate::kernels::rows;

/// Returns the log-probabilities of one token and of the `top` most likely tokens, the lower id
/// first among equals.
#[must_use]
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> (TokenLogprob, Vec<TokenLogprob>) {
    let logprob = logprob_of(logits);
    let best = most_likely(logits, top).into_iter().map(&logprob).collect();
    (logprob(token), best)
}

/// Returns the `n` most likely tokens, the most likely first, the lower id first among equals.
///
/// # Errors
/// [`GenerateError::NotFinite`] if the logits hold NaN or infinity.
pub fn ranked(logits: &[f32], n: usize) -> Result<Vec<TokenLogprob>, GenerateError> {
    if !rows::all_finite(logits) {
        return Err(GenerateError::NotFinite);
    }
    let best = most_likely(logits, n).into_iter();
    Ok(best.map(logprob_of(logits)).collect())
}

/// Returns a function from tokens to their log-probabilities.
fn logprob_of(logits: &[f32]) -> impl Fn(u32) -> TokenLogprob {
    let normalizer = rows::log_sum_exp(logits);
    move |id| TokenLogprob {
        id,
        logprob: logits
            .get(id as usize)
            .map_or(f32::NEG_INFINITY, |logit| logit - normalizer),
    }
}

/// Returns the rank of a token, 1 for the most likely, the lower id first among equals.
#[must_use]
pub fn rank(logits: &[f32], token: u32) -> usize {
    let token = token as usize;
    let Some(&own) = logits.get(token) else {
        return logits.len() + 1;
    };
    let above = logits.iter().filter(|&&logit| logit > own).count();
    let equal = logits[..token].iter().filter(|&&logit| logit == own);
    1 + above + equal.count()
}

/// Returns the ids of the `n` highest logits, the highest first, the lower id first among equals.
pub(super) fn most_likely(logits: &[f32], n: usize) -> Vec<u32> {
    if n == 0 {
        return Vec::new();
    }
    let mut greatest = Vec::new();
    rows::greatest_of_blocks(logits, &mut greatest);
    let floor = rows::floor_of_greatest(&greatest, n);
    let mut best: Vec<(f32, u32)> = Vec::new();
    rows::select_at_least(logits, &greatest, floor, |id| {
        best.push((logits[id], id as u32));
    });
    best.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    best.truncate(n);
    best.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let halves = [0.0625f32, 0.25, 0.0625, 0.5, 0.125].map(f32::ln);
        let (token, top) = logprobs(&halves, 4, 3);
        assert!((token.logprob - 0.125f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|t| t.id).collect::<Vec<_>>(), [3, 1, 4]);
        assert_eq!(most_likely(&[1.0, 2.0, 2.0, 0.0], 3), [1, 2, 0]);
        assert_eq!(most_likely(&[1.0], 5), [0]);
        assert_eq!(ranked(&halves, 3), Ok(top));
        assert_eq!(ranked(&[0.0, f32::NAN], 1), Err(GenerateError::NotFinite));
    }

    #[test]
    fn a_rank_is_the_place_in_the_order_of_the_most_likely() {
        let logits = [1.0, 2.0, 2.0, 0.0, 3.0];
        let places = most_likely(&logits, 5);
        assert_eq!(places, [4, 1, 2, 0, 3]);
        for (place, token) in (1..).zip(places) {
            assert_eq!(rank(&logits, token), place);
        }
    }
}
