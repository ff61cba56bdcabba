//! Finishes the sums of a tile where they are written: scales, bias, and the layer's epilogue.

use std::mem::MaybeUninit;

use super::panel::PANEL;
use crate::kernels::lanes::per_isa;
use crate::kernels::math;
use crate::kernels::shared_slice::SharedSlice;

/// A non-linear function of single elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// [`math::gelu`]: GELU in its tanh form.
    GeluTanh,
    /// [`math::gelu_erf`]: GELU in its exact form.
    GeluErf,
    /// [`math::gelu_sigmoid`].
    GeluSigmoid,
    /// [`math::relu`].
    Relu,
    /// [`math::silu`].
    Silu,
    /// [`math::tanh`].
    Tanh,
}

/// The last operation on a value `y`, with the values of its operand, `[rows, out]`.
pub(super) enum Last<'a> {
    None,
    /// `activation(y)`
    Activate(Activation),
    /// `activation(y + addend)`
    ActivateSum(&'a [f32], Activation),
    /// `activation(gate) * y`
    Gated(&'a [f32], Activation),
    /// `y + addend`
    Add(&'a [f32]),
    /// `cap * tanh(y / cap)`
    SoftCap(f32),
}

/// The operands of a tile's epilogue, and the memory of the result.
pub(super) struct Finish<'a> {
    /// Weight scales for q8, padded to whole panels.
    pub scales: Option<&'a [f32]>,
    /// Bias, padded to whole panels.
    pub bias: &'a [f32],
    pub last: Last<'a>,
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
        match finish.last {
            Last::None => (),
            Last::Activate(activation) => activate(activation, &mut values),
            Last::ActivateSum(addend, activation) => {
                let addend = operand(addend, at, width);
                for i in 0..PANEL {
                    values[i] += addend[i];
                }
                activate(activation, &mut values);
            }
            Last::Gated(gate, activation) => {
                let mut gate = operand(gate, at, width);
                activate(activation, &mut gate);
                for i in 0..PANEL {
                    values[i] *= gate[i];
                }
            }
            Last::Add(addend) => {
                let addend = operand(addend, at, width);
                for i in 0..PANEL {
                    values[i] += addend[i];
                }
            }
            Last::SoftCap(cap) => {
                for value in &mut values {
                    *value = math::soft_cap(*value, cap);
                }
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

/// Returns `width` values from `at` on, padded with zeros.
#[inline(always)]
fn operand(values: &[f32], at: usize, width: usize) -> [f32; PANEL] {
    let mut padded = [0.0; PANEL];
    match values[at..].first_chunk() {
        Some(whole) if width == PANEL => padded = *whole,
        _ => padded[..width].copy_from_slice(&values[at..at + width]),
    }
    padded
}

#[inline(always)]
fn activate(activation: Activation, values: &mut [f32; PANEL]) {
    match activation {
        Activation::GeluTanh => each(values, math::gelu),
        Activation::GeluErf => each(values, math::gelu_erf),
        Activation::GeluSigmoid => each(values, math::gelu_sigmoid),
        Activation::Relu => each(values, math::relu),
        Activation::Silu => each(values, math::silu),
        Activation::Tanh => each(values, math::tanh),
    }
}

#[inline(always)]
fn each(values: &mut [f32; PANEL], function: impl Fn(f32) -> f32) {
    for value in values {
        *value = function(*value);
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
