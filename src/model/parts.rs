//! Single parts of a model, to look into it: embeddings, the final norm and the output projection
//! applied to any state, and the output weights of neurons.
//!
//! All of it is computed by the layers that the forward pass uses.

use candle_core::{Result, Tensor, bail};

use super::Model;
use super::architecture::BlockParts;
use super::layers::extend_with_row;
use crate::backend::Linear;
use crate::kernels::attention::AttentionShape;
use crate::kernels::rows;

/// Outputs whose weights are widened at once.
const OUTPUTS: usize = 64;

impl Model {
    /// Returns the embeddings of tokens, as the residual stream begins with them: `[ids, hidden_width]`.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn token_embeddings(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut rows = vec![0.0; ids.len() * self.spec().hidden_width];
        self.ends().vocabulary.add_embeddings(ids, &mut rows)?;
        Ok(rows)
    }

    /// Returns the embeddings that are added for positions, `[positions, hidden_width]`; `None` if the model
    /// has none, as where positions rotate queries and keys.
    ///
    /// # Errors
    /// If a position is outside the window.
    pub fn position_embeddings(&self, positions: &[u32]) -> Result<Option<Vec<f32>>> {
        let Some(table) = self.architecture().position_table() else {
            return Ok(None);
        };
        let width = self.spec().hidden_width;
        let mut rows = Vec::with_capacity(positions.len() * width);
        for &position in positions {
            extend_with_row(&mut rows, table, width, position)?;
        }
        Ok(Some(rows))
    }

    /// Computes the logits that states of the residual stream would give if the model ended there:
    /// `[rows, hidden_width] -> [rows, vocab_size]`. After the last block they are the model's logits.
    ///
    /// # Errors
    /// If `states` has another width.
    pub fn read_off(&self, states: &Tensor) -> Result<Tensor> {
        self.ends().vocabulary.logits(&self.final_norm(states)?)
    }

    /// Computes the final norm of states of the residual stream:
    /// `[rows, hidden_width] -> [rows, hidden_width]`.
    ///
    /// # Errors
    /// If `states` has another width.
    pub fn final_norm(&self, states: &Tensor) -> Result<Tensor> {
        self.ends().norm.forward(states)
    }

    /// Computes how far directions of the residual stream push each token, before the final norm and without
    /// a soft cap: `[rows, hidden_width] -> [rows, vocab_size]`.
    ///
    /// # Errors
    /// If `directions` has another width.
    pub fn push(&self, directions: &Tensor) -> Result<Tensor> {
        self.ends().vocabulary.push(directions)
    }

    /// Computes the dot products of rows with all token embeddings:
    /// `[rows, hidden_width] -> [rows, vocab_size]`.
    ///
    /// # Errors
    /// If `rows` has another width.
    pub fn embedding_products(&self, rows: &Tensor) -> Result<Tensor> {
        self.ends().vocabulary.embedding_products(rows)
    }

    /// Returns the Euclidean norms of all token embeddings, `[vocab_size]`; computed once.
    ///
    /// # Errors
    /// If the embeddings can't be read.
    pub fn embedding_norms(&self) -> Result<&[f32]> {
        let ends = self.ends();
        if let Some(norms) = ends.embedding_norms.get() {
            return Ok(norms);
        }
        let mut norms = Vec::with_capacity(ends.spec.vocab_size);
        ends.vocabulary
            .for_embeddings(ends.spec.hidden_width, |_, embedding| {
                norms.push(rows::norm(embedding));
            })?;
        Ok(ends.embedding_norms.get_or_init(|| norms))
    }

    /// Returns the Euclidean norm of what every neuron of a block writes into the residual stream at
    /// activation 1, `[inner_width]`; computed once. As for [`neuron_outputs`](Self::neuron_outputs).
    ///
    /// # Errors
    /// If there is no such block.
    pub fn neuron_norms(&self, block: usize) -> Result<&[f32]> {
        let known = self.block(block)?.neuron_norms;
        if let Some(norms) = known.get() {
            return Ok(norms);
        }
        let mut squares = vec![0.0f64; self.spec().inner_width];
        self.output_weights(block, |_, weights| {
            for (square, &weight) in squares.iter_mut().zip(weights) {
                *square += f64::from(weight).powi(2);
            }
        })?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the precision of the weights"
        )]
        let norms = squares.into_iter().map(|square| square.sqrt() as f32);
        Ok(known.get_or_init(|| norms.collect()))
    }

    /// Returns what neurons of a block write into the residual stream at activation 1:
    /// `[neurons, hidden_width]`. Where a norm follows the feed-forward network, they are multiplied by its
    /// weights, but not divided by the root mean square, which differs from row to row and is the same for
    /// all neurons of a row.
    ///
    /// # Errors
    /// If there is no such block or neuron.
    pub fn neuron_outputs(&self, block: usize, neurons: &[usize]) -> Result<Vec<f32>> {
        let (width, inner) = (self.spec().hidden_width, self.spec().inner_width);
        if let Some(neuron) = neurons.iter().find(|&&neuron| neuron >= inner) {
            bail!("there is no neuron {neuron} among {inner}");
        }
        let mut rows = vec![0.0; neurons.len() * width];
        self.output_weights(block, |output, weights| {
            for (n, &neuron) in neurons.iter().enumerate() {
                rows[n * width + output] = weights[neuron];
            }
        })?;
        Ok(rows)
    }

    /// Gives the weights of every output of a block's feed-forward network, `[inner_width]` each.
    fn output_weights(&self, block: usize, mut take: impl FnMut(usize, &[f32])) -> Result<()> {
        let (width, inner) = (self.spec().hidden_width, self.spec().inner_width);
        let BlockParts { mlp, post_norm, .. } = self.block(block)?;
        let Some(last) = mlp.last() else {
            bail!("block {block} has no feed-forward network");
        };
        let outputs: Vec<u32> = (0..width as u32).collect();
        for outputs in outputs.chunks(OUTPUTS) {
            let mut weights = vec![0.0; outputs.len() * inner];
            last.add_weights_of(outputs, &mut weights)?;
            for (&output, weights) in outputs.iter().zip(weights.chunks_exact_mut(inner)) {
                if let Some(factors) = post_norm {
                    let factor = factors[output as usize];
                    for weight in &mut *weights {
                        *weight *= factor;
                    }
                }
                take(output as usize, weights);
            }
        }
        Ok(())
    }

    /// Returns the bytes of the weights that a block's attention and its feed-forward network read.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn block_bytes(&self, block: usize) -> Result<(usize, usize)> {
        let BlockParts { attention, mlp, .. } = self.block(block)?;
        let bytes =
            |linears: Vec<&dyn Linear>| -> usize { linears.into_iter().map(Linear::bytes).sum() };
        Ok((bytes(attention), bytes(mlp)))
    }

    /// Returns the sizes and parameters of a block's attention.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn attention_shape(&self, block: usize) -> Result<AttentionShape> {
        Ok(self.block(block)?.shape)
    }

    fn block(&self, block: usize) -> Result<BlockParts<'_>> {
        match self.architecture().block(block) {
            Some(found) => Ok(found),
            None => bail!("there is no block {block} among {}", self.spec().layers),
        }
    }
}
