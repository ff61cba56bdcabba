//! GPT-2 (Radford et al. 2019), top to bottom in the order of the paper, over a ragged batch.
//!
//! The tokens of all sequences of a step are the rows of one `[rows, n_embd]` matrix, so every
//! linear layer is one matrix product over the whole batch; only attention reads each sequence's
//! own KV blocks. Names are those of the checkpoint (`wte`, `wpe`, `h.N.ln_1`, `attn.c_attn`, ...).
//!
//! The model sees a batch, never a sequence, session or request, and the kernels guarantee that a
//! row's result depends on its own tokens alone, bit for bit.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::adapter::{Adapted, AdapterRows, added};
use super::architecture::{Architecture, BlockParts, Ends};
use super::batch::Batch;
use super::layers::extend_with_row;
use super::loader::{LoadError, Loader};
use super::spec::ModelSpec;
use super::stage::{Observe, Stage};
use crate::backend::{Attention, Linear, Norm};
use crate::checkpoint::Gpt2Config;
use crate::kernels::attention::{AttentionPlan, AttentionShape};
use crate::kernels::kv::{KvCache, LayerKv};
use crate::kernels::linear::{Activation, Epilogue};

/// A loaded model.
pub struct Gpt2 {
    /// `wte` and `lm_head`, and `ln_f`.
    ends: Ends,
    /// `[n_positions * n_embd]`
    wpe: Vec<f32>,
    h: Vec<Block>,
}

struct Block {
    ln_1: Box<dyn Norm>,
    attn: SelfAttention,
    ln_2: Box<dyn Norm>,
    mlp: Mlp,
    /// Norms of the neurons' output weights, once an inspection needs them.
    neuron_norms: OnceLock<Vec<f32>>,
}

struct SelfAttention {
    c_attn: Box<dyn Linear>,
    shape: AttentionShape,
    attention: Box<dyn Attention>,
    c_proj: Box<dyn Linear>,
}

struct Mlp {
    c_fc: Box<dyn Linear>,
    activation: Activation,
    c_proj: Box<dyn Linear>,
}

impl Gpt2 {
    /// Computes `wte[ids] + wpe[positions]`: `[rows, n_embd]`.
    fn embed(&self, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        let n_embd = self.ends.spec.hidden_width;
        let mut x = Vec::with_capacity(ids.len() * n_embd);
        for &position in positions {
            extend_with_row(&mut x, &self.wpe, n_embd, position)?; // wpe[position]: [n_embd]
        }
        self.ends.vocabulary.add_embeddings(ids, &mut x)?; // wte[ids]: [rows, n_embd]
        Tensor::from_vec(x, (ids.len(), n_embd), &self.ends.device)
    }
}

impl Architecture for Gpt2 {
    fn blocks(&self, batch: Batch, kv: &KvCache, observe: &mut Observe<'_>) -> Result<Tensor> {
        let mut x = self.embed(&batch.ids, &batch.positions)?; // [rows, n_embd]
        let plan = AttentionPlan::new(batch.spans, batch.ids.len())?;
        observe(Stage::Residual(0), &x)?;
        for (i, block) in self.h.iter().enumerate() {
            let adapters = LayerAdapters {
                layer: i,
                all: &batch.adapters,
            };
            x = block.forward(i, &x, (kv.layer(i)?, &plan), adapters, observe)?; // -> [rows, n_embd]
            observe(Stage::Residual(i + 1), &x)?;
        }
        Ok(x)
    }

    fn ends(&self) -> &Ends {
        &self.ends
    }

    fn block(&self, block: usize) -> Option<BlockParts<'_>> {
        let Block {
            attn,
            mlp,
            neuron_norms,
            ..
        } = self.h.get(block)?;
        Some(BlockParts {
            attention: vec![&*attn.c_attn, &*attn.c_proj],
            mlp: vec![&*mlp.c_fc, &*mlp.c_proj],
            shape: attn.shape,
            post_norm: None,
            neuron_norms,
        })
    }

    fn position_table(&self) -> Option<&[f32]> {
        Some(&self.wpe)
    }
}

impl Block {
    /// Computes `x + attn(ln_1(x))`, then `x + mlp(ln_2(x))`.
    fn forward(
        &self,
        i: usize,
        x: &Tensor,
        (kv, plan): (&LayerKv, &AttentionPlan),
        adapters: LayerAdapters<'_>,
        observe: &mut Observe<'_>,
    ) -> Result<Tensor> {
        // Every part is freed as soon as the next one is computed.
        let qkv = {
            let n = self.ln_1.forward(x)?; // [rows, n_embd]
            observe(Stage::AttentionInput(i), &n)?;
            self.attn.qkv(&n, adapters)? // [rows, n_embd] -> [rows, 3*n_embd]
        };
        observe(Stage::Qkv(i), &qkv)?;
        let x = {
            let y = self.attn.mix(&qkv, kv, plan)?; // [rows, 3*n_embd] -> [rows, n_embd]
            observe(Stage::Mixed(i), &y)?;
            self.attn.project(&y, x, adapters)? // [rows, n_embd]
        };
        observe(Stage::Attended(i), &x)?;
        let a = {
            let n = self.ln_2.forward(&x)?; // [rows, n_embd]
            observe(Stage::NeuronInput(i), &n)?;
            self.mlp.neurons(&n, adapters)? // [rows, n_inner]
        };
        observe(Stage::Neurons(i), &a)?;
        self.mlp.forward(&a, &x, adapters) // [rows, n_embd]
    }
}

