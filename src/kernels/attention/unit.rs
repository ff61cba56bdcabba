//! The operands of a unit, and the memory that one of its tiles of positions works in.

use std::mem::MaybeUninit;

use super::{POSITION_TILE, TILE_BLOCKS};
use crate::kernels::kv::BLOCK_SIZE;

/// One head's attention for up to [`QUERY_TILE`] rows of one sequence.
///
/// A function that takes a unit needs, for its `unsafe`: `q` and `out` valid for `rows` rows of
/// `head_width` elements at their strides, `out` for this unit alone; `query_words`, where the
/// element has more than one value in a word, for `rows` times the words of `head_width` values
/// and this unit alone; `kv` the cache at this head's first block, every block of `table` inside
/// the cache, the table reaching the last row's position; the slots from the block of the first
/// visible position up to there written; `rows` in `1..=QUERY_TILE` and all of the same query tile;
/// `window` at least 1.
pub(super) struct UnitJob<'a> {
    pub q: *const f32,
    pub q_stride: usize,
    /// Room for packed queries, if they are packed.
    pub query_words: *mut u32,
    pub out: *mut f32,
    pub out_stride: usize,
    pub kv: *const u32,
    /// Words from one block to the next.
    pub block_stride: usize,
    /// Words of a block's keys, behind which its values stand.
    pub half: usize,
    pub table: &'a [u32],
    /// The cache and the table of the next unit: only prefetched from.
    pub next_kv: *const u32,
    pub next_table: &'a [u32],
    pub head_width: usize,
    /// Factor of the scores.
    pub scale: f32,
    pub rows: usize,
    /// The first row's own position.
    pub position: usize,
    /// Number of positions that a row sees, its own included; more than there are without a window.
    pub window: usize,
}

impl UnitJob<'_> {
    /// Returns the first position that row `row` sees.
    #[inline(always)]
    pub fn first_visible(&self, row: usize) -> usize {
        (self.position + row + 1).saturating_sub(self.window)
    }
}

/// A row's scores of the positions of one tile, then their weights, then those packed in words.
/// Not initialized: clearing them would take a lone row longer than computing.
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

/// The blocks of a tile of positions, by their keys.
pub(super) struct Blocks {
    pub keys: [*const u32; TILE_BLOCKS],
    /// Those at the same positions of the next unit, or else the ones above. A lone row reads more
    /// than it computes, and a unit's blocks are scattered, so that the hardware alone fetches them
    /// late: with every line that is read, the same line of the next unit is prefetched.
    pub next: [*const u32; TILE_BLOCKS],
    /// Blocks at the beginning of the tile that no row sees.
    pub skipped: usize,
    /// Blocks of the tile up to the last row's position.
    pub count: usize,
}

impl Blocks {
    /// Returns those of the positions `start..start + len`, of which the first row sees those from
    /// `visible` on.
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
            // SAFETY: the caller has blocks of all positions.
            *keys = unsafe { job.kv.add(job.table[first + i] as usize * job.block_stride) };
            *next = job.next_table.get(first + i).map_or(*keys, |&block| {
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
