//! Linear layers: `y = x W + b`, with GELU or a residual added where the result is written.
//!
//! [`Linear::pack`] is the fast path: a candle custom op over weights packed once
//! (`pack`), computed tile by tile (`linear_tile`) on the threads of the [`Pool`].
//! [`Linear::plain`] is the same in plain candle operations: the reference, and what other
//! devices run.
//!
//! Every output element is one sum over the input features in order, for any number of rows and
//! threads, so a row's result does not depend on the rows beside it. In f32 and q8 it has the
//! same bits on every instruction set.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout as TensorLayout, Result, Shape, Tensor,
    bail,
};

use super::linear_tile::{Tile, block_rows, compute};
use super::pack::{PANEL, PackedWeights, pack_rows};
use super::shared_slice::SharedSlice;
use super::{Isa, Pool, math};

/// Tasks per thread: enough that a thread which loses time to others leaves little undone, few
/// enough that claiming them costs nothing.
const TASKS_PER_THREAD: usize = 8;

/// How weights are held, and with what arithmetic they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32-bit floats: the reference.
    F32,
    /// bfloat16; activations are rounded to it too, products added in f32.
    Bf16,
    /// 8-bit integers with a scale per output; activations are quantized row by row in groups of
    /// 128 features, products added in integers.
    Q8,
}

/// How a weight matrix stands in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[in, out]`: GPT-2's `Conv1D`.
    InOut,
    /// `[out, in]`: embeddings, and `PyTorch`'s `Linear`.
    OutIn,
}

/// A weight matrix where it lies in a checkpoint: little endian, not necessarily aligned.
#[derive(Debug, Clone, Copy)]
pub struct RawWeight<'a> {
    /// `in_features * out_features` values.
    pub bytes: &'a [u8],
    /// F32, F16 or BF16.
    pub dtype: DType,
    /// Which of the two dimensions comes first.
    pub layout: Layout,
    /// Columns of `x`.
    pub in_features: usize,
    /// Columns of `y`.
    pub out_features: usize,
}

impl RawWeight<'_> {
    fn check(&self, bias: Option<&[f32]>) -> Result<()> {
        let Self {
            in_features,
            out_features,
            ..
        } = *self;
        if !matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16) {
            bail!("weights of type {:?} are not supported", self.dtype);
        }
        if in_features == 0 || out_features == 0 {
            bail!("a linear layer from {in_features} to {out_features} features");
        }
        let expected = in_features * out_features * self.dtype.size_in_bytes();
        if self.bytes.len() != expected {
            bail!(
                "{in_features} x {out_features} weights of type {:?} take {expected} bytes, got {}",
                self.dtype,
                self.bytes.len()
            );
        }
        match bias {
            Some(bias) if bias.len() != out_features => {
                bail!("{out_features} outputs, but {} biases", bias.len())
            }
            _ => Ok(()),
        }
    }
}

/// What is done to a result as it is written, after the bias.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// GELU in its tanh form.
    Gelu,
    /// Adds a tensor of the result's shape.
    Add(&'a Tensor),
}

/// A linear layer. Cheap to clone.
#[derive(Clone)]
pub struct Linear(Kind);

#[derive(Clone)]
enum Kind {
    Packed(Arc<Packed>),
    Plain {
        /// `[in, out]`
        weight: Tensor,
        /// `[out]`
        bias: Option<Tensor>,
    },
}

struct Packed {
    pool: Arc<Pool>,
    isa: Isa,
    weights: PackedWeights,
    /// `[out]`, zeros where the layer has none.
    bias: Vec<f32>,
    /// Packed activations, kept from call to call.
    scratch: Mutex<Activations>,
}

#[derive(Default)]
struct Activations {
    words: Vec<u32>,
    scales: Vec<f32>,
}

impl Linear {
    /// A layer on our own kernels, its weights packed in `dtype`.
    ///
    /// # Errors
    /// If lengths do not fit the shape, or the checkpoint's type is not supported.
    pub fn pack(
        pool: &Arc<Pool>,
        isa: Isa,
        dtype: WeightDtype,
        weight: RawWeight<'_>,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        weight.check(bias)?;
        Ok(Self(Kind::Packed(Arc::new(Packed {
            pool: Arc::clone(pool),
            isa,
            weights: PackedWeights::pack(pool, dtype, &weight),
            bias: bias.map_or_else(|| vec![0.0; weight.out_features], <[f32]>::to_vec),
            scratch: Mutex::default(),
        }))))
    }

