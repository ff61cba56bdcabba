//! Tensors' values as slices.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, bail};

/// Returns the values of a contiguous f32 tensor; `what` names it in errors.
///
/// # Errors
/// If the tensor is not f32 or not contiguous.
pub(super) fn contiguous<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    what: &str,
) -> Result<&'a [f32]> {
    if storage.dtype() != DType::F32 {
        bail!("{what} must be f32, is {}", storage.dtype().as_str());
    }
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(
            "{what} must be contiguous, its strides are {:?}",
            layout.stride()
        );
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}
