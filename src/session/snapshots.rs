//! Evicted KV blocks of sessions on disk, and their restoration to the cache.
//!
//! A block is named by its prefix id, the hash of its tenant and all tokens up to its end. So a file
//! can be found only with exactly these tokens and this tenant, sessions with a common prefix share
//! it, and servers with the same model can share the directory. The path is
//! `kv/<16 digits>/<2 digits>/<32 digits>`; the first part is the beginning of the fingerprint of the
//! model and its arithmetic, and the file is sealed with the whole fingerprint.
//!
//! Losing a block costs time, never a result: it is recomputed. So the engine must never wait for the
//! disk, and files are not synced. Blocks are written and read only while that is faster than
//! computing them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use bytesize::ByteSize;
use tokio_util::sync::CancellationToken;

use super::sealed::{Fingerprint, OVERHEAD, Seal, UNFINISHED, Unreadable, set_aside};
use crate::engine::blocks::{BLOCK_SIZE, PrefixId};
use crate::engine::{EngineHandle, EvictedBlock, GenerateError};
use crate::moving_average::SharedAverage;
use crate::recency::{LastUse, Recency};
use crate::request::Tenant;

/// Maximum blocks waiting to be written; more are dropped.
const WRITE_QUEUE: usize = 64;
/// Blocks that are read and imported into the engine at a time.
const READ_AHEAD: usize = 8;
/// Interval, in restores, at which reading is tried although it was too slow: disks recover.
const EXPLORE: usize = 16;

/// The blocks on disk.
pub struct Snapshots {
    root: PathBuf,
    seal: Seal,
    block_bytes: usize,
    shared_prefixes: bool,
    index: Mutex<BlockIndex>,
    /// Seconds to read a block.
    read_seconds: SharedAverage,
    /// Seconds to compute a block, as the engine averages them.
    compute_seconds: SharedAverage,
    refused: AtomicUsize,
    restored: AtomicUsize,
    /// Cancelled when the engine has stopped and all its blocks are written.
    written: CancellationToken,
}

/// The identity of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct BlockName {
    /// First bytes of the model's fingerprint.
    model: u64,
    prefix: PrefixId,
}

/// The blocks of all models on disk, as far as this process knows.
struct BlockIndex {
    blocks: HashMap<BlockName, IndexedBlock>,
    /// Blocks by last use, least recent first.
    by_use: Recency<BlockName>,
    /// Disk space used.
    bytes: u64,
    /// Maximum disk space, in bytes.
    limit: u64,
}

#[derive(Clone, Copy)]
struct IndexedBlock {
    /// Its place in [`BlockIndex::by_use`].
    last_use: LastUse,
    bytes: u64,
}

/// Configuration of the blocks on disk.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotConfig {
    /// Fingerprint of the weights and their arithmetic.
    pub model: Fingerprint,
    /// Size of a block in bytes.
    pub block_bytes: usize,
    /// Disk space for all blocks.
    pub size: ByteSize,
    /// Whether tenants share prefixes.
    pub shared_prefixes: bool,
}

impl Snapshots {
    /// Opens the directory and starts the thread that writes the blocks sent to the returned sender.
    ///
    /// # Errors
    /// If the directory can't be used.
    pub fn open(
        dir: &Path,
        config: SnapshotConfig,
    ) -> io::Result<(Arc<Self>, SyncSender<EvictedBlock>)> {
        let root = dir.join("kv");
        fs::create_dir_all(&root)?;
        let snapshots = Arc::new(Self {
            index: Mutex::new(BlockIndex::scan(&root, config.size.as_u64())?),
            root,
            seal: Seal {
                kind: *b"SKALDKVB",
                version: 1,
                fingerprint: config.model,
            },
            block_bytes: config.block_bytes,
            shared_prefixes: config.shared_prefixes,
            read_seconds: SharedAverage::default(),
            compute_seconds: SharedAverage::default(),
            refused: AtomicUsize::new(0),
            restored: AtomicUsize::new(0),
            written: CancellationToken::new(),
        });
        let (sender, evicted) = sync_channel(WRITE_QUEUE);
        let writer = Arc::clone(&snapshots);
        std::thread::Builder::new()
            .name("skald-kv-writer".to_owned())
            .spawn(move || writer.write_all(&evicted))?;
        Ok((snapshots, sender))
    }