    /// A layer in plain candle operations, in f32, on any device.
    ///
    /// # Errors
    /// If lengths do not fit the shape, or the device fails.
    pub fn plain(device: &Device, weight: RawWeight<'_>, bias: Option<&[f32]>) -> Result<Self> {
        weight.check(bias)?;
        let (n_in, n_out) = (weight.in_features, weight.out_features);
        let shape = match weight.layout {
            Layout::InOut => [n_in, n_out],
            Layout::OutIn => [n_out, n_in],
        };
        let tensor = Tensor::from_raw_buffer(weight.bytes, weight.dtype, &shape, device)?;
        let tensor = tensor.to_dtype(DType::F32)?;
        let weight = match weight.layout {
            Layout::InOut => tensor,
            Layout::OutIn => tensor.t()?,
        };
        let bias = bias.map(|bias| Tensor::new(bias, device)).transpose()?;
        Ok(Self(Kind::Plain { weight, bias }))
    }

    /// `[rows, in] -> [rows, out]`, in f32.
    ///
    /// # Errors
    /// If the shape or type of `x`, or of a tensor to add, is not what the layer expects.
    pub fn forward(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        match &self.0 {
            Kind::Packed(packed) => match epilogue {
                Epilogue::None => x.apply_op1_no_bwd(&Forward {
                    packed,
                    gelu: false,
                }),
                Epilogue::Gelu => x.apply_op1_no_bwd(&Forward { packed, gelu: true }),
                Epilogue::Add(residual) => {
                    let op = Forward {
                        packed,
                        gelu: false,
                    };
                    x.apply_op2_no_bwd(residual, &op)
                }
            },
            Kind::Plain { weight, bias } => {
                let y = x.matmul(weight)?; // [rows, in] x [in, out] -> [rows, out]
                let y = match bias {
                    Some(bias) => y.broadcast_add(bias)?,
                    None => y,
                };
                match epilogue {
                    Epilogue::None => Ok(y),
                    Epilogue::Gelu => y.gelu(),
                    Epilogue::Add(residual) => y + residual,
                }
            }
        }
    }

    /// Bytes the weights take in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Kind::Packed(packed) => packed.weights.bytes() + size_of_val(&packed.bias[..]),
            Kind::Plain { weight, .. } => weight.elem_count() * size_of::<f32>(),
        }
    }
}

/// The candle operation: one operand, or two with a residual to add.
struct Forward<'a> {
    packed: &'a Packed,
    gelu: bool,
}

impl Forward<'_> {
    fn run(
        &self,
        x: (&CpuStorage, &TensorLayout),
        residual: Option<(&CpuStorage, &TensorLayout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let weights = &self.packed.weights;
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
        if let Some((_, layout)) = residual
            && layout.shape() != &shape
        {
            bail!("a residual of shape {:?} for {shape:?}", layout.shape());
        }
        let x = contiguous(x.0, x.1)?;
        let residual = residual.map(|(s, l)| contiguous(s, l)).transpose()?;
        let y = self.packed.forward(x, rows, self.gelu, residual);
        Ok((CpuStorage::F32(y), shape))
    }
}

/// The values of a contiguous f32 tensor.
pub(super) fn contiguous<'a>(storage: &'a CpuStorage, layout: &TensorLayout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("the kernels take contiguous tensors, got {layout:?}"),
    }
}

impl CustomOp1 for Forward<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &TensorLayout) -> Result<(CpuStorage, Shape)> {
        self.run((x, layout), None)
    }
}

impl CustomOp2 for Forward<'_> {
    fn name(&self) -> &'static str {
        "linear-add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &TensorLayout,
        residual: &CpuStorage,
        residual_layout: &TensorLayout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((x, x_layout), Some((residual, residual_layout)))
    }
}

