//! Finishes the sums of a tile where they are written: scales, bias, residual, GELU.

use std::mem::MaybeUninit;

use super::panel::PANEL;
use crate::kernels::lanes::per_isa;
use crate::kernels::math;
use crate::kernels::shared_slice::SharedSlice;

/// The operands of a tile's epilogue, and the memory of the result.
pub(super) struct Finish<'a> {
    /// Weight scales for q8, padded to whole panels.
    pub scales: Option<&'a [f32]>,
    /// Bias, padded to whole panels.
    pub bias: &'a [f32],
    /// `[rows, out]`
    pub residual: Option<&'a [f32]>,
    pub gelu: bool,
    pub out_features: usize,
    /// `[rows, out]`
    pub y: SharedSlice<'a, MaybeUninit<f32>>,
}

per_isa! {
    /// Finishes a tile's sums and writes them to `y`, from row `row` and column `column` on.
    pub(super) fn finish_tile(finish: &Finish<'_>, tile: &mut [[f32; PANEL]], row: usize, column: usize)
        => finish_tile_body;
}

#[inline(always)]
fn finish_tile_body(finish: &Finish<'_>, tile: &mut [[f32; PANEL]], row: usize, column: usize) {
    let n_out = finish.out_features;
    let width = PANEL.min(n_out - column);
    let mut bias = [0.0; PANEL];
    bias.copy_from_slice(&finish.bias[column..column + PANEL]);
    let mut scales = [1.0; PANEL];
    if let Some(all) = finish.scales {
        scales.copy_from_slice(&all[column..column + PANEL]);
    }
    for (row, sums) in (row..).zip(tile) {
        let at = row * n_out + column;
        let mut values = *sums;
        if finish.scales.is_some() {
            for i in 0..PANEL {
                values[i] *= scales[i];
            }
        }
        for i in 0..PANEL {
            values[i] += bias[i];
        }
        if let Some(residual) = finish.residual {
            let mut addend = [0.0; PANEL];
            match residual[at..].first_chunk() {
                Some(whole) if width == PANEL => addend = *whole,
                _ => addend[..width].copy_from_slice(&residual[at..at + width]),
            }
            for i in 0..PANEL {
                values[i] += addend[i];
            }
        }
        if finish.gelu {
            for value in &mut values {
                *value = math::gelu(*value);
            }
        }
        // SAFETY: no other task writes these columns of these rows.
        let y = unsafe { finish.y.part(at, width) };
        match y.first_chunk_mut() {
            Some(whole) => *whole = initialized(&values),
            None => {
                for (y, value) in y.iter_mut().zip(values) {
                    y.write(value);
                }
            }
        }
    }
}

#[inline(always)]
fn initialized(values: &[f32; PANEL]) -> [MaybeUninit<f32>; PANEL] {
    // `map` would be a call that is not compiled for the instruction set.
    let mut written = [MaybeUninit::uninit(); PANEL];
    for (written, &value) in written.iter_mut().zip(values) {
        written.write(value);
    }
    written
}
