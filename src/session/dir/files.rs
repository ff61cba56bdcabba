//! The files of histories.
//!
//! `sessions/tokenizer-<16 digits>/<tenant>/<id>.session/` has the file `history`, sealed, and the file
//! `lock`, which whoever changes the session has locked (`flock`; the system unlocks it if the process
//! dies). The digits are of the tokenizer's fingerprint, so servers whose token ids mean other things
//! never meet. A history that can't be read is set aside beside its place, and the file `lost` stands
//! for it until the session has a history again.
//!
//! The directory of a tokenizer is made once, at the start. If it is gone later, the file system is:
//! nothing is made in its place. Everything here blocks.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::migration;
use crate::request::{SessionId, Tenant};
use crate::session::SessionKey;
use crate::session::history::{self, History};
use crate::session::sealed::{Fingerprint, Seal, UNFINISHED, Unreadable, set_aside};

/// The directory of a tokenizer's sessions has this before its name; no tenant has.
pub(super) const TOKENIZER: &str = "tokenizer-";
/// A session's directory has this after its name: a name may be `..`.
pub(super) const ENDING: &str = ".session";
pub(super) const HISTORY: &str = "history";
const LOCK: &str = "lock";
/// Stands for a history that was set aside.
const LOST: &str = "lost";
/// How often a lock is tried that others delete as we get it.
const LOCK_ATTEMPTS: usize = 100;

/// What there is of a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub history: Option<History>,
    /// There was a history, which could not be read.
    pub lost: bool,
}

/// The directory of all sessions of a tokenizer.
pub(super) struct SessionDir {
    root: PathBuf,
    seal: Seal,
}

/// A session that no other process can change meanwhile.
pub(super) struct Locked {
    dir: PathBuf,
    /// Closing it unlocks.
    _lock: File,
}

impl SessionDir {
    /// Makes the directory if need be.
    ///
    /// # Errors
    /// If it can't be written to.
    pub fn open(dir: &Path, tokenizer: Fingerprint) -> io::Result<Self> {
        let sessions = dir.join("sessions");
        let root = sessions.join(format!("{TOKENIZER}{tokenizer}"));
        fs::create_dir_all(&root)?;
        // A directory that can be read only is found out now, not with the first turn.
        let probe = root.join(format!("probe.{}", std::process::id()));
        fs::write(&probe, [])?;
        fs::remove_file(&probe)?;
        let seal = history::seal(tokenizer);
        migration::adopt(&sessions, &root, &seal)?;
        Ok(Self { root, seal })
    }

    /// Checks that the directory is still there.
    ///
    /// # Errors
    /// If it is not: it was removed, or its file system is not mounted any more.
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

