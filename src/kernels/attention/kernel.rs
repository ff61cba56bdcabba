//! The attention of one unit, written once for all instruction sets and element types.
//!
//! The order of operations is that of the [module](super); this file decides how rows share loads.
//! Operands of products are held in 32-bit words: one f32, or two bf16 that are neighbours in the
//! dimension that the products are summed over.

use std::ops::Range;

use super::plan::QUERY_TILE;
use super::unit::{Blocks, Rows, UnitJob, Weights};
use super::vector::{Element, Vector};
use super::{POSITION_TILE, TILE_BLOCKS};
use crate::kernels::kv::BLOCK_SIZE;
use crate::kernels::math;
use crate::kernels::prefetch::prefetch;

/// Vectors of scores or columns that a single row keeps in registers.
const SINGLE_ROW_VECTORS: usize = 4;

/// The running softmax of the unit's rows.
struct Softmax<V> {
    max: [f32; QUERY_TILE],
    /// Sums of the weights, position `i` in lane `i % 16`.
    sum: [V; QUERY_TILE],
    /// Factors to rescale the sums so far with.
    correction: [f32; QUERY_TILE],
    weights: [Weights; QUERY_TILE],
}

/// The unit's queries in words.
struct Queries {
    words: [*const u32; QUERY_TILE],
    /// Words per row.
    len: usize,
}

/// Runs a unit, `R` rows by `W` vectors of scores or columns at a time in registers.
///
/// # Safety
/// The processor must have the instruction set of `V`; for the unit see [`UnitJob`].
#[inline(always)]
pub(super) unsafe fn attend<V: Vector, E: Element, const R: usize, const W: usize>(
    job: &UnitJob<'_>,
) {
    // SAFETY: guaranteed by the caller throughout; a tile's blocks are those of its positions.
    unsafe {
        let mut softmax = Softmax {
            max: [f32::NEG_INFINITY; QUERY_TILE],
            sum: [V::splat(0.0); QUERY_TILE],
            correction: [0.0; QUERY_TILE],
            weights: [Weights::uninit(); QUERY_TILE],
        };
        let rows = Rows::new(job);
        let queries = queries::<V, E>(job, &rows);
        let Range { start: read, end } = job.range;
        let first = read / POSITION_TILE * POSITION_TILE;
        for start in (first..end).step_by(POSITION_TILE) {
            let len = (end - start).min(POSITION_TILE);
            let blocks = Blocks::new(job, start, len, read);
            scores::<V, E, R, W>(job, &queries, &blocks, &mut softmax.weights);
            weigh::<V, E>(&mut softmax, job, &rows, &blocks, start, len);
            let tile = ValueTile {
                job,
                rows: &rows,
                blocks: &blocks,
                begin: start == first,
                len,
                softmax: &softmax,
            };
            tile.add_all::<E, R, W>();
        }
        if !job.sums.is_null() {
            for row in 0..job.rows() {
                *job.sums.add(row) = [softmax.max[row], softmax.sum[row].reduce_sum()];
            }
            return;
        }
        for row in 0..job.rows() {
            let factor = 1.0 / softmax.sum[row].reduce_sum();
            let out = rows.out[row];
            for column in (0..job.head_width).step_by(BLOCK_SIZE) {
                let out = out.add(column);
                let n = (job.head_width - column).min(BLOCK_SIZE);
                let sum = load_columns::<V>(out, n).mul(V::splat(factor));
                store_columns(sum, out, n);
            }
        }
    }
}

