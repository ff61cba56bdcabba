//! Which parts of blocks are on disk, as far as this process knows, in order of use.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::engine::blocks::PrefixId;
use crate::recency::{LastUse, Recency};
use crate::session::sealed::UNFINISHED;

/// The identity of a block's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BlockName {
    /// First bytes of the fingerprint of the model and the part.
    pub model: u64,
    pub prefix: PrefixId,
}

/// The blocks of all models on disk, as far as this process knows.
pub(super) struct BlockIndex {
    pub blocks: HashMap<BlockName, IndexedBlock>,
    /// Blocks by last use, least recent first.
    by_use: Recency<BlockName>,
    /// Disk space used.
    bytes: u64,
    /// Maximum disk space, in bytes.
    limit: u64,
}

#[derive(Clone, Copy)]
pub(super) struct IndexedBlock {
    /// Its place in [`BlockIndex::by_use`].
    last_use: LastUse,
    bytes: u64,
}

impl BlockName {
    /// Returns the path relative to the directory of all blocks.
    pub fn path(&self) -> PathBuf {
        let prefix = self.prefix.to_string();
        let mut path = PathBuf::from(format!("{:016x}", self.model));
        path.push(prefix.split_at(2).0);
        path.push(prefix);
        path
    }
}

impl BlockIndex {
    /// Indexes the blocks of earlier processes, and deletes their unfinished files.
    pub fn scan(root: &Path, limit: u64) -> io::Result<Self> {
        let mut found: Vec<(SystemTime, BlockName, u64)> = Vec::new();
        for model_dir in directories(root)? {
            let model = model_dir.file_name().unwrap_or_default().to_string_lossy();
            let Ok(model) = u64::from_str_radix(&model, 16) else {
                continue;
            };
            for dir in directories(&model_dir)? {
                for file in fs::read_dir(dir)? {
                    let file = file?;
                    // Another server may have renamed or deleted it.
                    let Ok(about) = file.metadata() else {
                        continue;
                    };
                    let modified = about.modified()?;
                    let name = file.file_name();
                    let name = name.to_string_lossy();
                    if let Ok(prefix) = name.parse() {
                        let name = BlockName { model, prefix };
                        found.push((modified, name, about.len()));
                    } else if name.ends_with(UNFINISHED) && !is_recent(modified) {
                        let _ = fs::remove_file(file.path());
                    }
                }
            }
        }
        found.sort_by_key(|(modified, ..)| *modified);
        let mut index = Self {
            blocks: HashMap::new(),
            by_use: Recency::default(),
            bytes: 0,
            limit,
        };
        for (_, name, bytes) in found {
            index.insert(name, bytes);
        }
        Ok(index)
    }

    fn insert(&mut self, name: BlockName, bytes: u64) {
        self.remove(name);
        let last_use = self.by_use.push(name);
        self.blocks.insert(name, IndexedBlock { last_use, bytes });
        self.bytes += bytes;
    }

    pub fn remove(&mut self, name: BlockName) {
        if let Some(IndexedBlock { last_use, bytes }) = self.blocks.remove(&name) {
            self.by_use.remove(last_use);
            self.bytes -= bytes;
        }
    }

    /// Records a use, and returns whether the block is indexed.
    pub fn touch(&mut self, name: BlockName) -> bool {
        let known = self.blocks.get(&name).copied();
        if let Some(known) = known {
            self.insert(name, known.bytes);
        }
        known.is_some()
    }

    /// Adds a block, and returns those that are evicted for it.
    pub fn add(&mut self, name: BlockName, bytes: u64) -> Vec<BlockName> {
        self.insert(name, bytes);
        let mut evicted = Vec::new();
        while self.bytes > self.limit {
            let Some(&oldest) = self.by_use.oldest() else {
                break;
            };
            self.remove(oldest);
            evicted.push(oldest);
        }
        evicted
    }
}

/// Returns the directories in `dir`.
fn directories(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Returns whether another process may still be writing a file.
fn is_recent(modified: SystemTime) -> bool {
    let age = modified.elapsed().unwrap_or_default();
    age < std::time::Duration::from_secs(3600)
}
