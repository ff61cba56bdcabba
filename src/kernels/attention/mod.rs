//! Causal attention over the KV blocks of many sequences at once: multi-head or grouped-query, over
//! the whole context or a sliding window.
//!
//! A row's result is the same bit for bit whether its sequence is computed at once, in chunks of
//! any size or token by token, alone or in a batch; over an f32 cache, on every instruction set
//! too. Every path must therefore compute, for each row and query head, in exactly this order:
//!
//! - Score of position `j`: a chain of products `q[d] * k[d][j]`, added over `d` in order from 0,
//!   then one multiplication by `scale`, then [`soft_cap`](super::math::soft_cap) if there is one.
//! - Positions are divided into segments of [`SEGMENT`](segments::SEGMENT), counted from position 0. The
//!   next steps are taken over every segment on its own; the last one merges those with a visible
//!   position.
//! - Softmax as one pass (Milakov and Gimelshein 2018, <https://arxiv.org/abs/1805.02867>) over
//!   tiles of [`POSITION_TILE`] positions counted from position 0. Only tiles with a visible
//!   position count, and of them only the visible positions. Per tile: the running maximum `m` is
//!   updated with the tile's scores; the weights are [`exp`](super::math::exp)`(score - m)`; all
//!   sums so far are multiplied by `exp(m before - m)`; then the tile's positions are added in
//!   order.
//! - Sum of the weights: position `j` goes to lane `j % 16`; the lanes are folded at the end as
//!   [`fold`](super::lanes::fold) does.
//! - Weighted values: a chain of products `weight[j] * v[j][d]`, added over `j` in order.
//! - Merge: with `f = exp(m - greatest m)` of each segment in order, sums of weights and weighted values
//!   are a product by `f` for the first and fused multiply-adds for the others. Finally the weighted
//!   values are multiplied by the reciprocal of the sum of the weights.
//!
//! Over an f32 cache a product is one fused multiply-add. Over a bf16 cache queries and weights are
//! rounded to bf16 too and products are added in pairs of `d`, or of `j`, in f32, in the way of the
//! instruction set (`vdpbf16ps`, or two fused multiply-adds).
//!
//! The query heads that share a key and value head are rows of one unit beside each other, so each key
//! and value is loaded once for all of them.
//!
//! Blocks that no row of a unit sees, and slots past its last position, never enter its arithmetic: their
//! stale bytes may be NaN. A position that only another row of the unit sees, or that lies before the
//! window in the window's first block, enters with weight 0, which adds nothing; a tile of such
//! positions alone leaves the maximum at negative infinity and every sum at 0.
//!
//! | module | what it is for |
//! |---|---|
//! | `shape` | dimensions of a layer |
//! | `plan` | units of work of a step |
//! | `unit` | operands of a unit of work |
//! | `segments` | partial results of long contexts, and their merge |
//! | `kernel` | arithmetic of a unit, for all instruction sets |
//! | `vector` | sixteen f32 lanes, implemented by `avx512`, `avx2` and `portable` |
//! | `weights` | attention weights of one row, for inspections |

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod plan;
mod portable;
mod segments;
mod shape;
mod unit;
mod vector;
mod weights;

use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

pub use self::plan::AttentionPlan;
use self::plan::{Merge, Unit, Work};
use self::segments::{Partials, RowSegments, SEGMENT, Slots, merge};
pub use self::shape::AttentionShape;
use self::unit::UnitJob;
use self::vector::Element;
pub use self::weights::{scores, softmax, weights};
use super::kv::{BLOCK_SIZE, KvPart, KvShape, LayerKv, StepSpans};
use super::shared_slice::SharedSlice;
use super::storage::contiguous;
use super::{Isa, Pool, lanes};

/// Positions added to the softmax at a time.
const POSITION_TILE: usize = 64;
const TILE_BLOCKS: usize = POSITION_TILE / BLOCK_SIZE;

/// The attention of one layer, computed by the kernels.
pub struct KernelAttention {
    shape: AttentionShape,
    pool: Arc<Pool>,
    isa: Isa,
}

impl KernelAttention {
    /// Creates attention that runs on `pool` with the kernels of `isa`.
    ///
    /// # Errors
    /// As [`AttentionShape::check`].
    pub fn new(pool: &Arc<Pool>, isa: Isa, shape: AttentionShape) -> Result<Self> {
        shape.check()?;
        Ok(Self {
            shape,
            pool: Arc::clone(pool),
            isa: isa.min(lanes::best()),
        })
    }

