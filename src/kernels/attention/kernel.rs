//! The attention of one unit, written once for all instruction sets.
//!
//! The order of operations is that of the [module](super); here is only how rows share loads.

use super::plan::QUERY_TILE;
use super::vector::{Element, Vector};
use super::{POSITION_TILE, TILE_BLOCKS};
use crate::kernels::kv::BLOCK_SIZE;
use crate::kernels::math;

/// Vectors of scores or columns that a row alone keeps in registers.
const ALONE: usize = 4;

/// One head's attention for up to [`QUERY_TILE`] rows of one sequence.
///
/// A function that takes a unit needs, for its `unsafe`: `q` and `out` valid for `rows` rows of
/// `head_dim` elements at their strides, `out` for this unit alone; `kv` the cache at this head's
/// first block, every block of `table` inside the cache, the table reaching the last row's
/// position; the slots up to there written; `rows` in `1..=QUERY_TILE` and all of the same query
/// tile.
pub(in crate::kernels) struct UnitJob<'a, E> {
    pub q: *const f32,
    pub q_stride: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    pub kv: *const E,
    /// Elements from one block to the next.
    pub block_stride: usize,
    pub table: &'a [u32],
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    pub rows: usize,
    /// The first row's own position.
    pub position: usize,
}

/// A row's weights of the positions of one tile.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Weights([f32; POSITION_TILE]);

/// The running softmax of the unit's rows.
struct Softmax<V> {
    max: [f32; QUERY_TILE],
    /// Sums of the weights, position `i` in lane `i % 16`.
    sum: [V; QUERY_TILE],
    /// What sums so far are to be multiplied by.
    correction: [f32; QUERY_TILE],
    weights: [Weights; QUERY_TILE],
}

/// Runs a unit, `R` rows by `W` vectors of scores or columns at a time in registers.
///
/// # Safety
/// The processor must have the instruction set of `V`; for the unit see [`UnitJob`].
#[inline(always)]
pub(super) unsafe fn attend<V: Vector, E: Element, const R: usize, const W: usize>(
    job: &UnitJob<'_, E>,
) {
    // SAFETY: the caller's, throughout; a tile's blocks are those of its positions.
    unsafe {
        let mut softmax = Softmax {
            max: [f32::NEG_INFINITY; QUERY_TILE],
            sum: [V::splat(0.0); QUERY_TILE],
            correction: [0.0; QUERY_TILE],
            weights: [Weights([0.0; POSITION_TILE]); QUERY_TILE],
        };
        let context = job.position + job.rows;
        for start in (0..context).step_by(POSITION_TILE) {
            let len = (context - start).min(POSITION_TILE);
            let mut keys = [job.kv; TILE_BLOCKS];
            let blocks = &job.table[start / BLOCK_SIZE..][..len.div_ceil(BLOCK_SIZE)];
            for (keys, &block) in keys.iter_mut().zip(blocks) {
                *keys = job.kv.add(block as usize * job.block_stride);
            }
            scores::<V, E, R, W>(job, &keys[..blocks.len()], &mut softmax.weights);
            for row in 0..job.rows {
                let visible = (job.position + row + 1 - start).min(len);
                weigh(&mut softmax, row, visible);
            }
            values::<V, E, R, W>(job, &keys, start, len, &softmax);
        }
        for row in 0..job.rows {
            let factor = 1.0 / softmax.sum[row].reduce_sum();
            let out = job.out.add(row * job.out_stride);
            for column in (0..job.head_dim).step_by(BLOCK_SIZE) {
                let out = out.add(column);
                let n = (job.head_dim - column).min(BLOCK_SIZE);
                let sum = load_columns::<V, f32>(out, n).mul(V::splat(factor));
                store_columns(sum, out, n);
            }
        }
    }
}

