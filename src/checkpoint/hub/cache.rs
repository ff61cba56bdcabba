//! The cache directory of one model, in the layout that all Hugging Face tools share:
//!
//! ```text
//! models--org--name/refs/main                      commit of a branch or tag
//! models--org--name/snapshots/<commit>/config.json -> ../../blobs/<etag>
//! models--org--name/blobs/<etag>                   content; `<etag>.incomplete` during the download
//! .locks/models--org--name/<etag>.lock             held by the process that is downloading the blob
//! ```
//!
//! A file appears under its name only when it is complete. This module never talks to the hub.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::regular_file;

/// Maximum size of a file that names a commit, in bytes.
const MAX_REFERENCE_BYTES: u64 = 4096;

/// The cache of one model.
#[derive(Debug)]
pub(super) struct ModelCache {
    directory: PathBuf,
    locks: PathBuf,
}

impl ModelCache {
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self {
            locks: cache.join(".locks").join(&name),
            directory: cache.join(name),
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.directory.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.directory.join("blobs").join(etag)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.directory.join("refs").join(revision)
    }

    /// Returns the commit of a branch or tag when it was last fetched.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let commit = regular_file::read(&self.reference(revision), MAX_REFERENCE_BYTES).ok()?;
        Some(String::from_utf8(commit).ok()?.trim().to_owned())
    }

    /// Records the commit of a branch or tag atomically: readers see either the old or the new one.
    pub(super) fn point_to(&self, revision: &str, commit: &str) -> io::Result<()> {
        if self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference(revision);
        create_parent(&path)?;
        let written = beside(&path, &format!("{}.tmp", uuid::Uuid::new_v4().simple()));
        std::fs::write(&written, commit)?;
        std::fs::rename(&written, &path)
    }

    /// Waits until no other process is downloading a blob, and excludes other processes until the
    /// lock is dropped. `None` if the file system does not support locks.
    pub(super) fn lock(&self, etag: &str) -> io::Result<Option<File>> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        loop {
            let mut options = OpenOptions::new();
            // The mode of `huggingface_hub`, so that users who share a cache can lock each other's
            // files.
            let options = options.read(true).append(true).create(true).mode(0o664);
            let file = options.open(&path)?;
            let locked = match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    tracing::info!(etag, "waiting for another process to download this file");
                    file.lock()
                }
                Err(TryLockError::Error(error)) => Err(error),
                Ok(()) => Ok(()),
            };
            match locked {
                // A lock on a file that was removed by its last holder does not exclude other
                // processes.
                Ok(()) if file.metadata()?.nlink() == 0 => (),
                Ok(()) => return Ok(Some(file)),
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
    }

    /// Creates the file that a blob is downloaded to. Under a lock its name is fixed, so that the
    /// next process can resume the download; without a lock it is unique.
    pub(super) fn partial(&self, etag: &str, locked: bool) -> io::Result<PathBuf> {
        let blob = self.blob(etag);
        create_parent(&blob)?;
        Ok(if locked {
            beside(&blob, "incomplete")
        } else {
            let unique = uuid::Uuid::new_v4().simple();
            beside(&blob, &format!("{unique}.incomplete"))
        })
    }

    /// Links a blob into a snapshot.
    pub(super) fn link(&self, etag: &str, commit: &str, file: &str) -> io::Result<()> {
        let pointer = self.snapshot(commit).join(file);
        if pointer.exists() {
            return Ok(());
        }
        create_parent(&pointer)?;
        // A dangling link may exist already.
        match std::fs::remove_file(&pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let up = "../".repeat(file.split('/').count() + 1);
        match symlink(format!("{up}blobs/{etag}"), &pointer) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // On a file system without symbolic links, the blob itself becomes the file.
            Err(_) => std::fs::rename(self.blob(etag), &pointer),
            Ok(()) => Ok(()),
        }
    }
}

fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)
}

/// Returns the path with `.suffix` appended to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_whose_file_was_removed_meanwhile_is_taken_again() {
        let directory = tempfile::TempDir::new().unwrap();
        let cache = ModelCache::new(directory.path(), "org/tiny");
        let path = directory.path().join(".locks/models--org--tiny/e.lock");
        let first = cache.lock("e").unwrap().expect("locks work here");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| cache.lock("e").unwrap().expect("locks work here"));
            std::fs::remove_file(&path).unwrap();
            drop(first);
            let second = second.join().unwrap();
            assert_eq!(
                second.metadata().unwrap().ino(),
                path.metadata().unwrap().ino()
            );
        });
    }

    #[test]
    fn a_link_to_a_blob_that_is_gone_is_replaced() {
        let directory = tempfile::TempDir::new().unwrap();
        let cache = ModelCache::new(directory.path(), "org/tiny");
        cache.link("old", "c", "config.json").unwrap();
        let pointer = cache.snapshot("c").join("config.json");
        assert!(!pointer.exists());
        let blob = cache.blob("new");
        create_parent(&blob).unwrap();
        std::fs::write(&blob, "content").unwrap();
        cache.link("new", "c", "config.json").unwrap();
        assert_eq!(std::fs::read_to_string(pointer).unwrap(), "content");
    }
}
