//! Downloads one file: resumes a partial one, survives broken connections, and renames the file
//! into place only when it matches the hub's metadata.
//!
//! The thread blocks while it writes or hashes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;

use super::digest;
use super::error::FetchError;
use super::http::{Hub, Metadata};
use super::progress::Progress;
use super::retry::Retry;

/// Maximum size in bytes of a file whose length is unknown; the hub sends the length of large
/// files.
const MAX_UNANNOUNCED: u64 = 1 << 30;

/// A file to fetch.
pub(super) struct Download<'a> {
    pub(super) hub: &'a Hub,
    pub(super) id: &'a str,
    pub(super) commit: &'a str,
    pub(super) file: &'a str,
    pub(super) metadata: &'a Metadata,
    pub(super) progress: Progress,
}

impl Download<'_> {
    /// Downloads the file to `partial`, then renames it to `blob`.
    pub(super) async fn run(self, partial: PathBuf, blob: PathBuf) -> Result<(), FetchError> {
        let mut partial = Partial::open(partial)?;
        // Completeness can't be determined for a file of unknown length.
        if self.metadata.size.is_none_or(|size| partial.length > size) {
            partial.clear()?;
        }
        loop {
            let resumed = partial.length > 0;
            self.complete(&mut partial).await?;
            if partial.matches(&self.metadata.etag)? {
                break;
            }
            partial.clear()?;
            // The resumed part may be the corrupt one.
            if !resumed {
                return Err(FetchError::Corrupt);
            }
            tracing::warn!(file = self.file, "discarding a corrupt partial download");
        }
        partial.become_whole(blob)?;
        self.progress.finish();
        Ok(())
    }

    /// Resumes where a connection broke, until the file is complete.
    async fn complete(&self, partial: &mut Partial) -> Result<(), FetchError> {
        let mut retry = Retry::new();
        // Only bytes beyond the longest earlier attempt count as progress.
        let mut furthest = partial.length;
        loop {
            match self.append(partial).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    if partial.length > furthest {
                        furthest = partial.length;
                        retry.progressed();
                    }
                    retry.pause(error).await?;
                }
            }
        }
    }

    /// Appends the body of one response.
    async fn append(&self, partial: &mut Partial) -> Result<(), FetchError> {
        let (hub, size) = (self.hub, self.metadata.size);
        if size == Some(partial.length) && partial.length > 0 {
            return Ok(());
        }
        let from = partial.length;
        let answer = hub.content(self.id, self.commit, self.file, from).await;
        let mut answer = match answer {
            Err(FetchError::Refused { status, .. })
                if status == StatusCode::RANGE_NOT_SATISFIABLE =>
            {
                partial.clear()?;
                return Err(FetchError::Range);
            }
            answer => answer?,
        };
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            partial.clear()?;
        } else if first_byte(&answer) != Some(from) {
            partial.clear()?;
            return Err(FetchError::Range);
        }
        self.progress
            .begin(size.or(answer.content_length()), partial.length);
        let most = size.unwrap_or(MAX_UNANNOUNCED);
        while let Some(chunk) = answer.chunk().await? {
            partial.append(&chunk)?;
            self.progress.at(partial.length);
            if partial.length > most {
                let found = partial.length;
                partial.clear()?;
                return Err(FetchError::TooLong {
                    found,
                    expected: most,
                });
            }
        }
        match size {
            Some(expected) if expected != partial.length => Err(FetchError::Incomplete {
                found: partial.length,
                expected,
            }),
            _ => Ok(()),
        }
    }
}

/// Returns the first byte of a partial response, counted from 0.
fn first_byte(answer: &reqwest::Response) -> Option<u64> {
    let range = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    first.parse().ok()
}

/// A partially downloaded file.
struct Partial {
    path: PathBuf,
    file: File,
    /// Bytes written so far.
    length: u64,
}

impl Partial {
    fn open(path: PathBuf) -> Result<Self, FetchError> {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let length = |file: File| file.metadata().map(|metadata| (file, metadata.len()));
        let (file, length) = file
            .and_then(length)
            .map_err(|error| FetchError::io(&path, error))?;
        Ok(Self { path, file, length })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let written = self.file.write_all(bytes);
        self.length += bytes.len() as u64;
        written.map_err(|error| self.failed(error))
    }

    fn clear(&mut self) -> Result<(), FetchError> {
        self.length = 0;
        self.file.set_len(0).map_err(|error| self.failed(error))
    }

    fn matches(&self, etag: &str) -> Result<bool, FetchError> {
        digest::matches(etag, &self.path).map_err(|error| self.failed(error))
    }

    /// Syncs the file and renames it into place.
    fn become_whole(self, blob: PathBuf) -> Result<(), FetchError> {
        let renamed = self.file.sync_all();
        let renamed = renamed.and_then(|()| std::fs::rename(&self.path, blob));
        renamed.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> FetchError {
        FetchError::io(&self.path, error)
    }
}
