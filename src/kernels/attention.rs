//! Causal multi-head attention over the KV blocks of many sequences at once.
//!
//! A row's result is the same bit for bit whether its sequence came at once, in chunks of any
//! size or token by token, alone or among others; over an f32 cache on every instruction set too.
//! Every path must therefore compute, for each row and head, in exactly this order:
//!
//! - Score of position `j`: a chain of products `q[d] * k[d][j]`, added over `d` in order from 0,
//!   then one multiplication by `1 / sqrt(head_dim)`.
//! - Softmax as one pass (Milakov and Gimelshein 2018, <https://arxiv.org/abs/1805.02867>) over
//!   tiles of [`POSITION_TILE`] positions counted from position 0, the last one cut at the row's
//!   own position. Per tile: the running maximum `m` takes in the tile's scores; the weights
//!   are [`exp`](super::math::exp)`(score - m)`; all sums so far are multiplied by
//!   `exp(m before - m)`; then the tile's positions are added in order.
//! - Sum of the weights: position `j` goes to lane `j % 16`; the lanes are folded at the end as
//!   [`fold`](super::lanes::fold) does.
//! - Weighted values: a chain of products `weight[j] * v[j][d]`, added over `j` in order, at the
//!   end multiplied by 1 divided by the sum of the weights.
//!
//! Over an f32 cache a product is one fused multiply-add. Over a bf16 cache queries and weights
//! are rounded to bf16 too and products are added in pairs of `d`, or of `j`, in f32, as the
//! instruction set does it (`vdpbf16ps`, or two fused multiply-adds).
//!
//! What no row of a unit sees never enters its arithmetic: stale bytes may be NaN. What only a
//! later row of the unit sees enters with weight 0, which adds nothing.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod plain;
mod plan;
mod vector;

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

pub use plan::{AttentionPlan, SequenceSpan};

use super::kv::{BLOCK_SIZE, KvShape, LayerKv, Shared, contiguous};
use super::{Isa, Pool};
use kernel::UnitJob;
use vector::Element;

/// Positions taken into the softmax at a time.
const POSITION_TILE: usize = 64;
const TILE_BLOCKS: usize = POSITION_TILE / BLOCK_SIZE;

/// The attention of one layer.
#[derive(Clone)]
pub struct Attention {
    n_head: usize,
    head_dim: usize,
    /// The kernels' threads and instruction set; plain candle operations without.
    kernels: Option<(Arc<Pool>, Isa)>,
}

impl Attention {
    /// Attention by our kernels, on the CPU.
    #[must_use]
    pub fn new(pool: &Arc<Pool>, isa: Isa, n_head: usize, head_dim: usize) -> Self {
        Self {
            n_head,
            head_dim,
            kernels: Some((Arc::clone(pool), isa.min(super::lanes::best()))),
        }
    }

    /// Attention in plain candle operations, on any device.
    #[must_use]
    pub fn plain(n_head: usize, head_dim: usize) -> Self {
        Self {
            n_head,
            head_dim,
            kernels: None,
        }
    }

    /// Writes the rows' keys and values into the cache, then attends with every row over its own
    /// sequence up to its own position: `[rows, 3 * n_embd]` -> `[rows, n_embd]`, f32.
    ///
    /// The order of operations, and with it every bit of the result, is that of the module (for
    /// [`plain`](Self::plain) whatever candle does).
    ///
    /// # Errors
    /// If `qkv`, the cache and the plan do not fit each other.
    pub fn forward(&self, qkv: &Tensor, kv: &LayerKv, plan: &Arc<AttentionPlan>) -> Result<Tensor> {
        self.check(qkv, kv, plan)?;
        let Some((pool, isa)) = &self.kernels else {
            return plain::forward(qkv, kv, plan);
        };
        let qkv = qkv.contiguous()?;
        kv.write(&qkv, plan, pool)?;
        let attend = Attend {
            plan,
            pool,
            isa: *isa,
            shape: kv.shape,
        };
        qkv.apply_op2_no_bwd(&kv.tensor, &attend)
    }

