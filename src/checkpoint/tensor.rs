//! One tensor of a checkpoint, in its file.

use candle_core::DType;
use half::{bf16, f16};

/// A tensor within its file: row-major, little endian, not necessarily aligned.
#[derive(Clone)]
pub struct TensorView<'a> {
    /// Its values.
    pub bytes: &'a [u8],
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
        widen(self.bytes, self.dtype, &mut values);
        values
    }
}

/// Widens little-endian values to f32, up to the length of `out`.
pub(super) fn widen(bytes: &[u8], dtype: DType, out: &mut [f32]) {
    match dtype {
        DType::F16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        DType::BF16 => {
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
