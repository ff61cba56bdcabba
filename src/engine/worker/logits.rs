//! Reading what a pass gives.

use candle_core::{Result, Storage, Tensor};

use super::Worker;
use crate::engine::draw::Row;
use crate::engine::sequence::SequenceId;

impl Worker {
    /// Hands a request what the rows of its prompt say of the tokens that follow them.
    pub(super) fn take_prompt_rows(
        &mut self,
        id: SequenceId,
        wanted: &[(usize, u32)],
        rows: Vec<Row>,
    ) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        for (&(index, _), row) in wanted.iter().zip(rows) {
            if let Row::Prompt {
                found: Some(found), ..
            } = row
            {
                active.take_prompt_token(index, found);
            }
        }
    }
}

/// Gives the values of a tensor of f32, without a copy where they lie in memory.
pub(super) fn with_values<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    {
        let (storage, layout) = tensor.storage_and_layout();
        if let (Storage::Cpu(storage), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        {
            return Ok(read(&storage.as_slice::<f32>()?[start..end]));
        }
    }
    Ok(read(&tensor.flatten_all()?.to_vec1::<f32>()?))
}
