//! Packs activations for the tiles, in the [`panel`](super::panel)'s order.

use std::ops::Range;

use super::pack::PackedWeights;
use super::panel::{BLOCK_ROWS, Q8_GROUP};
use super::weight::WeightDtype;
use crate::kernels::lanes::each;
use crate::kernels::math::{round_to_bf16, round_to_integer};
use crate::kernels::shared_slice::SharedSlice;
use crate::kernels::{Isa, Pool};

/// Maximum activations packed without the pool: waking a thread takes longer.
const INLINE_PACKING: usize = 8 * 1024;

/// Packed activations; a layer keeps the memory from call to call.
#[derive(Default)]
pub(super) struct Activations {
    pub words: Vec<u32>,
    /// q8: `[block][group][row]`
    pub scales: Vec<f32>,
}

impl Activations {
    /// Packs `x: [rows, in]` for these weights; a task packs a block of rows and [`Q8_GROUP`]
    /// features.
    pub fn pack(&mut self, pool: &Pool, isa: Isa, weights: &PackedWeights, x: &[f32], rows: usize) {
        let (features, words, groups) = (weights.in_features, weights.words, weights.groups);
        self.words.resize(rows * words, 0);
        self.scales.resize(rows * groups, 0.0);
        let out = SharedSlice::new(&mut self.words);
        let scales = SharedSlice::new(&mut self.scales);
        let parts = features.div_ceil(Q8_GROUP);
        let words_per_part = Q8_GROUP / weights.dtype.features_per_word();
        let pack_part = |n: usize| {
            let (block, part) = (n / parts, n % parts);
            let first = block * BLOCK_ROWS;
            let count = BLOCK_ROWS.min(rows - first);
            let start = part * words_per_part;
            let part_words = words_per_part.min(words - start);
            let part_scales = usize::from(groups > 0);
            // SAFETY: every part is written by exactly one task.
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
            pack_on(isa, weights.dtype, &rows, out, scales);
        };
        let tasks = rows.div_ceil(BLOCK_ROWS) * parts;
        if rows * features <= INLINE_PACKING {
            (0..tasks).for_each(pack_part);
        } else {
            pool.run(tasks, pack_part);
        }
    }
}

/// A range of columns of a block of rows.
struct Rows<'a> {
    /// `[row][features]`
    x: &'a [f32],
    features: usize,
    /// Up to [`Q8_GROUP`] features, from a multiple of it on.
    columns: Range<usize>,
}

/// Values rounded to bf16 at a time.
const ROUNDED: usize = 32;

/// Packs columns of rows into `out[word][row]`; q8 also gives `scales[row]`. `round` is
/// [`bf16_words`], or a faster version of it for the instruction set.
#[inline(always)]
fn pack_rows(
    dtype: WeightDtype,
    rows: &Rows<'_>,
    round: impl Fn(&[f32; ROUNDED]) -> [u32; ROUNDED / 2],
    out: &mut [u32],
    scales: &mut [f32],
) {
    let count = rows.x.len() / rows.features;
    for (r, row) in rows.x.chunks_exact(rows.features).enumerate() {
        let row = &row[rows.columns.clone()];
        let words = out[r..].iter_mut().step_by(count);
        match dtype {
            WeightDtype::F32 => {
                for (word, x) in words.zip(row) {
                    *word = x.to_bits();
                }
            }
            WeightDtype::Bf16 => pack_row_bf16(row, &round, words),
            WeightDtype::Q8 => scales[r] = pack_row_q8(row, words),
        }
    }
}

/// Rounds a row's values to bf16.
#[inline(always)]
fn pack_row_bf16<'a>(
    row: &[f32],
    round: &impl Fn(&[f32; ROUNDED]) -> [u32; ROUNDED / 2],
    mut words: impl Iterator<Item = &'a mut u32>,
) {
    let (whole, rest) = row.as_chunks();
    for values in whole {
        for (word, rounded) in words.by_ref().take(ROUNDED / 2).zip(round(values)) {
            *word = rounded;
        }
    }
    let mut padded = [0.0; ROUNDED];
    padded[..rest.len()].copy_from_slice(rest);
    for (word, rounded) in words.take(rest.len().div_ceil(2)).zip(round(&padded)) {
        *word = rounded;
    }
}

/// Rounds values to bf16, two in a word.
#[inline(always)]
fn bf16_words(values: &[f32; ROUNDED]) -> [u32; ROUNDED / 2] {
    let halves = each(values, round_to_bf16);
    let mut words = [0; ROUNDED / 2];
    for (word, [low, high]) in words.iter_mut().zip(halves.as_chunks().0) {
        *word = low | high << 16;
    }
    words
}

/// Quantizes a row's values of one group and returns their scale.
#[inline(always)]
fn pack_row_q8<'a>(values: &[f32], words: impl Iterator<Item = &'a mut u32>) -> f32 {
    let mut padded = [0f32; Q8_GROUP];
    let group = values.first_chunk().unwrap_or_else(|| {
        padded[..values.len()].copy_from_slice(values);
        &padded
    });
    // Without its sign, a float compares like its bits. A maximum of integers is exact in any
    // order, so this loop vectorizes.
    let largest = group.iter().fold(0, |l: u32, x| l.max(x.abs().to_bits()));
    let largest = f32::from_bits(largest);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let bytes = each(group, |x| quantize(x * inverse) as u8);
    let used = values.len().div_ceil(4);
    for (four, word) in bytes.as_chunks::<4>().0[..used].iter().zip(words) {
        *word = u32::from_le_bytes(*four);
    }
    largest / 127.0
}

/// Rounds a value of -127 to 127 to the nearest integer, ties to even, and adds 128.
#[inline(always)]
fn quantize(x: f32) -> u32 {
    (round_to_integer(x) + 128).cast_unsigned() & 0xff
}

/// Calls [`pack_rows`], compiled for the instruction set.
fn pack_on(isa: Isa, dtype: WeightDtype, rows: &Rows<'_>, out: &mut [u32], scales: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use super::avx512::round_to_bf16;
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        fn avx512(d: WeightDtype, r: &Rows<'_>, out: &mut [u32], scales: &mut [f32]) {
            pack_rows(d, r, |values| round_to_bf16(values), out, scales);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(d: WeightDtype, r: &Rows<'_>, out: &mut [u32], scales: &mut [f32]) {
            pack_rows(d, r, bf16_words, out, scales);
        }
        // SAFETY: the processor supports `isa`.
        match isa {
            Isa::Avx512 => return unsafe { avx512(dtype, rows, out, scales) },
            Isa::Avx2 => return unsafe { avx2(dtype, rows, out, scales) },
            Isa::Portable => (),
        }
    }
    pack_rows(dtype, rows, bf16_words, out, scales);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantizing_rounds_to_nearest_even() {
        for (x, expected) in [
            (0.0, 128),
            (0.5, 128),
            (1.5, 130),
            (-0.5, 128),
            (-127.0, 1),
            (127.0, 255),
            (-1.5, 126),
        ] {
            assert_eq!(quantize(x), expected, "{x}");
        }
    }
}
