//! The paged KV cache: the keys and values of all positions, in blocks of [`BLOCK_SIZE`].
//!
//! One tensor per layer, `[n_blocks, n_head, 2, BLOCK_SIZE * head_dim]` (`head_dim` rounded up to
//! even). Of the two halves the first holds the keys of one block and head transposed, so that 16
//! positions' scores are computed side by side without a horizontal sum; the second holds the
//! values. Both are made of 32-bit words of values that are multiplied and added together, one in
//! f32 and two in bf16: the keys as `[head_dim / per word, BLOCK_SIZE]` words of neighbouring
//! dimensions, the values as `[BLOCK_SIZE / per word, head_dim]` words of neighbouring positions.
//! The halves lie next to each other, so a head reads each of its blocks as one run of memory.
//!
//! The memory is zeroed by the operating system as it is first touched: a cache costs only what
//! was ever written, in huge pages where the system has them. Slots that no position was written
//! to hold stale or zero bytes and must never reach a result. Which sequence owns which block is not known here.

mod blocks;

use std::alloc::{Layout as Allocation, alloc_zeroed};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, WithDType, bail};
use half::bf16;

use super::attention::AttentionPlan;
use super::huge_pages;
use super::lanes::{best, per_isa};
use super::pack::round_to_bf16;
use super::prefetch::prefetch;
use super::{Isa, Pool};

/// Positions per block; also the lanes of a 512-bit vector of f32.
pub const BLOCK_SIZE: usize = 16;

/// Written values, in a step, from which the pool is worth waking for the writing.
const PARALLEL_WRITE: usize = 32 * 1024;

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// As computed.
    F32,
    /// Rounded to the nearest bfloat16 (ties to even): half the memory. Queries and softmax
    /// weights are rounded to it too when they meet it.
    Bf16,
}

impl KvDtype {
    /// The candle element type.
    #[must_use]
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// The keys and values of all layers.
pub struct KvCache {
    layers: Vec<LayerKv>,
}

/// The keys and values of one layer.
pub struct LayerKv {
    /// `[n_blocks, n_head, 2, BLOCK_SIZE * head_dim]`, contiguous, from offset 0.
    pub(super) tensor: Tensor,
    pub(super) shape: KvShape,
}

/// The sizes of one layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KvShape {
    pub n_blocks: usize,
    pub n_head: usize,
    pub head_dim: usize,
}

impl KvShape {
    /// Elements of the keys, and of the values, of one block and head.
    pub const fn half(self) -> usize {
        BLOCK_SIZE * self.head_dim.next_multiple_of(2)
    }

    /// Elements from one block to the next.
    pub const fn block_stride(self) -> usize {
        self.n_head * 2 * self.half()
    }

    /// Elements in all, or `None` if a byte count of them cannot be expressed.
    fn elements(self) -> Option<usize> {
        let half = BLOCK_SIZE.checked_mul(self.head_dim.checked_next_multiple_of(2)?)?;
        let block = half.checked_mul(2)?.checked_mul(self.n_head)?;
        let elements = block.checked_mul(self.n_blocks)?;
        (elements.checked_mul(size_of::<f32>())? <= isize::MAX.unsigned_abs()).then_some(elements)
    }
}

