//! How the operands of a linear layer lie in memory.
//!
//! **Weights** are packed once, into panels of [`PANEL`] output features. Within a panel the
//! kernel walks the input features; at every step it finds one 32-bit word for each of the
//! panel's outputs, side by side:
//!
//! | dtype | word | input features per word |
//! |---|---|---|
//! | f32 | the weight | 1 |
//! | bf16 | two weights, the even one low | 2 |
//! | q8 | four signed bytes, the first lowest | 4 |
//!
//! so a panel is one stream from its first byte to its last, whatever the number of rows.
//!
//! **Activations** are packed for every call into blocks of rows, word by word: the words of all
//! rows of a block at one step stand side by side. f32 is copied, bf16 rounded to nearest even,
//! and q8 quantized row by row in groups of [`Q8_GROUP`] features: `x = scale * (u - 128)`.
//!
//! Missing features and outputs are zero, so kernels never look at edges.

use std::io;
use std::ops::Range;

use half::{bf16, f16};

use super::lanes::per_isa;
use super::linear::{Layout, RawWeight, WeightDtype};
use super::shared_slice::SharedSlice;
use super::weight_memory::{Line, Lines, WeightMemory};
use super::{Isa, Pool};

/// Output features per panel.
pub(super) const PANEL: usize = 32;

/// Input features that share one activation scale in q8.
pub(super) const Q8_GROUP: usize = 256;

/// Packed weights of one layer.
pub(super) struct PackedWeights {
    pub dtype: WeightDtype,
    pub in_features: usize,
    pub out_features: usize,
    /// Steps of a panel.
    pub words: usize,
    pub panels: usize,
    /// q8: groups of input features.
    pub groups: usize,
    /// Panels one after the other, [`words`](Self::words) steps of two lines each.
    lines: Lines,
    /// q8: what a weight's integer is multiplied with, per output (padded).
    pub scales: Vec<f32>,
    /// q8: `-128 *` the sum of an output's integers, `[panel][group][PANEL]`: what the
    /// accumulators start from, so that activations can be unsigned.
    pub corrections: Vec<i32>,
}

impl WeightDtype {
    /// Input features in one word.
    pub(super) const fn features_per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Q8 => 4,
        }
    }
}

impl PackedWeights {
    /// Packs on all threads of the pool. The caller has checked the lengths.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn pack(
        pool: &Pool,
        isa: Isa,
        memory: &WeightMemory,
        dtype: WeightDtype,
        raw: &RawWeight<'_>,
    ) -> io::Result<Self> {
        let words = raw.in_features.div_ceil(dtype.features_per_word());
        let panels = raw.out_features.div_ceil(PANEL);
        let groups = raw.in_features.div_ceil(Q8_GROUP);
        let quantized = usize::from(dtype == WeightDtype::Q8);
        let mut packed = Self {
            dtype,
            in_features: raw.in_features,
            out_features: raw.out_features,
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
            // SAFETY: every task has panels of its own.
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

    /// All panels.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// A panel's words, two lines a step.
    pub fn panel(&self, panel: usize) -> &[Line] {
        let lines = self.words * 2;
        &self.lines[panel * lines..(panel + 1) * lines]
    }

    /// Adds an output's weights, as they are held, to `x`, `[in_features]`.
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

    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
            + size_of_val(&self.scales[..])
            + size_of_val(&self.corrections[..])
    }
}

/// Where one panel is packed to.
struct PackedPanel<'a> {
    lines: &'a mut [Line],
    /// Empty but for q8.
    scales: &'a mut [f32],
    /// Empty but for q8.
    corrections: &'a mut [i32],
}

per_isa! {
    /// Packs one panel.
    fn pack_panel(
        dtype: WeightDtype, raw: &RawWeight<'_>, panel: usize, packed: &mut PackedPanel<'_>,
    ) => pack_panel_body;
}

