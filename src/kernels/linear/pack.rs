//! Packs the weights of a linear layer into panels, in the [`panel`](super::panel)'s order.

use std::io;
use std::ops::Range;

use super::panel::{PANEL, Q8_GROUP};
use super::weight::{MatrixOrder, RawWeight, WeightDtype};
use crate::kernels::lanes::{each, per_isa};
use crate::kernels::math::{round_to_bf16, round_to_integer};
use crate::kernels::shared_slice::SharedSlice;
use crate::kernels::weight_memory::{Line, Lines, WeightMemory};
use crate::kernels::{Isa, Pool};

/// Packed weights of one layer.
pub(super) struct PackedWeights {
    pub dtype: WeightDtype,
    pub in_features: usize,
    pub out_features: usize,
    /// Steps per panel.
    pub words: usize,
    pub panels: usize,
    /// Number of groups of input features, for q8.
    pub groups: usize,
    /// Consecutive panels, each [`words`](Self::words) steps of two lines.
    lines: Lines,
    /// Scales of the integer weights per output, padded to whole panels; for q8.
    pub scales: Vec<f32>,
    /// `-128 *` the sum of an output's integers, `[panel][group][PANEL]`, for q8: the initial value
    /// of the accumulators, which compensates for the offset of unsigned activations.
    pub corrections: Vec<i32>,
}

impl PackedWeights {
    /// Packs matrices, whose outputs follow one another, on all threads of the pool. The caller has
    /// checked the lengths.
    ///
    /// # Errors
    /// If memory can't be allocated.
    pub fn pack(
        pool: &Pool,
        isa: Isa,
        memory: &WeightMemory,
        dtype: WeightDtype,
        raw: &[RawWeight<'_>],
    ) -> io::Result<Self> {
        let in_features = raw.first().map_or(0, |weight| weight.in_features);
        let out_features = raw.iter().map(|weight| weight.out_features).sum::<usize>();
        let words = in_features.div_ceil(dtype.features_per_word());
        let panels = out_features.div_ceil(PANEL);
        let groups = in_features.div_ceil(Q8_GROUP);
        let quantized = usize::from(dtype == WeightDtype::Q8);
        let mut packed = Self {
            dtype,
            in_features,
            out_features,
            words,
            panels,
            groups: quantized * groups,
            lines: memory.lines(panels * words * 2)?,
            scales: vec![0.0; quantized * panels * PANEL],
            corrections: vec![0; quantized * panels * groups * PANEL],
        };
        let lines = SharedSlice::new(&mut packed.lines);
        let scales = SharedSlice::new(&mut packed.scales);
        let corrections = SharedSlice::new(&mut packed.corrections);
        pool.run(panels, |panel| {
            // SAFETY: every panel is written by exactly one task.
            let mut packed = unsafe {
                let corrections_per_panel = groups * PANEL * quantized;
                PackedPanel {
                    lines: lines.part(panel * words * 2, words * 2),
                    scales: scales.part(panel * PANEL * quantized, PANEL * quantized),
                    corrections: corrections
                        .part(panel * corrections_per_panel, corrections_per_panel),
                }
            };
            pack_panel(isa, dtype, raw, panel, &mut packed);
        });
        Ok(packed)
    }

    /// Returns all panels.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Returns a panel's words, two lines per step.
    pub fn panel(&self, panel: usize) -> &[Line] {
        let lines = self.words * 2;
        &self.lines[panel * lines..(panel + 1) * lines]
    }

    /// Adds an output's weights, at their packed precision, to `x`, `[in_features]`.
    pub fn add_output(&self, output: usize, x: &mut [f32]) {
        let (panel, column) = (output / PANEL, output % PANEL);
        let words = self.panel(panel)[column / 16..].iter().step_by(2);
        let words = words.map(|line| line.0[column % 16]);
        match self.dtype {
            WeightDtype::F32 => {
                for (x, word) in x.iter_mut().zip(words) {
                    *x += f32::from_bits(word);
                }
            }
            WeightDtype::Bf16 => {
                for (x, word) in x.chunks_mut(2).zip(words) {
                    for (x, bits) in x.iter_mut().zip([word << 16, word & 0xffff_0000]) {
                        *x += f32::from_bits(bits);
                    }
                }
            }
            WeightDtype::Q8 => {
                let scale = self.scales[output];
                for (x, word) in x.chunks_mut(4).zip(words) {
                    for (x, byte) in x.iter_mut().zip(word.to_le_bytes()) {
                        *x += f32::from(byte.cast_signed()) * scale;
                    }
                }
            }
        }
    }

    /// Returns the size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
            + size_of_val(&self.scales[..])
            + size_of_val(&self.corrections[..])
    }
}

/// The memory that one panel is packed into.
struct PackedPanel<'a> {
    lines: &'a mut [Line],
    /// Weight scales; empty except for q8.
    scales: &'a mut [f32],
    /// Corrections for unsigned activations; empty except for q8.
    corrections: &'a mut [i32],
}

