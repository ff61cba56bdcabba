//! A tensor's values as plain numbers, for what is done with them outside the model.

use candle_core::{Result, Storage, Tensor};

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
