//! GPT-2 (Radford et al. 2019), top to bottom in the order of the paper, over a ragged batch.
//!
//! The tokens of all sequences of a step are the rows of one `[rows, n_embd]` matrix, so every
//! linear layer is one matrix product over the whole batch; only attention reads each sequence's
//! own KV blocks. Names are those of the checkpoint (`wte`, `wpe`, `h.N.ln_1`, `attn.c_attn`, ...).
//!
//! The model sees a batch, never a sequence, session or request, and the kernels guarantee that a
//! row's result depends on its own tokens alone, bit for bit.

mod parts;

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};

use super::batch::{Batch, Outputs};
use super::layers::{LoadError, Loader, Vocabulary, chain, extend_with_row, select_rows};
use super::spec::ModelSpec;
use super::stage::{Observe, Stage, unobserved};
use crate::backend::{Attention, Backend, Linear, Norm};
use crate::checkpoint::{Gpt2Config, ModelFiles};
use crate::kernels::Pool;
use crate::kernels::attention::{AttentionPlan, AttentionShape};
use crate::kernels::kv::{KvCache, KvDtype, KvShape, LayerKv};
use crate::kernels::linear::{Activation, Epilogue};

/// A loaded model.
pub struct Gpt2 {
    config: Gpt2Config,
    spec: ModelSpec,
    pool: Arc<Pool>,
    device: Device,
    /// `wte` and `lm_head`.
    vocabulary: Vocabulary,
    /// `[n_positions * n_embd]`
    wpe: Vec<f32>,
    /// Norms of the token embeddings, once an inspection needs them.
    embedding_norms: OnceLock<Vec<f32>>,
    h: Vec<Block>,
    ln_f: Box<dyn Norm>,
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
    attention: Box<dyn Attention>,
    c_proj: Box<dyn Linear>,
}

struct Mlp {
    c_fc: Box<dyn Linear>,
    c_proj: Box<dyn Linear>,
}

impl Gpt2 {
    /// Computes the logits and hidden states of the rows of a batch that ask for them, and writes all
    /// rows' keys and values into the cache.
    ///
    /// # Errors
    /// If the batch does not match the model or the cache.
    pub fn forward(&self, mut batch: Batch, kv: &KvCache) -> Result<Outputs> {
        let logits_rows = std::mem::take(&mut batch.logits_rows);
        let hidden_rows = std::mem::take(&mut batch.hidden_rows);
        let x = self.blocks(batch, kv, &mut unobserved)?; // [rows, n_embd]
        let x = self.ln_f.forward(&x)?; // [rows, n_embd] -> [rows, n_embd]
        let hidden = select_rows(&x, &hidden_rows, &self.device)?; // -> [hidden_rows, n_embd]
        let sampled = select_rows(&x, &logits_rows, &self.device)?; // -> [logits_rows, n_embd]
        let logits = self.vocabulary.logits(&sampled)?; // -> [logits_rows, vocab_size]
        Ok(Outputs { logits, hidden })
    }

    /// Computes the residual stream after the last block, `[rows, n_embd]`, and writes all rows' keys and
    /// values into the cache. `observe` is called with every stage.
    ///
    /// # Errors
    /// If the batch does not fit the model or the cache, or `observe` fails.
    pub fn blocks(&self, batch: Batch, kv: &KvCache, observe: &mut Observe<'_>) -> Result<Tensor> {
        let mut x = self.embed(&batch.ids, &batch.positions)?; // [rows, n_embd]
        let plan = AttentionPlan::new(batch.spans, batch.ids.len())?;
        observe(Stage::Residual(0), &x)?;
        for (i, block) in self.h.iter().enumerate() {
            x = block.forward(i, &x, kv.layer(i)?, &plan, observe)?; // [rows, n_embd] -> [rows, n_embd]
            observe(Stage::Residual(i + 1), &x)?;
        }
        Ok(x)
    }

    /// Computes `wte[ids] + wpe[positions]`: `[rows, n_embd]`.
    fn embed(&self, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        let n_embd = self.config.n_embd;
        let mut x = Vec::with_capacity(ids.len() * n_embd);
        for &position in positions {
            extend_with_row(&mut x, &self.wpe, n_embd, position)?; // wpe[position]: [n_embd]
        }
        self.vocabulary.add_embeddings(ids, &mut x)?; // wte[ids]: [rows, n_embd]
        Tensor::from_vec(x, (ids.len(), n_embd), &self.device)
    }
}

impl Block {
    /// Computes `x + attn(ln_1(x))`, then `x + mlp(ln_2(x))`.
    fn forward(
        &self,
        i: usize,
        x: &Tensor,
        kv: &LayerKv,
        plan: &AttentionPlan,
        observe: &mut Observe<'_>,
    ) -> Result<Tensor> {
        // Every part is freed as soon as the next one is computed.
        let qkv = {
            let n = self.ln_1.forward(x)?; // [rows, n_embd]
            observe(Stage::AttentionInput(i), &n)?;
            self.attn.qkv(&n)? // [rows, n_embd] -> [rows, 3*n_embd]
        };
        observe(Stage::Qkv(i), &qkv)?;
        let x = {
            let y = self.attn.mix(&qkv, kv, plan)?; // [rows, 3*n_embd] -> [rows, n_embd]
            observe(Stage::Mixed(i), &y)?;
            self.attn.project(&y, x)? // [rows, n_embd]
        };
        observe(Stage::Attended(i), &x)?;
        let a = {
            let n = self.ln_2.forward(&x)?; // [rows, n_embd]
            observe(Stage::NeuronInput(i), &n)?;
            self.mlp.neurons(&n)? // [rows, n_inner]
        };
        observe(Stage::Neurons(i), &a)?;
        self.mlp.forward(&a, &x) // [rows, n_embd]
    }
}