/// Returns the queries in place, or packs them.
#[inline(always)]
unsafe fn queries<V: Vector, E: Element>(job: &UnitJob<'_>, rows: &Rows) -> Queries {
    let len = job.head_width.div_ceil(E::PER_WORD);
    let mut queries = Queries {
        words: rows.q.map(<*const f32>::cast),
        len,
    };
    if E::PER_WORD == 1 {
        return queries;
    }
    // SAFETY: guaranteed by the caller.
    unsafe {
        for row in 0..job.rows() {
            let q = rows.q[row];
            let words = job.query_words.add(row * len);
            queries.words[row] = words;
            for first in (0..job.head_width).step_by(2 * BLOCK_SIZE) {
                let left = job.head_width - first;
                let low = load_columns::<V>(q.add(first), left.min(BLOCK_SIZE));
                let high = if left > BLOCK_SIZE {
                    let n = (left - BLOCK_SIZE).min(BLOCK_SIZE);
                    load_columns(q.add(first + BLOCK_SIZE), n)
                } else {
                    V::splat(0.0)
                };
                let n = left.div_ceil(2).min(BLOCK_SIZE);
                store_columns(low.pack_bf16(high), words.add(first / 2).cast(), n);
            }
        }
    }
    queries
}

/// Computes the scaled scores of all rows against the blocks of a tile.
#[inline(always)]
unsafe fn scores<V: Vector, E: Element, const R: usize, const W: usize>(
    job: &UnitJob<'_>,
    queries: &Queries,
    blocks: &Blocks,
    weights: &mut [Weights; QUERY_TILE],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (mut row, rows) = (0, job.rows());
        while row + R <= rows {
            scores_of_rows::<V, E, R, W>(job, queries, row, blocks, weights);
            row += R;
        }
        while row + 2 <= rows {
            scores_of_rows::<V, E, 2, W>(job, queries, row, blocks, weights);
            row += 2;
        }
        while row < rows {
            let first = blocks.skipped;
            match blocks.count - first {
                1 => scores_of::<V, E, 1, 1>(job, queries, row, blocks, first, weights),
                2 => scores_of::<V, E, 1, 2>(job, queries, row, blocks, first, weights),
                3 => scores_of::<V, E, 1, 3>(job, queries, row, blocks, first, weights),
                _ => scores_of::<V, E, 1, TILE_BLOCKS>(job, queries, row, blocks, 0, weights),
            }
            row += 1;
        }
    }
}

/// Computes the scaled scores of `R` rows against the blocks of a tile.
#[inline(always)]
unsafe fn scores_of_rows<V: Vector, E: Element, const R: usize, const W: usize>(
    job: &UnitJob<'_>,
    queries: &Queries,
    row: usize,
    blocks: &Blocks,
    weights: &mut [Weights; QUERY_TILE],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut block = blocks.skipped;
        while block + W <= blocks.count {
            scores_of::<V, E, R, W>(job, queries, row, blocks, block, weights);
            block += W;
        }
        while block < blocks.count {
            scores_of::<V, E, R, 1>(job, queries, row, blocks, block, weights);
            block += 1;
        }
    }
}

#[inline(always)]
unsafe fn scores_of<V: Vector, E: Element, const R: usize, const W: usize>(
    job: &UnitJob<'_>,
    queries: &Queries,
    row: usize,
    blocks: &Blocks,
    block: usize,
    weights: &mut [Weights; QUERY_TILE],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut q = [std::ptr::null(); R];
        q.copy_from_slice(&queries.words[row..row + R]);
        let prefetching = R == 1 || job.is_memory_bound();
        let mut sums = [[V::splat(0.0); W]; R];
        for d in 0..queries.len {
            let mut k = [V::splat(0.0); W];
            let at = d * BLOCK_SIZE;
            for (w, k) in k.iter_mut().enumerate() {
                *k = V::load(blocks.keys[block + w].add(at).cast());
                if prefetching {
                    prefetch(blocks.next[block + w].wrapping_add(at));
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = V::splat(f32::from_bits(*q[r].add(d)));
                for w in 0..W {
                    sums[w] = E::dot(sums[w], q, k[w]);
                }
            }
        }
        let scale = V::splat(job.scale);
        for (r, sums) in sums.iter().enumerate() {
            let scores = weights[row + r].as_mut_ptr();
            for (w, sum) in sums.iter().enumerate() {
                sum.mul(scale).store(scores.add((block + w) * BLOCK_SIZE));
            }
        }
    }
}

