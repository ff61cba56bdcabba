//! Evicted KV blocks of sessions on disk, and their restoration to the cache.
//!
//! A block is named by its prefix id, the hash of its tenant and all tokens up to its end. So a file
//! can be found only with exactly these tokens and this tenant, sessions with a common prefix share
//! it, and servers with the same model can share the directory. The path is
//! `kv/<16 digits>/<2 digits>/<32 digits>`; the first part is the beginning of the fingerprint of the
//! model and its arithmetic, and the file is sealed with the whole fingerprint.
//!
//! Where sliding layers have memory of their own, a block is two files, each with a fingerprint of its own: its
//! part in the global layers, and its part in the window layers if the cache still had it. A context is
//! restored as far as the parts of both kinds allow it to be continued.
//!
//! Losing a block costs time, never a result: it is recomputed. So the engine must never wait for the
//! disk, and files are not synced. Blocks are written and read only while that is faster than
//! computing them.

mod index;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytesize::ByteSize;
use tokio_util::sync::CancellationToken;

use self::index::{BlockIndex, BlockName};
use super::sealed::{Fingerprint, OVERHEAD, Seal, Unreadable, set_aside};
use crate::engine::blocks::windows::{longest_usable, window_start};
use crate::engine::blocks::{BLOCK_SIZE, PrefixId};
use crate::engine::kv_memory::WindowLayout;
use crate::engine::{EngineHandle, EvictedBlock, GenerateError, StoredBlock};
use crate::kernels::kv::KvPart;
use crate::moving_average::SharedAverage;
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
    global: PartFiles,
    /// The files of window layers, and the positions of their widest window.
    windows: Option<(PartFiles, usize)>,
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

/// The files of one part of every block.
#[derive(Clone, Copy)]
struct PartFiles {
    seal: Seal,
    /// Size of a part in bytes.
    bytes: usize,
}

