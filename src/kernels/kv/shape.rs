//! The dimensions of a KV cache.

use candle_core::DType;

/// Positions per block; equal to the lanes of a 512-bit vector of f32.
pub const BLOCK_SIZE: usize = 16;

/// The precision of keys and values in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// Full precision, as computed.
    F32,
    /// Rounded to the nearest bfloat16 (ties to even): half the memory. Queries and softmax weights
    /// are also rounded to bfloat16 where they are multiplied with keys and values.
    Bf16,
}

impl KvDtype {
    /// Returns the candle element type.
    #[must_use]
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// The part of a KV cache that a layer's keys and values are in. Each part has blocks of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvPart {
    /// Layers whose rows see the whole context, and sliding ones whose memory is not freed.
    Global,
    /// Sliding layers whose memory is freed behind their window.
    Window,
}

/// The dimensions of one layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Number of blocks.
    pub blocks: usize,
    /// Number of key and value heads.
    pub heads: usize,
    /// Width of one head.
    pub head_width: usize,
}

impl KvShape {
    /// Returns the number of key elements, equal to that of value elements, per block and head.
    #[must_use]
    pub const fn half(self) -> usize {
        BLOCK_SIZE * self.head_width.next_multiple_of(2)
    }

    /// Returns the distance from one block to the next, in elements.
    #[must_use]
    pub const fn block_stride(self) -> usize {
        self.heads * 2 * self.half()
    }

    /// Returns the number of elements of the whole cache; `None` if its size in bytes overflows.
    pub(super) fn elements(self) -> Option<usize> {
        let half = BLOCK_SIZE.checked_mul(self.head_width.checked_next_multiple_of(2)?)?;
        let block = half.checked_mul(2)?.checked_mul(self.heads)?;
        let elements = block.checked_mul(self.blocks)?;
        (elements.checked_mul(size_of::<f32>())? <= isize::MAX.unsigned_abs()).then_some(elements)
    }
}
