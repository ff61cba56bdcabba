//! Memory that depends on slow clients: bodies that are arriving, and answers that have not been read. It
//! is counted, shared fairly between tenants, and bounded.
//!
//! When the room is full, it evicts the entry without progress for the longest time among those of the
//! tenant with the most bytes. So neither clients that send or read nothing nor other keys can take all of
//! it. This module must not wait, and must not know what an entry stands for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use crate::request::Tenant;

/// Time for which an entry without progress is not evicted: clients that send and read as fast as they can
/// make progress more often.
const GRACE: Duration = Duration::from_secs(1);

/// A limited number of bytes; cheap to clone.
#[derive(Clone)]
pub(super) struct Room(Arc<Mutex<State>>);

/// The bytes of one request or answer, freed on drop.
pub(super) struct RoomEntry {
    room: Room,
    share: Tenant,
    key: Key,
}

/// Time of an entry's last progress, and its number.
type Key = (Instant, u64);

struct State {
    limit: usize,
    total: usize,
    shares: HashMap<Tenant, Share>,
    next: u64,
}

#[derive(Default)]
struct Share {
    bytes: usize,
    entries: BTreeMap<Key, Entry>,
}

struct Entry {
    bytes: usize,
    /// Releases the resource that the entry stands for. Called at most once, under the room's lock.
    give_up: Box<dyn FnOnce() + Send>,
}

impl Room {
    /// Creates a room of this size.
    pub(super) fn new(limit: ByteSize) -> Self {
        Self(Arc::new(Mutex::new(State {
            limit: usize::try_from(limit.as_u64()).unwrap_or(usize::MAX),
            total: 0,
            shares: HashMap::new(),
            next: 0,
        })))
    }

    /// Creates an empty entry in a tenant's share. `give_up` is called to evict it; it must be short and must
    /// not use the room.
    pub(super) fn hold(&self, share: Tenant, give_up: impl FnOnce() + Send + 'static) -> RoomEntry {
        let mut state = self.state();
        state.next += 1;
        let key = (Instant::now(), state.next);
        let entry = Entry {
            bytes: 0,
            give_up: Box::new(give_up),
        };
        let entries = &mut state.shares.entry(share).or_default().entries;
        entries.insert(key, entry);
        drop(state);
        RoomEntry {
            room: self.clone(),
            share,
            key,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RoomEntry {
    /// Records progress and adds `bytes`. Evicts other entries to make room, and returns whether there is room.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let mut state = self.room.state();
        // An evicted entry holds nothing.
        let Some(mut entry) = state.take(self.share, self.key) else {
            return false;
        };
        let now = Instant::now();
        let wanted = entry.bytes.saturating_add(bytes);
        while state.total.saturating_add(wanted) > state.limit && state.give_up_one(now) {}
        entry.bytes = wanted;
        self.key.0 = now;
        state.put(self.share, self.key, entry);
        state.total <= state.limit
    }

    /// Records progress without further bytes.
    pub(super) fn touch(&mut self) {
        let mut state = self.room.state();
        if let Some(entry) = state.take(self.share, self.key) {
            self.key.0 = Instant::now();
            state.put(self.share, self.key, entry);
        }
    }
}

impl Drop for RoomEntry {
    fn drop(&mut self) {
        let entry = self.room.state().take(self.share, self.key);
        // After the lock is released, because its captured values can be large.
        drop(entry);
    }
}

impl State {
    fn put(&mut self, share: Tenant, key: Key, entry: Entry) {
        self.total += entry.bytes;
        let share = self.shares.entry(share).or_default();
        share.bytes += entry.bytes;
        share.entries.insert(key, entry);
    }

    fn take(&mut self, of: Tenant, key: Key) -> Option<Entry> {
        let share = self.shares.get_mut(&of)?;
        let entry = share.entries.remove(&key);
        let bytes = entry.as_ref().map_or(0, |entry| entry.bytes);
        share.bytes -= bytes;
        self.total -= bytes;
        if share.entries.is_empty() {
            self.shares.remove(&of);
        }
        entry
    }

    /// Evicts the entry without progress for the longest time in the share with the most bytes; `false` if
    /// its last progress is too recent.
    fn give_up_one(&mut self, now: Instant) -> bool {
        let most = self.shares.iter().max_by_key(|(_, share)| share.bytes);
        let Some((of, key)) = most.and_then(|(of, share)| {
            let holding = share.entries.iter().find(|(_, entry)| entry.bytes > 0);
            Some((*of, *holding?.0))
        }) else {
            return false;
        };
        if now.duration_since(key.0) < GRACE {
            return false;
        }
        if let Some(entry) = self.take(of, key) {
            (entry.give_up)();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn tenant(n: u8) -> Tenant {
        Tenant::of_key(&[n])
    }

    fn counted(given_up: &Arc<AtomicUsize>) -> impl FnOnce() + Send + use<> {
        let given_up = Arc::clone(given_up);
        move || {
            given_up.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Moves the last progress of all entries into the past.
    fn age(room: &Room, held: &mut [RoomEntry]) {
        for held in held {
            let mut state = room.state();
            let entry = state.take(held.share, held.key);
            held.key.0 -= GRACE;
            if let Some(entry) = entry {
                state.put(held.share, held.key, entry);
            }
        }
    }

    #[test]
    fn the_oldest_entry_of_the_largest_share_is_evicted() {
        let room = Room::new(ByteSize::b(100));
        let of_many = Arc::default();
        let mut many: Vec<_> = (0..4)
            .map(|_| room.hold(tenant(0), counted(&of_many)))
            .collect();
        assert!(many.iter_mut().all(|held| held.grow(20)));
        let of_few = Arc::default();
        let mut few = [room.hold(tenant(1), counted(&of_few))];
        assert!(few[0].grow(20));
        // All entries have made progress recently, so none is evicted.
        let mut new = room.hold(tenant(1), || ());
        assert!(!new.grow(30));
        drop(new);
        age(&room, &mut few);
        age(&room, &mut many);
        many[0].touch();
        let mut new = room.hold(tenant(1), || ());
        assert!(new.grow(30));
        assert_eq!(of_many.load(Ordering::SeqCst), 2);
        assert_eq!(of_few.load(Ordering::SeqCst), 0);
        assert!(!many[1].grow(1), "it was given up");
        assert_eq!(room.state().total, 20 + 20 + 20 + 30);
        drop((many, few, new));
        let state = room.state();
        assert_eq!((state.total, state.shares.len()), (0, 0));
    }
}
