//! Writes the keys and values of a step's rows into the cache, on the CPU.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};
use half::bf16;

use super::LayerKv;
use super::shape::{BLOCK_SIZE, KvPart, KvShape};
use super::span::StepSpans;
use crate::kernels::lanes::{best, per_isa};
use crate::kernels::math::round_to_bf16;
use crate::kernels::prefetch::prefetch;
use crate::kernels::shared_slice::SharedSlice;
use crate::kernels::storage::contiguous;
use crate::kernels::{Isa, Pool};

/// Minimum tasks per thread, so that all threads finish at about the same time.
const TASKS_PER_THREAD: usize = 4;

/// Minimum number of values written in a step for which waking the pool is worthwhile.
const PARALLEL_WRITE: usize = 32 * 1024;

impl LayerKv {
    /// Writes the keys and values of a step's rows into their slots.
    ///
    /// `qkv` is `[rows, (query_heads + 2 * heads) * head_width]`, contiguous: a row's queries, then
    /// its keys, then its values.
    ///
    /// # Errors
    /// If `qkv` has the wrong shape, or a block of the spans is out of range.
    pub fn write(
        &self,
        qkv: &Tensor,
        query_heads: usize,
        spans: &StepSpans,
        pool: &Pool,
    ) -> Result<()> {
        let write = Write {
            spans,
            pool,
            query_heads,
            part: self.part,
            shape: self.shape,
        };
        self.tensor.inplace_op2(qkv, &write)
    }
}

/// A task's part of the blocks of one head.
#[derive(Clone, Copy)]
struct Part {
    head: usize,
    /// The task writes the blocks whose number is this, modulo `count`.
    index: usize,
    count: usize,
}

/// The candle operation.
struct Write<'a> {
    spans: &'a StepSpans,
    pool: &'a Pool,
    query_heads: usize,
    part: KvPart,
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
        write_head: fn(Isa, &Self, &[f32], Part, &SharedSlice<'_, T>),
    ) -> Result<()> {
        let KvShape { blocks, heads, .. } = self.shape;
        self.spans.check_blocks(self.part, blocks)?;
        if qkv.len() != self.spans.rows() * self.row_width()
            || kv.len() != blocks * self.shape.block_stride()
        {
            bail!(
                "qkv of {} and KV cache of {} elements do not fit the step",
                qkv.len(),
                kv.len()
            );
        }
        let cache = SharedSlice::new(kv);
        let values = self.spans.rows() * 2 * heads * self.shape.head_width;
        let parts = if values < PARALLEL_WRITE {
            1
        } else {
            (self.pool.threads() * TASKS_PER_THREAD).div_ceil(heads)
        };
        let write = |task: usize| {
            let part = Part {
                head: task / parts,
                index: task % parts,
                count: parts,
            };
            write_head(best(), self, qkv, part, &cache);
        };
        if values < PARALLEL_WRITE {
            (0..heads).for_each(write);
        } else {
            self.pool.run(heads * parts, write);
        }
        Ok(())
    }

    /// Returns the number of values in a row of `qkv`.
    fn row_width(&self) -> usize {
        (self.query_heads + 2 * self.shape.heads) * self.shape.head_width
    }
}

per_isa! {
    /// Writes a part of one head's keys and values into an f32 cache of the right size.
    fn write_head_f32(
        write: &Write<'_>, qkv: &[f32], part: Part, cache: &SharedSlice<'_, f32>,
    ) => write_head::<f32, 1>;
}

per_isa! {
    /// Writes a part of one head's keys and values into a bf16 cache of the right size.
    fn write_head_bf16(
        write: &Write<'_>, qkv: &[f32], part: Part, cache: &SharedSlice<'_, bf16>,
    ) => write_head::<bf16, 2>;
}

/// Writes a part of one head's keys and values; a 32-bit word holds `PER_WORD` cache elements of type `T`.
#[inline(always)]
fn write_head<T, const PER_WORD: usize>(
    write: &Write<'_>,
    qkv: &[f32],
    part: Part,
    cache: &SharedSlice<'_, T>,
) {
    let head = part.head;
    let KvShape {
        heads, head_width, ..
    } = write.shape;
    let half = write.shape.half();
    let place = |block: usize| (block * heads + head) * 2 * half;
    let slots = write.spans.written_slots(write.part);
    let mut slots = slots
        .filter(|&(_, block, _)| block % part.count == part.index)
        .peekable();
    while let Some((row, block, slot)) = slots.next() {
        if let Some(&(_, next, slot)) = slots.peek().filter(|next| next.1 != block) {
            let next = cache.as_mut_ptr().wrapping_add(place(next));
            prefetch_slot::<PER_WORD>(next.cast(), half, head_width, slot);
        }
        let at = row * write.row_width() + (write.query_heads + head) * head_width;
        let key = &qkv[at..at + head_width];
        let at = at + heads * head_width;
        let value = &qkv[at..at + head_width];
        // SAFETY: only one task writes a block's halves of a head, one slot after another.
        let halves = unsafe { cache.part(place(block), 2 * half) };
        // SAFETY: the halves have the length that `half` gives, in words of four bytes.
        unsafe { write_slot::<PER_WORD>(halves.as_mut_ptr().cast(), half, slot, key, value) };
    }
}

/// Prefetches a slot, one line per word of its key, since it was last touched a step ago.
#[inline(always)]
fn prefetch_slot<const PER_WORD: usize>(
    halves: *const u32,
    half: usize,
    head_width: usize,
    slot: usize,
) {
    for d in 0..head_width.div_ceil(PER_WORD) {
        prefetch(halves.wrapping_add(d * BLOCK_SIZE));
    }
    let values = half / PER_WORD + slot / PER_WORD * head_width;
    for d in (0..head_width).step_by(BLOCK_SIZE) {
        prefetch(halves.wrapping_add(values + d));
    }
}

/// Writes one position's key and value into the two halves of a block and head.
///
/// # Safety
/// `halves` must be valid for `2 * half` elements, where `half` is the number for a block of
/// `key.len()` dimensions; `slot` must be below [`BLOCK_SIZE`].
#[inline(always)]
unsafe fn write_slot<const PER_WORD: usize>(
    halves: *mut u32,
    half: usize,
    slot: usize,
    key: &[f32],
    value: &[f32],
) {
    /// Values converted at a time, while they are contiguous; only the result is scattered.
    const CHUNK: usize = 32;
    // SAFETY: word `d` of a key and value `d` are within the halves for every dimension `d`,
    // because the caller guarantees their size.
    unsafe {
        for (chunk, key) in key.chunks(CHUNK).enumerate() {
            let keys = halves.add(chunk * CHUNK / PER_WORD * BLOCK_SIZE + slot);
            let bits = converted::<PER_WORD, CHUNK>(key);
            let words = bits[..key.len().next_multiple_of(PER_WORD)].chunks_exact(PER_WORD);
            for (d, word) in words.enumerate() {
                let word = word[0] | word.get(1).map_or(0, |high| high << 16);
                keys.add(d * BLOCK_SIZE).write_unaligned(word);
            }
        }
        let values = halves.add(half / PER_WORD + slot / PER_WORD * value.len());
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

/// Returns the bits of values as the cache stores them, f32 or bf16.
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