    /// Returns the number of blocks on disk.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index().blocks.len()
    }

    /// Returns whether there are no blocks on disk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of blocks restored since the start.
    #[must_use]
    pub fn restored(&self) -> usize {
        self.restored.load(Ordering::Relaxed)
    }

    /// Waits until the engine has stopped and all its blocks are written.
    pub async fn written(&self) {
        self.written.cancelled().await;
    }

    fn index(&self) -> MutexGuard<'_, BlockIndex> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, prefix: PrefixId) -> BlockName {
        let model = self.seal.fingerprint.0.first_chunk();
        BlockName {
            model: model.map_or(0, |first| u64::from_be_bytes(*first)),
            prefix,
        }
    }

    /// Writes blocks until all senders are dropped.
    fn write_all(&self, evicted: &Receiver<EvictedBlock>) {
        // Dropped even if this panics.
        let _written = self.written.clone().drop_guard();
        let mut failing = false;
        while let Ok(block) = evicted.recv() {
            if !self.is_worth_reading() {
                continue;
            }
            match self.write(&block) {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "evicted KV blocks not written to disk");
                }
                Err(_) => (),
            }
        }
    }

    pub(super) fn write(&self, block: &EvictedBlock) -> io::Result<()> {
        let name = self.name(block.prefix);
        let bytes = (block.bytes.len() + OVERHEAD) as u64;
        if self.index().touch(name) {
            return Ok(());
        }
        let path = self.root.join(name.path());
        if !path.exists() {
            if let Some(parent) = path.parent() {
                // Fails if the file system is no longer mounted: files written to the mount point
                // would be hidden once it is mounted again.
                fs::metadata(&self.root)?;
                fs::create_dir_all(parent)?;
            }
            self.seal.write(&path, &block.bytes, false)?;
        }
        let evicted = self.index().add(name, bytes);
        for name in evicted {
            // Another server may have deleted it.
            let _ = fs::remove_file(self.root.join(name.path()));
        }
        Ok(())
    }

    /// Restores the blocks of a context that are on disk and not in the engine's cache.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub(super) async fn restore(
        self: &Arc<Self>,
        engine: &EngineHandle,
        tenant: Tenant,
        context: &[u32],
    ) -> Result<(), GenerateError> {
        let resident = engine.resident_tokens(tenant, context.to_vec()).await? / BLOCK_SIZE;
        let mut missing = self.chain(tenant, context);
        missing.drain(..resident.min(missing.len()));
        let on_disk = missing.iter().take_while(|&&prefix| self.has(prefix));
        missing.truncate(on_disk.count());
        if let Some(seconds) = engine.status().prefill_seconds_per_token {
            self.compute_seconds.set(seconds * BLOCK_SIZE as f64);
        }
        if missing.is_empty() || !self.is_worth_trying() {
            return Ok(());
        }
        let mut first = resident;
        for prefixes in missing.chunks(READ_AHEAD) {
            let (snapshots, prefixes) = (Arc::clone(self), prefixes.to_vec());
            let wanted = prefixes.len();
            let read = tokio::task::spawn_blocking(move || snapshots.read_all(&prefixes));
            let bytes = read.await.unwrap_or_default();
            let blocks = bytes.len() / self.block_bytes;
            let end = (first + blocks) * BLOCK_SIZE;
            let tokens = context.get(..end).unwrap_or(context).to_vec();
            let taken = engine.import_kv(tenant, tokens, first, bytes).await?;
            first += taken;
            self.restored.fetch_add(taken, Ordering::Relaxed);
            if taken < wanted {
                break;
            }
        }
        tracing::debug!(blocks = first - resident, "KV blocks restored from disk");
        Ok(())
    }

    /// Returns the prefix ids of a context's full blocks.
    pub(super) fn chain(&self, tenant: Tenant, context: &[u32]) -> Vec<PrefixId> {
        let tenant = if self.shared_prefixes {
            Tenant::ANONYMOUS
        } else {
            tenant
        };
        let mut prefix = PrefixId::root(tenant);
        let blocks = context.as_chunks::<BLOCK_SIZE>().0.iter();
        blocks
            .map(|tokens| {
                prefix = prefix.then(tokens);
                prefix
            })
            .collect()
    }

    pub(super) fn has(&self, prefix: PrefixId) -> bool {
        let name = self.name(prefix);
        self.index().touch(name) || self.root.join(name.path()).exists()
    }

    /// Reads the content of these blocks, concatenated, up to the first that can't be read.
    pub(super) fn read_all(&self, prefixes: &[PrefixId]) -> Vec<u8> {
        let mut all = Vec::with_capacity(prefixes.len() * self.block_bytes);
        for &prefix in prefixes {
            let started = Instant::now();
            let name = self.name(prefix);
            let path = self.root.join(name.path());
            let why = match self.seal.read(&path) {
                Ok(Some(bytes)) if bytes.len() == self.block_bytes => {
                    all.extend_from_slice(&bytes);
                    self.read_seconds.add(started.elapsed().as_secs_f64());
                    continue;
                }
                Ok(Some(_)) => Unreadable::Foreign("the block has another size"),
                Ok(None) => {
                    self.index().remove(name);
                    break;
                }
                Err(why) => why,
            };
            // A block that can't be moved is recomputed and overwritten by the next of its name.
            let _ = set_aside(&path, &why);
            self.index().remove(name);
            break;
        }
        all
    }

    /// Returns whether reading a block is faster than computing it, or this is still unknown.
    fn is_worth_reading(&self) -> bool {
        match (self.read_seconds.get(), self.compute_seconds.get()) {
            (Some(read), Some(compute)) => read < compute,
            _ => true,
        }
    }

    fn is_worth_trying(&self) -> bool {
        self.is_worth_reading()
            || self
                .refused
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(EXPLORE)
    }
}

