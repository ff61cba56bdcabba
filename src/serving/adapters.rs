//! The adapters that are served beside a model, by name.
//!
//! Adapters are loaded and unloaded while requests run. A request holds its adapter, so one that is unloaded is
//! gone when the last of its requests has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::backend::Backend;
use crate::checkpoint::ModelConfig;
use crate::checkpoint::adapter::{AdapterError, AdapterFiles};
use crate::model::adapter::Adapter;

/// Maximum bytes of an adapter's name.
pub const MAX_NAME_BYTES: usize = 128;

/// Error of loading an adapter.
#[derive(Debug, thiserror::Error)]
pub enum LoadAdapterError {
    /// The name can't be used.
    #[error(
        "{name:?} is not a valid name for an adapter: it must have 1 to {MAX_NAME_BYTES} bytes, without spaces, \
         `=` or control characters"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The name is that of the model.
    #[error("`{name}` is a name of the model itself; choose another one for the adapter")]
    Reserved {
        /// The name.
        name: String,
    },
    /// The name is that of another adapter.
    #[error("an adapter named `{name}` is loaded already; choose another name, or unload that one")]
    Taken {
        /// The name.
        name: String,
    },
    /// Its files can't be served with the model.
    #[error(transparent)]
    Files(#[from] AdapterError),
}

/// The adapters of a model.
pub struct Adapters {
    config: ModelConfig,
    backend: Box<dyn Backend>,
    /// Names that mean the model itself.
    reserved: Vec<String>,
    loaded: RwLock<BTreeMap<String, Arc<Adapter>>>,
    /// Held while one is loaded: the name is free until it is.
    loading: Mutex<()>,
}

impl Adapters {
    /// Creates the registry of a model, without adapters; `backend` prepares their matrices.
    pub(super) fn new(
        config: ModelConfig,
        backend: Box<dyn Backend>,
        reserved: Vec<String>,
    ) -> Self {
        Self {
            config,
            backend,
            reserved,
            loaded: RwLock::default(),
            loading: Mutex::default(),
        }
    }

    /// Loads an adapter from a directory or the hub (`org/name`, `org/name@revision`). Blocks.
    ///
    /// # Errors
    /// [`LoadAdapterError`]; what is loaded stays as it is.
    pub fn load(&self, name: &str, source: &str) -> Result<Arc<Adapter>, LoadAdapterError> {
        let is_plain = |c: char| !c.is_control() && !c.is_whitespace() && c != '=';
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_plain) {
            let name = name.chars().take(MAX_NAME_BYTES).collect();
            return Err(LoadAdapterError::Name { name });
        }
        let _one = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let owned = || name.to_owned();
        if self.reserved.iter().any(|reserved| reserved == name) {
            return Err(LoadAdapterError::Reserved { name: owned() });
        }
        if self.get(name).is_some() {
            return Err(LoadAdapterError::Taken { name: owned() });
        }
        let files = AdapterFiles::fetch(source)?;
        let adapter = Adapter::load(name, source, &files, &self.config, &*self.backend)?;
        let adapter = Arc::new(adapter);
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.insert(name.to_owned(), Arc::clone(&adapter));
        Ok(adapter)
    }

    /// Unloads an adapter; requests that use it continue. Returns it, if there was one.
    pub fn unload(&self, name: &str) -> Option<Arc<Adapter>> {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.remove(name)
    }

    /// Returns the adapter of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Adapter>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.get(name).cloned()
    }

    /// Returns all adapters, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Adapter>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.values().cloned().collect()
    }
}
