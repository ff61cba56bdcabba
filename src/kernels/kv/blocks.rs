//! Copies, reads and writes single blocks of the KV cache.

use candle_core::{DType, Result, Storage, Tensor, WithDType, bail};
use half::bf16;

use super::{KvCache, KvPart, LayerKv};

impl KvCache {
    /// Returns the layers of a part.
    fn of(&self, part: KvPart) -> impl Iterator<Item = &LayerKv> {
        self.layers.iter().filter(move |layer| layer.part == part)
    }

    /// Copies one block's keys and values over another's, in all layers of a part.
    ///
    /// # Errors
    /// If a block is out of range.
    pub fn copy_block(&self, part: KvPart, from: u32, to: u32) -> Result<()> {
        for layer in self.of(part) {
            let block = layer.tensor.narrow(0, from as usize, 1)?; // [1, heads, 2, half]
            // `copy` would copy the whole layer.
            let block = block.force_contiguous()?;
            layer.tensor.slice_set(&block, 0, to as usize)?;
        }
        Ok(())
    }

    /// Appends one block's keys and values in the layers of a part to `bytes`: layer by layer, in memory
    /// order, each element little-endian. The bytes of unwritten slots are unspecified.
    ///
    /// # Errors
    /// If the part does not have the block.
    pub fn read_block(&self, part: KvPart, block: u32, bytes: &mut Vec<u8>) -> Result<()> {
        for layer in self.of(part) {
            match layer.tensor.dtype() {
                DType::F32 => layer.append_block(block, bytes, f32::to_le_bytes)?,
                DType::BF16 => layer.append_block(block, bytes, bf16::to_le_bytes)?,
                other => bail!("the KV cache holds f32 or bf16, not {other:?}"),
            }
        }
        Ok(())
    }

    /// Overwrites one block's keys and values in the layers of a part with what
    /// [`read_block`](Self::read_block) returned for a cache of the same shape and type.
    ///
    /// # Errors
    /// If the block is out of range, or `bytes` is not exactly one block long.
    pub fn write_block(&self, part: KvPart, block: u32, bytes: &[u8]) -> Result<()> {
        let mut left = bytes;
        for LayerKv { tensor, shape, .. } in self.of(part) {
            let size = shape.block_stride() * tensor.dtype().size_in_bytes();
            let Some((layer, rest)) = left.split_at_checked(size) else {
                bail!(
                    "{} bytes are less than a block of the KV cache",
                    bytes.len()
                );
            };
            left = rest;
            let dims = (1, shape.heads, 2, shape.half());
            let device = tensor.device();
            let layer = match tensor.dtype() {
                DType::F32 => Tensor::from_vec(elements(layer, f32::from_le_bytes), dims, device),
                DType::BF16 => Tensor::from_vec(elements(layer, bf16::from_le_bytes), dims, device),
                other => bail!("the KV cache holds f32 or bf16, not {other:?}"),
            }?;
            tensor.slice_set(&layer, 0, block as usize)?;
        }
        if !left.is_empty() {
            bail!(
                "{} bytes are more than a block of the KV cache",
                bytes.len()
            );
        }
        Ok(())
    }
}

impl LayerKv {
    /// Appends the bytes of one block's elements.
    fn append_block<T: WithDType, const N: usize>(
        &self,
        block: u32,
        bytes: &mut Vec<u8>,
        of: fn(T) -> [u8; N],
    ) -> Result<()> {
        let (storage, _) = self.tensor.storage_and_layout();
        if let Storage::Cpu(storage) = &*storage {
            // On the CPU, read in place.
            let mut blocks = storage.as_slice()?.chunks_exact(self.shape.block_stride());
            let Some(block) = blocks.nth(block as usize) else {
                bail!("block {block} is out of range of the KV cache");
            };
            append(bytes, block, of);
        } else {
            let block = self.tensor.narrow(0, block as usize, 1)?.flatten_all()?; // [heads * 2 * half]
            append(bytes, &block.to_vec1()?, of);
        }
        Ok(())
    }
}

/// Appends the bytes of elements.
fn append<T: Copy, const N: usize>(bytes: &mut Vec<u8>, elements: &[T], of: fn(T) -> [u8; N]) {
    let start = bytes.len();
    bytes.resize(start + N * elements.len(), 0);
    let places = bytes[start..].as_chunks_mut().0;
    for (place, &element) in places.iter_mut().zip(elements) {
        *place = of(element);
    }
}

