//! The types that checkpoints store weights in, and their values as f32.
//!
//! The quantized types are those of ggml: blocks of 32 or 256 values with scales of their own. They are
//! read by candle's `k_quants`, block by block, because a file does not align them.

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{
    BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};
use half::{bf16, f16};

/// The type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits in blocks of 32, with a scale.
    Q8_0,
    /// 4 bits in blocks of 32, with a scale.
    Q4_0,
    /// 4 bits in blocks of 32, with a scale and a minimum.
    Q4_1,
    /// 5 bits in blocks of 32, with a scale.
    Q5_0,
    /// 5 bits in blocks of 32, with a scale and a minimum.
    Q5_1,
    /// 4 bits in blocks of 256, with scales and minimums of 6 bits for each 32.
    Q4K,
    /// 5 bits in blocks of 256, with scales and minimums of 6 bits for each 32.
    Q5K,
    /// 6 bits in blocks of 256, with scales of 8 bits for each 16.
    Q6K,
}

impl StoredType {
    /// All types.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Returns the name that safetensors or GGUF use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Returns the number of values in a block; 1 for floats.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Returns the size of a block, in bytes.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => size_of::<BlockQ8_0>(),
            Self::Q4_0 => size_of::<BlockQ4_0>(),
            Self::Q4_1 => size_of::<BlockQ4_1>(),
            Self::Q5_0 => size_of::<BlockQ5_0>(),
            Self::Q5_1 => size_of::<BlockQ5_1>(),
            Self::Q4K => size_of::<BlockQ4K>(),
            Self::Q5K => size_of::<BlockQ5K>(),
            Self::Q6K => size_of::<BlockQ6K>(),
        }
    }

    /// Returns the size of `elements` values, a whole number of blocks, in bytes.
    #[must_use]
    pub const fn bytes_of(self, elements: usize) -> usize {
        elements / self.block_len() * self.block_bytes()
    }

    /// Returns the number of values in `bytes` bytes, a whole number of blocks.
    #[must_use]
    pub const fn elements_of(self, bytes: usize) -> usize {
        bytes / self.block_bytes() * self.block_len()
    }

    /// Returns whether the values are integers in blocks with scales.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Returns where a block's half-precision scales and minimums begin, in bytes from its start; empty
    /// for floats. If all of them are finite, all values of the block are.
    #[must_use]
    pub const fn scale_offsets(self) -> &'static [usize] {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => &[],
            Self::Q8_0 | Self::Q4_0 | Self::Q5_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q6K => &[size_of::<BlockQ6K>() - 2],
        }
    }
}

/// Widens little-endian values to f32, up to the length of `out`, which is a whole number of blocks;
/// `bytes` begins with a block.
#[inline(always)]
pub fn widen(bytes: &[u8], stored: StoredType, out: &mut [f32]) {
    match stored {
        StoredType::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        StoredType::F16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        StoredType::Bf16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        StoredType::Q8_0 => widen_blocks::<BlockQ8_0>(bytes, out),
        StoredType::Q4_0 => widen_blocks::<BlockQ4_0>(bytes, out),
        StoredType::Q4_1 => widen_blocks::<BlockQ4_1>(bytes, out),
        StoredType::Q5_0 => widen_blocks::<BlockQ5_0>(bytes, out),
        StoredType::Q5_1 => widen_blocks::<BlockQ5_1>(bytes, out),
        StoredType::Q4K => widen_blocks::<BlockQ4K>(bytes, out),
        StoredType::Q5K => widen_blocks::<BlockQ5K>(bytes, out),
        StoredType::Q6K => widen_blocks::<BlockQ6K>(bytes, out),
    }
}

/// A block of ggml as a file has it.
///
/// # Safety
/// The type must have no padding, and any bytes must be a value of it.
unsafe trait PlainBlock: GgmlType {}

