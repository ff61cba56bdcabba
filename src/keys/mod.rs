//! API keys: scopes, limits, and the file that stores them. No HTTP.
//!
//! | module | purpose |
//! |---|---|
//! | [`key`] | a key: its id, name, scopes and limits |
//! | [`secret`] | the text that a client sends, and its hash, which the file stores |
//! | [`file`] | the file: read, edited, replaced |
//! | `parse` | parses the text of the file |
//! | [`bucket`] | a token bucket of an amount per minute |
//! | [`usage`] | the usage of one key's limits |
//!
//! Clients send a secret of 256 random bits. It can't be guessed, so a fast hash protects it as well as a
//! slow one would protect a password, and checking a key costs a request almost no time.
//!
//! A secret must never leave [`Secret`] except when it is shown to its owner once. This module does
//! not read the clock: callers pass the time.

pub mod bucket;
mod digits;
pub mod file;
mod id;
mod invalid;
pub mod key;
mod parse;
pub mod secret;
pub mod usage;

pub use self::file::{KeyFile, KeyFileError};
pub use self::id::KeyId;
pub use self::invalid::InvalidKey;
pub use self::key::{Key, KeyLimits, KeyName, KeyScope};
pub use self::parse::Fault;
pub use self::secret::{Secret, SecretHash};
pub use self::usage::{LimitKind, LimitReached, Place, Usage};

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use tracing::warn;

use crate::request::Tenant;

/// A key and its usage.
#[derive(Debug)]
pub struct Account {
    /// The key as it was in the file when the request arrived.
    pub key: Key,
    /// The usage of its limits; survives a change of the file.
    pub usage: Arc<Usage>,
}

impl Account {
    /// Returns the tenant of the key. It depends on the key's id alone, so it survives a new
    /// secret, and is the same on every server that has the key.
    #[must_use]
    pub fn tenant(&self) -> Tenant {
        Tenant::of_key_id(self.key.id.as_str())
    }
}

/// Maximum keys that have left the file and whose usage is still known: more than a file can hold.
const MAX_DEPARTED: usize = 1 << 16;

/// The known keys.
#[derive(Debug, Default)]
struct Accounts {
    /// The keys in the file.
    present: HashMap<KeyId, Arc<Account>>,
    /// The usage of keys that have left the file. A file that is being rewritten in place can be read without
    /// some of its keys; when they are back, their usage and their requests in progress must still be known.
    departed: HashMap<KeyId, Arc<Usage>>,
}

/// The keys of a server, which can be reloaded while it serves.
///
/// One lock, read once per request and written by a reload. Memory is bounded by the file and
/// [`MAX_DEPARTED`]: the usage of a key that is not in the file is dropped, at the next reload, once all of
/// its limits are replenished and none of its requests is in progress.
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
    /// [`KeyFileError`] with file, line and fault.
    pub fn load(file: PathBuf, now: Instant) -> Result<Self, KeyFileError> {
        let accounts = Accounts::default().reloaded(KeyFile::read(&file)?.keys, now);
        Ok(Self {
            file,
            accounts: RwLock::new(Arc::new(accounts)),
        })
    }

    /// Reads the file again. It applies to requests that arrive from then on; the usage of keys stays.
    ///
    /// # Errors
    /// [`KeyFileError`]; the previous keys stay in use.
    pub fn reload(&self, now: Instant) -> Result<(), KeyFileError> {
        let accounts = self
            .accounts()
            .reloaded(KeyFile::read(&self.file)?.keys, now);
        if accounts.present.is_empty() {
            warn!("no API keys in the file, refusing every request; see `skald keys create`");
        }
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
        self.accounts().present.len()
    }

    /// Returns whether there are no keys, so that every request is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accounts().present.is_empty()
    }

    /// Returns the key with this secret. An unknown key takes as long as a wrong secret.
    #[must_use]
    pub fn authenticate(&self, shown: &[u8]) -> Option<Arc<Account>> {
        let hash = SecretHash::of(shown);
        let accounts = self.accounts();
        let account = secret::id(shown).and_then(|id| accounts.present.get(id));
        let expected = account.map_or(SecretHash::NONE, |account| account.key.hash);
        let right = hash == expected;
        account.filter(|_| right).cloned()
    }

    /// Returns all keys, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Account>> {
        let mut all: Vec<_> = self.accounts().present.values().cloned().collect();
        all.sort_by(|a, b| a.key.name.cmp(&b.key.name));
        all
    }

    fn accounts(&self) -> Arc<Accounts> {
        let accounts = self.accounts.read();
        Arc::clone(&accounts.unwrap_or_else(PoisonError::into_inner))
    }
}

