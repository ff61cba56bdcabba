//! The forward pass that a model must survive before it is served.
//!
//! Weights can be finite and their model useless all the same: too large for their precision, or a
//! layer norm's epsilon that is not the model's. Every request would fail then, and the server would
//! say that it is ready.

use candle_core::Tensor;

use super::Model;
use super::batch::Batch;
use crate::kernels::kv::{BLOCK_SIZE, KvDtype, SequenceSpan};
use crate::kernels::rows;

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// What it computes can't be drawn from.
    #[error(
        "the model computes {what} that are not finite (NaN or infinity) from the tokens {ids:?}: \
         its weights, or `layer_norm_epsilon` in its config.json, are not usable as {dtype}"
    )]
    NotFinite {
        /// `hidden states` or `logits`.
        what: &'static str,
        /// The prompt.
        ids: Vec<u32>,
        /// How the weights are held.
        dtype: String,
    },
    /// The pass failed.
    #[error("the model's first forward pass failed: {0}")]
    Failed(#[from] candle_core::Error),
}

/// Runs a prompt of some tokens, spread over the vocabulary, through a model whose weights are held
/// as `dtype`.
///
/// # Errors
/// [`TrialError`] if that fails or gives numbers that are not finite.
pub fn run(model: &Model, kv_dtype: KvDtype, dtype: &str) -> Result<(), TrialError> {
    let spec = model.spec();
    let count = BLOCK_SIZE.min(spec.context_length);
    // Both ends of the vocabulary are among them.
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
        }],
        logits_rows: all.clone(),
        hidden_rows: all,
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
