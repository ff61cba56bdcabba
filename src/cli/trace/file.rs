//! The file of a trace: written beside its final path and renamed when it is complete, so that a failure or a
//! signal leaves no partial file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rusqlite::Connection;
use tokio::signal::unix::{SignalKind, signal};

use crate::regular_file;
use crate::request::RequestId;

/// A database under a temporary name beside its final path; removed when dropped.
pub(super) struct TraceFile {
    out: PathBuf,
    partial: PathBuf,
    force: bool,
}

impl TraceFile {
    /// Creates the temporary file.
    ///
    /// # Errors
    /// If `out` exists and `force` is not set, if it is not a regular file, or if the directory can't be
    /// written.
    pub fn create(out: &Path, force: bool) -> Result<Self> {
        refuse_existing(out, force)?;
        let is_directory = out.as_os_str().as_encoded_bytes().ends_with(b"/");
        if is_directory || out.file_name().is_none() || out.is_dir() {
            bail!("--out {} is a directory; name a file", out.display());
        }
        if let Ok(existing) = std::fs::metadata(out) {
            // The rename would put a file in the place of a device.
            regular_file::check(existing.file_type())
                .with_context(|| format!("--out {} can't be replaced", out.display()))?;
        }
        // SQLite takes a name that begins with `file:` as a URI.
        let partial = std::path::absolute(out)?;
        let partial = partial.with_file_name(format!(".trace-{}.partial", RequestId::random()));
        let created = std::fs::File::create_new(&partial);
        created.with_context(|| format!("--out {} can't be written", out.display()))?;
        Ok(Self {
            out: out.to_owned(),
            partial,
            force,
        })
    }

    /// Opens the database, without a journal: an incomplete file is removed, not repaired.
    pub fn open(&self) -> Result<Connection> {
        let db = Connection::open(&self.partial)?;
        db.execute_batch(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA page_size = 8192;",
        )?;
        Ok(db)
    }

    /// Removes the file when a signal ends the process.
    ///
    /// # Errors
    /// If the system provides no handler.
    pub fn remove_on_signals(&self, runtime: &tokio::runtime::Runtime) -> std::io::Result<()> {
        let _context = runtime.enter();
        for kind in [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
        ] {
            let mut arrival = signal(kind)?;
            let partial = self.partial.clone();
            runtime.spawn(async move {
                arrival.recv().await;
                let _ = std::fs::remove_file(partial);
                std::process::exit(128 + kind.as_raw_value());
            });
        }
        Ok(())
    }

    /// Moves the complete file to its final path.
    ///
    /// # Errors
    /// If it can't be made durable or renamed, or another file was created meanwhile.
    pub fn publish(self) -> Result<()> {
        refuse_existing(&self.out, self.force)?;
        let file = std::fs::File::open(&self.partial)?;
        file.sync_all()
            .and_then(|()| std::fs::rename(&self.partial, &self.out))
            .with_context(|| format!("--out {} can't be written", self.out.display()))
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.partial);
    }
}

fn refuse_existing(out: &Path, force: bool) -> Result<()> {
    if !force && std::fs::symlink_metadata(out).is_ok() {
        bail!(
            "--out {} already exists; --force replaces it",
            out.display()
        );
    }
    Ok(())
}