/// Turns the rows' scores of a tile into weights relative to the greatest score so far, in words.
#[inline(always)]
unsafe fn weigh<V: Vector, E: Element>(
    softmax: &mut Softmax<V>,
    job: &UnitJob<'_>,
    rows: &Rows,
    blocks: &Blocks,
    start: usize,
    len: usize,
) {
    // SAFETY: guaranteed by the caller; `end` is at most the tile's length.
    unsafe {
        let end = len.next_multiple_of(E::PER_WORD * BLOCK_SIZE);
        let mut fall = [0.0; QUERY_TILE];
        for (row, fall) in fall.iter_mut().enumerate().take(job.rows()) {
            // The weight of an invisible position is e^-inf = 0, which leaves every sum unchanged.
            let position = rows.position[row];
            let visible = (position + 1 - start).min(len);
            let before = job.first_visible(position).saturating_sub(start);
            let before = before.min(visible);
            let scores = softmax.weights[row].as_mut_ptr();
            if let Some(cap) = job.soft_cap {
                // Exactly the blocks whose scores were computed.
                let first = blocks.skipped * BLOCK_SIZE;
                for at in first..blocks.count * BLOCK_SIZE {
                    *scores.add(at) = math::soft_cap(*scores.add(at), cap);
                }
            }
            for at in (0..before).chain(visible..end) {
                *scores.add(at) = f32::NEG_INFINITY;
            }
            let mut max = V::load(scores);
            for at in (BLOCK_SIZE..end).step_by(BLOCK_SIZE) {
                max = max.max(V::load(scores.add(at)));
            }
            let old = softmax.max[row];
            let max = old.max(max.reduce_max());
            *fall = old - origin(max);
            softmax.max[row] = max;
        }
        // Unused correction factors are e^0 = 1.
        for at in (0..job.rows()).step_by(BLOCK_SIZE) {
            let correction = V::load(fall.as_ptr().add(at)).exp();
            correction.store(softmax.correction.as_mut_ptr().add(at));
        }
        for row in 0..job.rows() {
            let max = V::splat(origin(softmax.max[row]));
            let mut sum = softmax.sum[row].mul(V::splat(softmax.correction[row]));
            let weights = softmax.weights[row].as_mut_ptr();
            for at in (0..end).step_by(E::PER_WORD * BLOCK_SIZE) {
                let low = V::load(weights.add(at)).sub(max).exp();
                sum = sum.add(low);
                if E::PER_WORD == 1 {
                    low.store(weights.add(at));
                } else {
                    let high = V::load(weights.add(at + BLOCK_SIZE)).sub(max).exp();
                    sum = sum.add(high);
                    low.pack_bf16(high).store(weights.add(at / 2));
                }
            }
            softmax.sum[row] = sum;
        }
    }
}

/// Returns the score whose weight is 1: the greatest so far, or 0 while a row has seen no position,
/// for which the difference of two infinities would be NaN.
#[inline(always)]
fn origin(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// A tile's weighted values, to add to the sums in `out`.
struct ValueTile<'a, V> {
    job: &'a UnitJob<'a>,
    rows: &'a Rows,
    blocks: &'a Blocks,
    /// Whether this is the first tile, so that `out` is not initialized yet.
    begin: bool,
    /// Positions of the tile up to the unit's last.
    len: usize,
    softmax: &'a Softmax<V>,
}

