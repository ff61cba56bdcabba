//! The keys of one context as a matrix, to look at: attention reads them where they lie.

use candle_core::{DType, Result, Storage, WithDType, bail};
use half::bf16;

use super::LayerKv;
use super::shape::BLOCK_SIZE;

impl LayerKv {
    /// Returns the keys of one head at the first `positions` positions of a context whose blocks are
    /// `block_table`, as they are cached: `[positions, head_width]`.
    ///
    /// # Errors
    /// If the cache does not have the head or the blocks, or does not lie in this machine's memory.
    pub fn keys(&self, head: usize, block_table: &[u32], positions: usize) -> Result<Vec<f32>> {
        if head >= self.shape.heads || positions > block_table.len() * BLOCK_SIZE {
            bail!(
                "no keys of head {head} at {positions} positions among {} heads and {} blocks",
                self.shape.heads,
                block_table.len()
            );
        }
        match self.tensor.dtype() {
            DType::F32 => self.keys_of::<f32, 1>(head, block_table, positions, |x| x),
            DType::BF16 => self.keys_of::<bf16, 2>(head, block_table, positions, bf16::to_f32),
            other => bail!("the KV cache holds f32 or bf16, not {other:?}"),
        }
    }

    /// Reads the keys from a cache of elements `T`, `PER_WORD` of which make a 32-bit word.
    fn keys_of<T: WithDType, const PER_WORD: usize>(
        &self,
        head: usize,
        block_table: &[u32],
        positions: usize,
        to_f32: fn(T) -> f32,
    ) -> Result<Vec<f32>> {
        let (storage, _) = self.tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("the keys are not in this machine's memory");
        };
        let elements = storage.as_slice::<T>()?;
        let (width, half) = (self.shape.head_width, self.shape.half());
        let mut keys = Vec::with_capacity(positions * width);
        for position in 0..positions {
            let block = block_table[position / BLOCK_SIZE] as usize;
            let start = (block * self.shape.heads + head) * 2 * half;
            let Some(block) = elements.get(start..start + half) else {
                bail!("the KV cache has no block {block}");
            };
            let slot = position % BLOCK_SIZE;
            keys.extend((0..width).map(|dimension| {
                let word = dimension / PER_WORD * BLOCK_SIZE + slot;
                to_f32(block[word * PER_WORD + dimension % PER_WORD])
            }));
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use crate::kernels::Pool;
    use crate::kernels::kv::{KvCache, KvDtype, KvShape, SequenceSpan, StepSpans};

    #[test]
    fn keys_are_read_as_they_were_written() {
        let (heads, head_width, rows) = (2, 6, 21);
        let shape = KvShape {
            blocks: 4,
            heads,
            head_width,
        };
        let width = 3 * heads * head_width;
        // Whole numbers up to 256 are exact in bf16.
        let value = |row: usize, column: usize| ((row * 31 + column * 7) % 256) as f32;
        let qkv: Vec<f32> = (0..rows * width)
            .map(|i| value(i / width, i % width))
            .collect();
        let qkv = Tensor::from_vec(qkv, (rows, width), &Device::Cpu).unwrap();
        let pool = Pool::new(1.try_into().unwrap());
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let cache = KvCache::new(&Device::Cpu, dtype, 1, shape).unwrap();
            let layer = cache.layer(0).unwrap();
            let spans = StepSpans::new(
                vec![SequenceSpan {
                    rows: 0..rows,
                    first_position: 0,
                    block_table: vec![3, 1],
                    window_table: Vec::new(),
                }],
                rows,
            );
            layer.write(&qkv, heads, &spans.unwrap(), &pool).unwrap();
            for head in 0..heads {
                let keys = layer.keys(head, &[3, 1], rows).unwrap();
                for (row, key) in keys.chunks_exact(head_width).enumerate() {
                    let first = (heads + head) * head_width;
                    let expected = (first..first + head_width).map(|column| value(row, column));
                    assert_eq!(key, expected.collect::<Vec<_>>(), "{dtype:?} {head} {row}");
                }
            }
            for (head, table, positions) in [(2, &[3][..], 1), (0, &[3], 17), (0, &[4], 1)] {
                let error = layer.keys(head, table, positions).unwrap_err().to_string();
                assert!(
                    error.contains("no keys") || error.contains("no block 4"),
                    "{error}"
                );
            }
        }
    }
}
