//! The paged KV cache: the keys and values of all positions, in blocks of [`BLOCK_SIZE`].
//!
//! One tensor per layer, `[blocks, heads, 2, BLOCK_SIZE * head_width]` (`head_width` rounded up to
//! even). Of the two halves the first holds the keys of one block and head transposed, so that 16
//! positions' scores are computed side by side without a horizontal sum; the second holds the
//! values. Both consist of 32-bit words of values that are multiplied and added together, one in
//! f32 and two in bf16: the keys as `[head_width / per word, BLOCK_SIZE]` words of neighbouring
//! dimensions, the values as `[BLOCK_SIZE / per word, head_width]` words of neighbouring positions.
//! The halves are adjacent, so a head reads each of its blocks as one run of memory.
//!
//! The operating system zeroes the memory when it is first touched, so a cache takes only the
//! memory that was ever written, in huge pages where available. Unwritten slots hold stale or zero
//! bytes and must never reach a result. The cache does not know which sequence holds which block.
//!
//! The layers of a model that slides a window over some of them may be divided into two parts with
//! blocks of their own ([`KvPart`]), since only the global layers need a block of every position.
//!
//! | module | what it is for |
//! |---|---|
//! | `shape` | dimensions and precisions |
//! | `span` | the mapping from rows of a step to blocks |
//! | `write` | writing the rows' keys and values |
//! | `blocks` | copying, reading and writing single blocks |
//! | `keys` | the keys of one context as a matrix, for inspections |

mod blocks;
mod keys;
mod shape;
mod span;
mod write;

use std::alloc::{Layout as Allocation, alloc_zeroed};

use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::bf16;

pub use self::shape::{BLOCK_SIZE, KvDtype, KvPart, KvShape};
pub use self::span::{SequenceSpan, StepSpans};
use super::huge_pages;

/// The keys and values of all layers.
pub struct KvCache {
    layers: Vec<LayerKv>,
}

/// The keys and values of one layer.
pub struct LayerKv {
    tensor: Tensor,
    part: KvPart,
    shape: KvShape,
}

impl KvCache {
    /// Creates a cache of empty blocks for each of `layers` layers.
    ///
    /// # Errors
    /// If a size is zero or the memory cannot be reserved.
    pub fn new(device: &Device, dtype: KvDtype, layers: usize, shape: KvShape) -> Result<Self> {
        let parts = vec![KvPart::Global; layers];
        Self::divided(device, dtype, &parts, shape, 0)
    }

    /// Creates a cache of empty blocks for layers of these parts: `shape.blocks` blocks for each of the
    /// global ones, `window_blocks` for each of the others.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn divided(
        device: &Device,
        dtype: KvDtype,
        parts: &[KvPart],
        shape: KvShape,
        window_blocks: usize,
    ) -> Result<Self> {
        let layer = |&part: &KvPart| {
            let blocks = match part {
                KvPart::Global => shape.blocks,
                KvPart::Window => window_blocks,
            };
            LayerKv::new(device, dtype, part, KvShape { blocks, ..shape })
        };
        let layers = parts.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    /// Returns the size of one block in bytes: keys and values of all layers.
    #[must_use]
    pub fn block_bytes(dtype: KvDtype, layers: usize, heads: usize, head_width: usize) -> usize {
        let shape = KvShape {
            blocks: 1,
            heads,
            head_width,
        };
        layers * shape.block_stride() * dtype.dtype().size_in_bytes()
    }

    /// Returns the keys and values of layer `i`.
    ///
    /// # Errors
    /// If the layer is out of range.
    pub fn layer(&self, i: usize) -> Result<&LayerKv> {
        let Some(layer) = self.layers.get(i) else {
            bail!(
                "the KV cache has {} layers, no layer {i}",
                self.layers.len()
            );
        };
        Ok(layer)
    }
}

impl LayerKv {
    fn new(device: &Device, dtype: KvDtype, part: KvPart, shape: KvShape) -> Result<Self> {
        let KvShape {
            blocks,
            heads,
            head_width,
        } = shape;
        if heads == 0 || head_width == 0 {
            bail!(
                "a KV cache needs at least one head and dimension, not {heads} heads of {head_width}"
            );
        }
        let Some(elements) = shape.elements() else {
            bail!("a KV cache of {blocks} blocks does not fit in memory");
        };
        let dims = (blocks, heads, 2, shape.half());
        let tensor = match (device, dtype) {
            (Device::Cpu, KvDtype::F32) => Tensor::from_vec(zeroed::<f32>(elements)?, dims, device),
            (Device::Cpu, KvDtype::Bf16) => {
                Tensor::from_vec(zeroed::<bf16>(elements)?, dims, device)
            }
            _ => Tensor::zeros(dims, dtype.dtype(), device),
        }?;
        Ok(Self {
            tensor,
            part,
            shape,
        })
    }