impl SelfAttention {
    /// Computes the queries, keys and values of normalized rows.
    fn qkv(&self, x: &Tensor, adapters: LayerAdapters<'_>) -> Result<Tensor> {
        let added = adapters.added(Adapted::Attention, x)?; // [rows, 3*n_embd]
        let add = added.as_ref().map_or(Epilogue::None, Epilogue::Add);
        self.c_attn.forward(x, add) // [rows, n_embd] -> [rows, 3*n_embd]
    }

    /// Computes causal multi-head attention over each row's own context: the mix of values.
    fn mix(&self, qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<Tensor> {
        self.attention.forward(qkv, kv, plan) // [rows, 3*n_embd] -> [rows, n_embd]
    }

    /// Computes the output projection of mixed values, added to `residual`.
    fn project(
        &self,
        y: &Tensor,
        residual: &Tensor,
        adapters: LayerAdapters<'_>,
    ) -> Result<Tensor> {
        let residual = adapters.add_to(residual, Adapted::AttentionOutput, y)?;
        self.c_proj.forward(y, Epilogue::Add(&residual)) // [rows, n_embd] -> [rows, n_embd]
    }
}

impl Mlp {
    /// Computes `activation(c_fc(x))` of normalized rows; GPT-2's own is GELU.
    fn neurons(&self, x: &Tensor, adapters: LayerAdapters<'_>) -> Result<Tensor> {
        let activation = self.activation;
        let added = adapters.added(Adapted::Neurons, x)?; // [rows, n_inner]
        let activate = match &added {
            None => Epilogue::Activate(activation),
            Some(sum) => Epilogue::ActivateSum {
                addend: sum,
                activation,
            },
        };
        self.c_fc.forward(x, activate) // [rows, n_embd] -> [rows, n_inner]
    }

    /// Computes `c_proj(a)`, added to `residual`.
    fn forward(
        &self,
        a: &Tensor,
        residual: &Tensor,
        adapters: LayerAdapters<'_>,
    ) -> Result<Tensor> {
        let residual = adapters.add_to(residual, Adapted::NeuronsOutput, a)?;
        self.c_proj.forward(a, Epilogue::Add(&residual)) // [rows, n_inner] -> [rows, n_embd]
    }
}

/// The adapters of a step at one layer.
#[derive(Clone, Copy)]
struct LayerAdapters<'a> {
    layer: usize,
    all: &'a [AdapterRows],
}

impl LayerAdapters<'_> {
    /// Computes what they add to the outputs of a matrix that reads `x`, if they adapt it: `[rows, out]`.
    fn added(&self, adapted: Adapted, x: &Tensor) -> Result<Option<Tensor>> {
        added(self.all, self.layer, adapted, x)
    }

    /// Adds that to the residual stream, which the matrix's outputs are added to.
    fn add_to(&self, residual: &Tensor, adapted: Adapted, x: &Tensor) -> Result<Tensor> {
        match self.added(adapted, x)? {
            None => Ok(residual.clone()),
            Some(added) => residual + added,
        }
    }
}

/// Loading.
impl Gpt2 {
    /// Reads all weights and has the backend prepare them.
    pub(super) fn load(
        loader: &Loader<'_>,
        config: &Gpt2Config,
    ) -> std::result::Result<Self, LoadError> {
        let Gpt2Config {
            n_embd,
            n_positions,
            layer_norm_epsilon,
            ..
        } = *config;
        let norm = loader.layer_norm("ln_f", n_embd, layer_norm_epsilon)?;
        // The largest matrix first, while file and prepared weights of the others are not in memory.
        let ends = loader.ends(spec(loader, config), norm, 1.0, None)?;
        Ok(Self {
            wpe: loader.values("wpe.weight", &[n_positions, n_embd])?,
            h: loader.blocks(config.n_layer, |i| Block::load(loader, config, i))?,
            ends,
        })
    }
}

impl Block {
    /// Loads block `i`, its linear layers in the order of computation.
    fn load(
        loader: &Loader<'_>,
        config: &Gpt2Config,
        i: usize,
    ) -> std::result::Result<Self, LoadError> {
        let (n_embd, n_inner) = (config.n_embd, config.n_inner);
        let eps = config.layer_norm_epsilon;
        let name = |part: &str| format!("h.{i}.{part}");
        let shape = AttentionShape {
            scale: config.score_scale(i),
            ..AttentionShape::multi_head(config.n_head, config.head_dim())
        };
        Ok(Self {
            ln_1: loader.layer_norm(&name("ln_1"), n_embd, eps)?,
            attn: SelfAttention {
                c_attn: loader.conv1d(&name("attn.c_attn"), n_embd, 3 * n_embd)?,
                shape,
                attention: loader.backend.attention(shape)?,
                c_proj: loader.conv1d(&name("attn.c_proj"), n_embd, n_embd)?,
            },
            ln_2: loader.layer_norm(&name("ln_2"), n_embd, eps)?,
            mlp: Mlp {
                c_fc: loader.conv1d(&name("mlp.c_fc"), n_embd, n_inner)?,
                activation: config.activation,
                c_proj: loader.conv1d(&name("mlp.c_proj"), n_inner, n_embd)?,
            },
            neuron_norms: OnceLock::new(),
        })
    }
}

/// Returns the spec of a GPT-2 with this configuration.
fn spec(loader: &Loader<'_>, config: &Gpt2Config) -> ModelSpec {
    ModelSpec {
        architecture: "gpt2",
        vocab_size: config.vocab_size,
        context_length: config.n_positions,
        layers: config.n_layer,
        heads: config.n_head,
        kv_heads: config.n_head,
        head_width: config.head_dim(),
        hidden_width: config.n_embd,
        inner_width: config.n_inner,
        parameters: loader.files.config.parameters() as u64,
        end_of_text: loader.files.end_of_text(),
    }
}
