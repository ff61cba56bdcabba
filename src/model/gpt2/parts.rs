//! Single parts of the model, for those who look into it: embeddings, the final norm and the output
//! projection applied to any state, and the output weights of neurons.
//!
//! All of it is computed by the layers that the forward pass uses.

use candle_core::{Result, Tensor, bail};

use super::{Block, Gpt2};
use crate::kernels::rows;
use crate::model::layers::extend_with_row;

/// Outputs whose weights are widened at once.
const OUTPUTS: usize = 64;

impl Gpt2 {
    /// Returns `wte[ids]`: `[ids, n_embd]`.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn token_embeddings(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut rows = vec![0.0; ids.len() * self.config.n_embd];
        self.vocabulary.add_embeddings(ids, &mut rows)?;
        Ok(rows)
    }

    /// Returns `wpe[positions]`: `[positions, n_embd]`.
    ///
    /// # Errors
    /// If a position is outside the window.
    pub fn position_embeddings(&self, positions: &[u32]) -> Result<Vec<f32>> {
        let n_embd = self.config.n_embd;
        let mut rows = Vec::with_capacity(positions.len() * n_embd);
        for &position in positions {
            extend_with_row(&mut rows, &self.wpe, n_embd, position)?;
        }
        Ok(rows)
    }

    /// Computes the logits that states of the residual stream would give if the model ended there:
    /// `[rows, n_embd] -> [rows, vocab_size]`. After the last block they are the model's logits.
    ///
    /// # Errors
    /// If `states` has another width.
    pub fn read_off(&self, states: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(&self.final_norm(states)?)
    }

    /// Computes the final norm of states of the residual stream: `[rows, n_embd] -> [rows, n_embd]`.
    ///
    /// # Errors
    /// If `states` has another width.
    pub fn final_norm(&self, states: &Tensor) -> Result<Tensor> {
        self.ln_f.forward(states)
    }

    /// Computes how far directions of the residual stream push each token, without the final norm:
    /// `[rows, n_embd] -> [rows, vocab_size]`. For states after the final norm they are the logits.
    ///
    /// # Errors
    /// If `directions` has another width.
    pub fn push(&self, directions: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(directions)
    }

    /// Computes the dot products of rows with all token embeddings: `[rows, n_embd] -> [rows, vocab_size]`.
    ///
    /// # Errors
    /// If `rows` has another width.
    pub fn embedding_products(&self, rows: &Tensor) -> Result<Tensor> {
        self.vocabulary.embedding_products(rows)
    }

    /// Returns the Euclidean norms of all token embeddings, `[vocab_size]`; computed once.
    ///
    /// # Errors
    /// If the embeddings can't be read.
    pub fn embedding_norms(&self) -> Result<&[f32]> {
        if let Some(norms) = self.embedding_norms.get() {
            return Ok(norms);
        }
        let mut norms = Vec::with_capacity(self.config.vocab_size);
        self.vocabulary
            .for_embeddings(self.config.n_embd, |_, embedding| {
                norms.push(rows::norm(embedding));
            })?;
        Ok(self.embedding_norms.get_or_init(|| norms))
    }

    /// Returns the Euclidean norm of the output weights of every neuron of a block, `[n_inner]`; computed once.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn neuron_norms(&self, block: usize) -> Result<&[f32]> {
        let known = &self.block(block)?.neuron_norms;
        if let Some(norms) = known.get() {
            return Ok(norms);
        }
        let mut squares = vec![0.0f64; self.config.n_inner];
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
    /// `[neurons, n_embd]`.
    ///
    /// # Errors
    /// If there is no such block or neuron.
    pub fn neuron_outputs(&self, block: usize, neurons: &[usize]) -> Result<Vec<f32>> {
        let (n_embd, n_inner) = (self.config.n_embd, self.config.n_inner);
        if let Some(neuron) = neurons.iter().find(|&&neuron| neuron >= n_inner) {
            bail!("there is no neuron {neuron} among {n_inner}");
        }
        let mut rows = vec![0.0; neurons.len() * n_embd];
        self.output_weights(block, |output, weights| {
            for (n, &neuron) in neurons.iter().enumerate() {
                rows[n * n_embd + output] = weights[neuron];
            }
        })?;
        Ok(rows)
    }

    /// Gives the weights of every output of a block's feed-forward network, `[n_inner]` each.
    fn output_weights(&self, block: usize, mut take: impl FnMut(usize, &[f32])) -> Result<()> {
        let (n_embd, n_inner) = (self.config.n_embd, self.config.n_inner);
        let c_proj = &self.block(block)?.mlp.c_proj;
        let outputs: Vec<u32> = (0..n_embd as u32).collect();
        for outputs in outputs.chunks(OUTPUTS) {
            let mut weights = vec![0.0; outputs.len() * n_inner];
            c_proj.add_weights_of(outputs, &mut weights)?;
            for (&output, weights) in outputs.iter().zip(weights.chunks_exact(n_inner)) {
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
        let Block { attn, mlp, .. } = self.block(block)?;
        let attention = attn.c_attn.bytes() + attn.c_proj.bytes();
        Ok((attention, mlp.c_fc.bytes() + mlp.c_proj.bytes()))
    }

    fn block(&self, block: usize) -> Result<&Block> {
        match self.h.get(block) {
            Some(found) => Ok(found),
            None => bail!("there is no block {block} among {}", self.h.len()),
        }
    }
}
