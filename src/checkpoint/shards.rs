//! Which files a model's weights are in: one, or several that an index names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::weights::WeightsError;
use crate::regular_file;

/// Maximum size of an index, in bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The format of files of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightsFormat {
    Safetensors,
    /// PyTorch's.
    Torch,
}

/// A way in which weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoredWeights {
    pub format: WeightsFormat,
    /// The file with all weights, or the index of several.
    pub file: &'static str,
    is_index: bool,
}

impl StoredWeights {
    pub const SAFETENSORS: Self = Self {
        format: WeightsFormat::Safetensors,
        file: "model.safetensors",
        is_index: false,
    };

    /// All ways, the first of which is taken if there are several.
    const ALL: [Self; 4] = [
        Self::SAFETENSORS,
        Self {
            format: WeightsFormat::Safetensors,
            file: "model.safetensors.index.json",
            is_index: true,
        },
        Self {
            format: WeightsFormat::Torch,
            file: "pytorch_model.bin",
            is_index: false,
        },
        Self {
            format: WeightsFormat::Torch,
            file: "pytorch_model.bin.index.json",
            is_index: true,
        },
    ];

    /// Returns the way in which weights are stored where `present` returns whether a file exists.
    pub fn find(present: impl Fn(&str) -> bool) -> Option<Self> {
        Self::ALL.into_iter().find(|stored| present(stored.file))
    }

    /// Returns the names of the files with the weights in a directory, in order; at least one.
    ///
    /// # Errors
    /// [`WeightsError::Io`] or [`WeightsError::Index`] if they are in an index that can't be used.
    pub fn parts(self, directory: &Path) -> Result<Vec<String>, WeightsError> {
        if self.is_index {
            self.shards(&directory.join(self.file))
        } else {
            Ok(vec![self.file.to_owned()])
        }
    }

    fn shards(self, index: &Path) -> Result<Vec<String>, WeightsError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let file = index.display().to_string();
        let refuse = |reason: String| WeightsError::Index {
            file: file.clone(),
            reason,
        };
        let bytes = regular_file::read(index, MAX_INDEX_BYTES);
        let bytes = bytes.map_err(|source| WeightsError::Io {
            file: file.clone(),
            source,
        })?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        let (extension, what) = match self.format {
            WeightsFormat::Safetensors => (".safetensors", "a safetensors file"),
            WeightsFormat::Torch => (".bin", "a file of PyTorch (.bin)"),
        };
        let is_shard = |name: &String| name.ends_with(extension) && !name.contains(['/', '\\']);
        if let Some(other) = names.iter().find(|name| !is_shard(name)) {
            return Err(refuse(format!(
                "{other:?} is not {what} in the same directory"
            )));
        }
        if names.is_empty() {
            return Err(refuse("it does not name any shards".to_owned()));
        }
        Ok(names.into_iter().collect())
    }
}
