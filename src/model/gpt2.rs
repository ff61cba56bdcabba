//! GPT-2 (Radford et al. 2019), top to bottom as the paper has it, over a ragged batch.
//!
//! The tokens of all sequences of a step stand in one `[rows, n_embd]` matrix, so every linear
//! layer is one matrix product over the whole batch; only attention looks at each sequence's own
//! KV blocks. Names are those of the checkpoint (`wte`, `wpe`, `h.N.ln_1`, `attn.c_attn`, ...).
//!
//! The model knows a batch, never a sequence, session or request, and a row's result depends on
//! its own tokens alone, bit for bit.

use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::spec::ModelSpec;
use crate::checkpoint::weights::{Embedding, TensorView, WeightsError};
use crate::checkpoint::{Checkpoint, Gpt2Config, ModelFiles};
use crate::kernels::attention::{Attention, AttentionPlan, SequenceSpan};
use crate::kernels::kv::{KvCache, KvDtype, LayerKv};
use crate::kernels::linear::{Epilogue, Layout, Linear, RawWeight, WeightDtype};
use crate::kernels::norm::LayerNorm;
use crate::kernels::weight_memory::WeightMemory;
use crate::kernels::{Isa, Pool, activation_memory};

/// What the model computes with.
#[derive(Clone)]
pub enum Runtime {
    /// Our own kernels on the CPU.
    Kernels {
        /// The threads they run on.
        pool: Arc<Pool>,
        /// The instruction set.
        isa: Isa,
        /// Where packed weights lie.
        memory: WeightMemory,
        /// How weights are held.
        dtype: WeightDtype,
    },
    /// Plain candle operations in f32: the reference, and the way to other devices.
    Plain(Device),
}

impl Runtime {
    /// Our own kernels on `threads` threads, with the best instruction set the machine has.
    #[must_use]
    pub fn kernels(threads: NonZeroUsize, dtype: WeightDtype) -> Self {
        Self::on(Pool::new(threads), Isa::detect(), dtype)
    }

    /// Our own kernels on given threads and an instruction set that the processor has.
    #[must_use]
    pub fn on(pool: Arc<Pool>, isa: Isa, dtype: WeightDtype) -> Self {
        activation_memory::keep_between_steps();
        Self::Kernels {
            pool,
            isa,
            memory: WeightMemory::default(),
            dtype,
        }
    }

    fn pool(&self) -> Arc<Pool> {
        match self {
            Self::Kernels { pool, .. } => Arc::clone(pool),
            Self::Plain(_) => Pool::new(NonZeroUsize::MIN),
        }
    }

    fn device(&self) -> Device {
        match self {
            Self::Kernels { .. } => Device::Cpu,
            Self::Plain(device) => device.clone(),
        }
    }

    fn linear(&self, weight: RawWeight<'_>, bias: Option<&[f32]>) -> Result<Linear> {
        match self {
            Self::Kernels {
                pool,
                isa,
                memory,
                dtype,
            } => Linear::pack(pool, *isa, memory, *dtype, weight, bias),
            Self::Plain(device) => Linear::plain(device, weight, bias),
        }
    }

    fn layer_norm(&self, weight: &[f32], bias: &[f32], eps: f64) -> Result<LayerNorm> {
        match self {
            Self::Kernels { pool, isa, .. } => LayerNorm::new(pool, *isa, weight, bias, eps),
            Self::Plain(device) => LayerNorm::plain(device, weight, bias, eps),
        }
    }

    fn attention(&self, n_head: usize, head_dim: usize) -> Attention {
        match self {
            Self::Kernels { pool, isa, .. } => Attention::new(pool, *isa, n_head, head_dim),
            Self::Plain(_) => Attention::plain(n_head, head_dim),
        }
    }
}

/// The rows of one forward pass.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token ids, `[rows]`.
    pub ids: Vec<u32>,
    /// The position of each in its own context, `[rows]`, below `n_positions`.
    pub positions: Vec<u32>,
    /// Which rows belong to which KV blocks.
    pub spans: Vec<SequenceSpan>,
    /// The rows whose logits are wanted.
    pub logits_rows: Vec<u32>,
    /// The rows whose hidden states are wanted.
    pub hidden_rows: Vec<u32>,
}

