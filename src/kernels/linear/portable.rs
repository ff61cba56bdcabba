//! Tiles of a linear layer in plain Rust: the definition of the arithmetic, and the path for
//! processors without AVX2.

use super::panel::{PANEL, Q8_GROUP, Q8Panel, Tile};
use crate::kernels::weight_memory::Line;

/// Computes `tile[r] = sum over steps of a[step][r] * panel[step]` in f32, one fused multiply-add
/// per step.
pub(super) fn f32_tile(rows: usize, a: &[u32], lines: &[Line], tile: &mut Tile) {
    steps(rows, a, lines, tile, |sum, x, weight| {
        f32::from_bits(x).mul_add(f32::from_bits(weight), sum)
    });
}

/// Computes the same over bf16 words, widened to f32: the even feature of a word before the odd
/// one.
pub(super) fn bf16_tile(rows: usize, a: &[u32], lines: &[Line], tile: &mut Tile) {
    steps(rows, a, lines, tile, |sum, x, weight| {
        let even = |word: u32| f32::from_bits(word << 16);
        let odd = |word: u32| f32::from_bits(word & 0xffff_0000);
        let sum = even(x).mul_add(even(weight), sum);
        odd(x).mul_add(odd(weight), sum)
    });
}

/// Computes every sum over the steps in order, one word at a time.
fn steps(
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

/// Computes the same over q8 words. Integer sums over a group of features start from the correction
/// for unsigned activations; a group's sum is multiplied by its activation scale and added in f32,
/// in order.
pub(super) fn q8_tile(rows: usize, a: &[u32], panel: &Q8Panel<'_>, tile: &mut Tile) {
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
