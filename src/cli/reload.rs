//! Reloads files while the server runs: on SIGHUP, and when they have changed.
//!
//! A file that can't be used changes nothing and is logged. SIGHUP never ends the server.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use crate::keys::Keys;
use crate::tls::Identity;

/// Interval of checks for changed files. No library reports changes on every file system, and in a
/// container a secret is a link to a directory that is replaced.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Content of files that can be reloaded.
pub(super) trait Reload: Send + Sync {
    /// Returns its name in the log.
    fn name(&self) -> &'static str;

    /// Returns the files.
    fn files(&self) -> Vec<&Path>;

    /// Reads the files again.
    ///
    /// # Errors
    /// If they can't be used; then the previous content stays.
    fn reload(&self) -> anyhow::Result<()>;
}

impl Reload for Identity {
    fn name(&self) -> &'static str {
        "TLS certificate and key"
    }

    fn files(&self) -> Vec<&Path> {
        Self::files(self).to_vec()
    }

    fn reload(&self) -> anyhow::Result<()> {
        Ok(Self::reload(self)?)
    }
}

impl Reload for Keys {
    fn name(&self) -> &'static str {
        "API keys"
    }

    fn files(&self) -> Vec<&Path> {
        vec![self.file()]
    }

    fn reload(&self) -> anyhow::Result<()> {
        Ok(Self::reload(self, Instant::now())?)
    }
}

/// The state of a file: its modification time, length and inode, which changes when another file replaces
/// it.
type Stamp = Option<(SystemTime, u64, u64)>;

/// Content of files, and the state of the files when they were last read.
struct Watched {
    content: Arc<dyn Reload>,
    stamps: Vec<Stamp>,
}

impl Watched {
    fn new(content: Arc<dyn Reload>) -> Self {
        let stamps = stamps(&*content);
        Self { content, stamps }
    }

    /// Reads the files again, if they have changed or `always`.
    fn check(&mut self, always: bool) {
        let stamps = stamps(&*self.content);
        if !always && stamps == self.stamps {
            return;
        }
        self.stamps = stamps;
        let name = self.content.name();
        match self.content.reload() {
            Ok(()) => info!(name, "reloaded"),
            Err(error) => error!(
                name,
                %error,
                "reload failed; keeping the previous version"
            ),
        }
    }
}

fn stamps(content: &dyn Reload) -> Vec<Stamp> {
    let stamp = |file: &Path| {
        let metadata = fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    content.files().into_iter().map(stamp).collect()
}

/// Reloads all of `contents` on SIGHUP, and each when its files have changed, from now on.
///
/// # Errors
/// If the signal can't be handled.
pub(super) fn watch(contents: Vec<Arc<dyn Reload>>) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut watched: Vec<Watched> = contents.into_iter().map(Watched::new).collect();
    tokio::spawn(async move {
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let always = tokio::select! {
                _ = hangup.recv() => true,
                _ = checks.tick(), if !watched.is_empty() => false,
            };
            if always && watched.is_empty() {
                info!(
                    "SIGHUP received, nothing to reload; other settings are read at the start only"
                );
            }
            // File systems can be slow.
            let check = spawn_blocking(move || {
                for watched in &mut watched {
                    watched.check(always);
                }
                watched
            });
            match check.await {
                Ok(back) => watched = back,
                Err(error) => return error!(%error, "file watching stopped"),
            }
        }
    });
    Ok(())
}
