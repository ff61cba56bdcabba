//! The attention weights of one row, which the kernels never store: computed again from its query and the
//! cached keys, to look at.

use half::bf16;

use crate::kernels::kv::KvDtype;

/// Returns `softmax(q K^T / sqrt(head_width))` of one query over the keys of its context,
/// `[positions, head_width]`: `[positions]`. Over a bf16 cache the query is rounded as the kernels round it.
#[must_use]
pub fn weights(query: &[f32], keys: &[f32], dtype: KvDtype) -> Vec<f32> {
    softmax(&scores(query, keys, dtype))
}

/// Returns the scores that [`weights`] are the softmax of: `[positions]`.
#[must_use]
pub fn scores(query: &[f32], keys: &[f32], dtype: KvDtype) -> Vec<f64> {
    let query: Vec<f32> = match dtype {
        KvDtype::F32 => query.to_vec(),
        KvDtype::Bf16 => query.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
    };
    let scale = 1.0 / (query.len() as f64).sqrt();
    let scores = keys.chunks_exact(query.len().max(1)).map(|key| {
        let products = query.iter().zip(key);
        let dot: f64 = products.map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        dot * scale
    });
    scores.collect()
}

/// Returns the softmax of scores.
#[must_use]
pub fn softmax(scores: &[f64]) -> Vec<f32> {
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    #[expect(clippy::cast_possible_truncation, reason = "0 to 1")]
    let weights = exps.into_iter().map(|exp| (exp / sum) as f32);
    weights.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_a_softmax_of_scaled_products() {
        // Scores 1 and 1 + ln 3 after division by sqrt(4).
        let (query, three) = ([2.0, 0.0, 0.0, 0.0], 3f32.ln());
        let keys = [1.0, 9.0, 9.0, 9.0, 1.0 + three, 0.0, 0.0, 0.0];
        let found = weights(&query, &keys, KvDtype::F32);
        assert!(
            (found[0] - 0.25).abs() < 1e-6 && (found[1] - 0.75).abs() < 1e-6,
            "{found:?}"
        );
        assert_eq!(weights(&query, &keys[..4], KvDtype::F32), [1.0]);
    }
}