macro_rules! plain_blocks {
    ($($block:ty: $fields:expr),* $(,)?) => {$(
        // SAFETY: a `repr(C)` struct of integers, arrays of integers and half floats, for all of which any
        // bits are a value; its size is that of its fields, so it has no padding.
        #[allow(unsafe_code)]
        unsafe impl PlainBlock for $block {}
        const _: () = assert!(size_of::<$block>() == $fields);
    )*};
}

plain_blocks! {
    BlockQ8_0: 2 + 32,
    BlockQ4_0: 2 + 16,
    BlockQ4_1: 2 + 2 + 16,
    BlockQ5_0: 2 + 4 + 16,
    BlockQ5_1: 2 + 2 + 4 + 16,
    BlockQ4K: 2 + 2 + 12 + 128,
    BlockQ5K: 2 + 2 + 12 + 32 + 128,
    BlockQ6K: 128 + 64 + 16 + 2,
}

// Not inlined: the work is in candle's function, and this is compiled once per type.
#[inline(never)]
fn widen_blocks<B: PlainBlock>(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.chunks_exact(size_of::<B>());
    for (block, out) in blocks.zip(out.chunks_exact_mut(B::BLCK_SIZE)) {
        // SAFETY: `block` has the size of a `B`, and any bytes are a value of it.
        #[allow(unsafe_code)]
        let block = unsafe { block.as_ptr().cast::<B>().read_unaligned() };
        B::to_float(std::slice::from_ref(&block), out);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        block_elements: usize,
        block_bytes: usize,
        blocks: Vec<Block>,
    }

    #[derive(serde::Deserialize)]
    struct Block {
        hex: String,
        values: Vec<f32>,
    }

    fn vectors() -> BTreeMap<String, Vectors> {
        let json = include_bytes!("../../tests/fixtures/gemma/quant-vectors.json");
        serde_json::from_slice(json).unwrap()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().as_chunks::<2>().0;
        let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.iter().map(byte).collect()
    }

    #[test]
    fn blocks_of_every_quantized_type_have_ggmls_values_bit_for_bit() {
        let vectors = vectors();
        for stored in StoredType::ALL.into_iter().filter(|s| s.is_quantized()) {
            let vectors = &vectors[stored.name()];
            assert_eq!(stored.block_len(), vectors.block_elements);
            assert_eq!(stored.block_bytes(), vectors.block_bytes);
            // All blocks in a row, at an odd address.
            let mut file = vec![0];
            let mut expected = Vec::new();
            for block in &vectors.blocks {
                file.extend(bytes(&block.hex));
                expected.extend(block.values.iter().map(|value| value.to_bits()));
            }
            let mut values = vec![f32::NAN; expected.len()];
            assert_eq!(file.len(), 1 + stored.bytes_of(values.len()));
            assert_eq!(stored.elements_of(file.len() - 1), values.len());
            widen(&file[1..], stored, &mut values);
            let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
            assert_eq!(bits, expected, "{}", stored.name());
        }
    }

    #[test]
    fn a_block_is_finite_exactly_if_its_scales_are() {
        let vectors = vectors();
        for stored in StoredType::ALL.into_iter().filter(|s| s.is_quantized()) {
            let block = bytes(&vectors[stored.name()].blocks[0].hex);
            let finite = |block: &[u8]| {
                let mut values = vec![0.0; stored.block_len()];
                widen(block, stored, &mut values);
                values.iter().all(|value| value.is_finite())
            };
            for &at in stored.scale_offsets() {
                for (scale, is_finite) in [
                    (f16::MAX, true),
                    (f16::MIN, true),
                    (f16::INFINITY, false),
                    (f16::NEG_INFINITY, false),
                    (f16::NAN, false),
                ] {
                    let mut block = block.clone();
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                    assert_eq!(
                        finite(&block),
                        is_finite,
                        "{} {scale} at {at}",
                        stored.name()
                    );
                }
            }
        }
    }
}
