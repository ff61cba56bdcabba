//! The operands of a unit, and the working memory for a tile of its positions.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::plan::QUERY_TILE;
use super::segments::Slots;
use super::{POSITION_TILE, TILE_BLOCKS};
use crate::kernels::kv::BLOCK_SIZE;

/// The attention of the query heads of one key and value head, for one or more positions of one
/// sequence. A row is a position and a query head, in this order: all heads of the first position come
/// first.
///
/// An `unsafe` function that takes a unit requires: `q` and `out` are valid for `positions` rows of
/// `heads` adjacent heads of `head_width` elements at their strides, `out` exclusively; `sums` is null, or
/// valid for every row, exclusively; where the element
/// has more than one value per word, `query_words` is valid, exclusively, for every row's words of
/// `head_width` values; `kv` points to this head's part of the cache's first block, every block of
/// `table` is in the cache, and the table reaches the last position; the slots from the block of the
/// first visible position up to there have been written; `range` is not empty, begins at a tile of positions
/// or at the first visible position, and ends at most behind the last position; there are 1 to [`QUERY_TILE`] rows, whose
/// positions are all in the same tile of [`POSITION_TILE`] positions; `window` is at least 1.
pub(super) struct UnitJob<'a> {
    pub q: *const f32,
    pub q_stride: usize,
    /// Memory for packed queries; unused if queries are read in place.
    pub query_words: *mut u32,
    pub out: *mut f32,
    pub out_stride: usize,
    /// Greatest score and sum of weights of each row, written for a unit that is one of several
    /// segments, whose `out` is not normalized; null for a unit that is all of its rows' context.
    pub sums: *mut [f32; 2],
    pub kv: *const u32,
    /// Words from one block to the next.
    pub block_stride: usize,
    /// Words of a block's keys; its values follow them.
    pub half: usize,
    pub table: &'a [u32],
    /// The cache of the next unit, only prefetched from; its table is `next_table`.
    pub next_kv: *const u32,
    pub next_table: &'a [u32],
    /// Blocks from a position's block in this unit's table to the block that is read at the same time in
    /// the next unit's, modulo 2^64.
    pub next_shift: usize,
    pub head_width: usize,
    /// Factor that scores are multiplied by.
    pub scale: f32,
    /// Cap of the scaled scores.
    pub soft_cap: Option<f32>,
    /// Number of query heads.
    pub heads: usize,
    pub positions: usize,
    /// The first position.
    pub position: usize,
    /// The visible positions that the unit reads: one segment of them, or all.
    pub range: Range<usize>,
    /// Number of positions that a row sees, its own included; without a window, larger than any
    /// context.
    pub window: usize,
}

impl UnitJob<'_> {
    /// Returns the number of rows.
    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.positions * self.heads
    }

    /// Returns the first position that a row at `position` sees.
    #[inline(always)]
    pub fn first_visible(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }

    /// Makes the unit write its rows' partial results to slots, from `slot` on.
    pub fn into_slots(mut self, slots: &Slots<'_>, slot: usize) -> Self {
        self.out = slots.values(slot);
        self.out_stride = self.heads * self.head_width;
        self.sums = slots.sums(slot);
        self
    }

    /// Returns whether reading keys and values takes longer than the arithmetic, as in decoding.
    #[inline(always)]
    pub fn is_memory_bound(&self) -> bool {
        self.positions == 1
    }
}

/// Where each row of a unit is.
pub(super) struct Rows {
    pub q: [*const f32; QUERY_TILE],
    pub out: [*mut f32; QUERY_TILE],
    pub position: [usize; QUERY_TILE],
}

impl Rows {
    /// Returns the rows of a unit.
    #[inline(always)]
    pub fn new(job: &UnitJob<'_>) -> Self {
        let mut rows = Self {
            q: [job.q; QUERY_TILE],
            out: [job.out; QUERY_TILE],
            position: [job.position; QUERY_TILE],
        };
        let mut row = 0;
        for n in 0..job.positions {
            for head in 0..job.heads {
                let column = head * job.head_width;
                rows.q[row] = job.q.wrapping_add(n * job.q_stride + column);
                rows.out[row] = job.out.wrapping_add(n * job.out_stride + column);
                rows.position[row] = job.position + n;
                row += 1;
            }
        }
        rows
    }
}

/// A row's scores for the positions of one tile, then their weights, then the weights packed in
/// words. Not initialized: for a single row, clearing the memory would take longer than the
/// computation.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Weights(MaybeUninit<[f32; POSITION_TILE]>);

impl Weights {
    #[inline(always)]
    pub fn uninit() -> Self {
        Self(MaybeUninit::uninit())
    }

    #[inline(always)]
    pub fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }

    #[inline(always)]
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// The blocks of a tile of positions, as pointers to their keys.
pub(super) struct Blocks {
    pub keys: [*const u32; TILE_BLOCKS],
    /// The blocks at the same positions of the next unit, or else the blocks of this one. A
    /// single position is bound by memory, and its blocks are scattered, so the hardware prefetchers
    /// fetch them too late. Therefore every read of a line prefetches the same line of the next unit.
    pub next: [*const u32; TILE_BLOCKS],
    /// Number of blocks at the beginning of the tile that no row sees.
    pub skipped: usize,
    /// Number of blocks of the tile up to the last position.
    pub count: usize,
}

impl Blocks {
    /// Returns the blocks of the positions `start..start + len`; `visible` is the first position
    /// that the first row sees.
    ///
    /// # Safety
    /// The unit's table must reach all of these positions.
    #[inline(always)]
    pub unsafe fn new(job: &UnitJob<'_>, start: usize, len: usize, visible: usize) -> Self {
        let first = start / BLOCK_SIZE;
        let count = len.div_ceil(BLOCK_SIZE);
        let mut keys = [job.kv; TILE_BLOCKS];
        let mut next = keys;
        for (i, (keys, next)) in keys.iter_mut().zip(&mut next).take(count).enumerate() {
            // SAFETY: the caller guarantees blocks for all positions.
            *keys = unsafe { job.kv.add(job.table[first + i] as usize * job.block_stride) };
            let at = (first + i).wrapping_add(job.next_shift);
            *next = job.next_table.get(at).map_or(*keys, |&block| {
                job.next_kv.wrapping_add(block as usize * job.block_stride)
            });
        }
        Self {
            keys,
            next,
            skipped: visible.saturating_sub(start) / BLOCK_SIZE,
            count,
        }
    }
}
