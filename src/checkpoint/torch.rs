//! Weights as PyTorch saves them: `pytorch_model.bin`, a zip archive with a pickled index of tensors.
//!
//! The index is read by candle's reader, which knows the objects that tensors are made of and never runs
//! anything that a file asks for. The values stay where they are in the mapped file; only those of tensors that
//! are views with other strides (a transposed matrix) are copied.
//!
//! `bounds` refuses an index that would take more memory than any real one.
//!
//! Format: <https://pytorch.org/docs/stable/notes/serialization.html>.

mod bounds;

use std::collections::BTreeSet;
use std::io::{Cursor, Read as _};
use std::ops::Range;
use std::panic::catch_unwind;
use std::path::Path;

use candle_core::pickle::{TensorInfo, read_pth_tensor_info};
use candle_core::{DType, Layout};
use zip::{CompressionMethod, ZipArchive};

use super::mapped::{FileBytes, WeightFile};
use super::weights::WeightsError;
use crate::kernels::stored::StoredType;

/// Maximum size of the index of tensors in bytes: some 25,000 tensors.
const MAX_INDEX_BYTES: u64 = 4 << 20;
/// Where the tensors are in files that training scripts have saved with other things.
const KEYS: [&str; 3] = ["state_dict", "model", "module"];
/// Stack of the thread that reads an index, which may be nested.
const STACK_BYTES: usize = 64 << 20;

/// A tensor of a file.
pub(super) struct TorchTensor {
    pub name: String,
    /// The type of its values, or the name of one that is not supported.
    pub dtype: Result<StoredType, String>,
    pub shape: Vec<usize>,
    pub values: Values,
}

/// The values of a tensor, row-major.
pub(super) enum Values {
    /// In the file.
    Stored(Range<usize>),
    /// Copied, since the file has them in another order.
    Copied(FileBytes),
}

/// Maps a file and reads its index.
///
/// # Errors
/// [`WeightsError::Io`], or [`WeightsError::Torch`] if it is not a complete archive, or its index is not one of
/// tensors.
pub(super) fn open(path: &Path) -> Result<(WeightFile, Vec<TorchTensor>), WeightsError> {
    let name = path.display().to_string();
    let file = WeightFile::map(path).map_err(|source| WeightsError::Io {
        file: name.clone(),
        source,
    })?;
    let refuse = |reason: String| WeightsError::Torch {
        file: name.clone(),
        reason,
    };
    let bytes = file.bytes.as_ref();
    if !bytes.starts_with(b"PK") {
        return Err(refuse(
            "it is not a zip archive; files saved before PyTorch 1.6 have to be loaded and saved again by a \
             newer version"
                .to_owned(),
        ));
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| refuse(e.to_string()))?;
    let names = check_index(&mut archive).map_err(refuse)?;
    let tensors = read_index(path).map_err(refuse)?;
    let tensors = tensors
        .into_iter()
        .map(|info| tensor(bytes, &mut archive, info));
    let tensors: Result<Vec<TorchTensor>, String> = tensors.collect();
    let mut tensors = tensors.map_err(refuse)?;
    // A set: the states of an optimizer, beside the model's, all have the same names.
    let mut unread: BTreeSet<String> = names.into_iter().collect();
    for tensor in &tensors {
        unread.remove(&tensor.name);
    }
    // Refused where the model needs them, and not taken for missing.
    tensors.extend(unread.into_iter().map(|name| TorchTensor {
        name,
        dtype: Err("sparse, quantized, or not of floating-point numbers".to_owned()),
        shape: Vec::new(),
        values: Values::Stored(0..0),
    }));
    Ok((file, tensors))
}

/// Checks that an archive has one index, which takes a bounded amount of memory; returns the names of its tensors.
fn check_index(archive: &mut ZipArchive<Cursor<&[u8]>>) -> Result<Vec<String>, String> {
    let names = archive.file_names().filter_map(Result::ok);
    let indices = names.filter(|name| name.ends_with("data.pkl"));
    let indices: Vec<String> = indices.map(std::borrow::Cow::into_owned).collect();
    let [index] = &indices[..] else {
        return Err(format!(
            "it has {} indices of tensors (data.pkl), expected one",
            indices.len()
        ));
    };
    let mut entry = archive.by_name(index).map_err(|e| e.to_string())?;
    let size = entry.size();
    if size > MAX_INDEX_BYTES {
        return Err(format!(
            "its index of tensors, {index}, has {size} bytes, more than {MAX_INDEX_BYTES}"
        ));
    }
    let mut pickle = Vec::new();
    let read = entry
        .by_ref()
        .take(MAX_INDEX_BYTES)
        .read_to_end(&mut pickle);
    read.map_err(|error| format!("its index of tensors, {index}, can't be read: {error}"))?;
    bounds::check(&pickle)
}

