//! The Llama family: Llama 2 (Touvron et al. 2023, <https://arxiv.org/abs/2307.09288>) and 3, `SmolLM2`, Qwen 2
//! and 3 (dense), top to bottom, over a ragged batch.
//!
//! Root-mean-square norms, rotary positions, grouped-query attention and gated feed-forward networks,
//! with a bias or a norm here and there. Names are those of the checkpoint.
//!
//! What the model sees and guarantees is as for [GPT-2](super::gpt2).

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::architecture::{Architecture, BlockParts, Ends};
use super::batch::Batch;
use super::layers::{GatedMlp, Rows, SelfAttention};
use super::loader::{AttentionParts, LoadError, Loader};
use super::stage::{Observe, Stage};
use crate::backend::Norm;
use crate::checkpoint::LlamaConfig;
use crate::kernels::kv::{KvCache, LayerKv};
use crate::kernels::linear::{Activation, Epilogue};

/// A loaded model.
pub struct Llama {
    /// `embed_tokens` and `lm_head`, and `norm`.
    ends: Ends,
    layers: Vec<Layer>,
}

struct Layer {
    input_layernorm: Box<dyn Norm>,
    self_attn: SelfAttention,
    post_attention_layernorm: Box<dyn Norm>,
    mlp: GatedMlp,
    /// Norms of the neurons' output weights, once an inspection needs them.
    neuron_norms: OnceLock<Vec<f32>>,
}

impl Architecture for Llama {
    fn blocks(&self, batch: Batch, kv: &KvCache, observe: &mut Observe<'_>) -> Result<Tensor> {
        let mut x = self.ends.embed(&batch.ids)?; // embed_tokens[ids]: [rows, hidden_size]
        let rows = Rows::of(batch)?;
        observe(Stage::Residual(0), &x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(i, &x, kv.layer(i)?, &rows, observe)?; // [rows, hidden_size] -> [rows, hidden_size]
            observe(Stage::Residual(i + 1), &x)?;
        }
        Ok(x)
    }

    fn ends(&self) -> &Ends {
        &self.ends
    }

    fn block(&self, block: usize) -> Option<BlockParts<'_>> {
        let layer = self.layers.get(block)?;
        Some(BlockParts {
            attention: layer.self_attn.linears(),
            mlp: layer.mlp.linears(),
            shape: layer.self_attn.shape,
            post_norm: None,
            neuron_norms: &layer.neuron_norms,
        })
    }
}

impl Layer {
    /// Computes `x + attn(norm(x))`, then `x + mlp(norm(x))`.
    fn forward(
        &self,
        i: usize,
        x: &Tensor,
        kv: &LayerKv,
        rows: &Rows,
        observe: &mut Observe<'_>,
    ) -> Result<Tensor> {
        // Every part is freed as soon as the next one is computed.
        let qkv = {
            let n = self.input_layernorm.forward(x)?; // [rows, hidden_size]
            observe(Stage::AttentionInput(i), &n)?;
            self.self_attn.qkv(&n, rows)? // -> [rows, (heads + 2*kv_heads) * head_dim]
        };
        observe(Stage::Qkv(i), &qkv)?;
        let x = {
            let y = self.self_attn.mix(&qkv, kv, rows)?; // -> [rows, heads*head_dim]
            observe(Stage::Mixed(i), &y)?;
            self.self_attn.o_proj.forward(&y, Epilogue::Add(x))? // -> [rows, hidden_size]
        };
        observe(Stage::Attended(i), &x)?;
        let a = {
            let n = self.post_attention_layernorm.forward(&x)?; // [rows, hidden_size]
            observe(Stage::NeuronInput(i), &n)?;
            self.mlp.neurons(&n)? // [rows, hidden_size] -> [rows, intermediate_size]
        };
        observe(Stage::Neurons(i), &a)?;
        self.mlp.down_proj.forward(&a, Epilogue::Add(&x)) // -> [rows, hidden_size]
    }
}

/// Loading.
impl Llama {
    /// Reads all weights and has the backend prepare them.
    pub(super) fn load(
        loader: &Loader<'_>,
        config: &LlamaConfig,
    ) -> std::result::Result<Self, LoadError> {
        let shape = &config.shape;
        let norm = loader.rms_norm("norm", shape.hidden_size, shape.rms_norm_eps)?;
        let spec = loader.decoder_spec(config.family.architecture(), shape);
        // The largest matrix first, while file and prepared weights of the others are not in memory.
        let ends = loader.ends(spec, norm, 1.0, None)?;
        let layers = loader.blocks(shape.layers(), |i| Layer::load(loader, config, i))?;
        Ok(Self { ends, layers })
    }
}

impl Layer {
    /// Loads layer `i`, its linear layers in the order of computation.
    fn load(
        loader: &Loader<'_>,
        config: &LlamaConfig,
        i: usize,
    ) -> std::result::Result<Self, LoadError> {
        let shape = &config.shape;
        let name = |part: &str| format!("layers.{i}.{part}");
        let norm = |part| loader.rms_norm(&name(part), shape.hidden_size, shape.rms_norm_eps);
        let head_norm = |part| loader.values(&name(part), &[shape.head_dim]);
        let qk_norms = if config.has_qk_norms() {
            Some([
                head_norm("self_attn.q_norm.weight")?,
                head_norm("self_attn.k_norm.weight")?,
            ])
        } else {
            None
        };
        let attention = AttentionParts {
            scale: (shape.head_dim as f64).powf(-0.5),
            soft_cap: None,
            rope: &config.rope,
            qk_norms,
            qkv_bias: config.qkv_bias,
            out_bias: config.out_bias,
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: loader.self_attention(shape, i, &attention)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: loader.gated_mlp(shape, i, Activation::Silu, config.mlp_bias)?,
            neuron_norms: OnceLock::new(),
        })
    }
}
