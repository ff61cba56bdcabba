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

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout as TensorLayout, Result, Shape, Tensor,
    bail,
};

use super::lanes::per_isa;
use super::linear_tile::{BLOCK_ROWS, Tile, compute};
use super::pack::{PANEL, PackedWeights, Q8_GROUP, Rows, bf16_words, pack_rows};
use super::shared_slice::SharedSlice;
use super::weight_memory::WeightMemory;
use super::{Isa, Pool, math};

/// Tasks per thread, at least: enough that all threads finish at about the same time.
const TASKS_PER_THREAD: usize = 8;

/// So many activations are packed faster than another thread is woken.
const INLINE_PACKING: usize = 8 * 1024;

/// With so many rows at most, computing is far from using up what memory gives.
const MEMORY_BOUND_ROWS: usize = 8;

/// How weights are held, and with what arithmetic they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32-bit floats: the reference.
    F32,
    /// bfloat16; activations are rounded to it too, products added in f32.
    Bf16,
    /// 8-bit integers with a scale per output; activations are quantized row by row in groups of
    /// 256 features, products added in integers.
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
    /// `[out]`, zeros where the layer has none, padded to whole panels.
    bias: Vec<f32>,
    /// The layer whose weights are read after these.
    next: OnceLock<Weak<Packed>>,
    /// Packed activations, kept from call to call.
    scratch: Mutex<Activations>,
}

#[derive(Default)]
struct Activations {
    words: Vec<u32>,
    scales: Vec<f32>,
}

