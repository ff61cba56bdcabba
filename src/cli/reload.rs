//! Files that are read again while the server runs: on SIGHUP, and when they have changed.
//!
//! A file that can't be used changes nothing, and is told in the log. SIGHUP never ends the server.

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

/// How often files are looked at. No library tells of changes on every file system, and in a
/// container a secret is a link to a directory that is replaced.
const LOOK: Duration = Duration::from_secs(5);

/// Something that files say.
pub(super) trait Reload: Send + Sync {
    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// The files.
    fn files(&self) -> Vec<&Path>;

    /// Reads the files again.
    ///
    /// # Errors
    /// Why they can't be used; then everything stays as it was.
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

/// What tells one state of a file from another: its time, its length and its number, which changes where a
/// file is replaced by another.
type Stamp = Option<(SystemTime, u64, u64)>;

/// Something that files say, and the files as they were when they were last read.
struct Watched {
    what: Arc<dyn Reload>,
    stamps: Vec<Stamp>,
}

impl Watched {
    fn new(what: Arc<dyn Reload>) -> Self {
        let stamps = stamps(&*what);
        Self { what, stamps }
    }

    /// Reads the files again, if they have changed or `always`.
    fn look(&mut self, always: bool) {
        let stamps = stamps(&*self.what);
        if !always && stamps == self.stamps {
            return;
        }
        self.stamps = stamps;
        let name = self.what.name();
        match self.what.reload() {
            Ok(()) => info!(name, "reloaded"),
            Err(error) => error!(
                name,
                %error,
                "reload failed; keeping the previous version"
            ),
        }
    }
}

fn stamps(what: &dyn Reload) -> Vec<Stamp> {
    let stamp = |file: &Path| {
        let metadata = fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    what.files().into_iter().map(stamp).collect()
}

/// Reloads all of `things` on SIGHUP, and each when its files have changed, from now on.
///
/// # Errors
/// If the system gives no signal handler.
pub(super) fn watch(things: Vec<Arc<dyn Reload>>) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut watched: Vec<Watched> = things.into_iter().map(Watched::new).collect();
    tokio::spawn(async move {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let always = tokio::select! {
                _ = hangup.recv() => true,
                _ = looks.tick(), if !watched.is_empty() => false,
            };
            if always && watched.is_empty() {
                info!("SIGHUP: nothing to reload; other settings are read at the start only");
            }
            // A file system can be slow.
            let look = spawn_blocking(move || {
                for watched in &mut watched {
                    watched.look(always);
                }
                watched
            });
            match look.await {
                Ok(back) => watched = back,
                Err(error) => return error!(%error, "file watching stopped"),
            }
        }
    });
    Ok(())
}
