//! Gemma 1 (Gemma Team 2024, <https://arxiv.org/abs/2403.08295>), 2 (<https://arxiv.org/abs/2408.00118>) and
//! 3 (<https://arxiv.org/abs/2503.19786>), top to bottom in the order of the papers, over a ragged batch.
//!
//! A block normalizes what it reads, since Gemma 2 also what it writes. Positions rotate queries and
//! keys; several query heads share a head of keys and values; some layers see a window of positions
//! only. Names are those of the checkpoint (`embed_tokens`, `layers.N.self_attn.q_proj`, ...), where
//! `post_attention_layernorm` means two things: in Gemma 1 the norm that the feed-forward network
//! reads through, since Gemma 2 the norm of what attention writes.
//!
//! What the model sees and guarantees is as for [GPT-2](super::gpt2).

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::architecture::{Architecture, BlockParts, Ends};
use super::batch::Batch;
use super::layers::{GatedMlp, Rows, SelfAttention};
use super::loader::{AttentionParts, LoadError, Loader};
use super::stage::{Observe, Stage};
use crate::backend::{Linear, Norm};
use crate::checkpoint::GemmaConfig;
use crate::checkpoint::decoder_fields::LayerKind;
use crate::kernels::kv::{KvCache, LayerKv};
use crate::kernels::linear::{Activation, Epilogue};

/// A loaded model.
pub struct Gemma {
    /// `embed_tokens` and `lm_head`, and `norm`.
    ends: Ends,
    layers: Vec<Layer>,
}

struct Layer {
    input_layernorm: Box<dyn Norm>,
    self_attn: SelfAttention,
    /// Since Gemma 2.
    post_attention_layernorm: Option<PostNorm>,
    /// In Gemma 1 `post_attention_layernorm`.
    pre_feedforward_layernorm: Box<dyn Norm>,
    mlp: GatedMlp,
    /// Since Gemma 2.
    post_feedforward_layernorm: Option<PostNorm>,
    /// Norms of what neurons write, once an inspection needs them.
    neuron_norms: OnceLock<Vec<f32>>,
}

/// The norm of what a part of a block writes.
struct PostNorm {
    norm: Box<dyn Norm>,
    /// Its weights, 1 included: `[hidden_size]`.
    weight: Vec<f32>,
}

impl Architecture for Gemma {
    fn blocks(&self, batch: Batch, kv: &KvCache, observe: &mut Observe<'_>) -> Result<Tensor> {
        let mut x = self.ends.embed(&batch.ids)?; // embed_tokens[ids] * sqrt(hidden_size): [rows, hidden_size]
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
        let post_norm = layer.post_feedforward_layernorm.as_ref();
        Some(BlockParts {
            attention: layer.self_attn.linears(),
            mlp: layer.mlp.linears(),
            shape: layer.self_attn.shape,
            post_norm: post_norm.map(|norm| &norm.weight[..]),
            neuron_norms: &layer.neuron_norms,
        })
    }
}

impl Layer {
    /// Computes `x + post(attn(pre(x)))`, then `x + post(mlp(pre(x)))`; Gemma 1 has no `post`.
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
            let o_proj = &*self.self_attn.o_proj;
            add_to(x, o_proj, &y, self.post_attention_layernorm.as_ref())? // -> [rows, hidden_size]
        };
        observe(Stage::Attended(i), &x)?;
        let a = {
            let n = self.pre_feedforward_layernorm.forward(&x)?; // [rows, hidden_size]
            observe(Stage::NeuronInput(i), &n)?;
            self.mlp.neurons(&n)? // [rows, hidden_size] -> [rows, intermediate_size]
        };
        observe(Stage::Neurons(i), &a)?;
        let down_proj = &*self.mlp.down_proj;
        add_to(&x, down_proj, &a, self.post_feedforward_layernorm.as_ref()) // -> [rows, hidden_size]
    }
}

/// Computes `residual + post(projection(y))`: `[rows, hidden_size]`.
fn add_to(
    residual: &Tensor,
    projection: &dyn Linear,
    y: &Tensor,
    post: Option<&PostNorm>,
) -> Result<Tensor> {
    match post {
        None => projection.forward(y, Epilogue::Add(residual)),
        Some(post) => {
            let written = projection.forward(y, Epilogue::None)?; // [rows, hidden_size]
            post.norm.forward_add(&written, residual)
        }
    }
}

/// Loading.
impl Gemma {
    /// Reads all weights and has the backend prepare them.
    pub(super) fn load(
        loader: &Loader<'_>,
        config: &GemmaConfig,
    ) -> std::result::Result<Self, LoadError> {
        let shape = &config.shape;
        let norm = loader.norm_weights_plus_one("norm", shape.hidden_size)?;
        let norm = loader.backend.rms_norm(&norm, shape.rms_norm_eps)?;
        let cap = config.final_soft_cap.map(|cap| cap as f32);
        let embedding_scale = (shape.hidden_size as f64).sqrt() as f32;
        let spec = loader.decoder_spec(config.generation.architecture(), shape);
        // The largest matrix first, while file and prepared weights of the others are not in memory.
        let ends = loader.ends(spec, norm, embedding_scale, cap)?;
        let layers = loader.blocks(shape.layers(), |i| Layer::load(loader, config, i))?;
        Ok(Self { ends, layers })
    }
}

impl Layer {
    /// Loads layer `i`, its linear layers in the order of computation.
    fn load(
        loader: &Loader<'_>,
        config: &GemmaConfig,
        i: usize,
    ) -> std::result::Result<Self, LoadError> {
        let (shape, eps) = (&config.shape, config.shape.rms_norm_eps);
        let name = |part: &str| format!("layers.{i}.{part}");
        let weights = |part: &str, width| loader.norm_weights_plus_one(&name(part), width);
        let post = |part| -> std::result::Result<_, LoadError> {
            let weight = weights(part, shape.hidden_size)?;
            let norm = loader.backend.rms_norm(&weight, eps)?;
            Ok(PostNorm { norm, weight })
        };
        let pre = |part| post(part).map(|post| post.norm);
        let qk_norms = if config.has_qk_norms() {
            let head_norm = |part| weights(part, shape.head_dim);
            Some([
                head_norm("self_attn.q_norm")?,
                head_norm("self_attn.k_norm")?,
            ])
        } else {
            None
        };
        let rope = match shape.layer_kinds[i] {
            LayerKind::Global => &config.rope_global,
            LayerKind::Sliding => &config.rope_local,
        };
        let self_attn = loader.self_attention(
            shape,
            i,
            &AttentionParts {
                scale: config.query_scale,
                soft_cap: config.attn_soft_cap,
                rope,
                qk_norms,
                qkv_bias: false,
                out_bias: false,
            },
        )?;
        let (after_attention, before_mlp, after_mlp) = if config.has_post_norms() {
            (
                Some(post("post_attention_layernorm")?),
                pre("pre_feedforward_layernorm")?,
                Some(post("post_feedforward_layernorm")?),
            )
        } else {
            (None, pre("post_attention_layernorm")?, None)
        };
        Ok(Self {
            input_layernorm: pre("input_layernorm")?,
            self_attn,
            post_attention_layernorm: after_attention,
            pre_feedforward_layernorm: before_mlp,
            mlp: loader.gated_mlp(shape, i, Activation::GeluTanh, false)?,
            post_feedforward_layernorm: after_mlp,
            neuron_norms: OnceLock::new(),
        })
    }
}