#[inline(always)]
fn pack_panel_body(
    dtype: WeightDtype,
    raw: &RawWeight<'_>,
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

/// The weights of up to [`PANEL`] outputs, widened: `[in_features][PANEL]`.
#[inline(always)]
fn columns(raw: &RawWeight<'_>, first: usize) -> Vec<[f32; PANEL]> {
    let width = PANEL.min(raw.out_features - first);
    let mut values = vec![[0.0; PANEL]; raw.in_features];
    match raw.layout {
        Layout::InOut => {
            for (k, row) in values.iter_mut().enumerate() {
                raw.widen(k * raw.out_features + first, &mut row[..width]);
            }
        }
        Layout::OutIn => {
            let mut weights = vec![0.0; raw.in_features];
            for column in 0..width {
                raw.widen((first + column) * raw.in_features, &mut weights);
                for (row, &weight) in values.iter_mut().zip(&weights) {
                    row[column] = weight;
                }
            }
        }
    }
    values
}

impl RawWeight<'_> {
    /// Reads consecutive weights from an element on.
    #[inline(always)]
    fn widen(&self, at: usize, out: &mut [f32]) {
        let size = self.dtype.size_in_bytes();
        let bytes = &self.bytes[at * size..(at + out.len()) * size];
        match self.dtype {
            candle_core::DType::F16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *out = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            candle_core::DType::BF16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *out = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            _ => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
        }
    }
}

/// `map`, which as a call of its own would not be compiled for the instruction set.
#[inline(always)]
fn each<T: Copy + Default, const N: usize>(x: &[f32; N], f: impl Fn(f32) -> T) -> [T; N] {
    let mut y = [T::default(); N];
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(x);
    }
    y
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

/// Symmetric 8-bit integers with one scale per output: the largest weight becomes 127.
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

/// Added to a number of small magnitude, rounds it to the nearest integer, ties to even, which
/// then is what the sum's bits exceed the bits of this number by.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

#[inline(always)]
fn round_to_integer(x: f32) -> i32 {
    (x + ROUND)
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .cast_signed()
}

/// The upper half of an f32 rounded to nearest even, as the low 16 bits.
#[inline(always)]
pub(super) fn round_to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    // A NaN must not be rounded to infinity.
    if value.is_nan() {
        (bits >> 16) | 0x40
    } else {
        rounded
    }
}

/// Some columns of a block of rows.
pub(super) struct Rows<'a> {
    /// `[row][features]`
    pub x: &'a [f32],
    pub features: usize,
    /// Up to [`Q8_GROUP`] of them, from a multiple of it on.
    pub columns: Range<usize>,
}

/// Values that are rounded to bf16 at a time.
const ROUNDED: usize = 32;

/// Packs columns of rows into `out[word][row]`; q8 also gives `scales[row]`. `round` is
/// [`bf16_words`], as the instruction set does it best.
#[inline(always)]
pub(super) fn pack_rows(
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

/// Rounds a row's values.
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

/// Values rounded to bf16, two in a word.
#[inline(always)]
pub(super) fn bf16_words(values: &[f32; ROUNDED]) -> [u32; ROUNDED / 2] {
    let halves = each(values, round_to_bf16);
    let mut words = [0; ROUNDED / 2];
    for (word, [low, high]) in words.iter_mut().zip(halves.as_chunks().0) {
        *word = low | high << 16;
    }
    words
}

/// Quantizes a row's values of one group; gives their scale.
#[inline(always)]
fn pack_row_q8<'a>(values: &[f32], words: impl Iterator<Item = &'a mut u32>) -> f32 {
    let mut padded = [0f32; Q8_GROUP];
    let group = values.first_chunk().unwrap_or_else(|| {
        padded[..values.len()].copy_from_slice(values);
        &padded
    });
    // Without its sign, a float compares like its bits; integers can be compared in any order.
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

    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        for bits in (0..u32::MAX).step_by(65_521) {
            let value = f32::from_bits(bits);
            let expected = bf16::from_f32(value);
            let found = bf16::from_bits(round_to_bf16(value) as u16);
            assert_eq!(expected.is_nan(), found.is_nan());
            if !expected.is_nan() {
                assert_eq!(expected.to_bits(), found.to_bits(), "{value}");
            }
        }
    }
}
