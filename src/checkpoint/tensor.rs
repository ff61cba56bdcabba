//! A view of one tensor in its checkpoint file.

use std::borrow::Cow;

use candle_core::DType;

use crate::kernels::widen::widen;

/// A tensor within its file: row-major, little endian, not necessarily aligned.
#[derive(Clone)]
pub struct TensorView<'a> {
    /// Its values, in the file, or copied where the file has its rows in another order.
    pub bytes: Cow<'a, [u8]>,
    /// F32, F16 or BF16.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorView<'_> {
    /// Returns all values as f32.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.bytes.len() / self.dtype.size_in_bytes()];
        widen(&self.bytes, self.dtype, &mut values);
        values
    }
}
