//! Migrates histories from the earlier directory layout.
//!
//! Before each tokenizer had its own directory, all histories were in `sessions/<tenant>/<id>.session/`. At
//! startup, a server moves the sessions of its tokenizer to that tokenizer's directory and leaves the others
//! to servers with the matching tokenizer. A session is moved atomically, under its lock, and never over
//! another one. A crash leaves the remaining sessions for the next start.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::files::{ENDING, HISTORY, LockAttempt, SessionDir, TOKENIZER, entries, try_lock};

/// Moves the sessions of the tokenizer of `to` from the earlier layout to its directory.
///
/// # Errors
/// If a directory can't be read or created.
pub(super) fn adopt(to: &SessionDir) -> io::Result<()> {
    let Some(sessions) = to.root.parent() else {
        return Ok(());
    };
    let mut moved = 0;
    for tenant in entries(sessions)? {
        let Some(name) = tenant.file_name() else {
            continue;
        };
        if name.to_string_lossy().starts_with(TOKENIZER) {
            continue;
        }
        let dirs = entries(&tenant)?.into_iter();
        let ours = dirs.filter(|dir| {
            let is_session = dir.to_string_lossy().ends_with(ENDING);
            is_session && to.seal.begins(&dir.join(HISTORY)).unwrap_or(false)
        });
        let new = to.root.join(name);
        let mut moved_here = 0;
        for dir in ours {
            fs::create_dir_all(&new)?;
            moved_here += usize::from(adopt_one(&dir, &new));
        }
        if moved_here > 0 {
            File::open(&new)?.sync_all()?;
            File::open(&tenant)?.sync_all()?;
            // Fails, as it should, if other sessions remain.
            let _ = fs::remove_dir(&tenant);
        }
        moved += moved_here;
    }
    if moved > 0 {
        tracing::info!(
            sessions = moved,
            "sessions moved to the directory of their tokenizer"
        );
    }
    Ok(())
}

/// Moves a session into the directory of its tenant, and returns whether it was moved.
fn adopt_one(dir: &Path, tenant: &Path) -> bool {
    let why = match try_lock(dir) {
        Ok(LockAttempt::Locked(_locked)) => {
            let name = dir.file_name().unwrap_or_default();
            match fs::rename(dir, tenant.join(name)) {
                Ok(()) => return true,
                Err(error) if error.kind() == ErrorKind::NotFound => return false,
                Err(error) => error.to_string(),
            }
        }
        Ok(LockAttempt::Held) => "in use by a server of an earlier version".to_owned(),
        // Another server has already moved it.
        Ok(LockAttempt::Gone) => return false,
        Err(error) => error.to_string(),
    };
    tracing::warn!(dir = %dir.display(), why, "session not moved to the directory of its tokenizer");
    false
}

#[cfg(test)]
mod tests {
    use super::super::files::testing::{history, key, put};
    use super::*;
    use crate::session::Fingerprint;

    /// Opens a directory as a server does at startup.
    fn start(dir: &Path, tokenizer: u8) -> SessionDir {
        let sessions = SessionDir::open(dir, Fingerprint([tokenizer; 32])).unwrap();
        adopt(&sessions).unwrap();
        sessions
    }

    /// Creates a directory with the earlier layout and sessions of two tokenizers.
    fn earlier() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (tokenizer, ids) in [(1, ["a", "both"]), (2, ["b", "other"])] {
            let scratch = tempfile::tempdir().unwrap();
            let sessions = SessionDir::open(scratch.path(), Fingerprint([tokenizer; 32])).unwrap();
            for id in ids {
                put(&sessions, id, &[u32::from(tokenizer)]);
            }
            let tenant = dir
                .path()
                .join("sessions")
                .join(key("a").tenant.to_string());
            fs::create_dir_all(&tenant).unwrap();
            for from in entries(&sessions.tenant_dir(key("a").tenant)).unwrap() {
                fs::rename(&from, tenant.join(from.file_name().unwrap())).unwrap();
            }
        }
        dir
    }

    fn tokens(sessions: &SessionDir, id: &str) -> Option<Vec<u32>> {
        let history = sessions.peek(&key(id)).unwrap();
        history.map(|history| history.tokens.to_vec())
    }

    #[test]
    fn each_tokenizer_moves_its_own_sessions_only() {
        let dir = earlier();
        let old = dir
            .path()
            .join("sessions")
            .join(key("a").tenant.to_string());
        let one = start(dir.path(), 1);
        assert_eq!(tokens(&one, "a"), Some(vec![1]));
        assert_eq!(tokens(&one, "b"), None);
        assert_eq!(entries(&old).unwrap().len(), 2);
        let two = start(dir.path(), 2);
        assert_eq!(tokens(&two, "b"), Some(vec![2]));
        assert_eq!(tokens(&two, "a"), None);
        assert!(!old.exists());
        assert_eq!((one.count_all().unwrap(), two.count_all().unwrap()), (2, 2));
    }

    #[test]
    fn a_session_that_is_in_use_or_exists_already_is_not_moved() {
        let dir = earlier();
        let old = dir
            .path()
            .join("sessions")
            .join(key("a").tenant.to_string());
        let LockAttempt::Locked(used) = try_lock(&old.join("a.session")).unwrap() else {
            panic!("it is free");
        };
        let scratch = tempfile::tempdir().unwrap();
        fs::rename(old.join("both.session"), scratch.path().join("both")).unwrap();
        let sessions = start(dir.path(), 1);
        assert_eq!(tokens(&sessions, "a"), None);
        let locked = sessions.lock(&key("both")).unwrap().unwrap();
        sessions.write(&locked, &history(&[7])).unwrap();
        drop((locked, used));
        fs::create_dir_all(&old).unwrap();
        fs::rename(scratch.path().join("both"), old.join("both.session")).unwrap();
        let sessions = start(dir.path(), 1);
        assert_eq!(tokens(&sessions, "a"), Some(vec![1]));
        assert_eq!(tokens(&sessions, "both"), Some(vec![7]));
        assert!(old.join("both.session").join(HISTORY).exists());
    }
}