/// What one forward pass gives.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// `[logits_rows, vocab_size]`
    pub logits: Tensor,
    /// After `ln_f`: `[hidden_rows, n_embd]`
    pub hidden: Tensor,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor is missing or not what the configuration says.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The weights could not be brought into the form the kernels need.
    #[error("the model's weights could not be prepared: {0}")]
    Kernels(#[from] candle_core::Error),
}

/// A loaded model.
pub struct Gpt2 {
    config: Gpt2Config,
    spec: ModelSpec,
    pool: Arc<Pool>,
    device: Device,
    /// Token embeddings of their own; where they are tied to the output projection, the rows of
    /// [`lm_head`](Self::lm_head) are, and the largest matrix is in memory once.
    wte: Option<Embedding>,
    /// `[n_positions * n_embd]`
    wpe: Vec<f32>,
    h: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
}

/// Returns what the rest of the program knows of a GPT-2 of this shape.
fn spec(config: &Gpt2Config, end_of_text: Vec<u32>) -> ModelSpec {
    ModelSpec {
        architecture: "gpt2",
        vocab_size: config.vocab_size,
        context_length: config.n_positions,
        layers: config.n_layer,
        heads: config.n_head,
        kv_heads: config.n_head,
        head_width: config.head_dim(),
        hidden_width: config.n_embd,
        parameters: config.parameters() as u64,
        end_of_text,
    }
}

struct Block {
    ln_1: LayerNorm,
    attn: SelfAttention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

struct SelfAttention {
    c_attn: Linear,
    attention: Attention,
    c_proj: Linear,
}

struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
}

impl Gpt2 {
    /// Reads and packs all weights.
    ///
    /// # Errors
    /// [`LoadError`] naming file and tensor if the checkpoint does not fit the configuration.
    pub fn load(files: &ModelFiles, runtime: &Runtime) -> std::result::Result<Self, LoadError> {
        let config = files.config.clone();
        let checkpoint = &files.checkpoint;
        checkpoint.validate(&config)?;
        let loader = Loader {
            checkpoint,
            runtime,
            config: &config,
        };
        let n_embd = config.n_embd;
        let h: Vec<Block> = (0..config.n_layer)
            .map(|i| {
                let block = loader.block(i);
                // What is packed is not read again: the file and the packed weights need not be
                // in memory at once.
                checkpoint.release_pages();
                block
            })
            .collect::<std::result::Result<_, LoadError>>()?;
        let wpe = loader.tensor("wpe.weight", &[config.n_positions, n_embd])?;
        let wpe = wpe.to_f32();
        let lm_head = loader.lm_head()?;
        checkpoint.release_pages();
        let layers: Vec<&Linear> = h
            .iter()
            .flat_map(Block::linears)
            .chain([&lm_head])
            .collect();
        for (layer, next) in layers.iter().zip(layers.iter().cycle().skip(1)) {
            layer.is_followed_by(next);
        }
        Ok(Self {
            device: runtime.device(),
            pool: runtime.pool(),
            wte: checkpoint.separate_embedding(&config)?,
            wpe,
            h,
            ln_f: loader.layer_norm("ln_f")?,
            lm_head,
            spec: spec(&config, files.end_of_text()),
            config,
        })
    }

