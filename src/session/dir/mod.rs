//! Histories in a directory that servers can share: runs [`files`] on threads that may block.

mod files;
mod migration;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use self::files::{Locked, SessionDir};
use super::history::{History, NewHistory};
use super::queue::busy;
use super::store::{Entry, HeldSession, Hold, Store};
use super::{Fingerprint, IfBusy, SessionError, SessionKey};
use crate::request::Tenant;

/// First and longest pause between attempts to lock a session that another server has locked.
const LOCK_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// Attempts for a request that does not wait: another server may hold the lock only for a read.
const NO_WAIT_ATTEMPTS: usize = 6;

/// A store in a directory.
pub(super) struct Directory(Arc<SessionDir>);

/// A session that this process has locked; the system unlocks it when this is dropped.
struct LockedSession {
    dir: Arc<SessionDir>,
    key: SessionKey,
    locked: Arc<Locked>,
}

impl Directory {
    /// Opens the directory, and creates it if necessary.
    ///
    /// # Errors
    /// [`SessionError::Directory`] if it can't be written to.
    pub fn open(dir: &Path, tokenizer: Fingerprint) -> Result<Self, SessionError> {
        let opened = SessionDir::open(dir, tokenizer);
        let opened = opened.and_then(|opened| migration::adopt(&opened).map(|()| opened));
        let opened = opened.map_err(|error| SessionError::Directory {
            path: dir.display().to_string(),
            error,
        })?;
        Ok(Self(Arc::new(opened)))
    }

    /// Runs blocking work on a thread for it.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SessionDir) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let dir = Arc::clone(&self.0);
        blocking(move || work(&dir)).await
    }
}

#[async_trait]
impl Store for Directory {
    async fn hold(&self, key: &SessionKey, if_busy: IfBusy) -> Result<HeldSession, SessionError> {
        let (mut pause, longest) = LOCK_PAUSE;
        let mut attempts = 0;
        loop {
            let wanted = key.clone();
            let held = self.run(move |dir| {
                let Some(locked) = dir.lock(&wanted)? else {
                    return Ok(None);
                };
                let found = dir.read(&locked)?;
                Ok(Some((locked, found)))
            });
            if let Some((locked, found)) = held.await.map_err(disk(key, "read"))? {
                return Ok(HeldSession {
                    history: found.history,
                    lost: found.lost,
                    hold: Box::new(LockedSession {
                        dir: Arc::clone(&self.0),
                        key: key.clone(),
                        locked: Arc::new(locked),
                    }),
                });
            }
            attempts += 1;
            if if_busy == IfBusy::Error && attempts >= NO_WAIT_ATTEMPTS {
                return Err(busy(key));
            }
            tokio::time::sleep(pause).await;
            pause = longest.min(pause * 2);
        }
    }

    async fn forget(&self, key: &SessionKey) -> Result<(), SessionError> {
        let forgotten = key.clone();
        let removed = self.run(move |dir| dir.forget(&forgotten)).await;
        removed.map_err(disk(key, "deleted"))
    }

    async fn read(&self, keys: &[SessionKey]) -> Result<Vec<(SessionKey, History)>, SessionError> {
        let wanted = keys.to_vec();
        let found = self.run(move |dir| {
            let mut found = Vec::with_capacity(wanted.len());
            for key in wanted {
                if let Some(history) = dir.peek(&key)? {
                    found.push((key, history));
                }
            }
            Ok(found)
        });
        let name = match keys {
            [key] => key.id.to_string(),
            _ => "*".to_owned(),
        };
        found.await.map_err(|error| SessionError::Disk {
            id: name,
            what: "read",
            error,
        })
    }

    async fn list(&self, tenant: Tenant) -> Result<Vec<Entry>, SessionError> {
        let listed = self.run(move |dir| dir.list(tenant)).await;
        let listed = listed.map_err(listing)?.into_iter();
        let entries = listed.map(|(key, history)| Entry {
            key,
            last_used: history.last_used,
        });
        Ok(entries.collect())
    }

    async fn count_others(
        &self,
        key: &SessionKey,
        ttl: Option<Duration>,
        beginning: &[SessionKey],
    ) -> Result<usize, SessionError> {
        let (key, beginning) = (key.clone(), beginning.to_vec());
        let counted = self.run(move |dir| {
            let mut count = dir.count(key.tenant, ttl)?;
            for other in beginning {
                let is_new =
                    other.tenant == key.tenant && other != key && dir.peek(&other)?.is_none();
                count += usize::from(is_new);
            }
            Ok(count)
        });
        counted.await.map_err(listing)
    }

    async fn count(&self) -> Result<usize, SessionError> {
        self.run(SessionDir::count_all).await.map_err(listing)
    }

    async fn sweep(&self, ttl: Option<Duration>) -> Result<usize, SessionError> {
        let swept = self.run(move |dir| dir.sweep(ttl)).await;
        swept.map_err(listing)
    }
}

#[async_trait]
impl Hold for LockedSession {
    async fn write(&self, new: NewHistory) -> Result<History, SessionError> {
        let history = new.used_now();
        let (dir, locked) = (Arc::clone(&self.dir), Arc::clone(&self.locked));
        let written = history.clone();
        let written = blocking(move || dir.write(&locked, &written)).await;
        written.map_err(disk(&self.key, "written"))?;
        Ok(history)
    }

    async fn remove(&self) -> Result<bool, SessionError> {
        let locked = Arc::clone(&self.locked);
        let removed = blocking(move || SessionDir::remove(&locked)).await;
        removed.map_err(disk(&self.key, "deleted"))
    }
}

/// Runs blocking work on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

fn disk(key: &SessionKey, what: &'static str) -> impl FnOnce(io::Error) -> SessionError {
    let id = key.id.to_string();
    move |error| SessionError::Disk { id, what, error }
}

fn listing(error: io::Error) -> SessionError {
    SessionError::Disk {
        id: "*".to_owned(),
        what: "listed",
        error,
    }
}
