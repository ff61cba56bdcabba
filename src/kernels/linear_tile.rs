//! One tile of a linear layer: a block of rows times one panel of outputs, on the instruction
//! set the machine has. The portable path here is also the definition of the arithmetic.

use super::Isa;
use super::linear::WeightDtype;
use super::pack::{PANEL, PackedWeights, Q8_GROUP};
use super::weight_memory::Line;

/// Rows in a block at most: twelve rows of two registers each, two of weights and one broadcast
/// fill the 32 registers of AVX-512.
pub(super) const BLOCK_ROWS: usize = 12;

/// Sums of a block of rows over a panel; rows past a block's end are not written.
pub(super) type Tile = [[f32; PANEL]; BLOCK_ROWS];

/// A q8 panel and what its sums need besides the weights.
pub(super) struct Q8Panel<'a> {
    pub lines: &'a [Line],
    /// `[group][PANEL]`
    pub corrections: &'a [i32],
    /// `[group][row]`
    pub row_scales: &'a [f32],
}

/// Calls a tile function for the number of rows there are.
macro_rules! by_rows {
    ($rows:expr, $function:ident $arguments:tt; $($n:literal)*) => {
        match $rows {
            // SAFETY: the caller has checked the instruction set and the lengths.
            $($n => unsafe { $function::<$n> $arguments },)*
            rows => unreachable!("a block of {rows} rows"),
        }
    };
}

/// Computes `tile[row] = a[row] x panel` for a block of `rows` packed rows; in q8 the weights'
/// scales are still to be multiplied with.
pub(super) fn compute(
    isa: Isa,
    weights: &PackedWeights,
    panel: usize,
    rows: usize,
    a: &[u32],
    row_scales: &[f32],
    tile: &mut Tile,
) {
    let lines = weights.panel(panel);
    assert!(a.len() == rows * weights.words, "whole rows of words");
    if weights.dtype == WeightDtype::Q8 {
        let groups = weights.groups;
        assert!(
            row_scales.len() == rows * groups,
            "a scale per row and group"
        );
        let corrections = panel * groups * PANEL..(panel + 1) * groups * PANEL;
        let panel = Q8Panel {
            lines,
            corrections: &weights.corrections[corrections],
            row_scales,
        };
        return q8(isa, rows, a, &panel, tile);
    }
    match (weights.dtype, isa) {
        #[cfg(target_arch = "x86_64")]
        (WeightDtype::F32, Isa::Avx512) => {
            use super::x86::linear_avx512::f32_tile;
            by_rows!(rows, f32_tile(a, lines, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        #[cfg(target_arch = "x86_64")]
        (WeightDtype::F32, Isa::Avx2) => {
            use super::x86::linear_avx2::f32_tile;
            by_rows!(rows, f32_tile(a, lines, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        #[cfg(target_arch = "x86_64")]
        (_, Isa::Avx512) => {
            use super::x86::linear_avx512::bf16_tile;
            by_rows!(rows, bf16_tile(a, lines, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        #[cfg(target_arch = "x86_64")]
        (_, Isa::Avx2) => {
            use super::x86::linear_avx2::bf16_tile;
            by_rows!(rows, bf16_tile(a, lines, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        (WeightDtype::F32, _) => portable(rows, a, lines, tile, |sum, x, weight| {
            f32::from_bits(x).mul_add(f32::from_bits(weight), sum)
        }),
        _ => portable(rows, a, lines, tile, |sum, x, weight| {
            let even = |word: u32| f32::from_bits(word << 16);
            let odd = |word: u32| f32::from_bits(word & 0xffff_0000);
            let sum = even(x).mul_add(even(weight), sum);
            odd(x).mul_add(odd(weight), sum)
        }),
    }
}

fn q8(isa: Isa, rows: usize, a: &[u32], panel: &Q8Panel<'_>, tile: &mut Tile) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            use super::x86::linear_avx512::{q8_tall_tile, q8_tile};
            if rows <= 6 {
                by_rows!(rows, q8_tile(a, panel, tile); 1 2 3 4 5 6);
            } else {
                by_rows!(rows, q8_tall_tile(a, panel, tile); 7 8 9 10 11 12);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            use super::x86::linear_avx2::q8_tile;
            by_rows!(rows, q8_tile(a, panel, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        _ => q8_portable(rows, a, panel, tile),
    }
}

/// Every sum goes over the steps in order, one word at a time.
fn portable(
    rows: usize,
    a: &[u32],
    lines: &[Line],
    tile: &mut Tile,
    add: impl Fn(f32, u32, u32) -> f32,
) {
    tile[..rows].fill([0.0; PANEL]);
    for (a, step) in a.chunks_exact(rows).zip(lines.as_chunks::<2>().0) {
        for (&x, sums) in a.iter().zip(tile.iter_mut()) {
            let weights = step.iter().flat_map(|line| &line.0);
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                *sum = add(*sum, x, weight);
            }
        }
    }
}

/// Integer sums over a group of features start from the correction for unsigned activations; a
/// group's sum is scaled by its activations' scale and added in f32, in order.
fn q8_portable(rows: usize, a: &[u32], panel: &Q8Panel<'_>, tile: &mut Tile) {
    tile[..rows].fill([0.0; PANEL]);
    let groups = a
        .chunks(Q8_GROUP / 4 * rows)
        .zip(panel.lines.chunks(Q8_GROUP / 4 * 2))
        .zip(panel.corrections.as_chunks::<PANEL>().0)
        .zip(panel.row_scales.chunks_exact(rows));
    for (((a, lines), corrections), scales) in groups {
        for (r, (sums, &scale)) in tile.iter_mut().zip(scales).enumerate() {
            let mut integers = *corrections;
            for (a, step) in a.chunks_exact(rows).zip(lines.as_chunks::<2>().0) {
                let x = a[r].to_le_bytes();
                let weights = step.iter().flat_map(|line| &line.0);
                for (integer, weight) in integers.iter_mut().zip(weights) {
                    let weight = weight.to_le_bytes();
                    for (x, weight) in x.iter().zip(weight) {
                        *integer += i32::from(*x) * i32::from(weight.cast_signed());
                    }
                }
            }
            for (sum, &integer) in sums.iter_mut().zip(&integers) {
                *sum = (integer as f32).mul_add(scale, *sum);
            }
        }
    }
}
