//! The files of a session directory.
//!
//! `sessions/tokenizer-<16 digits>/<tenant>/<id>.session/` has the sealed file `history` and the file
//! `lock`, which a process locks to change the session (`flock`; the system unlocks it if the process
//! dies). The digits are the beginning of the tokenizer's fingerprint, so servers with different
//! tokenizers never share a session. A history that can't be read is set aside in the same directory,
//! and the file `lost` marks the loss until the session has a history again. A forked session has the
//! sealed file `origin` beside its history, which servers of earlier versions pass over.
//!
//! The directory of a tokenizer is created once, at startup. If it is missing later, its file system
//! is no longer mounted, and nothing must be created in its place. All functions block.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::request::{SessionId, Tenant};
use crate::session::SessionKey;
use crate::session::history::{self, History};
use crate::session::sealed::{Fingerprint, Seal, UNFINISHED, Unreadable, set_aside};

/// Prefix of the directory of a tokenizer's sessions. No tenant's name begins with it.
pub(super) const TOKENIZER: &str = "tokenizer-";
/// Suffix of a session's directory, since a session may be named `..`.
pub(super) const ENDING: &str = ".session";
pub(super) const HISTORY: &str = "history";
const LOCK: &str = "lock";
/// Where the session was forked.
const ORIGIN: &str = "origin";
/// Marks the loss of a history that was set aside.
const LOST: &str = "lost";
/// Maximum attempts to lock a session that other processes keep deleting.
const LOCK_ATTEMPTS: usize = 100;

/// The stored state of a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub history: Option<History>,
    /// Whether the session had a history that could not be read.
    pub lost: bool,
}

/// The directory of a tokenizer's sessions.
pub(super) struct SessionDir {
    pub(super) root: PathBuf,
    pub(super) seal: Seal,
    origin_seal: Seal,
}

/// A locked session, which no other process can change.
pub(super) struct Locked {
    dir: PathBuf,
    /// Closing the file unlocks the session.
    _lock: File,
}

impl SessionDir {
    /// Opens the directory, and creates it if necessary.
    ///
    /// # Errors
    /// If the directory can't be written to.
    pub fn open(dir: &Path, tokenizer: Fingerprint) -> io::Result<Self> {
        let root = dir.join("sessions").join(format!("{TOKENIZER}{tokenizer}"));
        fs::create_dir_all(&root)?;
        // Detects a read-only directory at startup rather than at the first turn.
        let probe = root.join(format!("probe.{}", std::process::id()));
        fs::write(&probe, [])?;
        fs::remove_file(&probe)?;
        Ok(Self {
            root,
            seal: history::seal(tokenizer),
            origin_seal: history::origin_seal(tokenizer),
        })
    }

    /// Checks that the directory still exists.
    ///
    /// # Errors
    /// If it was removed, or its file system is no longer mounted.
    fn check(&self) -> io::Result<()> {
        match fs::metadata(&self.root) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let message = format!(
                    "the session directory {} is gone: it was removed, or is not mounted",
                    self.root.display()
                );
                Err(io::Error::new(ErrorKind::NotFound, message))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn tenant_dir(&self, tenant: Tenant) -> PathBuf {
        self.root.join(tenant.to_string())
    }

    fn session_dir(&self, key: &SessionKey) -> PathBuf {
        self.tenant_dir(key.tenant)
            .join(format!("{}{ENDING}", key.id))
    }

    /// Locks a session, whether it exists or not; `None` if it is already locked.
    pub fn lock(&self, key: &SessionKey) -> io::Result<Option<Locked>> {
        let dir = self.session_dir(key);
        for _ in 0..LOCK_ATTEMPTS {
            self.check()?;
            for dir in [&self.tenant_dir(key.tenant), &dir] {
                match fs::create_dir(dir) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                    _ => (),
                }
            }
            match try_lock(&dir)? {
                LockAttempt::Locked(locked) => return Ok(Some(locked)),
                LockAttempt::Held => return Ok(None),
                LockAttempt::Gone => (),
            }
        }
        Err(io::Error::other("other servers keep deleting the session"))
    }

    /// Reads a locked session. A history that can't be read is set aside.
    ///
    /// # Errors
    /// Those of the system, including a failure to set a file aside.
    pub fn read(&self, locked: &Locked) -> io::Result<Found> {
        let (path, lost) = (locked.dir.join(HISTORY), locked.dir.join(LOST));
        let why = match self.read_file(&path) {
            Ok(history) => {
                return Ok(Found {
                    lost: history.is_none() && lost.exists(),
                    history,
                });
            }
            Err(Unreadable::Io(error)) => return Err(error),
            Err(why) => why,
        };
        // The marker comes first, so that the loss is reported even if the process dies in between.
        File::create(&lost)?;
        set_aside(&path, &why)?;
        Ok(Found {
            history: None,
            lost: true,
        })
    }