impl BlockName {
    /// Returns the path relative to the directory of all blocks.
    fn path(&self) -> PathBuf {
        let prefix = self.prefix.to_string();
        let mut path = PathBuf::from(format!("{:016x}", self.model));
        path.push(prefix.split_at(2).0);
        path.push(prefix);
        path
    }
}

impl BlockIndex {
    /// Indexes the blocks of earlier processes, and deletes their unfinished files.
    fn scan(root: &Path, limit: u64) -> io::Result<Self> {
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

    fn remove(&mut self, name: BlockName) {
        if let Some(IndexedBlock { last_use, bytes }) = self.blocks.remove(&name) {
            self.by_use.remove(last_use);
            self.bytes -= bytes;
        }
    }

    /// Records a use, and returns whether the block is indexed.
    fn touch(&mut self, name: BlockName) -> bool {
        let known = self.blocks.get(&name).copied();
        if let Some(known) = known {
            self.insert(name, known.bytes);
        }
        known.is_some()
    }

    /// Adds a block, and returns those that are evicted for it.
    fn add(&mut self, name: BlockName, bytes: u64) -> Vec<BlockName> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, model: u8, blocks: u64) -> Arc<Snapshots> {
        let config = SnapshotConfig {
            model: Fingerprint([model; 32]),
            block_bytes: 100,
            size: ByteSize::b(blocks * (100 + OVERHEAD as u64)),
            shared_prefixes: false,
        };
        Snapshots::open(dir, config).unwrap().0
    }

    fn block(snapshots: &Snapshots, n: u32) -> EvictedBlock {
        let tokens = [n; BLOCK_SIZE];
        EvictedBlock {
            prefix: snapshots.chain(Tenant::ANONYMOUS, &tokens)[0],
            bytes: vec![n as u8; 100],
        }
    }

    #[test]
    fn the_least_recently_used_blocks_of_any_model_are_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let other = open(dir.path(), 1, 3);
        let old = block(&other, 7);
        other.write(&old).unwrap();
        let snapshots = open(dir.path(), 2, 3);
        assert_eq!(snapshots.len(), 1);
        let blocks: Vec<_> = (0..4).map(|n| block(&snapshots, n)).collect();
        for block in &blocks[..3] {
            snapshots.write(block).unwrap();
        }
        // The other model's block was the oldest.
        assert!(other.read_all(&[old.prefix]).is_empty());
        assert!(snapshots.has(blocks[0].prefix));
        snapshots.write(&blocks[3]).unwrap();
        let has = blocks.iter().map(|block| snapshots.has(block.prefix));
        assert_eq!(has.collect::<Vec<_>>(), [true, false, true, true]);
        assert_eq!(open(dir.path(), 2, 3).len(), 3);
    }

    #[test]
    fn models_do_not_share_blocks_and_a_damaged_block_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (open(dir.path(), 1, 9), open(dir.path(), 2, 9));
        let block = block(&one, 5);
        one.write(&block).unwrap();
        assert!(!two.has(block.prefix));
        assert_eq!(one.read_all(&[block.prefix]), block.bytes);
        let path = one.root.join(one.name(block.prefix).path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[70] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(one.read_all(&[block.prefix]).is_empty());
        assert!(!path.exists() && !one.has(block.prefix));
        assert!(path.with_extension("corrupt").exists());
    }
}
