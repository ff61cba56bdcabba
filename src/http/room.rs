//! Memory that clients make the server keep, counted and shared between tenants.
//!
//! Nothing here may wait: what does not fit is refused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytesize::ByteSize;

use crate::fair::Shares;
use crate::request::Tenant;

/// A limited number of bytes; cheap to clone.
#[derive(Clone)]
pub(super) struct Room(Arc<Mutex<Shares>>);

/// The bytes of one request or answer, given back when it is dropped.
pub(super) struct Held {
    room: Room,
    share: Tenant,
    bytes: usize,
}

impl Room {
    /// Creates a room of this size.
    pub(super) fn new(limit: ByteSize) -> Self {
        let limit = usize::try_from(limit.as_u64()).unwrap_or(usize::MAX);
        Self(Arc::new(Mutex::new(Shares::new(limit))))
    }

    /// Returns a hold on nothing yet, in a tenant's share.
    pub(super) fn hold(&self, share: Tenant) -> Held {
        Held {
            room: self.clone(),
            share,
            bytes: 0,
        }
    }

    /// Returns the bytes that are held.
    pub(super) fn held(&self) -> usize {
        self.shares().total()
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Holds so many bytes more, if there is room for them or they are within the tenant's share.
    #[must_use]
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let fits = self.room.shares().try_add(self.share, bytes);
        if fits {
            self.bytes += bytes;
        }
        fits
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.shares().remove(self.share, self.bytes);
    }
}
