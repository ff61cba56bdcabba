//! The attention weights of one row, which the kernels never store: computed again from its query and the
//! cached keys, to look at.

use half::bf16;

use super::shape::AttentionShape;
use crate::kernels::kv::KvDtype;

/// Returns the weights of one query over the keys of its context, `[positions, head_width]`, of which its own is
/// the last: `[positions]`. Over a bf16 cache the query is rounded as the kernels round it.
#[must_use]
pub fn weights(shape: &AttentionShape, query: &[f32], keys: &[f32], dtype: KvDtype) -> Vec<f32> {
    softmax(&scores(shape, query, keys, dtype))
}

/// Returns the scores that [`weights`] are the softmax of, `[positions]`: `q K^T * scale`, capped; negative
/// infinity for positions before the window.
#[must_use]
pub fn scores(shape: &AttentionShape, query: &[f32], keys: &[f32], dtype: KvDtype) -> Vec<f64> {
    let query: Vec<f32> = match dtype {
        KvDtype::F32 => query.to_vec(),
        KvDtype::Bf16 => query.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
    };
    let keys = keys.chunks_exact(query.len().max(1));
    let first = shape.first_visible(keys.len().saturating_sub(1));
    let scores = keys.enumerate().map(|(position, key)| {
        if position < first {
            return f64::NEG_INFINITY;
        }
        let products = query.iter().zip(key);
        let dot: f64 = products.map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        let score = dot * f64::from(shape.scale);
        match shape.soft_cap.map(f64::from) {
            Some(cap) => cap * (score / cap).tanh(),
            None => score,
        }
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
    fn weights_are_a_softmax_of_scaled_products_of_what_is_seen() {
        // Scores 1 and 1 + ln 3 after division by sqrt(4).
        let (query, three) = ([2.0, 0.0, 0.0, 0.0], 3f32.ln());
        let keys = [1.0, 9.0, 9.0, 9.0, 1.0 + three, 0.0, 0.0, 0.0];
        let plain = AttentionShape::multi_head(1, 4);
        let found = weights(&plain, &query, &keys, KvDtype::F32);
        assert!(
            (found[0] - 0.25).abs() < 1e-6 && (found[1] - 0.75).abs() < 1e-6,
            "{found:?}"
        );
        assert_eq!(weights(&plain, &query, &keys[..4], KvDtype::F32), [1.0]);
        let window = AttentionShape {
            window: Some(1),
            ..plain
        };
        assert_eq!(weights(&window, &query, &keys, KvDtype::F32), [0.0, 1.0]);
        let capped = AttentionShape {
            soft_cap: Some(2.0),
            ..plain
        };
        let found = scores(&capped, &query, &keys[..4], KvDtype::F32);
        assert!((found[0] - 2.0 * 0.5f64.tanh()).abs() < 1e-12, "{found:?}");
    }
}