per_isa! {
    /// Packs one panel.
    fn pack_panel(
        dtype: WeightDtype, raw: &[RawWeight<'_>], panel: usize, packed: &mut PackedPanel<'_>,
    ) => pack_panel_body;
}

#[inline(always)]
fn pack_panel_body(
    dtype: WeightDtype,
    raw: &[RawWeight<'_>],
    panel: usize,
    packed: &mut PackedPanel<'_>,
) {
    let columns = columns(raw, panel * PANEL);
    match dtype {
        WeightDtype::F32 => pack_f32(&columns, packed.lines),
        WeightDtype::Bf16 => pack_bf16(&columns, packed.lines),
        WeightDtype::Q8 => pack_q8(&columns, packed),
    }
}

/// Returns the weights of up to [`PANEL`] outputs from `first` on, widened: `[in_features][PANEL]`.
#[inline(always)]
fn columns(raw: &[RawWeight<'_>], first: usize) -> Vec<[f32; PANEL]> {
    let in_features = raw.first().map_or(0, |weight| weight.in_features);
    let mut values = vec![[0.0; PANEL]; in_features];
    let mut before = 0;
    for weight in raw {
        let after = before + weight.out_features;
        let outputs = first.max(before)..(first + PANEL).min(after);
        if !outputs.is_empty() {
            let column = outputs.start - first;
            let outputs = outputs.start - before..outputs.end - before;
            read_columns(weight, outputs, column, &mut values);
        }
        before = after;
    }
    values
}

/// Widens outputs of a matrix into the columns from `column` on.
#[inline(always)]
fn read_columns(
    weight: &RawWeight<'_>,
    outputs: Range<usize>,
    column: usize,
    values: &mut [[f32; PANEL]],
) {
    match weight.order {
        MatrixOrder::InOut => {
            let columns = column..column + outputs.len();
            for (k, row) in values.iter_mut().enumerate() {
                let at = k * weight.out_features + outputs.start;
                weight.widen(at, &mut row[columns.clone()]);
            }
        }
        MatrixOrder::OutIn => {
            let mut weights = vec![0.0; weight.in_features];
            for (column, output) in (column..).zip(outputs) {
                weight.widen(output * weight.in_features, &mut weights);
                for (row, &weight) in values.iter_mut().zip(&weights) {
                    row[column] = weight;
                }
            }
        }
    }
}

/// Writes a step's words, one for each output.
#[inline(always)]
fn write_step(step: &mut [Line], words: &[u32; PANEL]) {
    for (line, words) in step.iter_mut().zip(words.as_chunks().0) {
        line.0 = *words;
    }
}

#[inline(always)]
fn pack_f32(columns: &[[f32; PANEL]], lines: &mut [Line]) {
    for (step, row) in lines.chunks_exact_mut(2).zip(columns) {
        write_step(step, &each(row, f32::to_bits));
    }
}

#[inline(always)]
fn pack_bf16(columns: &[[f32; PANEL]], lines: &mut [Line]) {
    for (step, rows) in lines.chunks_exact_mut(2).zip(columns.chunks(2)) {
        let mut words = each(&rows[0], round_to_bf16);
        if let Some(odd) = rows.get(1) {
            for (word, &weight) in words.iter_mut().zip(odd) {
                *word |= round_to_bf16(weight) << 16;
            }
        }
        write_step(step, &words);
    }
}

/// Packs symmetric 8-bit integers with one scale per output: the weight of largest magnitude
/// becomes 127.
#[inline(always)]
fn pack_q8(columns: &[[f32; PANEL]], packed: &mut PackedPanel<'_>) {
    let mut largest = [0f32; PANEL];
    for row in columns {
        for (largest, weight) in largest.iter_mut().zip(row) {
            *largest = largest.max(weight.abs());
        }
    }
    let inverse = each(&largest, |l| if l > 0.0 { 127.0 / l } else { 0.0 });
    for (scale, largest) in packed.scales.iter_mut().zip(largest) {
        *scale = largest / 127.0;
    }
    let groups = columns.chunks(Q8_GROUP);
    let group_lines = packed.lines.chunks_mut(Q8_GROUP / 4 * 2);
    let corrections = packed.corrections.chunks_exact_mut(PANEL);
    for ((columns, lines), corrections) in groups.zip(group_lines).zip(corrections) {
        let mut sums = [0i32; PANEL];
        for (step, rows) in lines.chunks_exact_mut(2).zip(columns.chunks(4)) {
            let mut words = [0u32; PANEL];
            for (byte, row) in rows.iter().enumerate() {
                for (column, word) in words.iter_mut().enumerate() {
                    let integer = round_to_integer(row[column] * inverse[column]);
                    sums[column] += integer;
                    *word |= (integer.cast_unsigned() & 0xff) << (8 * byte);
                }
            }
            write_step(step, &words);
        }
        for (correction, sum) in corrections.iter_mut().zip(sums) {
            *correction = -128 * sum;
        }
    }
}
