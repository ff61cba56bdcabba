//! The file of a trace: written beside its final path and renamed when it is complete, so that a failure or a
//! signal leaves no partial file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rusqlite::Connection;
use tokio::signal::unix::{SignalKind, signal};

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
    /// If `out` exists and `force` is not set, or the directory can't be written.
    pub fn create(out: &Path, force: bool) -> Result<Self> {
        refuse_existing(out, force)?;
        let Some(name) = out.file_name() else {
            bail!("--out {} is not the name of a file", out.display());
        };
        if out.is_dir() {
            bail!("--out {} is a directory; name a file", out.display());
        }
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = out.with_file_name(partial);
        let created = std::fs::File::create(&partial);
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

    /// Removes the file when the process is interrupted or terminated, then ends the process.
    ///
    /// # Errors
    /// If the system provides no handler.
    pub fn remove_on_signals(&self, runtime: &tokio::runtime::Runtime) -> std::io::Result<()> {
        let _context = runtime.enter();
        for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
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
