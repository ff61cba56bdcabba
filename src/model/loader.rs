//! Layers of a checkpoint's tensors.

use std::sync::{Arc, OnceLock};

use super::architecture::Ends;
use super::layers::{GatedMlp, SelfAttention, Vocabulary};
use super::spec::ModelSpec;
use crate::backend::{Backend, Linear, Norm};
use crate::checkpoint::ModelFiles;
use crate::checkpoint::decoder_fields::DecoderShape;
use crate::checkpoint::rope::Rope;
use crate::checkpoint::weights::{TensorView, WeightsError};
use crate::kernels::attention::AttentionShape;
use crate::kernels::linear::{Activation, MatrixOrder, RawWeight};
use crate::kernels::rotary::RotarySettings;

/// Error of loading a model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor is missing or does not match the configuration.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The backend could not prepare the weights.
    #[error("the model's weights could not be prepared: {0}")]
    Backend(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, LoadError>;

/// Creates layers from the tensors of a model's files.
pub(super) struct Loader<'a> {
    pub files: &'a ModelFiles,
    pub backend: &'a dyn Backend,
}

/// What the attention of a layer is made of, beside its sizes and matrices.
pub(super) struct AttentionParts<'a> {
    /// Factor of scores.
    pub scale: f64,
    /// Cap of scores.
    pub soft_cap: Option<f64>,
    pub rope: &'a Rope,
    /// Weights of the norms of queries and of keys, `[head_dim]` each.
    pub qk_norms: Option<[Vec<f32>; 2]>,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub out_bias: bool,
}