    /// Locks a session, whether it exists or not; `None` if someone else has it locked.
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
                Attempt::Locked(locked) => return Ok(Some(locked)),
                Attempt::Held => return Ok(None),
                Attempt::Gone => (),
            }
        }
        Err(io::Error::other("it is deleted again and again"))
    }

    /// What is there of a session; what can't be read is set aside.
    ///
    /// # Errors
    /// The system's, also if what can't be read can't be set aside.
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
        // First, so that it is not forgotten if the process dies in between.
        File::create(&lost)?;
        set_aside(&path, &why)?;
        Ok(Found {
            history: None,
            lost: true,
        })
    }

    /// What is there of a session that others may be changing: the state before or after.
    pub fn peek(&self, key: &SessionKey) -> io::Result<Option<History>> {
        match self.read_file(&self.session_dir(key).join(HISTORY)) {
            Ok(None) => self.check().map(|()| None),
            Ok(history) => Ok(history),
            Err(Unreadable::Io(error)) => Err(error),
            // Its next turn sets it aside.
            Err(Unreadable::Corrupt(_) | Unreadable::Foreign(_)) => Ok(None),
        }
    }

    fn read_file(&self, path: &Path) -> Result<Option<History>, Unreadable> {
        let Some(content) = self.seal.read(path)? else {
            return Ok(None);
        };
        let history =
            History::decode(&content).ok_or(Unreadable::Corrupt("it is not a history"))?;
        Ok(Some(history))
    }

    /// Puts a history on the disk.
    pub fn write(&self, locked: &Locked, history: &History) -> io::Result<()> {
        let path = locked.dir.join(HISTORY);
        let is_new = !path.exists();
        self.seal.write(&path, &history.encode(), true)?;
        if is_new {
            remove_if_there(&locked.dir.join(LOST))?;
            // Its directory, and the tenant's, may be new too.
            for parent in locked.dir.ancestors().skip(1).take(2) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Takes a session away; whether there was one.
    pub fn remove(locked: &Locked) -> io::Result<bool> {
        let there = remove_if_there(&locked.dir.join(HISTORY))?;
        remove_if_there(&locked.dir.join(LOST))?;
        for entry in fs::read_dir(&locked.dir)?.flatten() {
            if entry.path().extension().is_some_and(|e| e == UNFINISHED) {
                fs::remove_file(entry.path())?;
            }
        }
        // The lock goes last. If someone has just come for it or something was set aside, the
        // directory stays.
        let _ = fs::remove_file(locked.dir.join(LOCK));
        let _ = fs::remove_dir(&locked.dir);
        Ok(there)
    }

    /// Takes away the history of a session that this process has locked already.
    pub fn forget(&self, key: &SessionKey) -> io::Result<()> {
        remove_if_there(&self.session_dir(key).join(HISTORY)).map(drop)
    }

    /// All sessions of a tenant.
    pub fn list(&self, tenant: Tenant) -> io::Result<Vec<(SessionKey, History)>> {
        let keys = self.keys(tenant)?.into_iter();
        let listed = keys.filter_map(|key| match self.peek(&key) {
            Ok(history) => Some((key, history?)),
            Err(error) => {
                tracing::warn!(id = %key.id, %error, "a session can't be read");
                None
            }
        });
        Ok(listed.collect())
    }

    /// How many sessions a tenant has, without those that were not used for so long.
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

    /// How many sessions there are in all.
    pub fn count_all(&self) -> io::Result<usize> {
        self.check()?;
        let mut count = 0;
        for tenant in entries(&self.root)? {
            let sessions = entries(&tenant)?.into_iter();
            count += sessions.filter(|dir| dir.join(HISTORY).exists()).count();
        }
        Ok(count)
    }

    /// Takes away the sessions that were not used for so long, and what a process that died has
    /// left of sessions that never had a turn.
    pub fn sweep(&self, ttl: Option<Duration>) -> io::Result<usize> {
        self.check()?;
        let mut removed = 0;
        for tenant in entries(&self.root)? {
            let dirs = entries(&tenant)?.into_iter();
            // Other things that lie there are not ours.
            for dir in dirs.filter(|dir| dir.to_string_lossy().ends_with(ENDING)) {
                match self.remove_if_expired(&dir, ttl) {
                    Ok(is_removed) => removed += usize::from(is_removed),
                    Err(error) => {
                        tracing::warn!(dir = %dir.display(), %error, "a session can't be looked at");
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
        let Attempt::Locked(locked) = try_lock(dir)? else {
            return Ok(false);
        };
        // A turn may have ended before we had the lock.
        match self.read(&locked)?.history {
            Some(history) if !history.has_expired(ttl) => Ok(false),
            // Found out just now: its client is still to be told.
            None if is_in_use(&lost, ttl) => Ok(false),
            _ => Self::remove(&locked),
        }
    }
}

/// What comes of an attempt to lock a session.
pub(super) enum Attempt {
    Locked(Locked),
    /// Someone else has it.
    Held,
    /// It was deleted meanwhile.
    Gone,
}

/// Tries to lock the session in `dir`, which must exist.
pub(super) fn try_lock(dir: &Path) -> io::Result<Attempt> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    let lock = match options.create(true).truncate(false).write(true).open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Attempt::Gone),
        Err(error) => return Err(error),
    };
    match lock.try_lock() {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => return Ok(Attempt::Held),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Whoever had it may have deleted it: then it is not the one that others find.
    let found = fs::metadata(&path).map(|found| found.ino());
    let is_it = found.is_ok_and(|ino| lock.metadata().is_ok_and(|ours| ours.ino() == ino));
    Ok(if is_it {
        Attempt::Locked(Locked {
            dir: dir.to_owned(),
            _lock: lock,
        })
    } else {
        Attempt::Gone
    })
}

/// Whether there is a file that was written not too long ago.
fn is_in_use(file: &Path, ttl: Option<Duration>) -> bool {
    let idle = idle_for(file);
    idle.is_some_and(|idle| ttl.is_none_or(|ttl| idle <= ttl))
}

/// Removes a file; whether there was one.
fn remove_if_there(file: &Path) -> io::Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Since when a file has not been written to; `None` if there is none. One that is dated in the
/// future, since the clock was set back, was written to just now.
fn idle_for(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).and_then(|found| found.modified()).ok()?;
    Some(modified.elapsed().unwrap_or_default())
}

/// What is in a directory; nothing if it is not there.
pub(super) fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// What tests of this directory share.
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