    /// Returns the tensor, contiguous from offset 0, in the layout that the module docs describe.
    #[must_use]
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Returns the precision of the keys and values.
    #[must_use]
    pub fn dtype(&self) -> KvDtype {
        if self.tensor.dtype() == DType::BF16 {
            KvDtype::Bf16
        } else {
            KvDtype::F32
        }
    }

    /// Returns the part that the layer belongs to.
    #[must_use]
    pub fn part(&self) -> KvPart {
        self.part
    }

    /// Returns the sizes.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }
}

/// Elements for which all zero bytes are a valid value.
trait Zeroable: WithDType {}
impl Zeroable for f32 {}
impl Zeroable for bf16 {}

/// Returns `len` zeros that take no memory until they are written.
fn zeroed<T: Zeroable>(len: usize) -> Result<Vec<T>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let allocation = Allocation::array::<T>(len).map_err(candle_core::Error::wrap)?;
    // SAFETY: the size is not zero; all zero bytes are a valid `T`; pointer, length and capacity
    // describe one allocation of the global allocator, which serves this size from anonymous
    // mappings.
    unsafe {
        let data = alloc_zeroed(allocation).cast::<T>();
        if data.is_null() {
            bail!(
                "no memory for a KV cache layer of {} bytes",
                allocation.size()
            );
        }
        huge_pages::advise_untouched(data.cast(), allocation.size());
        // A boxed slice is exactly as long as its allocation.
        let zeros = std::ptr::slice_from_raw_parts_mut(data, len);
        Ok(Box::from_raw(zeros).into_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(blocks: usize, heads: usize, head_width: usize) -> KvShape {
        KvShape {
            blocks,
            heads,
            head_width,
        }
    }

    #[test]
    fn the_size_of_a_block_is_that_of_the_memory() {
        for (dtype, bytes) in [(KvDtype::F32, 4), (KvDtype::Bf16, 2)] {
            let cache = KvCache::new(&Device::Cpu, dtype, 3, shape(5, 2, 7)).unwrap();
            let elements: usize = (0..3)
                .map(|i| cache.layer(i).unwrap().tensor.elem_count())
                .sum();
            assert_eq!(KvCache::block_bytes(dtype, 3, 2, 7) * 5, elements * bytes);
        }
        // GPT-2 124M: 12 layers of 2 x 768 f32 for 16 positions.
        assert_eq!(KvCache::block_bytes(KvDtype::F32, 12, 12, 64), 1_179_648);
    }

    #[test]
    fn a_new_cache_is_zero() {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let cache = KvCache::new(&Device::Cpu, dtype, 1, shape(3, 2, 5)).unwrap();
            let tensor = cache.layer(0).unwrap().tensor.to_dtype(DType::F32).unwrap();
            assert_eq!(
                tensor
                    .abs()
                    .unwrap()
                    .max_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap(),
                0.0
            );
        }
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_reason() {
        let new = |blocks, heads, width| {
            KvCache::new(&Device::Cpu, KvDtype::F32, 2, shape(blocks, heads, width))
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        assert!(new(1, 0, 64).contains("at least one head"));
        assert!(new(1, 1, 0).contains("at least one head"));
        assert!(new(usize::MAX / 8, 12, 64).contains("does not fit in memory"));
        assert!(new(1 << 45, 12, 64).contains("no memory for a KV cache layer"));
        let cache = KvCache::new(&Device::Cpu, KvDtype::F32, 2, shape(1, 1, 1)).unwrap();
        let error = cache.layer(2).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("has 2 layers, no layer 2"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_cache_takes_no_memory_before_it_is_written() {
        let resident = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let before = resident();
            let cache = KvCache::new(&Device::Cpu, dtype, 1, shape(16 * 1024, 12, 64)).unwrap();
            let grown = resident().saturating_sub(before);
            let bytes = cache.layer(0).unwrap().tensor.elem_count() * 2;
            assert!(
                bytes > 700 << 20 && grown < 200 << 20,
                "{grown} of {bytes} bytes"
            );
        }
    }
}
