//! Linear layers: `y = x W + b`, with an activation, a gate, a residual or a soft cap fused into the
//! write of the result.
//!
//! A layer is a candle custom op over weights packed once, computed tile by tile on the threads of
//! the [`Pool`].
//!
//! | module | what it is for |
//! |---|---|
//! | `weight` | weights as a checkpoint stores them, and the precisions |
//! | `panel` | memory layout of packed operands |
//! | `pack`, `activations` | packing weights once, activations for every call |
//! | `tile` | choice of the function that computes a tile |
//! | `avx512`, `avx2`, `portable` | those functions |
//! | `finish` | scales, bias and epilogue, applied as a tile's sums are written |
//!
//! Every output element is one sum over the input features in order, for any number of rows and
//! threads, so a row's result does not depend on other rows. In f32 and q8 it has the same bits on
//! every instruction set.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod finish;
mod pack;
mod panel;
mod portable;
mod tile;
mod weight;

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use self::activations::Activations;
pub use self::finish::Activation;
use self::finish::{Finish, Last, finish_tile};
use self::pack::PackedWeights;
use self::panel::{BLOCK_ROWS, PANEL, Tile};
pub use self::weight::{MatrixOrder, RawWeight, WeightDtype, check_weights};
use super::prefetch::MemoryRange;
use super::shared_slice::SharedSlice;
use super::storage::contiguous;
use super::weight_memory::WeightMemory;
use super::{Isa, Pool, lanes};

/// Minimum tasks per thread, so that all threads finish at about the same time.
const TASKS_PER_THREAD: usize = 8;

/// Maximum number of rows for which reading the weights takes longer than the arithmetic.
const MEMORY_BOUND_ROWS: usize = 8;

/// An operation applied to the result `y` after the bias, as it is written.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// None.
    None,
    /// `activation(y)`.
    Activate(Activation),
    /// `activation(y + addend)`.
    ActivateSum {
        /// Tensor of the result's shape.
        addend: &'a Tensor,
        /// The activation of the sum.
        activation: Activation,
    },
    /// `activation(gate) * y`: a gated linear unit (Shazeer 2020,
    /// <https://arxiv.org/abs/2002.05202>).
    Gated {
        /// Tensor of the result's shape.
        gate: &'a Tensor,
        /// The gate's activation.
        activation: Activation,
    },
    /// Adds a tensor of the result's shape.
    Add(&'a Tensor),
    /// [`soft_cap`](super::math::soft_cap)`(y, cap)`, with a finite cap above 0.
    SoftCap(f32),
}

/// A linear layer with packed weights.
pub struct PackedLinear {
    pool: Arc<Pool>,
    isa: Isa,
    weights: PackedWeights,
    /// `[out]`, zeros if the layer has no bias, padded to whole panels.
    bias: Vec<f32>,
    /// The weights read after these.
    next: OnceLock<MemoryRange>,
    /// Memory reused from call to call.
    activations: Mutex<Activations>,
}

impl PackedLinear {
    /// Packs matrices, whose outputs follow one another, in `dtype` into `memory`.
    ///
    /// # Errors
    /// As [`check_weights`], or if memory can't be allocated.
    pub fn pack(
        pool: &Arc<Pool>,
        isa: Isa,
        memory: &WeightMemory,
        dtype: WeightDtype,
        weights: &[RawWeight<'_>],
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        let (_, out_features) = check_weights(weights, bias)?;
        let isa = isa.min(lanes::best());
        Ok(Self {
            pool: Arc::clone(pool),
            isa,
            weights: PackedWeights::pack(pool, isa, memory, dtype, weights)?,
            bias: padded(bias.unwrap_or_default(), out_features),
            next: OnceLock::new(),
            activations: Mutex::default(),
        })
    }

    /// Returns the memory that a forward pass reads.
    #[must_use]
    pub fn memory(&self) -> MemoryRange {
        MemoryRange::of(self.weights.lines())
    }

    /// Records the weights that are read next, so that waiting threads can prefetch their
    /// beginning. Only the first call has an effect.
    pub fn set_next(&self, next: MemoryRange) {
        self.next.get_or_init(|| next);
    }

    /// Computes `[rows, in] -> [rows, out]`, in f32.
    ///
    /// # Errors
    /// If the shape or type of `x`, or of the epilogue's tensor, is not the layer's.
    pub fn forward(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        let op = LinearOp {
            layer: self,
            epilogue,
        };
        match epilogue {
            Epilogue::None | Epilogue::Activate(_) | Epilogue::SoftCap(_) => {
                x.apply_op1_no_bwd(&op)
            }
            Epilogue::ActivateSum { addend: other, .. }
            | Epilogue::Gated { gate: other, .. }
            | Epilogue::Add(other) => x.apply_op2_no_bwd(other, &op),
        }
    }

    /// Adds the weights of individual outputs to the rows of `x`, `[outputs, in]`: token embeddings
    /// that are tied to this layer.
    ///
    /// # Errors
    /// If an output does not exist, or `x` has a different length.
    pub fn add_weights_of(&self, outputs: &[u32], x: &mut [f32]) -> Result<()> {
        let n_in = self.weights.in_features;
        check_outputs(outputs, x, n_in, self.weights.out_features)?;
        let rows = SharedSlice::new(x);
        let add = |n: usize| {
            // SAFETY: every row belongs to exactly one task.
            let row = unsafe { rows.part(n * n_in, n_in) };
            self.weights.add_output(outputs[n] as usize, row);
        };
        // A row is a strided walk through a panel, a few microseconds: not worth waking the pool.
        if outputs.len() <= 2 {
            (0..outputs.len()).for_each(add);
        } else {
            self.pool.run(outputs.len(), add);
        }
        Ok(())
    }

    /// Returns the size of the weights in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weights.bytes() + size_of_val(&self.bias[..])
    }