impl SelfAttention {
    /// Computes the queries, keys and values of normalized rows.
    fn qkv(&self, x: &Tensor) -> Result<Tensor> {
        self.c_attn.forward(x, Epilogue::None) // [rows, n_embd] -> [rows, 3*n_embd]
    }

    /// Computes causal multi-head attention over each row's own context: the mix of values.
    fn mix(&self, qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<Tensor> {
        self.attention.forward(qkv, kv, plan) // [rows, 3*n_embd] -> [rows, n_embd]
    }

    /// Computes the output projection of mixed values, added to `residual`.
    fn project(&self, y: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(y, Epilogue::Add(residual)) // [rows, n_embd] -> [rows, n_embd]
    }
}

impl Mlp {
    /// Computes `gelu(c_fc(x))` of normalized rows.
    fn neurons(&self, x: &Tensor) -> Result<Tensor> {
        self.c_fc
            .forward(x, Epilogue::Activate(Activation::GeluTanh)) // [rows, n_embd] -> [rows, n_inner]
    }

    /// Computes `c_proj(a)`, added to `residual`.
    fn forward(&self, a: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(a, Epilogue::Add(residual)) // [rows, n_inner] -> [rows, n_embd]
    }
}

/// Loading, and the interface to the rest of the program.
impl Gpt2 {
    /// Reads all weights and has the backend prepare them.
    ///
    /// # Errors
    /// [`LoadError`], with file and tensor, if the checkpoint does not match the configuration.
    pub fn load(
        files: &ModelFiles,
        config: &Gpt2Config,
        backend: &dyn Backend,
    ) -> std::result::Result<Self, LoadError> {
        let checkpoint = &files.checkpoint;
        checkpoint.validate(&files.config)?;
        let loader = Loader {
            checkpoint,
            backend,
        };
        let (n_embd, vocab_size) = (config.n_embd, config.vocab_size);
        let mut h = Vec::with_capacity(config.n_layer);
        for i in 0..config.n_layer {
            h.push(Block::load(&loader, config, i)?);
            // Prepared weights are not read again, so file and weights need not be in memory at the
            // same time.
            checkpoint.release_pages();
        }
        let wpe = loader.values("wpe.weight", &[config.n_positions, n_embd])?;
        let lm_head = loader.projection(&checkpoint.lm_head(&files.config)?, n_embd, vocab_size)?;
        checkpoint.release_pages();
        let linears = h.iter().flat_map(Block::linears).chain([&*lm_head]);
        chain(linears);
        Ok(Self {
            pool: Arc::clone(backend.pool()),
            device: backend.device().clone(),
            vocabulary: Vocabulary {
                embedding: checkpoint.separate_embedding(&files.config)?,
                projection: lm_head,
                vocab_size,
            },
            wpe,
            embedding_norms: OnceLock::new(),
            h,
            ln_f: loader.layer_norm("ln_f", n_embd, config.layer_norm_epsilon)?,
            spec: spec(files, config),
            config: config.clone(),
        })
    }

    /// Returns the model's sizes and tokens.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Returns the compute threads, for sampling from the logits.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the size in bytes of the prepared weights.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let linears = self.h.iter().flat_map(Block::linears);
        let linears = linears.chain([&*self.vocabulary.projection]);
        linears.map(Linear::bytes).sum::<usize>() + size_of_val(&self.wpe[..])
    }

    /// Creates an empty KV cache of `blocks` blocks.
    ///
    /// # Errors
    /// If its memory can't be allocated.
    pub fn kv_cache(&self, dtype: KvDtype, blocks: usize) -> Result<KvCache> {
        let shape = KvShape {
            blocks,
            heads: self.config.n_head,
            head_width: self.config.head_dim(),
        };
        KvCache::new(&self.device, dtype, self.config.n_layer, shape)
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
        let shape = AttentionShape::multi_head(config.n_head, config.head_dim());
        Ok(Self {
            ln_1: loader.layer_norm(&name("ln_1"), n_embd, eps)?,
            attn: SelfAttention {
                c_attn: loader.conv1d(&name("attn.c_attn"), n_embd, 3 * n_embd)?,
                attention: loader.backend.attention(shape)?,
                c_proj: loader.conv1d(&name("attn.c_proj"), n_embd, n_embd)?,
            },
            ln_2: loader.layer_norm(&name("ln_2"), n_embd, eps)?,
            mlp: Mlp {
                c_fc: loader.conv1d(&name("mlp.c_fc"), n_embd, n_inner)?,
                c_proj: loader.conv1d(&name("mlp.c_proj"), n_inner, n_embd)?,
            },
            neuron_norms: OnceLock::new(),
        })
    }

    /// Returns the linear layers in the order of computation.
    fn linears(&self) -> [&dyn Linear; 4] {
        [
            &*self.attn.c_attn,
            &*self.attn.c_proj,
            &*self.mlp.c_fc,
            &*self.mlp.c_proj,
        ]
    }
}

/// Returns the spec of a GPT-2 with this configuration.
fn spec(files: &ModelFiles, config: &Gpt2Config) -> ModelSpec {
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
        parameters: files.config.parameters() as u64,
        end_of_text: files.end_of_text(),
    }
}