impl Loader<'_> {
    /// Loads `count` blocks in order. Prepared weights are not read again, so file and weights need not be in
    /// memory at the same time.
    pub fn blocks<B>(&self, count: usize, load: impl Fn(usize) -> Result<B>) -> Result<Vec<B>> {
        let each = (0..count).map(|i| {
            let block = load(i)?;
            self.files.checkpoint.release_pages();
            Ok(block)
        });
        each.collect()
    }

    /// Creates what comes before and after the blocks.
    pub fn ends(
        &self,
        spec: ModelSpec,
        norm: Box<dyn Norm>,
        embedding_scale: f32,
        soft_cap: Option<f32>,
    ) -> Result<Ends> {
        let ModelFiles {
            checkpoint, config, ..
        } = self.files;
        let lm_head = checkpoint.lm_head(config)?;
        let projection = raw(
            &lm_head,
            MatrixOrder::OutIn,
            [spec.vocab_size, spec.hidden_width],
        );
        let vocabulary = Vocabulary {
            embedding: checkpoint.separate_embedding(config)?,
            embedding_scale,
            projection: self.backend.linear(&[projection], None)?,
            soft_cap,
            vocab_size: spec.vocab_size,
        };
        checkpoint.release_pages();
        Ok(Ends {
            pool: Arc::clone(self.backend.pool()),
            device: self.backend.device().clone(),
            vocabulary,
            norm,
            embedding_norms: OnceLock::new(),
            spec,
        })
    }

    /// Reads a tensor's values.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.files.checkpoint.finite_tensor(name, shape)?.to_f32())
    }

    /// Reads `NAME.bias`, `[width]`, of a GPT-2; zeros if its files have no biases.
    fn bias(&self, name: &str, width: usize) -> Result<Vec<f32>> {
        if self.files.checkpoint.has_biases() {
            self.values(&format!("{name}.bias"), &[width])
        } else {
            Ok(vec![0.0; width])
        }
    }

    /// Creates a layer norm from `NAME.weight` and `NAME.bias`, `[width]` each.
    pub fn layer_norm(&self, name: &str, width: usize, eps: f64) -> Result<Box<dyn Norm>> {
        let weight = self.values(&format!("{name}.weight"), &[width])?;
        let bias = self.bias(name, width)?;
        Ok(self.backend.layer_norm(&weight, &bias, eps)?)
    }

    /// Creates a root-mean-square norm from `NAME.weight`, `[width]`.
    pub fn rms_norm(&self, name: &str, width: usize, eps: f64) -> Result<Box<dyn Norm>> {
        let weight = self.values(&format!("{name}.weight"), &[width])?;
        Ok(self.backend.rms_norm(&weight, eps)?)
    }

    /// Reads the weights of one of Gemma's norms from `NAME.weight`, `[width]`: 1 is added, unless the file has
    /// done so.
    pub fn norm_weights_plus_one(&self, name: &str, width: usize) -> Result<Vec<f32>> {
        let mut weight = self.values(&format!("{name}.weight"), &[width])?;
        if !self.files.checkpoint.norms_include_one() {
            for weight in &mut weight {
                *weight += 1.0;
            }
        }
        Ok(weight)
    }

    /// Creates a linear layer from `NAME.weight`, `[in, out]`, and `NAME.bias`, `[out]`: GPT-2's `Conv1D`.
    pub fn conv1d(&self, name: &str, inputs: usize, outputs: usize) -> Result<Box<dyn Linear>> {
        let checkpoint = &self.files.checkpoint;
        let (order, shape) = if checkpoint.matrices_out_in() {
            (MatrixOrder::OutIn, [outputs, inputs])
        } else {
            (MatrixOrder::InOut, [inputs, outputs])
        };
        let weight = checkpoint.finite_tensor(&format!("{name}.weight"), &shape)?;
        let weight = raw(&weight, order, [outputs, inputs]);
        let bias = self.bias(name, outputs)?;
        Ok(self.backend.linear(&[weight], Some(&bias))?)
    }

    /// Creates a linear layer of matrices whose outputs follow one another, from `NAME.weight`, `[out, in]`,
    /// and `NAME.bias`, `[out]`, of each.
    fn linear(&self, matrices: &[(String, [usize; 2])], has_bias: bool) -> Result<Box<dyn Linear>> {
        let checkpoint = &self.files.checkpoint;
        let mut views = Vec::with_capacity(matrices.len());
        let mut bias = Vec::new();
        for (name, shape) in matrices {
            views.push(checkpoint.finite_tensor(&format!("{name}.weight"), shape)?);
            if has_bias {
                bias.extend(self.values(&format!("{name}.bias"), &shape[..1])?);
            }
        }
        let shapes = matrices.iter().map(|(_, shape)| *shape);
        let weights = views.iter().zip(shapes);
        let weights = weights.map(|(view, shape)| raw(view, MatrixOrder::OutIn, shape));
        let weights: Vec<RawWeight<'_>> = weights.collect();
        let bias = has_bias.then_some(&bias[..]);
        Ok(self.backend.linear(&weights, bias)?)
    }

    /// Creates the attention of a layer: `self_attn`.
    pub fn self_attention(
        &self,
        sizes: &DecoderShape,
        layer: usize,
        parts: &AttentionParts<'_>,
    ) -> Result<SelfAttention> {
        let [q_proj, k_proj, v_proj, o_proj, ..] = sizes.matrices(layer);
        let shape = AttentionShape {
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_width: sizes.head_dim,
            scale: parts.scale as f32,
            window: sizes.window(layer),
            soft_cap: parts.soft_cap.map(|cap| cap as f32),
        };
        let [query_norm, key_norm] = match &parts.qk_norms {
            Some([query, key]) => [Some(&query[..]), Some(&key[..])],
            None => [None, None],
        };
        let rotary = RotarySettings {
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_width: sizes.head_dim,
            frequencies: &parts.rope.frequencies(sizes.head_dim),
            query_norm,
            key_norm,
            eps: sizes.rms_norm_eps,
        };
        Ok(SelfAttention {
            qkv_proj: self.linear(&[q_proj, k_proj, v_proj], parts.qkv_bias)?,
            rotary: self.backend.rotary(rotary)?,
            shape,
            attention: self.backend.attention(shape)?,
            o_proj: self.linear(&[o_proj], parts.out_bias)?,
        })
    }

    /// Creates the feed-forward network of a layer: `mlp`.
    pub fn gated_mlp(
        &self,
        sizes: &DecoderShape,
        layer: usize,
        activation: Activation,
        has_bias: bool,
    ) -> Result<GatedMlp> {
        let [.., gate_proj, up_proj, down_proj] = sizes.matrices(layer);
        Ok(GatedMlp {
            gate_proj: self.linear(&[gate_proj], has_bias)?,
            up_proj: self.linear(&[up_proj], has_bias)?,
            activation,
            down_proj: self.linear(&[down_proj], has_bias)?,
        })
    }

    /// Returns the spec of a decoder of this shape.
    pub fn decoder_spec(&self, architecture: &'static str, sizes: &DecoderShape) -> ModelSpec {
        ModelSpec {
            architecture,
            vocab_size: sizes.vocab_size,
            context_length: sizes.context_length,
            layers: sizes.layers(),
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_width: sizes.head_dim,
            hidden_width: sizes.hidden_size,
            inner_width: sizes.intermediate_size,
            parameters: self.files.config.parameters() as u64,
            end_of_text: self.files.end_of_text(),
        }
    }
}

/// Returns a matrix as the backend takes it; `outputs` come first in `[outputs, inputs]`.
fn raw<'a>(
    tensor: &'a TensorView<'_>,
    order: MatrixOrder,
    [outputs, inputs]: [usize; 2],
) -> RawWeight<'a> {
    RawWeight {
        bytes: &tensor.bytes,
        dtype: tensor.dtype,
        order,
        in_features: inputs,
        out_features: outputs,
    }
}