    /// Computes `y = x W + b` and the epilogue; `x: [rows, in]`, `y: [rows, out]`.
    fn compute(&self, x: &[f32], rows: usize, last: Last<'_>) -> Vec<f32> {
        let weights = &self.weights;
        let mut activations = self
            .activations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        activations.pack(&self.pool, self.isa, weights, x, rows);
        let activations = &*activations;
        let elements = rows * weights.out_features;
        let mut y = Vec::with_capacity(elements);
        let finish = Finish {
            scales: (weights.dtype == WeightDtype::Q8).then_some(&weights.scales),
            bias: &self.bias,
            last,
            out_features: weights.out_features,
            y: SharedSlice::new(&mut y.spare_capacity_mut()[..elements]),
        };
        if rows <= MEMORY_BOUND_ROWS
            && let Some(&next) = self.next.get()
        {
            self.pool.announce(next);
        }
        // A panel is a task. If there are few panels and many rows, the rows are split into chunks
        // too.
        let blocks = rows.div_ceil(BLOCK_ROWS);
        let wanted = self.pool.threads() * TASKS_PER_THREAD;
        let chunks = wanted.div_ceil(weights.panels).clamp(1, blocks.max(1));
        self.pool.run(weights.panels * chunks, |task| {
            let (panel, chunk) = (task / chunks, task % chunks);
            let blocks = chunk * blocks / chunks..(chunk + 1) * blocks / chunks;
            self.panel(panel, rows, blocks, activations, &finish);
        });
        // SAFETY: every panel's columns of every row have been written.
        unsafe { y.set_len(elements) };
        y
    }

    /// Computes blocks of rows over one panel, one after another, while the panel is in the cache.
    fn panel(
        &self,
        panel: usize,
        rows: usize,
        blocks: Range<usize>,
        activations: &Activations,
        finish: &Finish<'_>,
    ) {
        let weights = &self.weights;
        let (words, groups) = (weights.words, weights.groups);
        let mut tile: Tile = [[0.0; PANEL]; BLOCK_ROWS];
        for first in blocks.map(|n| n * BLOCK_ROWS) {
            let count = BLOCK_ROWS.min(rows - first);
            let a = &activations.words[first * words..(first + count) * words];
            let scales = &activations.scales[first * groups..(first + count) * groups];
            tile::compute(self.isa, weights, panel, count, a, scales, &mut tile);
            finish_tile(self.isa, finish, &mut tile[..count], first, panel * PANEL);
        }
    }
}

/// Checks that the weights of `outputs` can be added to `x`, `[outputs, in]`.
///
/// # Errors
/// If `x` has a different length, or one of the outputs does not exist.
pub fn check_outputs(outputs: &[u32], x: &[f32], n_in: usize, n_out: usize) -> Result<()> {
    if x.len() != outputs.len() * n_in {
        bail!(
            "the weights of {} outputs of {n_in} features can't be added to {} values",
            outputs.len(),
            x.len()
        );
    }
    if let Some(output) = outputs.iter().find(|&&output| output as usize >= n_out) {
        bail!("token id {output} is outside the vocabulary ({n_out} tokens)");
    }
    Ok(())
}

/// Returns a bias, padded with zeros to whole panels.
fn padded(bias: &[f32], out_features: usize) -> Vec<f32> {
    let mut bias = bias.to_vec();
    bias.resize(out_features.next_multiple_of(PANEL), 0.0);
    bias
}

/// The candle operation: one operand, or two where the epilogue has a tensor.
struct LinearOp<'a> {
    layer: &'a PackedLinear,
    epilogue: Epilogue<'a>,
}

impl LinearOp<'_> {
    fn run(
        &self,
        x: (&CpuStorage, &Layout),
        other: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let weights = &self.layer.weights;
        let dims = x.1.dims();
        let &[rows, features] = dims else {
            bail!("a linear layer takes [rows, features], got {dims:?}");
        };
        if features != weights.in_features {
            bail!(
                "a linear layer of {} features got {features}",
                weights.in_features
            );
        }
        let shape = Shape::from((rows, weights.out_features));
        let other = other.map(|other| self.operand(other, &shape)).transpose()?;
        let other = other.unwrap_or_default();
        let last = match self.epilogue {
            Epilogue::None => Last::None,
            Epilogue::Activate(activation) => Last::Activate(activation),
            Epilogue::ActivateSum { activation, .. } => Last::ActivateSum(other, activation),
            Epilogue::Gated { activation, .. } => Last::Gated(other, activation),
            Epilogue::Add(_) => Last::Add(other),
            Epilogue::SoftCap(cap) => Last::SoftCap(cap),
        };
        let x = contiguous(x.0, x.1, "a linear layer's input")?;
        Ok((CpuStorage::F32(self.layer.compute(x, rows, last)), shape))
    }

    /// Returns the values of the epilogue's tensor.
    fn operand<'a>(
        &self,
        (storage, layout): (&'a CpuStorage, &Layout),
        shape: &Shape,
    ) -> Result<&'a [f32]> {
        let what = match self.epilogue {
            Epilogue::Gated { .. } => "a gate",
            Epilogue::ActivateSum { .. } => "an addend",
            _ => "a residual",
        };
        if layout.shape() != shape {
            bail!("{what} of shape {:?} for {shape:?}", layout.shape());
        }
        contiguous(storage, layout, what)
    }
}

impl CustomOp1 for LinearOp<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run((x, layout), None)
    }
}

impl CustomOp2 for LinearOp<'_> {
    fn name(&self) -> &'static str {
        "linear-with"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        other: &CpuStorage,
        other_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, x_layout), Some((other, other_layout)))
    }
}

#[cfg(test)]
mod tests;