/// Returns the elements that have these bytes.
fn elements<T, const N: usize>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| from(bytes))
        .collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::kv::{KvDtype, KvShape};

    fn shape(blocks: usize, heads: usize, head_width: usize) -> KvShape {
        KvShape {
            blocks,
            heads,
            head_width,
        }
    }

    /// Asserts that a call failed with these words in its message.
    #[track_caller]
    fn assert_refused(result: Result<()>, words: &str) {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{words} in {error}");
    }

    #[test]
    fn a_copied_block_holds_the_same_in_every_layer_and_no_other_changes() {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let cache = KvCache::new(&Device::Cpu, dtype, 2, shape(4, 2, 5)).unwrap();
            let values = |layer: usize| -> Vec<Vec<f32>> {
                let tensor = &cache.layer(layer).unwrap().tensor;
                let tensor = tensor.to_dtype(DType::F32).unwrap();
                tensor.flatten_from(1).unwrap().to_vec2().unwrap()
            };
            for layer in 0..2 {
                let tensor = &cache.layer(layer).unwrap().tensor;
                let random = Tensor::rand(-1f32, 1., tensor.dims(), &Device::Cpu).unwrap();
                let random = random.to_dtype(dtype.dtype()).unwrap();
                tensor.slice_set(&random, 0, 0).unwrap();
            }
            let before = [values(0), values(1)];
            cache.copy_block(KvPart::Global, 2, 1).unwrap();
            for (layer, before) in before.iter().enumerate() {
                let expected = [&before[0], &before[2], &before[2], &before[3]];
                assert_eq!(values(layer).iter().collect::<Vec<_>>(), expected);
            }
            assert_refused(
                cache.copy_block(KvPart::Global, 4, 0),
                "start + len > dim_len",
            );
            assert_refused(
                cache.copy_block(KvPart::Global, 0, 4),
                "shape mismatch on target dim",
            );
        }
    }

    #[test]
    fn a_block_that_is_read_and_written_elsewhere_is_the_same_bit_for_bit() {
        for (dtype, head_width) in [(KvDtype::F32, 5), (KvDtype::Bf16, 5), (KvDtype::Bf16, 8)] {
            let new = || KvCache::new(&Device::Cpu, dtype, 2, shape(3, 2, head_width)).unwrap();
            let (cache, other) = (new(), new());
            for layer in &cache.layers {
                let random = Tensor::rand(-1f32, 1., layer.tensor.dims(), &Device::Cpu).unwrap();
                let random = random.to_dtype(dtype.dtype()).unwrap();
                layer.tensor.slice_set(&random, 0, 0).unwrap();
            }
            let mut bytes = vec![7];
            cache.read_block(KvPart::Global, 1, &mut bytes).unwrap();
            let block = &bytes[1..];
            assert_eq!(bytes[0], 7);
            assert_eq!(block.len(), KvCache::block_bytes(dtype, 2, 2, head_width));
            other.write_block(KvPart::Global, 2, block).unwrap();
            let values = |cache: &KvCache, layer: usize, block: usize| -> Vec<f32> {
                let block = cache.layer(layer).unwrap().tensor.get(block).unwrap();
                let block = block.to_dtype(DType::F32).unwrap();
                block.flatten_all().unwrap().to_vec1().unwrap()
            };
            for layer in 0..2 {
                assert_eq!(values(&other, layer, 2), values(&cache, layer, 1));
                for untouched in [0, 1] {
                    let block = values(&other, layer, untouched);
                    assert!(block.iter().all(|&x| x == 0.0));
                }
            }
            let refused = cache.read_block(KvPart::Global, 3, &mut bytes);
            assert_refused(refused, "block 3 is out of range of the KV cache");
            let refused = cache.write_block(KvPart::Global, 3, &bytes[1..]);
            assert_refused(refused, "shape mismatch on target dim");
            let size = KvCache::block_bytes(dtype, 2, 2, head_width);
            for (wrong, message) in [
                (size - 1, "less than a block"),
                (size + 1, "more than a block"),
            ] {
                assert_refused(
                    cache.write_block(KvPart::Global, 0, &vec![0; wrong]),
                    message,
                );
            }
        }
    }

    #[test]
    fn the_blocks_of_one_part_are_apart_from_those_of_the_other() {
        let parts = [KvPart::Window, KvPart::Global, KvPart::Window];
        let cache = KvCache::divided(&Device::Cpu, KvDtype::F32, &parts, shape(2, 1, 4), 5);
        let cache = cache.unwrap();
        for layer in &cache.layers {
            let random = Tensor::rand(-1f32, 1., layer.tensor.dims(), &Device::Cpu).unwrap();
            layer.tensor.slice_set(&random, 0, 0).unwrap();
        }
        let read = |part, block| {
            let mut bytes = Vec::new();
            cache.read_block(part, block, &mut bytes).unwrap();
            bytes
        };
        for (part, layers, blocks) in [(KvPart::Global, 1, 2), (KvPart::Window, 2, 5)] {
            let size = KvCache::block_bytes(KvDtype::F32, layers, 1, 4);
            assert_eq!(read(part, 0).len(), size);
            assert!(cache.read_block(part, blocks, &mut Vec::new()).is_err());
            assert!(cache.write_block(part, blocks, &vec![0; size]).is_err());
        }
        let before = [read(KvPart::Global, 0), read(KvPart::Global, 1)];
        cache.copy_block(KvPart::Window, 4, 1).unwrap();
        assert_eq!(read(KvPart::Window, 1), read(KvPart::Window, 4));
        let other = read(KvPart::Window, 2);
        cache.write_block(KvPart::Window, 0, &other).unwrap();
        assert_eq!(read(KvPart::Window, 0), other);
        assert_eq!([read(KvPart::Global, 0), read(KvPart::Global, 1)], before);
    }
}
