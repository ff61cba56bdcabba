//! Finds values that are not finite in a checkpoint's tensors: a single NaN or infinity makes every
//! output of the model NaN.

use half::{bf16, f16};

use super::tensor::TensorView;
use crate::kernels::stored::{StoredType, widen};

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
        StoredType::F32 => first(
            &tensor.bytes,
            |bytes| !f32::from_le_bytes(bytes).is_finite(),
            f32::from_le_bytes,
        ),
        StoredType::F16 => first(
            &tensor.bytes,
            |bytes| u16::from_le_bytes(bytes) & 0x7c00 == 0x7c00,
            |bytes| f16::from_le_bytes(bytes).to_f32(),
        ),
        StoredType::Bf16 => first(
            &tensor.bytes,
            |bytes| u16::from_le_bytes(bytes) & 0x7f80 == 0x7f80,
            |bytes| bf16::from_le_bytes(bytes).to_f32(),
        ),
        stored => first_in_blocks(&tensor.bytes, stored),
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

/// Returns the index and value of the first value of a quantized tensor that is not finite. Only scales
/// can make one, so only they are read.
fn first_in_blocks(bytes: &[u8], stored: StoredType) -> Option<(usize, f32)> {
    let is_special = |block: &[u8], at: usize| {
        let scale = block.get(at..at + 2).and_then(|scale| scale.first_chunk());
        scale.is_some_and(|scale| u16::from_le_bytes(*scale) & 0x7c00 == 0x7c00)
    };
    let scales = stored.scale_offsets();
    let mut blocks = bytes.chunks_exact(stored.block_bytes()).enumerate();
    let (n, block) =
        blocks.find(|(_, block)| scales.iter().any(|&scale| is_special(block, scale)))?;
    let mut values = vec![0.0; stored.block_len()];
    widen(block, stored, &mut values);
    let at = values.iter().position(|value| !value.is_finite())?;
    Some((n * stored.block_len() + at, values[at]))
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
            for dtype in [StoredType::F32, StoredType::F16, StoredType::Bf16] {
                let mut values = vec![-1.5_f32; 15_000];
                let bytes = |values: &[f32]| -> Vec<u8> {
                    let each = values.iter().map(|&value| match dtype {
                        StoredType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                        StoredType::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
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

    #[test]
    fn a_scale_that_is_not_finite_is_found_in_every_quantized_type() {
        for stored in StoredType::ALL.into_iter().filter(|s| s.is_quantized()) {
            let shape = vec![3, 2 * stored.block_len()];
            for &at in stored.scale_offsets() {
                let mut bytes = vec![0x11; stored.bytes_of(shape.iter().product())];
                let find = |bytes: &[u8]| {
                    first_not_finite(&TensorView {
                        bytes: bytes.into(),
                        dtype: stored,
                        shape: shape.clone(),
                    })
                };
                assert_eq!(find(&bytes), None);
                let at = 3 * stored.block_bytes() + at;
                bytes[at..at + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
                let found = find(&bytes).unwrap();
                assert_eq!(found.index[0], 1, "{}", stored.name());
                assert!(found.index[1] >= stored.block_len(), "{found:?}");
            }
        }
    }
}