impl Accounts {
    /// Returns the accounts of the keys that are in the file now. The usage of keys stays.
    fn reloaded(&self, keys: Vec<Key>, now: Instant) -> Self {
        let known = |id: &KeyId| {
            let present = self.present.get(id).map(|account| &account.usage);
            present.or_else(|| self.departed.get(id)).cloned()
        };
        let account = |key: Key| {
            let usage = match known(&key.id) {
                Some(usage) => {
                    usage.set_limits(key.limits, now);
                    usage
                }
                None => Arc::new(Usage::new(key.limits, now)),
            };
            (key.id.clone(), Arc::new(Account { key, usage }))
        };
        let present: HashMap<_, _> = keys.into_iter().map(account).collect();
        let left = self.present.iter();
        let left = left.map(|(id, account)| (id, &account.usage));
        let departed = left.chain(&self.departed);
        let departed = departed.filter(|(id, _)| !present.contains_key(*id));
        let departed = departed.map(|(id, usage)| (usage.reset(now), id, usage));
        let mut departed: Vec<_> = departed.filter(|(reset, ..)| !reset.is_zero()).collect();
        if departed.len() > MAX_DEPARTED {
            departed.sort_by_key(|(reset, ..)| Reverse(*reset));
            departed.truncate(MAX_DEPARTED);
        }
        let departed = departed.into_iter();
        let departed = departed.map(|(_, id, usage)| (id.clone(), Arc::clone(usage)));
        Self {
            departed: departed.collect(),
            present,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

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
        // The secret of another key after this one's id.
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
        assert!(matches!(
            after.usage.begin(now),
            Err(LimitReached::Requests { limit: 2, .. })
        ));

        std::fs::write(&path, "[[key]]\nid = 1\n").unwrap();
        let error = keys.reload(now).unwrap_err();
        assert!(matches!(error, KeyFileError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains("line 2: `id` is"), "{error}");
        assert_eq!(keys.len(), 2);
        std::fs::write(&path, "").unwrap();
        keys.reload(now).unwrap();
        assert!(keys.is_empty());
        assert!(keys.authenticate(shown).is_none());
    }

    #[test]
    fn a_key_that_is_back_in_the_file_has_used_what_it_had_used() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let limits = KeyLimits {
            requests_per_minute: NonZeroU32::new(2),
            tokens_per_minute: NonZeroU32::new(60),
            concurrent_requests: NonZeroU32::new(1),
        };
        let (ada, secret) = key("ada", limits);
        let (bob, _) = key("bob", limits);
        let (_dir, path) = written(&[&ada, &bob]);
        let keys = Keys::load(path.clone(), start).unwrap();
        let used = || {
            keys.authenticate(secret.expose().as_bytes())
                .unwrap()
                .usage
                .clone()
        };
        let running = used().begin(start).unwrap();
        used().take_prompt(60, start).unwrap();
        used().take_generated(60, start);
        // The states of a file that is rewritten in place: empty, then without its end.
        std::fs::write(&path, "").unwrap();
        keys.reload(start).unwrap();
        assert!(keys.is_empty() && keys.all().is_empty());
        write(&path, &[&bob]);
        keys.reload(start).unwrap();
        write(&path, &[&bob, &ada]);
        keys.reload(start).unwrap();
        assert!(matches!(
            used().begin(start),
            Err(LimitReached::Concurrent { limit: 1 })
        ));
        drop(running);
        assert!(matches!(
            used().take_prompt(1, start),
            Err(LimitReached::Tokens { limit: 60, .. })
        ));
        drop(used().begin(start).unwrap());
        assert!(matches!(
            used().begin(start),
            Err(LimitReached::Requests { limit: 2, .. })
        ));

        // Absent until its debt is paid off, with reloads in between, and then dropped.
        write(&path, &[&bob]);
        for seconds in [0, 60, 119] {
            keys.reload(after(seconds)).unwrap();
            assert_eq!(keys.accounts().departed.len(), 1, "{seconds}");
        }
        keys.reload(after(120)).unwrap();
        assert_eq!(keys.accounts().departed.len(), 0);
        write(&path, &[&ada]);
        keys.reload(after(120)).unwrap();
        assert_eq!(used().totals().requests, 0);
        assert_eq!(keys.accounts().departed.len(), 0, "bob has used nothing");
    }

    #[test]
    fn of_too_many_keys_that_left_those_with_least_use_are_forgotten() {
        let now = Instant::now();
        let limits = KeyLimits {
            tokens_per_minute: NonZeroU32::new(60),
            ..KeyLimits::default()
        };
        let keys: Vec<Key> = (0..MAX_DEPARTED + 2).map(|_| key("x", limits).0).collect();
        let ids: Vec<KeyId> = keys.iter().map(|key| key.id.clone()).collect();
        let present = Accounts::default().reloaded(keys, now);
        for (number, id) in ids.iter().enumerate() {
            let tokens = if number == 7 { 1 } else { 2 };
            present.present[id].usage.take_generated(tokens, now);
        }
        let _running = present.present[&ids[7]].usage.begin(now).unwrap();
        present.present[&ids[9]].usage.take_generated(1, now);
        let departed = present.reloaded(Vec::new(), now).departed;
        assert_eq!(departed.len(), MAX_DEPARTED);
        assert!(departed.contains_key(&ids[7]) && departed.contains_key(&ids[9]));
    }
}
