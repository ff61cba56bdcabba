//! Key files whose secrets a test knows.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use skald::http::Access;
use skald::keys::{Key, KeyFile, KeyId, KeyLimits, KeyScope, Keys, Secret};
use tempfile::TempDir;

use super::{Setup, TestServer};

/// No limits.
pub const FREE: KeyLimits = KeyLimits {
    requests_per_minute: None,
    tokens_per_minute: None,
    concurrent_requests: None,
};

pub fn requests_per_minute(limit: u32) -> KeyLimits {
    KeyLimits {
        requests_per_minute: NonZeroU32::new(limit),
        ..FREE
    }
}

pub fn tokens_per_minute(limit: u32) -> KeyLimits {
    KeyLimits {
        tokens_per_minute: NonZeroU32::new(limit),
        ..FREE
    }
}

pub fn concurrent_requests(limit: u32) -> KeyLimits {
    KeyLimits {
        concurrent_requests: NonZeroU32::new(limit),
        ..FREE
    }
}

/// A key file.
pub struct KeysFile {
    directory: TempDir,
    file: KeyFile,
}

impl KeysFile {
    pub fn new() -> Self {
        let keys = Self {
            directory: TempDir::new().expect("a directory"),
            file: KeyFile::default(),
        };
        keys.write();
        keys
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("keys.toml")
    }

    /// Adds a key, and returns its secret.
    pub fn add(&mut self, name: &str, scope: KeyScope, limits: KeyLimits) -> &'static str {
        let id = KeyId::random().expect("randomness");
        let secret = Secret::random(&id).expect("randomness");
        let key = Key {
            hash: secret.hash(),
            id,
            name: name.parse().expect("a name"),
            scopes: vec![scope],
            limits,
            may_prioritize: false,
            created: None,
        };
        self.file = self.file.clone().with(key).expect("another name");
        self.write();
        secret.expose().to_owned().leak()
    }

    /// Removes a key.
    pub fn revoke(&mut self, name: &str) {
        self.file = self.file.without(name).expect("it is there").0;
        self.write();
    }

    fn write(&self) {
        self.file.replace(&self.path()).expect("written");
    }

    pub fn load(&self) -> Arc<Keys> {
        Arc::new(Keys::load(self.path(), Instant::now()).expect("keys"))
    }

    /// Starts a server that requires these keys.
    pub fn serve(&self, setup: Setup) -> TestServer {
        TestServer::with(Setup {
            access: Access {
                keys: Some(self.load()),
                ..setup.access
            },
            ..setup
        })
    }
}