    /// Writes the rows' keys and values into the cache, then lets every row attend to its own
    /// sequence up to its own position: `[rows, (heads + 2 * kv_heads) * head_width]` ->
    /// `[rows, heads * head_width]`, f32.
    ///
    /// The order of operations, and therefore every bit of the result, is specified in the module
    /// docs.
    ///
    /// # Errors
    /// If the shapes of `qkv`, the cache and the plan do not match.
    pub fn forward(&self, qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<Tensor> {
        self.shape.check_operands(qkv, kv, plan.spans())?;
        let qkv = qkv.contiguous()?;
        kv.write(&qkv, self.shape.heads, plan.spans(), &self.pool)?;
        let attend = Attend {
            spans: plan.spans(),
            work: plan.work(&self.shape),
            pool: &self.pool,
            isa: self.isa,
            shape: self.shape,
            part: kv.part(),
            cache: kv.shape(),
        };
        qkv.apply_op2_no_bwd(kv.tensor(), &attend)
    }
}

/// The candle operation: the attention of a plan's rows over one layer's cache.
struct Attend<'a> {
    spans: &'a StepSpans,
    work: Arc<Work>,
    pool: &'a Pool,
    isa: Isa,
    shape: AttentionShape,
    part: KvPart,
    cache: KvShape,
}

impl CustomOp2 for Attend<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        kv: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let qkv = contiguous(qkv, qkv_layout, "qkv")?;
        let out = match kv {
            CpuStorage::F32(kv) => self.run(qkv, kv),
            CpuStorage::BF16(kv) => self.run(qkv, kv),
            _ => bail!("the KV cache holds f32 or bf16, not {:?}", kv.dtype()),
        }?;
        let shape = (self.spans.rows(), self.shape.out_width());
        Ok((CpuStorage::F32(out), shape.into()))
    }
}

