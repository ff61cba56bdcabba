//! Finds values that are not finite in a checkpoint's tensors: a single NaN or infinity makes every
//! output of the model NaN.

use candle_core::DType;
use half::{bf16, f16};

use super::tensor::TensorView;

/// Values per block: enough for vector instructions, few enough to stay in the cache.
const BLOCK: usize = 4096;

/// A value that is not finite, and its position in the tensor.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotFinite {
    /// Index in each dimension.
    pub index: Vec<usize>,
    /// `NaN`, `inf` or `-inf`.
    pub value: String,
}

/// Returns the first value of a tensor that is not finite, if any.
pub(super) fn first_not_finite(tensor: &TensorView<'_>) -> Option<NotFinite> {
    let (at, value) = match tensor.dtype {
        DType::F16 => first(
            &tensor.bytes,
            |bytes| u16::from_le_bytes(bytes) & 0x7c00 == 0x7c00,
            |bytes| f16::from_le_bytes(bytes).to_f32(),
        ),
        DType::BF16 => first(
            &tensor.bytes,
            |bytes| u16::from_le_bytes(bytes) & 0x7f80 == 0x7f80,
            |bytes| bf16::from_le_bytes(bytes).to_f32(),
        ),
        _ => first(
            &tensor.bytes,
            |bytes| !f32::from_le_bytes(bytes).is_finite(),
            f32::from_le_bytes,
        ),
    }?;
    let mut rest = at;
    let mut index: Vec<usize> = tensor
        .shape
        .iter()
        .rev()
        .map(|&size| {
            let here = rest % size.max(1);
            rest /= size.max(1);
            here
        })
        .collect();
    index.reverse();
    Some(NotFinite {
        index,
        value: value.to_string(),
    })
}

/// Returns the index and value of the first value that is not finite. `is_special` detects it without
/// a conversion: all bits of its exponent are set.
fn first<const BYTES: usize>(
    bytes: &[u8],
    is_special: impl Fn([u8; BYTES]) -> bool,
    value: impl Fn([u8; BYTES]) -> f32,
) -> Option<(usize, f32)> {
    let (values, _) = bytes.as_chunks::<BYTES>();
    for (block, values) in values.chunks(BLOCK).enumerate() {
        // Without an early exit the loop compiles to vector instructions.
        let any = values
            .iter()
            .fold(false, |any, &bytes| any | is_special(bytes));
        if any {
            let mut found = values.iter().enumerate();
            let found = found.find(|(_, bytes)| is_special(**bytes));
            return found.map(|(at, &bytes)| (block * BLOCK + at, value(bytes)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_that_is_not_finite_is_found_in_every_type() {
        let shape = vec![3, 5000];
        for (value, name) in [
            (f32::NAN, "NaN"),
            (f32::INFINITY, "inf"),
            (f32::NEG_INFINITY, "-inf"),
        ] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let mut values = vec![-1.5_f32; 15_000];
                let bytes = |values: &[f32]| -> Vec<u8> {
                    let each = values.iter().map(|&value| match dtype {
                        DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                        DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                        _ => value.to_le_bytes().to_vec(),
                    });
                    each.flatten().collect()
                };
                let find = |bytes: &[u8]| {
                    first_not_finite(&TensorView {
                        bytes: bytes.into(),
                        dtype,
                        shape: shape.clone(),
                    })
                };
                assert_eq!(find(&bytes(&values)), None);
                values[2 * 5000 + 4321] = value;
                values[14_999] = value;
                let expected = NotFinite {
                    index: vec![2, 4321],
                    value: name.to_owned(),
                };
                assert_eq!(find(&bytes(&values)), Some(expected));
            }
        }
    }
}
