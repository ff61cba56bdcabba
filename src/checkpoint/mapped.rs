//! Files of weights, mapped into memory.

use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};

use crate::regular_file;

/// The bytes of a file.
#[derive(Clone)]
pub(super) enum FileBytes {
    Mapped(Arc<Mmap>),
    Embedded(&'static [u8]),
    /// Values that a file has in another order.
    Owned(Arc<[u8]>),
}

impl AsRef<[u8]> for FileBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped,
            Self::Embedded(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A file of weights.
#[derive(Clone)]
pub(super) struct WeightFile {
    /// Its name in messages.
    pub name: String,
    pub bytes: FileBytes,
}

impl WeightFile {
    /// Maps a file.
    pub fn map(path: &Path) -> io::Result<Self> {
        let file = regular_file::open(path)?;
        // SAFETY: the mapping is read-only. The operator must not modify or truncate the file while the
        // server runs; every loader of mapped checkpoints relies on it.
        #[allow(unsafe_code)]
        let bytes = unsafe { Mmap::map(&file) }?;
        Ok(Self {
            bytes: FileBytes::Mapped(Arc::new(bytes)),
            name: path.display().to_string(),
        })
    }

    /// Drops the mapped pages that were read so far; later reads load them from the file again.
    pub fn release_pages(&self) {
        if let FileBytes::Mapped(mapped) = &self.bytes {
            // SAFETY: the mapping of the file is read-only, so this only drops pages that are
            // read from the file again on access.
            #[allow(unsafe_code)]
            let released = unsafe { mapped.unchecked_advise(UncheckedAdvice::DontNeed) };
            if let Err(error) = released {
                tracing::debug!(%error, file = self.name, "pages of mapped weights not released");
            }
        }
    }
}
