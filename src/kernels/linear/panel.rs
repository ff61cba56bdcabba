//! The memory layout of a linear layer's operands, and the shape of a tile of its result.
//!
//! **Weights** are packed once, into panels of [`PANEL`] output features. Within a panel the
//! kernel walks the input features; every step is one 32-bit word for each of the panel's
//! outputs, side by side:
//!
//! | dtype | word | input features per word |
//! |---|---|---|
//! | f32 | the weight | 1 |
//! | bf16 | two weights, the even one low | 2 |
//! | q8 | four signed bytes, the first lowest | 4 |
//!
//! Kernels therefore read a panel as one stream, from its first byte to its last, for any number of
//! rows.
//!
//! **Activations** are packed for every call into blocks of [`BLOCK_ROWS`] rows, word by word: the
//! words of all rows of a block at one step are adjacent. f32 is copied, bf16 rounded to nearest
//! even, and q8 quantized row by row in groups of [`Q8_GROUP`] features: `x = scale * (u - 128)`.
//!
//! Missing features and outputs are zero, so kernels need no special case for edges.

use crate::kernels::weight_memory::Line;

/// Output features per panel.
pub(super) const PANEL: usize = 32;

/// Input features that share one activation scale in q8.
pub(super) const Q8_GROUP: usize = 256;

/// Maximum rows in a block: twelve rows of two registers each, two registers of weights and one
/// broadcast fit the 32 registers of AVX-512.
pub(super) const BLOCK_ROWS: usize = 12;

/// The sums of a block of rows over a panel; rows past the end of a block are not written.
pub(super) type Tile = [[f32; PANEL]; BLOCK_ROWS];

/// A q8 panel, with the corrections and scales that its sums need.
pub(super) struct Q8Panel<'a> {
    pub lines: &'a [Line],
    /// `[group][PANEL]`
    pub corrections: &'a [i32],
    /// `[group][row]`
    pub row_scales: &'a [f32],
}