impl Attend<'_> {
    fn run<E: Element>(&self, qkv: &[f32], kv: &[E]) -> Result<Vec<f32>> {
        let rows = self.spans.rows();
        self.spans.check_blocks(self.part, self.cache.blocks)?;
        if qkv.len() != rows * self.shape.qkv_width()
            || kv.len() != self.cache.blocks * self.cache.block_stride()
        {
            bail!(
                "qkv of {} and KV cache of {} elements do not fit the step",
                qkv.len(),
                kv.len()
            );
        }
        let (head_width, slots) = (self.shape.head_width, self.work.slots());
        let elements = rows * self.shape.out_width();
        let mut out = Vec::with_capacity(elements);
        let mut partials = Partials::new(slots, head_width);
        let mut queries = Vec::new();
        if E::PER_WORD > 1 {
            let words = head_width.div_ceil(E::PER_WORD);
            queries.reserve_exact((rows * self.shape.heads + slots) * words);
        }
        let out_of_rows = SharedSlice::new(&mut out.spare_capacity_mut()[..elements]);
        let operands = Operands {
            qkv,
            kv,
            queries: SharedSlice::new(queries.spare_capacity_mut()),
            slots: partials.slots(),
            out: &out_of_rows,
        };
        self.pool.run(self.work.tasks(), |task| {
            for (unit, next) in self.work.task(task) {
                self.attend(&operands, unit, next);
            }
        });
        // SAFETY: the units have written every slot.
        unsafe { partials.written(slots) };
        for rows in self.work.merges() {
            self.merge(&partials, rows, &out_of_rows);
        }
        // SAFETY: units and merges cover every row and head, and each writes all its columns.
        unsafe { out.set_len(elements) };
        Ok(out)
    }

    /// Computes one unit; `next` is the one computed after it.
    fn attend<E: Element>(&self, operands: &Operands<'_, E>, unit: &Unit, next: &Unit) {
        let attend = unit_kernel::<E>(self.isa);
        let run = |job: &UnitJob<'_>| {
            // SAFETY: the plan's rows, heads and blocks are within the operands, as `run` has checked;
            // every row and head is in exactly one unit of each of its segments; `isa` was limited to
            // what the processor supports.
            unsafe { attend(job) }
        };
        let job = self.job(operands, unit, next);
        if let Some(slot) = unit.slot {
            run(&job.into_slots(&operands.slots, slot));
        } else if unit.segments.len() == 1 {
            run(&job);
        } else {
            let (rows, segments) = (job.rows(), unit.segments.len());
            let mut partials = Partials::new(rows * segments, self.shape.head_width);
            let slots = partials.slots();
            for (n, segment) in unit.segments.clone().enumerate() {
                let unit = Unit {
                    segments: segment..segment + 1,
                    ..unit.clone()
                };
                let job = self.job(operands, &unit, next);
                run(&job.into_slots(&slots, n * rows));
            }
            // SAFETY: the segments have written every slot.
            unsafe { partials.written(rows * segments) };
            for n in 0..unit.positions {
                let rows = Merge {
                    row: unit.row + n,
                    head: unit.head,
                    heads: unit.heads,
                    slot: n * unit.heads,
                    stride: rows,
                    segments,
                };
                self.merge(&partials, &rows, operands.out);
            }
        }
    }

    /// Merges the segments of the heads of one row.
    fn merge(&self, partials: &Partials, rows: &Merge, out: &SharedSlice<'_, MaybeUninit<f32>>) {
        let head_width = self.shape.head_width;
        for n in 0..rows.heads {
            let at = rows.row * self.shape.out_width() + (rows.head + n) * head_width;
            // SAFETY: every row and head is merged once, and written by nothing else.
            let out = unsafe { out.part(at, head_width) };
            let row = RowSegments {
                first: rows.slot + n,
                stride: rows.stride,
                segments: rows.segments,
            };
            merge(self.isa, partials, &row, out);
        }
    }

    /// Returns the operands of one unit; `next` is the unit computed after it.
    #[inline]
    fn job<'a, E: Element>(
        &'a self,
        operands: &Operands<'_, E>,
        unit: &Unit,
        next: &Unit,
    ) -> UnitJob<'a> {
        let shape = &self.shape;
        let (heads, head_width) = (shape.heads, shape.head_width);
        let spans = self.spans.as_slice();
        let half = self.cache.half() / E::PER_WORD;
        let head_of = |unit: &Unit| unit.head / shape.group() * 2 * half;
        let kv = operands.kv.as_ptr().cast::<u32>();
        let query_words = if E::PER_WORD > 1 {
            // The words of a unit's rows are contiguous; those of slots follow those of all rows.
            let words = head_width.div_ceil(E::PER_WORD);
            let at = match unit.slot {
                Some(slot) => self.spans.rows() * heads + slot,
                None => unit.row * heads + unit.positions * unit.head,
            };
            operands
                .queries
                .as_mut_ptr()
                .wrapping_add(at * words)
                .cast()
        } else {
            std::ptr::null_mut()
        };
        let q = unit.row * shape.qkv_width() + unit.head * head_width;
        let out = unit.row * shape.out_width() + unit.head * head_width;
        UnitJob {
            q: operands.qkv.as_ptr().wrapping_add(q),
            q_stride: shape.qkv_width(),
            query_words,
            out: operands.out.as_mut_ptr().wrapping_add(out).cast(),
            out_stride: shape.out_width(),
            sums: std::ptr::null_mut(),
            kv: kv.wrapping_add(head_of(unit)),
            next_kv: kv.wrapping_add(head_of(next)),
            next_table: spans[next.span].table(self.part),
            next_shift: next
                .segments
                .start
                .wrapping_sub(unit.segments.start)
                .wrapping_mul(SEGMENT / BLOCK_SIZE),
            block_stride: self.cache.block_stride() / E::PER_WORD,
            half,
            table: spans[unit.span].table(self.part),
            head_width,
            scale: shape.scale,
            soft_cap: shape.soft_cap,
            heads: unit.heads,
            positions: unit.positions,
            position: unit.position,
            range: unit.range(shape),
            window: shape.window.unwrap_or(usize::MAX),
        }
    }
}

/// The memory that units read and write.
struct Operands<'a, E> {
    /// `[rows, (heads + 2 * kv_heads) * head_width]`
    qkv: &'a [f32],
    /// The layer's cache.
    kv: &'a [E],
    /// Memory for packed queries; unused if queries are read in place.
    queries: SharedSlice<'a, MaybeUninit<u32>>,
    /// Memory for the rows whose segments are units of their own.
    slots: Slots<'a>,
    /// `[rows, heads * head_width]`
    out: &'a SharedSlice<'a, MaybeUninit<f32>>,
}

/// Returns the function that runs a unit on an instruction set, which the processor must support.
fn unit_kernel<E: Element>(isa: Isa) -> unsafe fn(&UnitJob<'_>) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::attend_avx512::<E>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::attend_avx2::<E>,
        _ => portable::attend_portable::<E>,
    }
}

#[cfg(test)]
mod tests;