impl KvCache {
    /// A cache of `n_blocks` empty blocks for each of `n_layer` layers.
    ///
    /// # Errors
    /// If a size is zero or the memory cannot be reserved.
    pub fn new(
        device: &Device,
        dtype: KvDtype,
        n_layer: usize,
        n_blocks: usize,
        n_head: usize,
        head_dim: usize,
    ) -> Result<Self> {
        let shape = KvShape {
            n_blocks,
            n_head,
            head_dim,
        };
        let layers = (0..n_layer)
            .map(|_| LayerKv::new(device, dtype, shape))
            .collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    /// Bytes that one block takes in all layers, keys and values together.
    #[must_use]
    pub fn block_bytes(dtype: KvDtype, n_layer: usize, n_head: usize, head_dim: usize) -> usize {
        let shape = KvShape {
            n_blocks: 1,
            n_head,
            head_dim,
        };
        n_layer * shape.block_stride() * dtype.dtype().size_in_bytes()
    }

    /// The keys and values of layer `i`.
    ///
    /// # Errors
    /// If there is no such layer.
    pub fn layer(&self, i: usize) -> Result<&LayerKv> {
        let Some(layer) = self.layers.get(i) else {
            bail!(
                "the KV cache has {} layers, no layer {i}",
                self.layers.len()
            );
        };
        Ok(layer)
    }
}

impl LayerKv {
    fn new(device: &Device, dtype: KvDtype, shape: KvShape) -> Result<Self> {
        let KvShape {
            n_blocks,
            n_head,
            head_dim,
        } = shape;
        if n_head == 0 || head_dim == 0 {
            bail!(
                "a KV cache needs at least one head and dimension, not n_head {n_head} and head_dim {head_dim}"
            );
        }
        let Some(elements) = shape.elements() else {
            bail!("a KV cache of {n_blocks} blocks does not fit in memory");
        };
        let dims = (n_blocks, n_head, 2, shape.half());
        let tensor = match (device, dtype) {
            (Device::Cpu, KvDtype::F32) => Tensor::from_vec(zeroed::<f32>(elements)?, dims, device),
            (Device::Cpu, KvDtype::Bf16) => {
                Tensor::from_vec(zeroed::<bf16>(elements)?, dims, device)
            }
            _ => Tensor::zeros(dims, dtype.dtype(), device),
        }?;
        Ok(Self { tensor, shape })
    }

    /// Writes the keys and values of the plan's rows into their slots, on the CPU.
    ///
    /// `qkv` is `[rows, 3 * n_head * head_dim]`, contiguous.
    ///
    /// # Errors
    /// If the plan names a block that the cache does not have.
    pub(super) fn write(&self, qkv: &Tensor, plan: &AttentionPlan, pool: &Pool) -> Result<()> {
        let write = Write {
            plan,
            pool,
            shape: self.shape,
        };
        self.tensor.inplace_op2(qkv, &write)
    }
}

/// Elements whose bytes may all be zero, as the cache holds them.
trait Zeroable: WithDType {}
impl Zeroable for f32 {}
impl Zeroable for bf16 {}

/// `len` zeros that take no memory before they are written to.
fn zeroed<T: Zeroable>(len: usize) -> Result<Vec<T>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let allocation = Allocation::array::<T>(len).map_err(candle_core::Error::wrap)?;
    // SAFETY: the size is not zero; all zero bytes are a valid `T`; pointer, length and capacity
    // are those of one allocation of the global allocator, which takes memory of this size from
    // anonymous mappings.
    unsafe {
        let data = alloc_zeroed(allocation).cast::<T>();
        if data.is_null() {
            bail!(
                "no memory for a KV cache layer of {} bytes",
                allocation.size()
            );
        }
        huge_pages::advise_untouched(data.cast(), allocation.size());
        // A boxed slice is exactly as long as its allocation.
        let zeros = std::ptr::slice_from_raw_parts_mut(data, len);
        Ok(Box::from_raw(zeros).into_vec())
    }
}

/// Writes rows of `[rows, 3 * n_embd]` into a layer's cache.
struct Write<'a> {
    plan: &'a AttentionPlan,
    pool: &'a Pool,
    shape: KvShape,
}

impl InplaceOp2 for Write<'_> {
    fn name(&self) -> &'static str {
        "kv-write"
    }

    fn cpu_fwd(
        &self,
        kv: &mut CpuStorage,
        _: &Layout,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
    ) -> Result<()> {
        let qkv = contiguous(qkv, qkv_layout, "qkv")?;
        match kv {
            CpuStorage::F32(kv) => self.run(kv, qkv, write_head_f32),
            CpuStorage::BF16(kv) => self.run(kv, qkv, write_head_bf16),
            _ => bail!("the KV cache holds f32 or bf16, not {:?}", kv.dtype()),
        }
    }
}