/// Reads the index of a file; at least one tensor.
fn read_index(path: &Path) -> Result<Vec<TensorInfo>, String> {
    let read = || {
        let keys = std::iter::once(None).chain(KEYS.map(Some));
        let mut found = keys.map(|key| read_pth_tensor_info(path, false, key));
        let first = found.next()?;
        match first {
            Ok(tensors) if tensors.is_empty() => {
                found.find(|found| found.as_ref().is_ok_and(|tensors| !tensors.is_empty()))
            }
            first => Some(first),
        }
    };
    // candle's reader is recursive, and panics where tuples are shorter than it expects.
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let outcome = std::thread::scope(|scope| {
        let thread = thread.spawn_scoped(scope, || catch_unwind(read));
        thread.map(std::thread::ScopedJoinHandle::join)
    });
    match outcome {
        Ok(Ok(Ok(Some(Ok(tensors))))) => Ok(tensors),
        Ok(Ok(Ok(Some(Err(error))))) => {
            // What follows the first line is a backtrace.
            let error = error.to_string();
            let reason = error.lines().next().unwrap_or_default();
            Err(format!("its index of tensors can't be read: {reason}"))
        }
        Ok(Ok(Ok(None))) => Err(
            "it has no tensors, or only what would have to be executed to get them, which is never done".to_owned(),
        ),
        Ok(Ok(Err(_)) | Err(_)) => Err("its index of tensors is not valid".to_owned()),
        Err(error) => Err(format!("no thread can be started to read it: {error}")),
    }
}

/// Locates the values of a tensor.
fn tensor(
    bytes: &[u8],
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    info: TensorInfo,
) -> Result<TorchTensor, String> {
    let TensorInfo {
        name,
        dtype,
        layout,
        path,
        ..
    } = info;
    let faulty = |reason: &str| format!("the tensor `{name}`: {reason}");
    let entry = archive
        .by_name(&path)
        .map_err(|error| faulty(&format!("{path}: {error}")))?;
    if entry.compression() != CompressionMethod::Stored {
        return Err(faulty(&format!("{path} is compressed")));
    }
    let length = usize::try_from(entry.size()).unwrap_or(usize::MAX);
    let start = entry.data_start().and_then(|at| usize::try_from(at).ok());
    let storage = start.and_then(|start| Some(start..start.checked_add(length)?));
    let storage = storage.filter(|storage| storage.end <= bytes.len());
    let storage = storage.ok_or_else(|| faulty("its values are outside the file"))?;
    let width = dtype.size_in_bytes();
    let values = if layout.is_contiguous() {
        let elements = layout
            .dims()
            .iter()
            .try_fold(1, |n: usize, &d| n.checked_mul(d));
        let length = elements.and_then(|elements| elements.checked_mul(width));
        let start = storage.start.checked_add(layout.start_offset());
        let range = start.and_then(|start| Some(start..start.checked_add(length?)?));
        range
            .filter(|range| range.end <= storage.end)
            .map(Values::Stored)
    } else {
        gather(&bytes[storage], &layout, width)
            .map(|copied| Values::Copied(FileBytes::Owned(copied.into())))
    };
    Ok(TorchTensor {
        dtype: stored_type(dtype),
        shape: layout.dims().to_vec(),
        values: values.ok_or_else(|| faulty("its values are outside its storage"))?,
        name,
    })
}

/// Returns the elements of a view, `width` bytes each, in the order of its shape; `None` if one is outside the
/// storage.
fn gather(storage: &[u8], layout: &Layout, width: usize) -> Option<Vec<u8>> {
    let (dims, strides) = (layout.dims(), layout.stride());
    if dims.len() != strides.len() {
        return None;
    }
    let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    // A view with strides of 0 can have more elements than its storage.
    if elements.checked_mul(width)? > storage.len() {
        return None;
    }
    let mut gathered = Vec::with_capacity(elements * width);
    let mut index = vec![0; dims.len()];
    for _ in 0..elements {
        let mut steps = index.iter().zip(strides);
        let offset = steps.try_fold(0usize, |sum, (&i, &stride)| {
            sum.checked_add(usize::checked_mul(i, stride)?)
        })?;
        let at = layout
            .start_offset()
            .checked_add(offset.checked_mul(width)?)?;
        gathered.extend_from_slice(storage.get(at..at.checked_add(width)?)?);
        for (i, &size) in index.iter_mut().zip(dims).rev() {
            *i += 1;
            if *i < size {
                break;
            }
            *i = 0;
        }
    }
    Some(gathered)
}

fn stored_type(dtype: DType) -> Result<StoredType, String> {
    match dtype {
        DType::F32 => Ok(StoredType::F32),
        DType::F16 => Ok(StoredType::F16),
        DType::BF16 => Ok(StoredType::Bf16),
        other => Err(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_copied_in_the_order_of_its_shape() {
        let storage: Vec<u8> = (0..12).collect();
        // A [3, 2] matrix of two bytes an element, transposed.
        let layout = Layout::new((2, 3).into(), vec![1, 2], 0);
        let gathered = gather(&storage, &layout, 2).expect("inside");
        assert_eq!(gathered, [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]);
        let beyond = Layout::new((2, 3).into(), vec![1, 2], 2);
        assert_eq!(gather(&storage, &beyond, 2), None);
        let repeated = Layout::new((5, 3).into(), vec![0, 2], 0);
        assert_eq!(gather(&storage, &repeated, 2), None);
        let huge = Layout::new((usize::MAX, 3).into(), vec![1, 2], 0);
        assert_eq!(gather(&storage, &huge, 2), None);
    }
}