impl Linear {
    /// A layer on our own kernels, its weights packed into `memory` in `dtype`.
    ///
    /// # Errors
    /// If lengths do not fit the shape, the checkpoint's type is not supported, or there is no
    /// memory.
    pub fn pack(
        pool: &Arc<Pool>,
        isa: Isa,
        memory: &WeightMemory,
        dtype: WeightDtype,
        weight: RawWeight<'_>,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        weight.check(bias)?;
        Ok(Self(Kind::Packed(Arc::new(Packed {
            pool: Arc::clone(pool),
            isa,
            weights: PackedWeights::pack(pool, isa, memory, dtype, &weight)?,
            bias: padded(bias.unwrap_or_default(), weight.out_features),
            next: OnceLock::new(),
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

    /// Says which layer's weights are read next, so that their beginning can be fetched while
    /// something else is computed. Said once.
    pub fn is_followed_by(&self, next: &Self) {
        if let (Kind::Packed(packed), Kind::Packed(next)) = (&self.0, &next.0) {
            packed.next.get_or_init(|| Arc::downgrade(next));
        }
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

    /// Adds the weights of single outputs to the rows of `x`, `[outputs, in]`: for token embeddings
    /// that are tied to this layer.
    ///
    /// # Errors
    /// If there is no such output, or `x` has another length.
    pub fn add_weights_of(&self, outputs: &[u32], x: &mut [f32]) -> Result<()> {
        let (n_in, n_out) = match &self.0 {
            Kind::Packed(packed) => (packed.weights.in_features, packed.weights.out_features),
            Kind::Plain { weight, .. } => weight.dims2()?,
        };
        if x.len() != outputs.len() * n_in {
            bail!(
                "weights of {} outputs for {} values",
                outputs.len(),
                x.len()
            );
        }
        if let Some(output) = outputs.iter().find(|&&output| output as usize >= n_out) {
            bail!("token id {output} is outside of the vocabulary of {n_out}");
        }
        match &self.0 {
            Kind::Packed(packed) => packed.add_weights_of(outputs, x),
            Kind::Plain { weight, .. } => {
                let index = Tensor::new(outputs, weight.device())?;
                let rows = weight.t()?.contiguous()?.index_select(&index, 0)?; // [outputs, in]
                let rows: Vec<f32> = rows.flatten_all()?.to_vec1()?;
                for (x, weight) in x.iter_mut().zip(rows) {
                    *x += weight;
                }
            }
        }
        Ok(())
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

/// A bias with zeros behind it, up to the end of the last panel.
fn padded(bias: &[f32], out_features: usize) -> Vec<f32> {
    let mut bias = bias.to_vec();
    bias.resize(out_features.next_multiple_of(PANEL), 0.0);
    bias
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
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        self.pack_activations(x, rows, &mut scratch);
        let activations = &*scratch;
        let elements = rows * weights.out_features;
        let mut y = Vec::with_capacity(elements);
        let finish = Finish {
            scales: (weights.dtype == WeightDtype::Q8).then_some(&weights.scales),
            bias: &self.bias,
            residual,
            gelu,
            out_features: weights.out_features,
            y: SharedSlice::new(&mut y.spare_capacity_mut()[..elements]),
        };
        if rows <= MEMORY_BOUND_ROWS
            && let Some(next) = self.next.get().and_then(Weak::upgrade)
        {
            self.pool.announce(next.weights.lines());
        }
        // A panel is a task. Where there are few of them, many rows are cut into chunks too.
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

    /// Computes blocks of rows over one panel, one after the other, while it is in the cache.
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
            compute(self.isa, weights, panel, count, a, scales, &mut tile);
            finish_tile(self.isa, finish, &mut tile[..count], first, panel * PANEL);
        }
    }

    /// `x: [outputs, in]`; the outputs exist.
    fn add_weights_of(&self, outputs: &[u32], x: &mut [f32]) {
        let n_in = self.weights.in_features;
        let rows = SharedSlice::new(x);
        let add = |n: usize| {
            // SAFETY: every row is one task's.
            let row = unsafe { rows.part(n * n_in, n_in) };
            self.weights.add_output(outputs[n] as usize, row);
        };
        // A row is a strided walk through a panel: some microseconds.
        if outputs.len() <= 2 {
            (0..outputs.len()).for_each(add);
        } else {
            self.pool.run(outputs.len(), add);
        }
    }

    /// Packs `x: [rows, in]` in parts of a block of rows and [`Q8_GROUP`] features.
    fn pack_activations(&self, x: &[f32], rows: usize, scratch: &mut Activations) {
        let weights = &self.weights;
        let (features, words, groups) = (weights.in_features, weights.words, weights.groups);
        scratch.words.resize(rows * words, 0);
        scratch.scales.resize(rows * groups, 0.0);
        let out = SharedSlice::new(&mut scratch.words);
        let scales = SharedSlice::new(&mut scratch.scales);
        let parts = features.div_ceil(Q8_GROUP);
        let words_per_part = Q8_GROUP / weights.dtype.features_per_word();
        let pack = |n: usize| {
            let (block, part) = (n / parts, n % parts);
            let first = block * BLOCK_ROWS;
            let count = BLOCK_ROWS.min(rows - first);
            let start = part * words_per_part;
            let part_words = words_per_part.min(words - start);
            let part_scales = usize::from(groups > 0);
            // SAFETY: every part is packed by one task, to a place of its own.
            let (out, scales) = unsafe {
                (
                    out.part(first * words + count * start, count * part_words),
                    scales.part(
                        first * groups + count * part * part_scales,
                        count * part_scales,
                    ),
                )
            };
            let x = &x[first * features..(first + count) * features];
            let columns = part * Q8_GROUP..features.min((part + 1) * Q8_GROUP);
            let rows = Rows {
                x,
                features,
                columns,
            };
            pack_on(self.isa, weights.dtype, &rows, out, scales);
        };
        let tasks = rows.div_ceil(BLOCK_ROWS) * parts;
        if rows * features <= INLINE_PACKING {
            (0..tasks).for_each(pack);
        } else {
            self.pool.run(tasks, pack);
        }
    }
}

/// What becomes of a tile's sums, and where they go.
struct Finish<'a> {
    /// q8: the weights' scales, padded to whole panels.
    scales: Option<&'a [f32]>,
    /// Padded to whole panels.
    bias: &'a [f32],
    /// `[rows, out]`
    residual: Option<&'a [f32]>,
    gelu: bool,
    out_features: usize,
    /// `[rows, out]`
    y: SharedSlice<'a, MaybeUninit<f32>>,
}

per_isa! {
    /// Finishes the sums of the rows from `row` on and writes them to the columns from `column`.
    fn finish_tile(finish: &Finish<'_>, tile: &mut [[f32; PANEL]], row: usize, column: usize)
        => finish_tile_body;
}

#[inline(always)]
fn finish_tile_body(finish: &Finish<'_>, tile: &mut [[f32; PANEL]], row: usize, column: usize) {
    let n_out = finish.out_features;
    let width = PANEL.min(n_out - column);
    let mut bias = [0.0; PANEL];
    bias.copy_from_slice(&finish.bias[column..column + PANEL]);
    let mut scales = [1.0; PANEL];
    if let Some(all) = finish.scales {
        scales.copy_from_slice(&all[column..column + PANEL]);
    }
    for (row, sums) in (row..).zip(tile) {
        let at = row * n_out + column;
        let mut values = *sums;
        if finish.scales.is_some() {
            for i in 0..PANEL {
                values[i] *= scales[i];
            }
        }
        for i in 0..PANEL {
            values[i] += bias[i];
        }
        if let Some(residual) = finish.residual {
            let mut addend = [0.0; PANEL];
            match residual[at..].first_chunk() {
                Some(whole) if width == PANEL => addend = *whole,
                _ => addend[..width].copy_from_slice(&residual[at..at + width]),
            }
            for i in 0..PANEL {
                values[i] += addend[i];
            }
        }
        if finish.gelu {
            for value in &mut values {
                *value = math::gelu(*value);
            }
        }
        // SAFETY: no other task has these rows of these columns.
        let y = unsafe { finish.y.part(at, width) };
        match y.first_chunk_mut() {
            Some(whole) => *whole = initialized(&values),
            None => {
                for (y, value) in y.iter_mut().zip(values) {
                    y.write(value);
                }
            }
        }
    }
}

#[inline(always)]
fn initialized(values: &[f32; PANEL]) -> [MaybeUninit<f32>; PANEL] {
    // `map` would be a call that is not compiled for the instruction set.
    let mut written = [MaybeUninit::uninit(); PANEL];
    for (written, &value) in written.iter_mut().zip(values) {
        written.write(value);
    }
    written
}

/// [`pack_rows`], compiled for the instruction set.
fn pack_on(isa: Isa, dtype: WeightDtype, rows: &Rows<'_>, out: &mut [u32], scales: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use super::x86::linear_avx512::round_to_bf16;
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        fn avx512(d: WeightDtype, r: &Rows<'_>, out: &mut [u32], scales: &mut [f32]) {
            pack_rows(d, r, |values| round_to_bf16(values), out, scales);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(d: WeightDtype, r: &Rows<'_>, out: &mut [u32], scales: &mut [f32]) {
            pack_rows(d, r, bf16_words, out, scales);
        }
        // SAFETY: `isa` is one the processor has.
        match isa {
            Isa::Avx512 => return unsafe { avx512(dtype, rows, out, scales) },
            Isa::Avx2 => return unsafe { avx2(dtype, rows, out, scales) },
            Isa::Portable => (),
        }
    }
    pack_rows(dtype, rows, bf16_words, out, scales);
}

#[cfg(test)]
#[path = "linear_tests.rs"]
mod tests;