    /// Returns the model's sizes and tokens.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The compute threads, for what has to be done with the logits.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Bytes of the packed weights that stay in memory.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let blocks = self.h.iter().flat_map(Block::linears).map(Linear::bytes);
        blocks.sum::<usize>() + self.lm_head.bytes() + self.wpe.len() * size_of::<f32>()
    }

    /// An empty KV cache for this model.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn kv_cache(&self, dtype: KvDtype, blocks: usize) -> Result<KvCache> {
        let config = &self.config;
        KvCache::new(
            &self.device,
            dtype,
            config.n_layer,
            blocks,
            config.n_head,
            config.head_dim(),
        )
    }

    /// One pass over the rows of a batch: writes their keys and values into the cache and gives
    /// the logits and the hidden states of the rows asked for. Other rows never meet the output
    /// projection.
    ///
    /// # Errors
    /// If the batch does not fit the model or the cache.
    pub fn forward(&self, batch: &Batch, kv: &KvCache) -> Result<Outputs> {
        let x = self.hidden_states(batch, kv, |_, _| Ok(()))?;
        let hidden = self.select(&x, &batch.hidden_rows)?; // -> [hidden_rows, n_embd]
        let sampled = self.select(&x, &batch.logits_rows)?; // -> [logits_rows, n_embd]
        let logits = if batch.logits_rows.is_empty() {
            Tensor::zeros((0, self.config.vocab_size), DType::F32, &self.device)?
        } else {
            self.lm_head.forward(&sampled, Epilogue::None)? // -> [logits_rows, vocab_size]
        };
        Ok(Outputs { logits, hidden })
    }

    /// Some rows of `x`, in the order given: `[rows, n_embd] -> [wanted, n_embd]`.
    fn select(&self, x: &Tensor, wanted: &[u32]) -> Result<Tensor> {
        if wanted.is_empty() {
            return Tensor::zeros((0, self.config.n_embd), DType::F32, &self.device);
        }
        // Rows are asked for at most once and in order: as many as there are is all of them.
        if wanted.len() == x.dim(0)? {
            return Ok(x.clone());
        }
        x.index_select(&Tensor::new(wanted, &self.device)?, 0)
    }

    /// The pass up to `ln_f`: `[rows, n_embd]`. `observe` sees the input of every block by its
    /// number, as the published hidden states have it.
    ///
    /// # Errors
    /// If the batch does not fit the model or the cache, or `observe` fails.
    pub fn hidden_states(
        &self,
        batch: &Batch,
        kv: &KvCache,
        mut observe: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let plan = AttentionPlan::new(&batch.spans, batch.ids.len(), self.config.n_head)?;
        let mut x = self.embed(batch)?; // [rows, n_embd]
        for (i, block) in self.h.iter().enumerate() {
            observe(i, &x)?;
            x = block.forward(&x, kv.layer(i)?, &plan)?; // [rows, n_embd] -> [rows, n_embd]
        }
        self.ln_f.forward(&x) // [rows, n_embd] -> [rows, n_embd]
    }

    /// `x = wte[ids] + wpe[positions]`, `[rows, n_embd]`.
    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let n_embd = self.config.n_embd;
        let mut x = Vec::with_capacity(batch.ids.len() * n_embd);
        for &position in &batch.positions {
            let at = position as usize * n_embd;
            let Some(wpe) = self.wpe.get(at..at + n_embd) else {
                candle_core::bail!("position {position} is outside the model's window");
            };
            x.extend_from_slice(wpe);
        }
        match &self.wte {
            None => self.lm_head.add_weights_of(&batch.ids, &mut x)?,
            Some(wte) => wte
                .add_rows(&batch.ids, &mut x)
                .map_err(candle_core::Error::wrap)?,
        }
        Tensor::from_vec(x, (batch.ids.len(), n_embd), &self.device)
    }
}

impl Block {
    /// `x + attn(ln_1(x))`, then `x + mlp(ln_2(x))`.
    fn forward(&self, x: &Tensor, kv: &LayerKv, plan: &Arc<AttentionPlan>) -> Result<Tensor> {
        let x = self.attn.forward(&self.ln_1.forward(x)?, x, kv, plan)?; // [rows, n_embd]
        self.mlp.forward(&self.ln_2.forward(&x)?, &x) // [rows, n_embd]
    }

    /// Its linear layers, in the order they are computed in.
    fn linears(&self) -> [&Linear; 4] {
        [
            &self.attn.c_attn,
            &self.attn.c_proj,
            &self.mlp.c_fc,
            &self.mlp.c_proj,
        ]
    }
}