    /// Reads a session without locking it: the state either before or after a concurrent change.
    pub fn peek(&self, key: &SessionKey) -> io::Result<Option<History>> {
        match self.read_file(&self.session_dir(key).join(HISTORY)) {
            Ok(None) => self.check().map(|()| None),
            Ok(history) => Ok(history),
            Err(Unreadable::Io(error)) => Err(error),
            // The next turn sets it aside.
            Err(Unreadable::Corrupt(_) | Unreadable::Foreign(_)) => Ok(None),
        }
    }

    fn read_file(&self, path: &Path) -> Result<Option<History>, Unreadable> {
        let Some(content) = self.seal.read(path)? else {
            return Ok(None);
        };
        let mut history =
            History::decode(&content).ok_or(Unreadable::Corrupt("not a valid session history"))?;
        // A session whose origin can't be read has all it needs to go on.
        if let Ok(Some(origin)) = self.origin_seal.read(&path.with_file_name(ORIGIN)) {
            history.decode_origin(&origin);
        }
        Ok(Some(history))
    }

    /// Writes a history durably.
    pub fn write(&self, locked: &Locked, history: &History) -> io::Result<()> {
        let path = locked.dir.join(HISTORY);
        let is_new = !path.exists();
        // Before the history: it belongs to the session of that time only.
        if let Some(origin) = history.encode_origin() {
            let path = locked.dir.join(ORIGIN);
            let is_written = self.origin_seal.read(&path).ok().flatten().as_ref() == Some(&origin);
            if !is_written {
                self.origin_seal.write(&path, &origin, true)?;
            }
        }
        self.seal.write(&path, &history.encode(), true)?;
        if is_new {
            remove_if_exists(&locked.dir.join(LOST))?;
            // The session's directory and the tenant's may be new too.
            for parent in locked.dir.ancestors().skip(1).take(2) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Removes a session, and returns whether it had a history.
    pub fn remove(locked: &Locked) -> io::Result<bool> {
        let existed = remove_if_exists(&locked.dir.join(HISTORY))?;
        remove_if_exists(&locked.dir.join(ORIGIN))?;
        remove_if_exists(&locked.dir.join(LOST))?;
        for entry in fs::read_dir(&locked.dir)?.flatten() {
            if entry.path().extension().is_some_and(|e| e == UNFINISHED) {
                fs::remove_file(entry.path())?;
            }
        }
        // The lock is removed last. The directory stays if another process has just created a lock, or
        // if a file was set aside.
        let _ = fs::remove_file(locked.dir.join(LOCK));
        let _ = fs::remove_dir(&locked.dir);
        Ok(existed)
    }

    /// Removes the history of a session that this process has already locked.
    pub fn forget(&self, key: &SessionKey) -> io::Result<()> {
        remove_if_exists(&self.session_dir(key).join(HISTORY)).map(drop)
    }

    /// Lists the sessions of a tenant.
    pub fn list(&self, tenant: Tenant) -> io::Result<Vec<(SessionKey, History)>> {
        let keys = self.keys(tenant)?.into_iter();
        let listed = keys.filter_map(|key| match self.peek(&key) {
            Ok(history) => Some((key, history?)),
            Err(error) => {
                tracing::warn!(id = %key.id, %error, "session not readable");
                None
            }
        });
        Ok(listed.collect())
    }

    /// Counts the sessions of a tenant that were used within `ttl`.
    pub fn count(&self, tenant: Tenant, ttl: Option<Duration>) -> io::Result<usize> {
        let keys = self.keys(tenant)?.into_iter();
        Ok(keys
            .filter(|key| is_in_use(&self.session_dir(key).join(HISTORY), ttl))
            .count())
    }

    fn keys(&self, tenant: Tenant) -> io::Result<Vec<SessionKey>> {
        self.check()?;
        let entries = entries(&self.tenant_dir(tenant))?.into_iter();
        let names = entries.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        let ids = names.filter_map(|name| SessionId::parse(name.strip_suffix(ENDING)?).ok());
        Ok(ids.map(|id| SessionKey { tenant, id }).collect())
    }

    /// Counts the sessions of all tenants.
    pub fn count_all(&self) -> io::Result<usize> {
        self.check()?;
        let mut count = 0;
        for tenant in entries(&self.root)? {
            let sessions = entries(&tenant)?.into_iter();
            count += sessions.filter(|dir| dir.join(HISTORY).exists()).count();
        }
        Ok(count)
    }

    /// Removes the sessions that were not used within `ttl`, and the leftovers of processes that died
    /// during a session's first turn. Returns the number of removed sessions.
    pub fn sweep(&self, ttl: Option<Duration>) -> io::Result<usize> {
        self.check()?;
        let mut removed = 0;
        for tenant in entries(&self.root)? {
            let dirs = entries(&tenant)?.into_iter();
            // Files with other names do not belong to Skald.
            for dir in dirs.filter(|dir| dir.to_string_lossy().ends_with(ENDING)) {
                match self.remove_if_expired(&dir, ttl) {
                    Ok(is_removed) => removed += usize::from(is_removed),
                    Err(error) => {
                        tracing::warn!(dir = %dir.display(), %error, "session not swept");
                    }
                }
            }
        }
        Ok(removed)
    }

    fn remove_if_expired(&self, dir: &Path, ttl: Option<Duration>) -> io::Result<bool> {
        let lost = dir.join(LOST);
        if is_in_use(&dir.join(HISTORY), ttl) || is_in_use(&lost, ttl) {
            return Ok(false);
        }
        let LockAttempt::Locked(locked) = try_lock(dir)? else {
            return Ok(false);
        };
        // A turn may have ended before the lock was acquired.
        match self.read(&locked)?.history {
            Some(history) if !history.has_expired(ttl) => Ok(false),
            // The loss was detected just now: the client has yet to be told.
            None if is_in_use(&lost, ttl) => Ok(false),
            _ => Self::remove(&locked),
        }
    }
}

/// The outcome of an attempt to lock a session.
pub(super) enum LockAttempt {
    Locked(Locked),
    /// The session is already locked.
    Held,
    /// The session was deleted in the meantime.
    Gone,
}

/// Tries to lock the session in `dir`, which must exist.
pub(super) fn try_lock(dir: &Path) -> io::Result<LockAttempt> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    let lock = match options.create(true).truncate(false).write(true).open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(LockAttempt::Gone),
        Err(error) => return Err(error),
    };
    match lock.try_lock() {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => return Ok(LockAttempt::Held),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // The previous holder may have deleted the file: then other processes lock a new one.
    let found = fs::metadata(&path).map(|found| found.ino());
    let is_it = found.is_ok_and(|ino| lock.metadata().is_ok_and(|ours| ours.ino() == ino));
    Ok(if is_it {
        LockAttempt::Locked(Locked {
            dir: dir.to_owned(),
            _lock: lock,
        })
    } else {
        LockAttempt::Gone
    })
}

/// Returns whether a file exists and was written within `ttl`.
fn is_in_use(file: &Path, ttl: Option<Duration>) -> bool {
    let idle = idle_for(file);
    idle.is_some_and(|idle| ttl.is_none_or(|ttl| idle <= ttl))
}

/// Removes a file if it exists, and returns whether it did.
fn remove_if_exists(file: &Path) -> io::Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the time since a file was last written; `None` if it does not exist. A file dated in the
/// future, because the clock was set back, counts as written just now.
fn idle_for(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).and_then(|found| found.modified()).ok()?;
    Some(modified.elapsed().unwrap_or_default())
}

/// Returns the entries of a directory; none if it does not exist.
pub(super) fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Helpers for the tests of this directory.
#[cfg(test)]
pub(super) mod testing {
    use std::time::SystemTime;

    use super::*;

    pub fn key(id: &str) -> SessionKey {
        SessionKey {
            tenant: Tenant::of_key(b"key"),
            id: SessionId::parse(id).unwrap(),
        }
    }

    pub fn history(tokens: &[u32]) -> History {
        History {
            tokens: tokens.into(),
            created: SystemTime::UNIX_EPOCH,
            last_used: SystemTime::now(),
            forked_from: None,
        }
    }

    pub fn open(dir: &Path) -> SessionDir {
        SessionDir::open(dir, Fingerprint([1; 32])).unwrap()
    }

    pub fn put(sessions: &SessionDir, id: &str, tokens: &[u32]) {
        let locked = sessions.lock(&key(id)).unwrap().unwrap();
        sessions.write(&locked, &history(tokens)).unwrap();
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