/// Configuration of the blocks on disk.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotConfig {
    /// Fingerprint of the weights and their arithmetic.
    pub model: Fingerprint,
    /// Size of a block in bytes.
    pub block_bytes: usize,
    /// The window layers, if they have memory of their own.
    pub windows: Option<WindowLayout>,
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
            global: PartFiles {
                seal: match config.windows {
                    None => seal(config.model),
                    Some(_) => seal(part_of(config.model, b"global layers")),
                },
                bytes: config.block_bytes,
            },
            windows: config.windows.map(|windows| {
                let files = PartFiles {
                    seal: seal(part_of(config.model, b"window layers")),
                    bytes: windows.slot_bytes,
                };
                (files, windows.window)
            }),
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

    /// Returns the files of a part; `None` if blocks have no such part.
    fn files(&self, part: KvPart) -> Option<PartFiles> {
        match part {
            KvPart::Global => Some(self.global),
            KvPart::Window => self.windows.map(|windows| windows.0),
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
        let Some(files) = self.files(block.part) else {
            return Ok(());
        };
        let name = files.name(block.prefix);
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
            files.seal.write(&path, &block.bytes, false)?;
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
        let resident = engine.resident(tenant, context.to_vec()).await?;
        let missing = self.missing(&resident.windows, &self.chain(tenant, context));
        if let Some(seconds) = engine.status().prefill_seconds_per_token {
            self.compute_seconds.set(seconds * BLOCK_SIZE as f64);
        }
        if missing.blocks.is_empty() || !self.is_worth_trying() {
            return Ok(());
        }
        let mut next = missing.first;
        for blocks in missing.blocks.chunks(READ_AHEAD) {
            let (snapshots, wanted) = (Arc::clone(self), blocks.to_vec());
            let read = tokio::task::spawn_blocking(move || snapshots.read_all(&wanted));
            let read = read.await.unwrap_or_default();
            let end = (next + read.len()) * BLOCK_SIZE;
            let tokens = context.get(..end).unwrap_or(context).to_vec();
            let taken = engine.import_kv(tenant, tokens, next, read).await?;
            next += taken;
            let restored = blocks.iter().take(taken).filter(|block| block.is_read());
            self.restored.fetch_add(restored.count(), Ordering::Relaxed);
            if taken < blocks.len() {
                break;
            }
        }
        tracing::debug!(
            blocks = next - missing.first,
            "KV blocks restored from disk"
        );
        Ok(())
    }

    /// Returns the parts that the cache lacks for the longest part of a context that can be continued with
    /// what is on disk. `resident` are the leading blocks in the cache, and whether each is there with its part
    /// in the window layers.
    fn missing(&self, resident: &[bool], chain: &[PrefixId]) -> MissingBlocks {
        let has =
            |n: usize, part: KvPart| chain.get(n).is_some_and(|&prefix| self.has(part, prefix));
        let known = resident.len().min(chain.len());
        let on_disk = (known..chain.len()).take_while(|&n| has(n, KvPart::Global));
        let end = known + on_disk.count();
        let lacks_slot = |n: usize| resident.get(n).is_none_or(|&has_slot| !has_slot);
        let (end, windowed) = match self.windows {
            None => (end, end),
            Some((_, window)) => {
                let start = |blocks| window_start(window, blocks);
                let has_slot = |n| !lacks_slot(n) || has(n, KvPart::Window);
                let end = longest_usable(end, start, has_slot);
                (end, start(end))
            }
        };
        let blocks = chain.iter().take(end).enumerate();
        let blocks = blocks.map(|(n, &prefix)| MissingBlock {
            prefix,
            global: n >= known,
            window: n >= windowed && lacks_slot(n),
        });
        let mut blocks: Vec<MissingBlock> = blocks.collect();
        let first = blocks.iter().position(MissingBlock::is_read);
        let first = first.unwrap_or(blocks.len());
        blocks.drain(..first);
        MissingBlocks { first, blocks }
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

    pub(super) fn has(&self, part: KvPart, prefix: PrefixId) -> bool {
        self.files(part).is_some_and(|files| {
            let name = files.name(prefix);
            self.index().touch(name) || self.root.join(name.path()).exists()
        })
    }

    /// Reads the missing parts of these blocks, up to the first that can't be read.
    fn read_all(&self, blocks: &[MissingBlock]) -> Vec<StoredBlock> {
        let mut all = Vec::with_capacity(blocks.len());
        for block in blocks {
            let started = Instant::now();
            let mut read = StoredBlock::default();
            for (part, is_missing) in [
                (KvPart::Global, block.global),
                (KvPart::Window, block.window),
            ] {
                if !is_missing {
                    continue;
                }
                let Some(bytes) = self.read(part, block.prefix) else {
                    return all;
                };
                *read.part(part) = Some(bytes);
            }
            if block.is_read() {
                self.read_seconds.add(started.elapsed().as_secs_f64());
            }
            all.push(read);
        }
        all
    }

    /// Reads a part of a block; `None` if it can't be read.
    pub(super) fn read(&self, part: KvPart, prefix: PrefixId) -> Option<Vec<u8>> {
        let files = self.files(part)?;
        let name = files.name(prefix);
        let path = self.root.join(name.path());
        let why = match files.seal.read(&path) {
            Ok(Some(bytes)) if bytes.len() == files.bytes => return Some(bytes),
            Ok(Some(_)) => Some(Unreadable::Foreign("the block has another size")),
            Ok(None) => None,
            Err(why) => Some(why),
        };
        if let Some(why) = why {
            // A block that can't be moved is recomputed and overwritten by the next of its name.
            let _ = set_aside(&path, &why);
        }
        self.index().remove(name);
        None
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

/// The parts of a context's blocks that the cache lacks and the disk has.
struct MissingBlocks {
    /// The first of the blocks.
    first: usize,
    blocks: Vec<MissingBlock>,
}

/// A block of which the cache may lack parts.
#[derive(Debug, Clone, Copy)]
struct MissingBlock {
    prefix: PrefixId,
    /// Whether its part in the global layers is read.
    global: bool,
    /// Whether its part in the window layers is read.
    window: bool,
}

impl MissingBlock {
    /// Returns whether a part of it is read.
    fn is_read(&self) -> bool {
        self.global || self.window
    }
}

impl PartFiles {
    fn name(&self, prefix: PrefixId) -> BlockName {
        let model = self.seal.fingerprint.0.first_chunk();
        BlockName {
            model: model.map_or(0, |first| u64::from_be_bytes(*first)),
            prefix,
        }
    }
}

/// Returns the fingerprint of a model's blocks in some of its layers.
fn part_of(model: Fingerprint, layers: &[u8]) -> Fingerprint {
    Fingerprint(*blake3::keyed_hash(&model.0, layers).as_bytes())
}

fn seal(fingerprint: Fingerprint) -> Seal {
    Seal {
        kind: *b"SKALDKVB",
        version: 1,
        fingerprint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, model: u8, blocks: u64) -> Arc<Snapshots> {
        let config = SnapshotConfig {
            model: Fingerprint([model; 32]),
            block_bytes: 100,
            windows: None,
            size: ByteSize::b(blocks * (100 + OVERHEAD as u64)),
            shared_prefixes: false,
        };
        Snapshots::open(dir, config).unwrap().0
    }

    fn block(snapshots: &Snapshots, n: u32) -> EvictedBlock {
        let tokens = [n; BLOCK_SIZE];
        EvictedBlock {
            prefix: snapshots.chain(Tenant::ANONYMOUS, &tokens)[0],
            part: KvPart::Global,
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
        assert!(other.read(KvPart::Global, old.prefix).is_none());
        assert!(snapshots.has(KvPart::Global, blocks[0].prefix));
        snapshots.write(&blocks[3]).unwrap();
        let has = blocks
            .iter()
            .map(|block| snapshots.has(KvPart::Global, block.prefix));
        assert_eq!(has.collect::<Vec<_>>(), [true, false, true, true]);
        assert_eq!(open(dir.path(), 2, 3).len(), 3);
    }

    #[test]
    fn models_do_not_share_blocks_and_a_damaged_block_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (open(dir.path(), 1, 9), open(dir.path(), 2, 9));
        let block = block(&one, 5);
        one.write(&block).unwrap();
        assert!(!two.has(KvPart::Global, block.prefix));
        assert_eq!(one.read(KvPart::Global, block.prefix), Some(block.bytes));
        let path = one.root.join(one.global.name(block.prefix).path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[70] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(one.read(KvPart::Global, block.prefix).is_none());
        assert!(!path.exists() && !one.has(KvPart::Global, block.prefix));
        assert!(path.with_extension("corrupt").exists());
    }

    #[test]
    fn a_context_is_restored_as_far_as_the_parts_in_its_window_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let config = SnapshotConfig {
            model: Fingerprint([3; 32]),
            block_bytes: 10,
            windows: Some(WindowLayout {
                window: 2 * BLOCK_SIZE,
                slot_bytes: 20,
            }),
            size: ByteSize::mib(1),
            shared_prefixes: false,
        };
        let snapshots = Snapshots::open(dir.path(), config).unwrap().0;
        let tokens: Vec<u32> = (0..8 * BLOCK_SIZE as u32).collect();
        let chain = snapshots.chain(Tenant::ANONYMOUS, &tokens);
        let write = |n: usize, part, size| {
            let (prefix, bytes) = (chain[n], vec![n as u8; size]);
            let block = EvictedBlock {
                prefix,
                part,
                bytes,
            };
            snapshots.write(&block).unwrap();
        };
        for n in 0..7 {
            write(n, KvPart::Global, 10);
        }
        let missing = |resident: &[bool]| {
            let missing = snapshots.missing(resident, &chain);
            let parts = missing.blocks.iter().map(|b| (b.global, b.window));
            (missing.first, parts.collect::<Vec<_>>())
        };
        let [both, global, window, none] =
            [(true, true), (true, false), (false, true), (false, false)];
        // Without a part in the window layers nothing can be continued.
        assert_eq!(missing(&[]), (0, vec![]));
        for n in [2, 3, 5] {
            write(n, KvPart::Window, 20);
        }
        assert_eq!(missing(&[]), (0, vec![global, global, both, both]));
        assert_eq!(missing(&[true; 4]), (4, vec![]));
        assert_eq!(missing(&[true, true, true, false]), (3, vec![window]));
        let resident = [true, true, false, true, true, false];
        assert_eq!(missing(&resident), (5, vec![window]));
        assert_eq!(
            missing(&[false, false, false, true]),
            (2, vec![window, none])
        );
        write(6, KvPart::Window, 20);
        assert_eq!(missing(&resident), (5, vec![window, both]));
        let read = snapshots.read_all(&snapshots.missing(&resident, &chain).blocks);
        let expected = [
            (None, Some(vec![5; 20])),
            (Some(vec![6; 10]), Some(vec![6; 20])),
        ];
        let expected = expected.map(|(global, window)| StoredBlock { global, window });
        assert_eq!(read, expected);
    }
}
