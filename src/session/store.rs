//! Where histories are: in memory, or in a directory on a thread that may block.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::dir::{Locked, SessionDir};
use super::history::History;
use super::memory::Memory;
use super::queue::busy;
use super::{IfBusy, SessionError, SessionKey};
use crate::request::Tenant;

/// How long to wait before a lock is tried again that another server has: at first, and at most.
const LOCK_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// How often it is tried for who does not want to wait: someone may just be looking.
const LOCK_GLANCES: usize = 6;

/// All histories.
#[derive(Clone)]
pub(super) enum Store {
    Memory(Arc<Memory>),
    Dir(Arc<SessionDir>),
}

/// A history that nobody else can change meanwhile, in memory because it is one's turn.
pub(super) struct Held {
    pub history: Option<History>,
    locked: Option<Arc<Locked>>,
}

impl Store {
    /// Takes hold of a session, whose turn it must be in this process.
    pub async fn hold(&self, key: &SessionKey, if_busy: IfBusy) -> Result<Held, SessionError> {
        let dir = match self {
            Self::Memory(memory) => {
                return Ok(Held {
                    history: memory.read(key),
                    locked: None,
                });
            }
            Self::Dir(dir) => dir,
        };
        let (mut pause, longest) = LOCK_PAUSE;
        let mut attempts = 0;
        loop {
            let (dir, locked_key) = (Arc::clone(dir), key.clone());
            let held = blocking(move || {
                let Some(locked) = dir.lock(&locked_key)? else {
                    return Ok(None);
                };
                let history = dir.read(&locked)?;
                Ok(Some((locked, history)))
            });
            if let Some((locked, history)) = held.await.map_err(disk(key, "read"))? {
                return Ok(Held {
                    history,
                    locked: Some(Arc::new(locked)),
                });
            }
            attempts += 1;
            if if_busy == IfBusy::Error && attempts >= LOCK_GLANCES {
                return Err(busy(key));
            }
            tokio::time::sleep(pause).await;
            pause = longest.min(pause * 2);
        }
    }

    /// Puts a new history in the place of what is held.
    pub async fn write(
        &self,
        key: &SessionKey,
        held: &Held,
        history: History,
    ) -> Result<(), SessionError> {
        match (self, &held.locked) {
            (Self::Memory(memory), _) => memory.write(key, history),
            (Self::Dir(dir), Some(locked)) => {
                let (dir, locked) = (Arc::clone(dir), Arc::clone(locked));
                let written = blocking(move || dir.write(&locked, &history)).await;
                written.map_err(disk(key, "written"))?;
            }
            (Self::Dir(_), None) => (),
        }
        Ok(())
    }

    /// Takes away what is held; whether there was anything.
    pub async fn remove(&self, key: &SessionKey, held: &Held) -> Result<bool, SessionError> {
        match (self, &held.locked) {
            (Self::Memory(memory), _) => Ok(memory.remove(key)),
            (Self::Dir(_), Some(locked)) => {
                let locked = Arc::clone(locked);
                let removed = blocking(move || SessionDir::remove(&locked)).await;
                removed.map_err(disk(key, "deleted"))
            }
            (Self::Dir(_), None) => Ok(false),
        }
    }

    /// Takes away the history of a session that one of our turns is on.
    pub async fn forget(&self, key: &SessionKey) -> Result<(), SessionError> {
        match self {
            Self::Memory(memory) => {
                memory.remove(key);
                Ok(())
            }
            Self::Dir(dir) => {
                let (dir, forgotten) = (Arc::clone(dir), key.clone());
                let removed = blocking(move || dir.forget(&forgotten)).await;
                removed.map_err(disk(key, "deleted"))
            }
        }
    }

    /// Looks at a session that others may be changing.
    pub async fn peek(&self, key: &SessionKey) -> Result<Option<History>, SessionError> {
        match self {
            Self::Memory(memory) => Ok(memory.read(key)),
            Self::Dir(dir) => {
                let (dir, peeked) = (Arc::clone(dir), key.clone());
                let found = blocking(move || dir.peek(&peeked)).await;
                found.map_err(disk(key, "read"))
            }
        }
    }

    /// All sessions of a tenant.
    pub async fn list(&self, tenant: Tenant) -> io::Result<Vec<(SessionKey, History)>> {
        match self {
            Self::Memory(memory) => Ok(memory.list(|key| key.tenant == tenant)),
            Self::Dir(dir) => {
                let dir = Arc::clone(dir);
                blocking(move || dir.list(tenant)).await
            }
        }
    }

    /// How many sessions a tenant has, without those that were not used for so long.
    pub async fn count(&self, tenant: Tenant, ttl: Option<Duration>) -> io::Result<usize> {
        match self {
            Self::Memory(memory) => {
                let all = memory.list(|key| key.tenant == tenant).into_iter();
                Ok(all.filter(|(_, history)| !history.has_expired(ttl)).count())
            }
            Self::Dir(dir) => {
                let dir = Arc::clone(dir);
                blocking(move || dir.count(tenant, ttl)).await
            }
        }
    }

    /// How many sessions there are in all.
    pub async fn count_all(&self) -> io::Result<usize> {
        match self {
            Self::Memory(memory) => Ok(memory.count_all()),
            Self::Dir(dir) => {
                let dir = Arc::clone(dir);
                blocking(move || dir.count_all()).await
            }
        }
    }

    /// Takes away what has not been used for longer than `ttl`; how many sessions that were.
    pub async fn sweep(&self, ttl: Option<Duration>) -> io::Result<usize> {
        match self {
            Self::Memory(memory) => {
                let all = memory.list(|_| true).into_iter();
                let expired = all.filter(|(_, history)| history.has_expired(ttl));
                Ok(expired.filter(|(key, _)| memory.remove(key)).count())
            }
            Self::Dir(dir) => {
                let dir = Arc::clone(dir);
                blocking(move || dir.sweep(ttl)).await
            }
        }
    }
}

/// Runs what may block on a thread for that.
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
