//! Changes to the KV memory outside of a pass: copies, export and import of blocks.

use std::sync::mpsc::TrySendError;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::Worker;
use crate::engine::blocks::windows::{longest_usable, window_start};
use crate::engine::blocks::{BLOCK_SIZE, BlockMove, Eviction, PrefixId};
use crate::engine::commands::Exchange;
use crate::engine::event::GenerateError;
use crate::engine::scheduler::StoredParts;
use crate::engine::stored::{EvictedBlock, Resident, StoredBlock};
use crate::kernels::kv::KvPart;
use crate::request::Tenant;

/// Maximum time for the last export when the worker ends.
const LAST_EXPORT: Duration = Duration::from_secs(5);

/// Pause before a block is offered again.
const OFFER_PAUSE: Duration = Duration::from_millis(1);

impl Worker {
    /// Returns the root prefix of a tenant's contexts.
    pub(super) fn root(&self, tenant: Tenant) -> PrefixId {
        PrefixId::root(if self.config.share_prefixes {
            Tenant::ANONYMOUS
        } else {
            tenant
        })
    }

    pub(super) fn exchange(&mut self, exchange: Exchange) {
        match exchange {
            Exchange::Resident {
                tenant,
                tokens,
                reply,
            } => {
                let root = self.root(tenant);
                let _ = reply.send(self.resident(root, &tokens));
            }
            Exchange::Import {
                tenant,
                tokens,
                first_block,
                blocks,
                reply,
            } => {
                let root = self.root(tenant);
                let _ = reply.send(self.import(root, &tokens, first_block, blocks));
            }
        }
    }

    /// Makes the pending moves; must run before anything is written to the memory. Returns whether they
    /// succeeded; if not, every request has failed.
    pub(super) fn carry_out_moves(&mut self) -> bool {
        for change in self.scheduler.take_moves() {
            let (part, from, to) = match change {
                BlockMove::Copy(copy) => (KvPart::Global, copy.from.0, copy.to.0),
                BlockMove::CopySlot { from, to } => (KvPart::Window, from.0, to.0),
                BlockMove::Evict(eviction) => {
                    self.export(eviction);
                    continue;
                }
            };
            if let Err(failure) = self.kv.copy_block(part, from, to) {
                self.lose_blocks(&failure.to_string());
                return false;
            }
        }
        true
    }

    /// Fails all requests and forgets all blocks, because the memory differs from the accounts.
    fn lose_blocks(&mut self, failure: &str) {
        error!(%failure, requests = self.active.len(), "the KV cache is lost");
        let all: Vec<_> = self.active.keys().copied().collect();
        for id in all {
            self.fail(id, GenerateError::StepFailed(failure.to_owned()));
        }
        self.scheduler.forget_blocks();
    }

    /// Exports a block that is about to be overwritten; its content is lost if the receiver is full.
    fn export(&mut self, eviction: Eviction) {
        let Some(keeper) = &self.config.evicted else {
            return;
        };
        let Some(block) = self.read(eviction) else {
            return;
        };
        let sent = keeper.try_send(block);
        match sent {
            Ok(()) => self.status.evicted_blocks += 1,
            Err(_) => self.status.lost_blocks += 1,
        }
        if let Err(TrySendError::Disconnected(_)) = sent {
            warn!("evicted KV blocks no longer stored");
            self.config.evicted = None;
        }
    }

    fn read(&self, Eviction { place, prefix }: Eviction) -> Option<EvictedBlock> {
        let part = place.part();
        let mut bytes = Vec::with_capacity(self.part_bytes(part));
        match self.kv.read_block(part, place.index(), &mut bytes) {
            Ok(()) => Some(EvictedBlock {
                prefix,
                part,
                bytes,
            }),
            Err(failure) => {
                warn!(%failure, "a block of the KV cache could not be read");
                None
            }
        }
    }

    /// Exports the marked blocks when the worker ends, the last used first, within [`LAST_EXPORT`].
    pub(super) fn export_rest(&mut self) {
        self.scheduler.remove_all();
        if !self.carry_out_moves() {
            return;
        }
        let Some(keeper) = &self.config.evicted else {
            return;
        };
        let deadline = Instant::now() + LAST_EXPORT;
        for eviction in self.scheduler.unsaved() {
            let Some(mut block) = self.read(eviction) else {
                continue;
            };
            loop {
                if Instant::now() >= deadline {
                    warn!("not all of the KV cache could be kept in time");
                    return;
                }
                block = match keeper.try_send(block) {
                    Ok(()) => break,
                    Err(TrySendError::Full(block)) => block,
                    Err(TrySendError::Disconnected(_)) => return,
                };
                std::thread::sleep(OFFER_PAUSE);
            }
        }
    }

    /// Returns the size in bytes of a block's part.
    fn part_bytes(&self, part: KvPart) -> usize {
        match part {
            KvPart::Global => self.status.kv_block_bytes,
            KvPart::Window => self.status.kv_slot_bytes,
        }
    }

    /// Returns how much of a context is in the cache.
    fn resident(&self, root: PrefixId, tokens: &[u32]) -> Resident {
        let blocks = self.scheduler.blocks();
        let known = blocks.find_prefix(root, tokens);
        let Some(slots) = blocks.windows() else {
            return Resident {
                tokens: known.len() * BLOCK_SIZE,
                windows: vec![true; known.len()],
            };
        };
        let windows: Vec<bool> = known.iter().map(|k| slots.of(k.0).is_some()).collect();
        let start = |blocks| window_start(slots.window(), blocks);
        Resident {
            tokens: longest_usable(known.len(), start, |n| windows[n]) * BLOCK_SIZE,
            windows,
        }
    }

    /// Imports blocks of a context; returns the number that are in the cache now.
    fn import(
        &mut self,
        root: PrefixId,
        tokens: &[u32],
        first: usize,
        mut blocks: Vec<StoredBlock>,
    ) -> usize {
        if !self.carry_out_moves() {
            return 0;
        }
        for block in &mut blocks {
            for part in [KvPart::Global, KvPart::Window] {
                let size = self.part_bytes(part);
                let content = block.part(part);
                *content = content.take().filter(|bytes| bytes.len() == size);
            }
        }
        let came: Vec<StoredParts> = blocks.iter().map(StoredBlock::parts).collect();
        let import = self.scheduler.begin_import(root, tokens, first, &came);
        // Exports only, to make room: they can't fail.
        self.carry_out_moves();
        let mut written = 0;
        for (place, n) in import.to_write() {
            let part = place.part();
            let bytes = blocks[n].part(part).as_deref().unwrap_or_default();
            if let Err(failure) = self.kv.write_block(part, place.index(), bytes) {
                warn!(%failure, "a block of the KV cache could not be written");
                break;
            }
            written += 1;
        }
        self.scheduler.end_import(import, written)
    }
}