impl Write<'_> {
    fn run<T: Send>(
        &self,
        kv: &mut [T],
        qkv: &[f32],
        write_head: fn(Isa, &Self, &[f32], usize, &Shared<u32>),
    ) -> Result<()> {
        let KvShape {
            n_blocks,
            n_head,
            head_dim,
        } = self.shape;
        self.plan.check_blocks(n_blocks)?;
        let n_embd = n_head * head_dim;
        if qkv.len() != self.plan.rows() * 3 * n_embd
            || kv.len() != n_blocks * self.shape.block_stride()
        {
            bail!(
                "qkv of {} and KV cache of {} elements do not fit the plan",
                qkv.len(),
                kv.len()
            );
        }
        let cache = Shared(kv.as_mut_ptr().cast());
        let write = |head: usize| write_head(best(), self, qkv, head, &cache);
        if self.plan.rows() * 2 * n_embd < PARALLEL_WRITE {
            (0..n_head).for_each(write);
        } else {
            self.pool.run(n_head, write);
        }
        Ok(())
    }
}

per_isa! {
    /// Writes one head's keys and values into an f32 cache of the right size.
    fn write_head_f32(write: &Write<'_>, qkv: &[f32], head: usize, cache: &Shared<u32>)
        => write_head::<1>;
}

per_isa! {
    /// Writes one head's keys and values into a bf16 cache of the right size.
    fn write_head_bf16(write: &Write<'_>, qkv: &[f32], head: usize, cache: &Shared<u32>)
        => write_head::<2>;
}

#[inline(always)]
fn write_head<const PER_WORD: usize>(
    write: &Write<'_>,
    qkv: &[f32],
    head: usize,
    cache: &Shared<u32>,
) {
    /// Values converted at a time, while they lie together; only the result is scattered.
    const CHUNK: usize = 32;
    let KvShape {
        n_head, head_dim, ..
    } = write.shape;
    let n_embd = n_head * head_dim;
    let half = write.shape.half() / PER_WORD;
    let place = |block: usize| (block * n_head + head) * 2 * half;
    let mut slots = write.plan.written_slots().peekable();
    while let Some((row, block, slot)) = slots.next() {
        // The next row's place, a line for each word of its key: it was last touched a step ago.
        if let Some(&(_, next, next_slot)) = slots.peek().filter(|next| next.1 != block) {
            let next = cache.0.wrapping_add(place(next));
            for d in 0..head_dim.div_ceil(PER_WORD) {
                prefetch(next.wrapping_add(d * BLOCK_SIZE));
            }
            for d in (0..head_dim).step_by(BLOCK_SIZE) {
                prefetch(next.wrapping_add(half + next_slot / PER_WORD * head_dim + d));
            }
        }
        let at = row * 3 * n_embd + n_embd + head * head_dim;
        let (key, value) = (
            &qkv[at..at + head_dim],
            &qkv[at + n_embd..at + n_embd + head_dim],
        );
        let at = place(block);
        // SAFETY: `check_blocks` has `block < n_blocks`, `head < n_head`, and a slot is below
        // BLOCK_SIZE, so both halves lie in the cache, in words of four bytes; a head's halves are
        // written by this one task only.
        unsafe {
            let keys = cache.0.add(at);
            for (chunk, key) in key.chunks(CHUNK).enumerate() {
                let keys = keys.add(chunk * CHUNK / PER_WORD * BLOCK_SIZE + slot);
                let bits = converted::<PER_WORD, CHUNK>(key);
                let words = bits[..key.len().next_multiple_of(PER_WORD)].chunks_exact(PER_WORD);
                for (d, word) in words.enumerate() {
                    let word = word[0] | word.get(1).map_or(0, |high| high << 16);
                    keys.add(d * BLOCK_SIZE).write_unaligned(word);
                }
            }
            let values = keys.add(half + slot / PER_WORD * head_dim);
            for (chunk, value) in value.chunks(CHUNK).enumerate() {
                let values = values.add(chunk * CHUNK);
                let bits = converted::<PER_WORD, CHUNK>(value);
                for (d, &bits) in bits[..value.len()].iter().enumerate() {
                    let word = values.add(d);
                    if PER_WORD == 1 {
                        word.write_unaligned(bits);
                    } else {
                        word.cast::<u16>()
                            .add(slot % 2)
                            .write_unaligned(bits as u16);
                    }
                }
            }
        }
    }
}

/// The values as a cache holds them: the bits of an f32, or of a bf16.
#[inline(always)]
fn converted<const PER_WORD: usize, const N: usize>(values: &[f32]) -> [u32; N] {
    let mut padded = [0f32; N];
    let values = values.first_chunk().unwrap_or_else(|| {
        padded[..values.len()].copy_from_slice(values);
        &padded
    });
    let mut bits = [0; N];
    for (bits, &x) in bits.iter_mut().zip(values) {
        *bits = if PER_WORD == 1 {
            x.to_bits()
        } else {
            round_to_bf16(x)
        };
    }
    bits
}

/// A pointer that tasks write disjoint parts of memory through.
pub(super) struct Shared<T>(pub *mut T);
// SAFETY: every user's tasks write disjoint parts, and the memory outlives the tasks.
unsafe impl<T: Send> Sync for Shared<T> {}

/// The f32 elements of a contiguous tensor.
///
/// # Errors
/// If it is not f32 or not contiguous.
pub(super) fn contiguous<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    what: &str,
) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{what} must be contiguous");
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_block_is_that_of_the_memory() {
        for (dtype, bytes) in [(KvDtype::F32, 4), (KvDtype::Bf16, 2)] {
            let cache = KvCache::new(&Device::Cpu, dtype, 3, 5, 2, 7).unwrap();
            let elements: usize = (0..3)
                .map(|i| cache.layer(i).unwrap().tensor.elem_count())
                .sum();
            assert_eq!(KvCache::block_bytes(dtype, 3, 2, 7) * 5, elements * bytes);
        }
        // GPT-2 124M: 12 layers of 2 x 768 f32 for 16 positions.
        assert_eq!(KvCache::block_bytes(KvDtype::F32, 12, 12, 64), 1_179_648);
    }

    #[test]
    fn a_new_cache_is_zero() {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let cache = KvCache::new(&Device::Cpu, dtype, 1, 3, 2, 5).unwrap();
            let tensor = cache.layer(0).unwrap().tensor.to_dtype(DType::F32).unwrap();
            assert_eq!(
                tensor
                    .abs()
                    .unwrap()
                    .max_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap(),
                0.0
            );
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let new = |n_blocks, n_head, head_dim| {
            KvCache::new(&Device::Cpu, KvDtype::F32, 2, n_blocks, n_head, head_dim)
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        assert!(new(1, 0, 64).contains("at least one head"));
        assert!(new(1, 1, 0).contains("at least one head"));
        assert!(new(usize::MAX / 8, 12, 64).contains("does not fit in memory"));
        assert!(new(1 << 45, 12, 64).contains("no memory for a KV cache layer"));
        let cache = KvCache::new(&Device::Cpu, KvDtype::F32, 2, 1, 1, 1).unwrap();
        let error = cache.layer(2).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("has 2 layers, no layer 2"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_cache_takes_no_memory_before_it_is_written() {
        let resident = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let before = resident();
            let cache = KvCache::new(&Device::Cpu, dtype, 1, 16 * 1024, 12, 64).unwrap();
            let grown = resident().saturating_sub(before);
            let bytes = cache.layer(0).unwrap().tensor.elem_count() * 2;
            assert!(
                bytes > 700 << 20 && grown < 200 << 20,
                "{grown} of {bytes} bytes"
            );
        }
    }
}