/// The scaled scores of all rows against the blocks of a tile.
#[inline(always)]
unsafe fn scores<V: Vector, E: Element, const R: usize, const W: usize>(
    job: &UnitJob<'_, E>,
    keys: &[*const E],
    weights: &mut [Weights; QUERY_TILE],
) {
    // SAFETY: the caller's.
    unsafe {
        let mut row = 0;
        while row + R <= job.rows {
            let mut block = 0;
            while block + W <= keys.len() {
                scores_of::<V, E, R, W>(job, row, keys, block, weights);
                block += W;
            }
            while block < keys.len() {
                scores_of::<V, E, R, 1>(job, row, keys, block, weights);
                block += 1;
            }
            row += R;
        }
        while row < job.rows {
            let mut block = 0;
            while block + ALONE <= keys.len() {
                scores_of::<V, E, 1, ALONE>(job, row, keys, block, weights);
                block += ALONE;
            }
            while block < keys.len() {
                scores_of::<V, E, 1, 1>(job, row, keys, block, weights);
                block += 1;
            }
            row += 1;
        }
    }
}

#[inline(always)]
unsafe fn scores_of<V: Vector, E: Element, const R: usize, const W: usize>(
    job: &UnitJob<'_, E>,
    row: usize,
    keys: &[*const E],
    block: usize,
    weights: &mut [Weights; QUERY_TILE],
) {
    // SAFETY: the caller's.
    unsafe {
        let q = job.q.add(row * job.q_stride);
        let mut sums = [[V::splat(0.0); W]; R];
        for d in 0..job.head_dim {
            let mut k = [V::splat(0.0); W];
            for w in 0..W {
                k[w] = E::load(keys[block + w].add(d * BLOCK_SIZE));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = V::splat(*q.add(r * job.q_stride + d));
                for w in 0..W {
                    sums[w] = q.mul_add(k[w], sums[w]);
                }
            }
        }
        let scale = V::splat(job.scale);
        for (r, sums) in sums.iter().enumerate() {
            let scores = weights[row + r].0.as_mut_ptr();
            for (w, sum) in sums.iter().enumerate() {
                sum.mul(scale).store(scores.add((block + w) * BLOCK_SIZE));
            }
        }
    }
}

/// Turns a row's scores of the first `visible` positions of a tile into weights relative to the
/// greatest score so far.
#[inline(always)]
unsafe fn weigh<V: Vector>(softmax: &mut Softmax<V>, row: usize, visible: usize) {
    // SAFETY: the caller's; `visible` is at most the tile's length.
    unsafe {
        let end = visible.next_multiple_of(BLOCK_SIZE);
        let weights = &mut softmax.weights[row].0;
        // e^-inf is 0, which leaves a lane's sum as it is.
        weights[visible..end].fill(f32::NEG_INFINITY);
        let weights = weights.as_mut_ptr();
        let old = softmax.max[row];
        let mut max = old;
        for at in (0..end).step_by(BLOCK_SIZE) {
            max = max.max(V::load(weights.add(at)).reduce_max());
        }
        // e^0 is 1.
        let correction = if max == old {
            1.0
        } else {
            math::exp(old - max)
        };
        let mut sum = softmax.sum[row].mul(V::splat(correction));
        for at in (0..end).step_by(BLOCK_SIZE) {
            let weight = V::load(weights.add(at)).sub(V::splat(max)).exp();
            weight.store(weights.add(at));
            sum = sum.add(weight);
        }
        softmax.max[row] = max;
        softmax.sum[row] = sum;
        softmax.correction[row] = correction;
    }
}

/// Adds a tile's weighted values to the sums in `out`.
#[inline(always)]
unsafe fn values<V: Vector, E: Element, const R: usize, const W: usize>(
    job: &UnitJob<'_, E>,
    keys: &[*const E; TILE_BLOCKS],
    start: usize,
    len: usize,
    softmax: &Softmax<V>,
) {
    // SAFETY: the caller's.
    unsafe {
        // What the first row sees of the tile, all see.
        let common = (job.position + 1 - start).min(len);
        let tile = ValueTile {
            job,
            keys,
            begin: start == 0,
            softmax,
        };
        let mut row = 0;
        while row + R <= job.rows {
            tile.add::<R, W>(row, 0, common);
            row += R;
        }
        while row < job.rows {
            tile.add::<1, ALONE>(row, 0, common);
            row += 1;
        }
        for row in 1..job.rows {
            let visible = (job.position + row + 1 - start).min(len);
            if visible > common {
                tile.add::<1, ALONE>(row, common, visible);
            }
        }
    }
}