impl SelfAttention {
    /// Causal multi-head attention over the rows' own contexts, added to `residual`.
    fn forward(
        &self,
        x: &Tensor,
        residual: &Tensor,
        kv: &LayerKv,
        plan: &Arc<AttentionPlan>,
    ) -> Result<Tensor> {
        let qkv = self.c_attn.forward(x, Epilogue::None)?; // [rows, n_embd] -> [rows, 3*n_embd]
        let y = self.attention.forward(&qkv, kv, plan)?; // [rows, 3*n_embd] -> [rows, n_embd]
        self.c_proj.forward(&y, Epilogue::Add(residual)) // [rows, n_embd] -> [rows, n_embd]
    }
}

impl Mlp {
    /// `c_proj(gelu(c_fc(x)))`, added to `residual`.
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let a = self.c_fc.forward(x, Epilogue::Gelu)?; // [rows, n_embd] -> [rows, n_inner]
        self.c_proj.forward(&a, Epilogue::Add(residual)) // [rows, n_inner] -> [rows, n_embd]
    }
}

/// Takes tensors from a checkpoint and brings them into the runtime's form.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    runtime: &'a Runtime,
    config: &'a Gpt2Config,
}

type Loaded<T> = std::result::Result<T, LoadError>;

impl Loader<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Loaded<TensorView<'_>> {
        Ok(self.checkpoint.finite_tensor(name, shape)?)
    }

    fn block(&self, i: usize) -> Loaded<Block> {
        let config = self.config;
        let (n_embd, n_inner) = (config.n_embd, config.n_inner);
        let name = |part: &str| format!("h.{i}.{part}");
        Ok(Block {
            ln_1: self.layer_norm(&name("ln_1"))?,
            attn: SelfAttention {
                c_attn: self.conv1d(&name("attn.c_attn"), n_embd, 3 * n_embd)?,
                attention: self.runtime.attention(config.n_head, config.head_dim()),
                c_proj: self.conv1d(&name("attn.c_proj"), n_embd, n_embd)?,
            },
            ln_2: self.layer_norm(&name("ln_2"))?,
            mlp: Mlp {
                c_fc: self.conv1d(&name("mlp.c_fc"), n_embd, n_inner)?,
                c_proj: self.conv1d(&name("mlp.c_proj"), n_inner, n_embd)?,
            },
        })
    }

    fn layer_norm(&self, name: &str) -> Loaded<LayerNorm> {
        let shape = [self.config.n_embd];
        let weight = self.tensor(&format!("{name}.weight"), &shape)?.to_f32();
        let bias = self.tensor(&format!("{name}.bias"), &shape)?.to_f32();
        let eps = self.config.layer_norm_epsilon;
        Ok(self.runtime.layer_norm(&weight, &bias, eps)?)
    }

    /// GPT-2's `Conv1D`: a linear layer whose weight is stored `[in, out]`.
    fn conv1d(&self, name: &str, in_features: usize, out_features: usize) -> Loaded<Linear> {
        let shape = [in_features, out_features];
        let weight = self.tensor(&format!("{name}.weight"), &shape)?;
        let bias = self
            .tensor(&format!("{name}.bias"), &[out_features])?
            .to_f32();
        let weight = RawWeight {
            bytes: weight.bytes,
            dtype: weight.dtype,
            layout: Layout::InOut,
            in_features,
            out_features,
        };
        Ok(self.runtime.linear(weight, Some(&bias))?)
    }

    /// The tied or separate output projection, `[vocab_size, n_embd]`.
    fn lm_head(&self) -> Loaded<Linear> {
        let (vocab_size, n_embd) = (self.config.vocab_size, self.config.n_embd);
        let weight = self.checkpoint.lm_head(self.config)?;
        let weight = RawWeight {
            bytes: weight.bytes,
            dtype: weight.dtype,
            layout: Layout::OutIn,
            in_features: n_embd,
            out_features: vocab_size,
        };
        Ok(self.runtime.linear(weight, None)?)
    }
}
