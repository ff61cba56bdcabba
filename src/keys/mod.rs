//! API keys: what they may do, how much of it, and the file that has them. No HTTP.
//!
//! | module | what it is for |
//! |---|---|
//! | [`key`] | a key: its id, name, scopes and limits |
//! | [`secret`] | the text that a client shows, and the hash of it that the file has |
//! | [`file`] | the file: read, checked, edited, replaced |
//! | [`bucket`] | an amount per minute, which fills evenly |
//! | [`usage`] | what one key has used of its limits |
//!
//! Clients show a secret of 256 random bits. Nothing can be guessed about one, so a fast hash protects it
//! as well as a slow one would protect a password, and checking a key costs a request nothing.
//!
//! A secret must never leave [`Secret`] except for the one time that it is shown to its owner. Nothing here
//! reads the clock: callers say what time it is.

pub mod bucket;
pub mod file;
pub mod key;
pub mod secret;
pub mod usage;

pub use self::file::{KeyFile, KeyFileError};
pub use self::key::{InvalidKey, Key, KeyId, KeyLimits, KeyName, KeyScope};
pub use self::secret::{Secret, SecretHash};
pub use self::usage::{LimitKind, LimitReached, Place, Usage};

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use crate::request::Tenant;

/// A key and what it has used.
#[derive(Debug)]
pub struct Account {
    /// The key as the file had it when the request came.
    pub key: Key,
    /// What it has used; survives a change of the file.
    pub usage: Arc<Usage>,
}

impl Account {
    /// Returns the tenant that the key stands for. It depends on the key's id alone, so it survives a new
    /// secret, and is the same on every server that has the key.
    #[must_use]
    pub fn tenant(&self) -> Tenant {
        Tenant::of_key_id(self.key.id.as_str())
    }
}

type Accounts = HashMap<KeyId, Arc<Account>>;

/// The keys of a server, which can be read again while it serves.
///
/// One lock, read once per request and written when the file was read again. Memory is bounded by the file:
/// a key that is not in it leaves no trace.
pub struct Keys {
    file: PathBuf,
    accounts: RwLock<Arc<Accounts>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the keys in a file.
    ///
    /// # Errors
    /// [`KeyFileError`] naming file, line and fault.
    pub fn load(file: PathBuf, now: Instant) -> Result<Self, KeyFileError> {
        let accounts = accounts(&file, &Accounts::new(), now)?;
        Ok(Self {
            file,
            accounts: RwLock::new(Arc::new(accounts)),
        })
    }

    /// Reads the file again. Requests that come from then on are held to what it says; what keys have used
    /// of their limits stays used.
    ///
    /// # Errors
    /// [`KeyFileError`]; what was read before stays in use.
    pub fn reload(&self, now: Instant) -> Result<(), KeyFileError> {
        let accounts = accounts(&self.file, &self.accounts(), now)?;
        *self
            .accounts
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(accounts);
        Ok(())
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.accounts().len()
    }

    /// Returns whether there are no keys, and so no request is served.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accounts().is_empty()
    }

    /// Returns the key whose secret this is. A key that does not exist takes as long as a wrong secret.
    #[must_use]
    pub fn authenticate(&self, shown: &[u8]) -> Option<Arc<Account>> {
        let hash = SecretHash::of(shown);
        let accounts = self.accounts();
        let account = secret::id(shown).and_then(|id| accounts.get(id));
        let expected = account.map_or(SecretHash::NONE, |account| account.key.hash);
        let right = hash == expected;
        account.filter(|_| right).cloned()
    }

    /// Returns all keys, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Account>> {
        let mut all: Vec<_> = self.accounts().values().cloned().collect();
        all.sort_by(|a, b| a.key.name.cmp(&b.key.name));
        all
    }

    fn accounts(&self) -> Arc<Accounts> {
        let accounts = self.accounts.read();
        Arc::clone(&accounts.unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads the keys in a file, with what those that were known `before` have used.
fn accounts(file: &Path, before: &Accounts, now: Instant) -> Result<Accounts, KeyFileError> {
    let keys = KeyFile::read(file)?.keys;
    let account = |key: Key| {
        let usage = match before.get(&key.id) {
            Some(known) => {
                known.usage.set_limits(key.limits, now);
                Arc::clone(&known.usage)
            }
            None => Arc::new(Usage::new(key.limits, now)),
        };
        (key.id.clone(), Arc::new(Account { key, usage }))
    };
    Ok(keys.into_iter().map(account).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, limits: KeyLimits) -> (Key, Secret) {
        let id = KeyId::random().unwrap();
        let secret = Secret::random(&id).unwrap();
        let key = Key {
            hash: secret.hash(),
            id,
            name: name.parse().unwrap(),
            scopes: vec![KeyScope::Generate],
            limits,
            may_prioritize: false,
            created: None,
        };
        (key, secret)
    }

    fn written(keys: &[&Key]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        write(&path, keys);
        (dir, path)
    }

    fn write(path: &Path, keys: &[&Key]) {
        let mut file = KeyFile::default();
        for key in keys {
            file = file.with((*key).clone()).unwrap();
        }
        file.replace(path).unwrap();
    }

    #[test]
    fn only_the_whole_secret_is_a_key() {
        let (ada, secret) = key("ada", KeyLimits::default());
        let (bob, other) = key("bob", KeyLimits::default());
        let (_dir, path) = written(&[&ada, &bob]);
        let keys = Keys::load(path, Instant::now()).unwrap();
        let shown = secret.expose().as_bytes();
        assert_eq!(keys.authenticate(shown).unwrap().key.name, ada.name);
        assert_eq!(
            keys.authenticate(other.expose().as_bytes())
                .unwrap()
                .key
                .name,
            bob.name
        );
        let mut wrong = shown.to_vec();
        *wrong.last_mut().unwrap() ^= 1;
        // The secret of another key, behind this one's id.
        let id = secret.expose().rfind('_').unwrap();
        let mixed = [&secret.expose()[..id], &other.expose()[id..]].concat();
        for wrong in [
            &wrong[..],
            mixed.as_bytes(),
            &shown[..shown.len() - 1],
            &[shown, b"0"].concat(),
            b"",
            b"skald_",
            b"skald_\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff_",
        ] {
            assert!(keys.authenticate(wrong).is_none());
        }
    }

    #[test]
    fn a_reload_keeps_what_was_used_and_a_broken_file_changes_nothing() {
        let now = Instant::now();
        let limits = KeyLimits {
            requests_per_minute: Some(2.try_into().unwrap()),
            ..KeyLimits::default()
        };
        let (mut ada, secret) = key("ada", limits);
        let (bob, _) = key("bob", limits);
        let (_dir, path) = written(&[&ada]);
        let keys = Keys::load(path.clone(), now).unwrap();
        let shown = secret.expose().as_bytes();
        let before = keys.authenticate(shown).unwrap();
        drop(before.usage.begin(now).unwrap());
        ada.name = "grace".parse().unwrap();
        write(&path, &[&bob, &ada]);
        keys.reload(now).unwrap();
        let after = keys.authenticate(shown).unwrap();
        assert_eq!(after.key.name.as_str(), "grace");
        assert_eq!(after.tenant(), before.tenant());
        drop(after.usage.begin(now).unwrap());
        assert!(after.usage.begin(now).is_err());

        std::fs::write(&path, "[[key]]\nid = 1\n").unwrap();
        assert!(keys.reload(now).is_err());
        assert_eq!(keys.len(), 2);
        std::fs::write(&path, "").unwrap();
        keys.reload(now).unwrap();
        assert!(keys.is_empty());
        assert!(keys.authenticate(shown).is_none());
    }
}