struct ValueTile<'a, V, E> {
    job: &'a UnitJob<'a, E>,
    keys: &'a [*const E; TILE_BLOCKS],
    /// Whether it is the first tile: nothing is in `out` yet.
    begin: bool,
    softmax: &'a Softmax<V>,
}

impl<V: Vector, E: Element> ValueTile<'_, V, E> {
    /// Adds positions `from..to` of the tile to `R` rows, all columns.
    #[inline(always)]
    unsafe fn add<const R: usize, const W: usize>(&self, row: usize, from: usize, to: usize) {
        // SAFETY: the caller's.
        unsafe {
            let head_dim = self.job.head_dim;
            let mut column = 0;
            while column + W * BLOCK_SIZE <= head_dim {
                self.add_columns::<R, W>(row, from, to, column, BLOCK_SIZE);
                column += W * BLOCK_SIZE;
            }
            while column < head_dim {
                let n = (head_dim - column).min(BLOCK_SIZE);
                self.add_columns::<R, 1>(row, from, to, column, n);
                column += BLOCK_SIZE;
            }
        }
    }

    /// The same for `W` vectors of columns, of which the last has `n`.
    #[inline(always)]
    unsafe fn add_columns<const R: usize, const W: usize>(
        &self,
        row: usize,
        from: usize,
        to: usize,
        column: usize,
        n: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let job = self.job;
            let out = job.out.add(row * job.out_stride + column);
            let mut sums = [[V::splat(0.0); W]; R];
            if from > 0 || !self.begin {
                for (r, sums) in sums.iter_mut().enumerate() {
                    // The start of a tile has corrected its sums already.
                    let correction = if from > 0 {
                        1.0
                    } else {
                        self.softmax.correction[row + r]
                    };
                    for (w, sum) in sums.iter_mut().enumerate() {
                        let out = out.add(r * job.out_stride + w * BLOCK_SIZE);
                        *sum = load_columns::<V, f32>(out, n).mul(V::splat(correction));
                    }
                }
            }
            let mut position = from;
            while position < to {
                let block = position / BLOCK_SIZE;
                let values = self.keys[block].add(BLOCK_SIZE * job.head_dim + column);
                let end = to.min((block + 1) * BLOCK_SIZE);
                for position in position..end {
                    let value = values.add(position % BLOCK_SIZE * job.head_dim);
                    let mut v = [V::splat(0.0); W];
                    for (w, v) in v.iter_mut().enumerate() {
                        *v = load_columns(value.add(w * BLOCK_SIZE), n);
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let weights = self.softmax.weights.get_unchecked(row + r);
                        let weight = V::splat(*weights.0.get_unchecked(position));
                        for w in 0..W {
                            sums[w] = weight.mul_add(v[w], sums[w]);
                        }
                    }
                }
                position = end;
            }
            for (r, sums) in sums.iter().enumerate() {
                for (w, sum) in sums.iter().enumerate() {
                    store_columns(*sum, out.add(r * job.out_stride + w * BLOCK_SIZE), n);
                }
            }
        }
    }
}

/// `n` columns of 16 lanes, the others 0.
#[inline(always)]
unsafe fn load_columns<V: Vector, E: Element>(p: *const E, n: usize) -> V {
    // SAFETY: the caller's.
    unsafe {
        if n == BLOCK_SIZE {
            E::load(p)
        } else {
            E::load_first(p, n)
        }
    }
}

/// The first `n` lanes into memory.
#[inline(always)]
unsafe fn store_columns<V: Vector>(vector: V, p: *mut f32, n: usize) {
    // SAFETY: the caller's.
    unsafe {
        if n == BLOCK_SIZE {
            vector.store(p);
        } else {
            vector.store_first(p, n);
        }
    }
}

/// Runs a unit in plain Rust.
///
/// # Safety
/// See [`UnitJob`].
pub(super) unsafe fn attend_portable<E: Element>(job: &UnitJob<'_, E>) {
    // SAFETY: the caller's; plain Rust runs everywhere.
    unsafe { attend::<super::vector::Portable, E, 1, 2>(job) }
}