impl Packed {
    /// `x: [rows, in]`, `residual: [rows, out]`; gives `[rows, out]`.
    fn forward(&self, x: &[f32], rows: usize, gelu: bool, residual: Option<&[f32]>) -> Vec<f32> {
        let weights = &self.weights;
        let n_out = weights.out_features;
        let mut y = vec![0.0; rows * n_out];
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        self.pack_activations(x, rows, &mut scratch);
        let Activations { words, scales } = &*scratch;
        let out = SharedSlice::new(&mut y);
        let tasks = (self.pool.threads() * TASKS_PER_THREAD).min(weights.panels());
        self.pool.run(tasks, |task| {
            let share = |n: usize| n * weights.panels() / tasks;
            let panels = share(task)..share(task + 1);
            for panel in panels {
                self.panel(panel, rows, words, scales, |row, sums| {
                    let first = panel * PANEL;
                    let width = PANEL.min(n_out - first);
                    let at = row * n_out + first;
                    // SAFETY: each row of each panel is written once, by the task that has it.
                    let y = unsafe { out.part(at, width) };
                    for ((y, sum), bias) in y.iter_mut().zip(sums).zip(&self.bias[first..]) {
                        *y = sum + bias;
                    }
                    if let Some(residual) = residual {
                        for (y, residual) in y.iter_mut().zip(&residual[at..]) {
                            *y += residual;
                        }
                    }
                    if gelu {
                        math::gelu_in_place(self.isa, y);
                    }
                });
            }
        });
        y
    }

    /// Computes all rows over one panel, block by block, while it is in the cache.
    fn panel(
        &self,
        panel: usize,
        rows: usize,
        words: &[u32],
        scales: &[f32],
        mut write: impl FnMut(usize, &[f32; PANEL]),
    ) {
        let weights = &self.weights;
        let block = block_rows(weights.dtype);
        let groups = self.groups();
        let mut tile: Tile = [[0.0; PANEL]; 12];
        let mut first = 0;
        while first < rows {
            let count = block.min(rows - first);
            let a = &words[first * weights.words()..(first + count) * weights.words()];
            let row_scales = &scales[first * groups..(first + count) * groups];
            compute(self.isa, weights, panel, count, a, row_scales, &mut tile);
            for (row, sums) in (first..).zip(&tile[..count]) {
                write(row, sums);
            }
            first += count;
        }
    }

    /// Groups of activation scales per row.
    fn groups(&self) -> usize {
        match self.weights.dtype {
            WeightDtype::Q8 => self.weights.groups(),
            WeightDtype::F32 | WeightDtype::Bf16 => 0,
        }
    }

    fn pack_activations(&self, x: &[f32], rows: usize, scratch: &mut Activations) {
        let weights = &self.weights;
        let (words, groups) = (weights.words(), self.groups());
        let block = block_rows(weights.dtype);
        scratch.words.resize(rows * words, 0);
        scratch.scales.resize(rows * groups, 0.0);
        let out = SharedSlice::new(&mut scratch.words);
        let scales = SharedSlice::new(&mut scratch.scales);
        let pack = |n: usize| {
            let first = n * block;
            let count = block.min(rows - first);
            // SAFETY: every block of rows is packed by one task, into parts of its own.
            let (out, scales) = unsafe {
                (
                    out.part(first * words, count * words),
                    scales.part(first * groups, count * groups),
                )
            };
            let features = weights.in_features;
            let x = &x[first * features..(first + count) * features];
            pack_on(self.isa, weights.dtype, x, features, out, scales);
        };
        let blocks = rows.div_ceil(block);
        // A few rows are packed faster than another thread is woken.
        if blocks <= 2 {
            (0..blocks).for_each(pack);
        } else {
            self.pool.run(blocks, pack);
        }
    }
}

/// [`pack_rows`], compiled for the instruction set.
fn pack_on(
    isa: Isa,
    dtype: WeightDtype,
    rows: &[f32],
    features: usize,
    out: &mut [u32],
    scales: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512(d: WeightDtype, r: &[f32], n: usize, out: &mut [u32], scales: &mut [f32]) {
            pack_rows(d, r, n, out, scales);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(d: WeightDtype, r: &[f32], n: usize, out: &mut [u32], scales: &mut [f32]) {
            pack_rows(d, r, n, out, scales);
        }
        // SAFETY: `isa` is one the processor has.
        match isa {
            Isa::Avx512 => return unsafe { avx512(dtype, rows, features, out, scales) },
            Isa::Avx2 => return unsafe { avx2(dtype, rows, features, out, scales) },
            Isa::Portable => (),
        }
    }
    pack_rows(dtype, rows, features, out, scales);
}

#[cfg(test)]
#[path = "linear_tests.rs"]
mod tests;
