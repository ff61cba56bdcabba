//! A view of one tensor in its checkpoint file.

use std::borrow::Cow;

use crate::kernels::stored::{StoredType, widen};

/// A tensor within its file: row-major, little endian, not necessarily aligned, in blocks if quantized.
#[derive(Clone)]
pub struct TensorView<'a> {
    /// Its values, in the file, or copied where the file has its rows in another order.
    pub bytes: Cow<'a, [u8]>,
    /// Their type; a row is a whole number of blocks.
    pub dtype: StoredType,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorView<'_> {
    /// Returns all values as f32.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.dtype.elements_of(self.bytes.len())];
        widen(&self.bytes, self.dtype, &mut values);
        values
    }
}