    fn check(&self, qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<()> {
        let Self {
            n_head, head_dim, ..
        } = *self;
        if (kv.shape.n_head, kv.shape.head_dim) != (n_head, head_dim) {
            bail!(
                "attention of {n_head} heads of {head_dim} got a KV cache of {} heads of {}",
                kv.shape.n_head,
                kv.shape.head_dim
            );
        }
        if plan.n_head() != n_head {
            bail!(
                "attention of {n_head} heads got a plan for {}",
                plan.n_head()
            );
        }
        let expected = [plan.rows(), 3 * n_head * head_dim];
        if qkv.dims() != expected {
            bail!("qkv must be {expected:?}, is {:?}", qkv.dims());
        }
        if qkv.dtype() != DType::F32 {
            bail!("qkv must be f32, is {}", qkv.dtype().as_str());
        }
        plan.check_blocks(kv.shape.n_blocks)
    }
}

/// The attention of a plan's rows over one layer's cache.
struct Attend<'a> {
    plan: &'a AttentionPlan,
    pool: &'a Pool,
    isa: Isa,
    shape: KvShape,
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
        let n_embd = self.shape.n_head * self.shape.head_dim;
        Ok((CpuStorage::F32(out), (self.plan.rows(), n_embd).into()))
    }
}

impl Attend<'_> {
    fn run<E: Element>(&self, qkv: &[f32], kv: &[E]) -> Result<Vec<f32>> {
        let KvShape {
            n_blocks,
            n_head,
            head_dim,
        } = self.shape;
        let n_embd = n_head * head_dim;
        let rows = self.plan.rows();
        self.plan.check_blocks(n_blocks)?;
        if self.plan.n_head() != n_head
            || qkv.len() != rows * 3 * n_embd
            || kv.len() != n_blocks * self.shape.block_stride()
        {
            bail!(
                "qkv of {} and KV cache of {} elements do not fit the plan",
                qkv.len(),
                kv.len()
            );
        }
        let mut out = Vec::<f32>::with_capacity(rows * n_embd);
        let shared = Shared(out.as_mut_ptr());
        let words = head_dim.div_ceil(E::PER_WORD);
        let mut queries = Vec::<u32>::new();
        if E::PER_WORD > 1 {
            queries.reserve_exact(rows * n_head * words);
        }
        let queries = Shared(queries.as_mut_ptr());
        // Only read through.
        let kv = Shared(kv.as_ptr().cast_mut().cast::<u32>());
        let attend = unit_kernel::<E>(self.isa);
        self.pool.run(self.plan.tasks(), |task| {
            let (shared, queries, kv) = (&shared, &queries, &kv);
            for (unit, next) in self.plan.task(task) {
                // SAFETY: the plan's rows, heads and blocks are within `qkv`, `queries`, `out` and
                // `kv` as checked above; every row and head is in one unit only; `isa` was
                // limited to what the processor has.
                unsafe {
                    attend(&UnitJob {
                        q: qkv
                            .as_ptr()
                            .add(unit.row * 3 * n_embd + unit.head * head_dim),
                        q_stride: 3 * n_embd,
                        // The words of a unit's rows stand together.
                        query_words: if E::PER_WORD > 1 {
                            queries
                                .0
                                .add((unit.row * n_head + unit.rows * unit.head) * words)
                        } else {
                            std::ptr::null_mut()
                        },
                        out: shared.0.add(unit.row * n_embd + unit.head * head_dim),
                        out_stride: n_embd,
                        kv: kv.0.add(unit.head * 2 * self.shape.half() / E::PER_WORD),
                        next_kv: kv.0.add(next.head * 2 * self.shape.half() / E::PER_WORD),
                        next_table: &self.plan.spans()[next.span].block_table,
                        block_stride: self.shape.block_stride() / E::PER_WORD,
                        half: self.shape.half() / E::PER_WORD,
                        table: &self.plan.spans()[unit.span].block_table,
                        head_dim,
                        scale: 1.0 / (head_dim as f32).sqrt(),
                        rows: unit.rows,
                        position: unit.position,
                    });
                }
            }
        });
        // SAFETY: the units cover every row and head, and each writes all its columns.
        unsafe { out.set_len(rows * n_embd) };
        Ok(out)
    }
}

/// The function that runs a unit on an instruction set, which the processor must have.
fn unit_kernel<E: Element>(isa: Isa) -> unsafe fn(&UnitJob<'_>) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::attend_avx512::<E>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::attend_avx2::<E>,
        _ => kernel::attend_portable::<E>,
    }
}

#[cfg(test)]
mod tests;
