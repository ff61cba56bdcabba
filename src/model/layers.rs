//! Code shared by the architectures: layers from a checkpoint's tensors, embeddings, and the
//! selection of rows.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::backend::{Backend, Linear, Norm};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::weights::{Embedding, TensorView, WeightsError};
use crate::kernels::linear::{Epilogue, MatrixOrder, RawWeight};

/// Embeddings that are widened at once.
const EMBEDDINGS: usize = 256;

/// Error of loading a model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor is missing or does not match the configuration.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The architecture is not implemented.
    #[error("models of the architecture {0} can't be served yet")]
    Architecture(&'static str),
    /// The backend could not prepare the weights.
    #[error("the model's weights could not be prepared: {0}")]
    Backend(#[from] candle_core::Error),
}

/// Creates layers from the tensors of a checkpoint.
pub(super) struct Loader<'a> {
    pub checkpoint: &'a Checkpoint,
    pub backend: &'a dyn Backend,
}

impl Loader<'_> {
    /// Reads a tensor's values.
    pub fn values(&self, name: &str, shape: &[usize]) -> std::result::Result<Vec<f32>, LoadError> {
        Ok(self.checkpoint.finite_tensor(name, shape)?.to_f32())
    }

    /// Creates a layer norm from `NAME.weight` and `NAME.bias`, `[width]` each.
    pub fn layer_norm(
        &self,
        name: &str,
        width: usize,
        eps: f64,
    ) -> std::result::Result<Box<dyn Norm>, LoadError> {
        let weight = self.values(&format!("{name}.weight"), &[width])?;
        let bias = self.values(&format!("{name}.bias"), &[width])?;
        Ok(self.backend.layer_norm(&weight, &bias, eps)?)
    }

    /// Creates a linear layer from `NAME.weight`, `[in, out]`, and `NAME.bias`, `[out]`: GPT-2's
    /// `Conv1D`.
    pub fn conv1d(
        &self,
        name: &str,
        in_features: usize,
        out_features: usize,
    ) -> std::result::Result<Box<dyn Linear>, LoadError> {
        let weight = format!("{name}.weight");
        let weight = self
            .checkpoint
            .finite_tensor(&weight, &[in_features, out_features])?;
        let weight = raw(&weight, MatrixOrder::InOut, in_features, out_features);
        let bias = self.values(&format!("{name}.bias"), &[out_features])?;
        Ok(self.backend.linear(&[weight], Some(&bias))?)
    }

    /// Creates a linear layer without bias from a tensor `[out, in]`: an output projection.
    pub fn projection(
        &self,
        weight: &TensorView<'_>,
        in_features: usize,
        out_features: usize,
    ) -> Result<Box<dyn Linear>> {
        let weight = raw(weight, MatrixOrder::OutIn, in_features, out_features);
        self.backend.linear(&[weight], None)
    }
}

fn raw<'a>(
    tensor: &'a TensorView<'_>,
    order: MatrixOrder,
    in_features: usize,
    out_features: usize,
) -> RawWeight<'a> {
    RawWeight {
        bytes: &tensor.bytes,
        dtype: tensor.dtype,
        order,
        in_features,
        out_features,
    }
}

/// Links each layer to the one computed after it, and the last to the first, for prefetching.
pub(super) fn chain<'a>(layers: impl Iterator<Item = &'a dyn Linear> + Clone) {
    let following = layers.clone().cycle().skip(1);
    for (layer, next) in layers.zip(following) {
        layer.set_next(next.memory());
    }
}

/// A model's first and last matrices, which may be the same: token embeddings and the output
/// projection.
pub(super) struct Vocabulary {
    /// Separate token embeddings. `None` if they are tied to the output projection; its weights are
    /// then used, so that the largest matrix is in memory only once.
    pub embedding: Option<Embedding>,
    /// `[hidden_width] -> [vocab_size]`
    pub projection: Box<dyn Linear>,
    pub vocab_size: usize,
}

impl Vocabulary {
    /// Adds the tokens' embeddings to the rows of `x`, `[ids, hidden_width]`.
    pub fn add_embeddings(&self, ids: &[u32], x: &mut [f32]) -> Result<()> {
        match &self.embedding {
            None => self.projection.add_weights_of(ids, x),
            Some(embedding) => embedding.add_rows(ids, x).map_err(candle_core::Error::wrap),
        }
    }

    /// Computes the dot products of rows with all token embeddings:
    /// `[rows, hidden_width] -> [rows, vocab_size]`.
    pub fn embedding_products(&self, x: &Tensor) -> Result<Tensor> {
        if self.embedding.is_none() {
            return self.projection.forward(x, Epilogue::None);
        }
        let (rows, width) = x.dims2()?;
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let mut products = vec![0.0; rows * self.vocab_size];
        self.for_embeddings(width, |id, embedding| {
            for (row, x) in values.chunks_exact(width).enumerate() {
                let dot: f32 = x.iter().zip(embedding).map(|(a, b)| a * b).sum();
                products[row * self.vocab_size + id] = dot;
            }
        })?;
        Tensor::from_vec(products, (rows, self.vocab_size), x.device())
    }

    /// Gives every token's embedding, `[width]` each.
    pub fn for_embeddings(&self, width: usize, mut take: impl FnMut(usize, &[f32])) -> Result<()> {
        let ids: Vec<u32> = (0..self.vocab_size as u32).collect();
        for ids in ids.chunks(EMBEDDINGS) {
            let mut rows = vec![0.0; ids.len() * width];
            self.add_embeddings(ids, &mut rows)?;
            for (&id, row) in ids.iter().zip(rows.chunks_exact(width)) {
                take(id as usize, row);
            }
        }
        Ok(())
    }

    /// Computes the logits of rows: `[rows, hidden_width] -> [rows, vocab_size]`.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        if x.dim(0)? == 0 {
            return Tensor::zeros((0, self.vocab_size), DType::F32, x.device());
        }
        self.projection.forward(x, Epilogue::None)
    }
}

/// Appends row `row` of a table of `width` columns to `x`.
pub(super) fn extend_with_row(
    x: &mut Vec<f32>,
    table: &[f32],
    width: usize,
    row: u32,
) -> Result<()> {
    let at = row as usize * width;
    let Some(values) = table.get(at..at + width) else {
        bail!("position {row} is outside the model's context window");
    };
    x.extend_from_slice(values);
    Ok(())
}

/// Returns the `wanted` rows of `x`, in order: `[rows, width] -> [wanted, width]`.
pub(super) fn select_rows(x: &Tensor, wanted: &[u32], device: &Device) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if wanted.is_empty() {
        return Tensor::zeros((0, width), DType::F32, device);
    }
    // A batch names rows at most once and in order, so as many as the rows of `x` are all of them.
    if wanted.len() == rows {
        return Ok(x.clone());
    }
    x.index_select(&Tensor::new(wanted, device)?, 0)
}