impl<V: Vector> ValueTile<'_, V> {
    /// Adds the tile to all rows.
    #[inline(always)]
    unsafe fn add_all<E: Element, const R: usize, const W: usize>(&self) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let (mut row, rows) = (0, self.job.rows());
            while row + R <= rows {
                self.add::<E, R, W>(row);
                row += R;
            }
            while row + 2 <= rows {
                self.add::<E, 2, W>(row);
                row += 2;
            }
            while row < rows {
                self.add::<E, 1, SINGLE_ROW_VECTORS>(row);
                row += 1;
            }
        }
    }

    /// Adds the tile to `R` rows, all columns.
    #[inline(always)]
    unsafe fn add<E: Element, const R: usize, const W: usize>(&self, row: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let head_width = self.job.head_width;
            let mut column = 0;
            while column + W * BLOCK_SIZE <= head_width {
                self.add_columns::<E, R, W>(row, column, BLOCK_SIZE);
                column += W * BLOCK_SIZE;
            }
            while column < head_width {
                let n = (head_width - column).min(BLOCK_SIZE);
                self.add_columns::<E, R, 1>(row, column, n);
                column += BLOCK_SIZE;
            }
        }
    }

    /// Adds the tile to `W` vectors of columns of `R` rows; the last vector has `n` columns.
    #[inline(always)]
    unsafe fn add_columns<E: Element, const R: usize, const W: usize>(
        &self,
        row: usize,
        column: usize,
        n: usize,
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let mut out = [std::ptr::null_mut(); R];
            for (out, row) in out.iter_mut().zip(&self.rows.out[row..row + R]) {
                *out = row.add(column);
            }
            let mut sums = [[V::splat(0.0); W]; R];
            if !self.begin {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let correction = V::splat(self.softmax.correction[row + r]);
                    for (w, sum) in sums.iter_mut().enumerate() {
                        let out = out[r].add(w * BLOCK_SIZE);
                        *sum = load_columns::<V>(out, n).mul(correction);
                    }
                }
            }
            let first = self.blocks.skipped * BLOCK_SIZE / E::PER_WORD;
            let whole = self.len / E::PER_WORD;
            for word in first..whole {
                let values = self.word::<E, R, W>(word, column, n);
                self.multiply::<E, R, W>(row, word, &values, &mut sums);
            }
            // The second position of the last word may not have been written yet.
            if !self.len.is_multiple_of(E::PER_WORD) {
                let mut values = self.word::<E, R, W>(whole, column, n);
                for v in &mut values {
                    *v = v.keep_low_half();
                }
                self.multiply::<E, R, W>(row, whole, &values, &mut sums);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (w, sum) in sums.iter().enumerate() {
                    store_columns(*sum, out[r].add(w * BLOCK_SIZE), n);
                }
            }
        }
    }

    /// Returns the values of one word of positions.
    #[inline(always)]
    unsafe fn word<E: Element, const R: usize, const W: usize>(
        &self,
        word: usize,
        column: usize,
        n: usize,
    ) -> [V; W] {
        // SAFETY: guaranteed by the caller; the block of a word below `len` is one of the tile's.
        unsafe {
            let per_block = BLOCK_SIZE / E::PER_WORD;
            let at = self.job.half + word % per_block * self.job.head_width + column;
            let values = self.blocks.keys.get_unchecked(word / per_block).add(at);
            let next = self.blocks.next.get_unchecked(word / per_block);
            let mut v = [V::splat(0.0); W];
            for (w, v) in v.iter_mut().enumerate() {
                *v = load_columns(values.add(w * BLOCK_SIZE).cast(), n);
                if R == 1 || self.job.is_memory_bound() {
                    prefetch(next.wrapping_add(at + w * BLOCK_SIZE));
                }
            }
            v
        }
    }

    /// Adds one word of positions to the sums.
    #[inline(always)]
    unsafe fn multiply<E: Element, const R: usize, const W: usize>(
        &self,
        row: usize,
        word: usize,
        values: &[V; W],
        sums: &mut [[V; W]; R],
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            for (r, sums) in sums.iter_mut().enumerate() {
                let weights = self.softmax.weights.get_unchecked(row + r);
                let weight = V::splat(*weights.as_ptr().add(word));
                for w in 0..W {
                    sums[w] = E::dot(sums[w], weight, values[w]);
                }
            }
        }
    }
}

/// Loads `n` columns of 16 lanes; the others are 0.
#[inline(always)]
unsafe fn load_columns<V: Vector>(p: *const f32, n: usize) -> V {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if n == BLOCK_SIZE {
            V::load(p)
        } else {
            V::load_first(p, n)
        }
    }
}

/// Stores the first `n` lanes.
#[inline(always)]
unsafe fn store_columns<V: Vector>(vector: V, p: *mut f32, n: usize) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if n == BLOCK_SIZE {
            vector.store(p);
        } else {
            vector.store_first(p, n);
        }
    }
}
