//! The files of histories.
//!
//! `sessions/<tenant>/<id>.session/` has the file `history`, sealed, and the file `lock`, which
//! whoever changes the session has locked (`flock`; the system unlocks it if the process dies).
//! Everything here blocks.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::request::{SessionId, Tenant};
use crate::session::SessionKey;
use crate::session::history::{self, History};
use crate::session::sealed::{Fingerprint, Seal, UNFINISHED, Unreadable, set_aside};

/// A session's directory has this after its name: a name may be `..`.
const ENDING: &str = ".session";
const HISTORY: &str = "history";
const LOCK: &str = "lock";
/// How often a lock is tried that others delete as we get it.
const LOCK_ATTEMPTS: usize = 100;

/// The directory of all sessions.
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
        let root = dir.join("sessions");
        fs::create_dir_all(&root)?;
        // A directory that can be read only is found out now, not with the first turn.
        let probe = root.join(format!("probe.{}", std::process::id()));
        fs::write(&probe, [])?;
        fs::remove_file(&probe)?;
        Ok(Self {
            root,
            seal: history::seal(tokenizer),
        })
    }

    fn tenant_dir(&self, tenant: Tenant) -> PathBuf {
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
            fs::create_dir_all(&dir)?;
            match try_lock(&dir)? {
                Attempt::Locked(locked) => return Ok(Some(locked)),
                Attempt::Held => return Ok(None),
                Attempt::Gone => (),
            }
        }
        Err(io::Error::other("it is deleted again and again"))
    }

    /// What is there of a session; what can't be read is set aside.
    pub fn read(&self, locked: &Locked) -> io::Result<Option<History>> {
        let path = locked.dir.join(HISTORY);
        let why = match self.read_file(&path) {
            Ok(history) => return Ok(history),
            Err(Unreadable::Io(error)) => return Err(error),
            Err(why) => why,
        };
        set_aside(&path, &why);
        Ok(None)
    }

    /// What is there of a session that others may be changing: the state before or after.
    pub fn peek(&self, key: &SessionKey) -> io::Result<Option<History>> {
        match self.read_file(&self.session_dir(key).join(HISTORY)) {
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
            // Its directory, and the tenant's, may be new too.
            for parent in locked.dir.ancestors().skip(1).take(2) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Takes a session away; whether there was one.
    pub fn remove(locked: &Locked) -> io::Result<bool> {
        let there = match fs::remove_file(locked.dir.join(HISTORY)) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
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
        match fs::remove_file(self.session_dir(key).join(HISTORY)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
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
            .filter(|key| is_in_use(&self.session_dir(key), ttl))
            .count())
    }

    fn keys(&self, tenant: Tenant) -> io::Result<Vec<SessionKey>> {
        let entries = entries(&self.tenant_dir(tenant))?.into_iter();
        let names = entries.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        let ids = names.filter_map(|name| SessionId::parse(name.strip_suffix(ENDING)?).ok());
        Ok(ids.map(|id| SessionKey { tenant, id }).collect())
    }

    /// How many sessions there are in all.
    pub fn count_all(&self) -> io::Result<usize> {
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
        if is_in_use(dir, ttl) {
            return Ok(false);
        }
        let Attempt::Locked(locked) = try_lock(dir)? else {
            return Ok(false);
        };
        // A turn may have ended before we had the lock.
        match self.read(&locked)? {
            Some(history) if !history.has_expired(ttl) => Ok(false),
            _ => Self::remove(&locked),
        }
    }
}

/// What comes of an attempt to lock a session.
enum Attempt {
    Locked(Locked),
    /// Someone else has it.
    Held,
    /// It was deleted meanwhile.
    Gone,
}

/// Tries to lock the session in `dir`, which must exist.
fn try_lock(dir: &Path) -> io::Result<Attempt> {
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

/// Whether there is a session in a directory that was used not too long ago.
fn is_in_use(dir: &Path, ttl: Option<Duration>) -> bool {
    let idle = idle_for(&dir.join(HISTORY));
    idle.is_some_and(|idle| ttl.is_none_or(|ttl| idle <= ttl))
}

/// Since when a file has not been written to; `None` if there is none.
fn idle_for(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path).and_then(|found| found.modified()).ok()?;
    Some(modified.elapsed().unwrap_or_default())
}

/// What is in a directory; nothing if it is not there.
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn key(id: &str) -> SessionKey {
        SessionKey {
            tenant: Tenant::of_key(b"key"),
            id: SessionId::parse(id).unwrap(),
        }
    }

    fn history(tokens: &[u32]) -> History {
        History {
            tokens: tokens.into(),
            created: SystemTime::UNIX_EPOCH,
            last_used: SystemTime::now(),
        }
    }

    fn open(dir: &Path) -> SessionDir {
        SessionDir::open(dir, Fingerprint([1; 32])).unwrap()
    }

    fn put(sessions: &SessionDir, id: &str, tokens: &[u32]) {
        let locked = sessions.lock(&key(id)).unwrap().unwrap();
        sessions.write(&locked, &history(tokens)).unwrap();
    }

    #[test]
    fn every_allowed_name_is_a_directory_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = open(dir.path());
        let longest = "x".repeat(SessionId::MAX_LENGTH);
        let names = [".", "..", "a", "a.session", "-", "a:b@c", longest.as_str()];
        for (n, name) in names.iter().enumerate() {
            put(&sessions, name, &[n as u32]);
        }
        for (n, name) in names.iter().enumerate() {
            let found = sessions.peek(&key(name)).unwrap().unwrap();
            assert_eq!(*found.tokens, [n as u32]);
        }
        assert_eq!(sessions.list(key("a").tenant).unwrap().len(), names.len());
        assert_eq!(sessions.count(key("a").tenant, None).unwrap(), names.len());
        assert_eq!(sessions.count(Tenant::ANONYMOUS, None).unwrap(), 0);
        assert_eq!(sessions.count_all().unwrap(), names.len());
    }

    #[test]
    fn a_session_is_locked_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (open(dir.path()), open(dir.path()));
        let locked = here.lock(&key("a")).unwrap().unwrap();
        assert!(there.lock(&key("a")).unwrap().is_none());
        assert!(there.lock(&key("b")).unwrap().is_some());
        drop(locked);
        assert!(there.lock(&key("a")).unwrap().is_some());
    }

    #[test]
    fn a_session_that_is_removed_can_be_made_anew_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = open(dir.path());
        put(&sessions, "a", &[1]);
        let locked = sessions.lock(&key("a")).unwrap().unwrap();
        assert!(SessionDir::remove(&locked).unwrap());
        // The old lock is still held, but it is not the session's any more.
        let anew = sessions.lock(&key("a")).unwrap().unwrap();
        assert_eq!(sessions.read(&anew).unwrap(), None);
        assert!(!SessionDir::remove(&anew).unwrap());
        assert_eq!(
            entries(&sessions.tenant_dir(key("a").tenant))
                .unwrap()
                .len(),
            0
        );
    }

    #[test]
    fn what_cannot_be_read_is_set_aside_by_who_has_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = open(dir.path());
        put(&sessions, "a", &[1, 2, 3]);
        let path = sessions.session_dir(&key("a")).join(HISTORY);
        let mut bytes = fs::read(&path).unwrap();
        bytes[60] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(sessions.peek(&key("a")).unwrap(), None);
        assert!(path.exists());
        let locked = sessions.lock(&key("a")).unwrap().unwrap();
        assert_eq!(sessions.read(&locked).unwrap(), None);
        assert!(path.with_extension("corrupt").exists());
        let other = SessionDir::open(dir.path(), Fingerprint([2; 32])).unwrap();
        drop(locked);
        put(&sessions, "a", &[4]);
        assert_eq!(other.peek(&key("a")).unwrap(), None);
    }

    #[test]
    fn only_what_has_expired_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let sessions = open(dir.path());
        for id in ["old", "new", "used"] {
            put(&sessions, id, &[1]);
        }
        let long_ago = SystemTime::now() - Duration::from_secs(100);
        let old = History {
            last_used: long_ago,
            ..history(&[1])
        };
        let locked = sessions.lock(&key("old")).unwrap().unwrap();
        sessions.write(&locked, &old).unwrap();
        let path = sessions.session_dir(&key("old")).join(HISTORY);
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(long_ago).unwrap();
        // Nobody takes away what someone is using.
        assert_eq!(sessions.sweep(Some(Duration::from_secs(50))).unwrap(), 0);
        drop(locked);
        assert_eq!(sessions.sweep(None).unwrap(), 0);
        assert_eq!(sessions.sweep(Some(Duration::from_secs(50))).unwrap(), 1);
        assert_eq!(sessions.count_all().unwrap(), 2);
    }
}
