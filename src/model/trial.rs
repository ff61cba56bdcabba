//! The trial forward pass before a model is served.
//!
//! Weights can be finite and still make the model useless, for example if they are too large for
//! their precision, or if a norm's epsilon is wrong. Every request would fail, while the
//! server reports that it is ready.

use candle_core::Tensor;

use super::Model;
use super::batch::Batch;
use crate::kernels::kv::{BLOCK_SIZE, KvDtype, SequenceSpan};
use crate::kernels::rows;

/// Error of a model's trial forward pass.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// Its outputs are not finite, so no token can be sampled.
    #[error(
        "the model computes {what} that are not finite (NaN or infinity) from the tokens {ids:?}: \
         its weights, or the epsilon of its norms in config.json, are not usable as {dtype}"
    )]
    NotFinite {
        /// `hidden states` or `logits`.
        what: &'static str,
        /// Token ids of the prompt.
        ids: Vec<u32>,
        /// Precision of the weights.
        dtype: String,
    },
    /// The pass failed.
    #[error("the model's first forward pass failed: {0}")]
    Failed(#[from] candle_core::Error),
}

/// Runs a prompt of tokens spread over the vocabulary through a model; `dtype` names the precision
/// of its weights in errors.
///
/// # Errors
/// [`TrialError`] if the forward pass fails or its outputs are not finite.
pub fn run(model: &Model, kv_dtype: KvDtype, dtype: &str) -> Result<(), TrialError> {
    let spec = model.spec();
    let count = BLOCK_SIZE.min(spec.context_length);
    // The tokens include both ends of the vocabulary.
    let last = spec.vocab_size.saturating_sub(1);
    let ids = (0..count).map(|i| (i * last / (count - 1).max(1)) as u32);
    let all: Vec<u32> = (0..count as u32).collect();
    let ids: Vec<u32> = ids.collect();
    let batch = Batch {
        ids: ids.clone(),
        positions: all.clone(),
        spans: vec![SequenceSpan {
            rows: 0..count,
            first_position: 0,
            block_table: vec![0],
            window_table: Vec::new(),
        }],
        logits_rows: all.clone(),
        hidden_rows: all,
        ..Batch::default()
    };
    let kv = model.kv_cache(kv_dtype, 1)?;
    let outputs = model.forward(batch, &kv)?;
    for (what, values) in [
        ("hidden states", outputs.hidden),
        ("logits", outputs.logits),
    ] {
        if !is_finite(&values)? {
            return Err(TrialError::NotFinite {
                what,
                ids,
                dtype: dtype.to_owned(),
            });
        }
    }
    Ok(())
}

fn is_finite(values: &Tensor) -> candle_core::Result<bool> {
    let values = values.flatten_all()?.to_vec1::<f32>()?;
    Ok(rows::all_finite(&values))
}
