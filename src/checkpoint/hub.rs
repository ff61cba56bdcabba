//! Fetches a model from the hub into the cache that all Hugging Face tools share.
//!
//! Only the files that Skald reads are fetched, all of the same commit. A revision moves to a new
//! commit only after every file has been downloaded, so a cached revision is complete and can be
//! served when the hub is unreachable. Cached files are not trusted; they are checked when they are
//! opened.

mod cache;
mod digest;
mod download;
mod error;
mod http;
mod progress;
mod retry;
mod settings;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use cache::ModelCache;
use download::Download;
use error::FetchError;
use http::{Hub, Revision};
use progress::Progress;
use retry::Retry;

pub use error::HubError;
pub use settings::{HubSettings, HubToken};

use super::adapter;
use super::gguf::GgufChoice;
use super::gguf::choice::{choose, has_only_gguf};
use super::layout::{IncompleteModel, Layout};

const MAIN: &str = "main";
/// Depth of directories in which cached models in GGUF are looked for.
const MAX_DEPTH: usize = 4;

impl HubSettings {
    /// Fetches the files of a model into the cache and returns their directory, or the (first) file of a model
    /// in GGUF: `gguf` chooses one. Blocks; may be called from any thread, including those of an async runtime.
    ///
    /// # Errors
    /// [`HubError`] if the model can't be fetched, or lacks weights or a tokenizer in a supported
    /// format.
    pub fn pull(
        &self,
        id: &str,
        revision: Option<&str>,
        gguf: Option<&GgufChoice>,
        progress: bool,
    ) -> Result<PathBuf, HubError> {
        self.fetch(id, revision, Wanted::Model(gguf), progress)
    }

    /// Fetches the files of an adapter, as [`pull`](Self::pull) does those of a model.
    ///
    /// # Errors
    /// [`HubError`] if it can't be fetched, or the repository is not one of an adapter.
    pub fn pull_adapter(&self, id: &str, revision: Option<&str>) -> Result<PathBuf, HubError> {
        self.fetch(id, revision, Wanted::Adapter, false)
    }

    fn fetch(
        &self,
        id: &str,
        revision: Option<&str>,
        wanted: Wanted<'_>,
        progress: bool,
    ) -> Result<PathBuf, HubError> {
        let pull = Pull {
            settings: self,
            id,
            wanted,
            revision: revision.unwrap_or(MAIN),
            cache: ModelCache::new(&self.cache_dir, id),
            progress,
        };
        pull.run()
    }
}

/// Calls [`HubSettings::pull`] with the settings of the environment.
///
/// # Errors
/// Those of [`HubSettings::pull`].
pub fn pull(
    id: &str,
    revision: Option<&str>,
    gguf: Option<&GgufChoice>,
    progress: bool,
) -> Result<PathBuf, HubError> {
    HubSettings::from_env().pull(id, revision, gguf, progress)
}

/// Returns whether a text is formatted as a hub id: `organization/name` or `name`.
pub(super) fn is_id(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    text.len() <= 96 && text.split('/').count() <= 2 && text.split('/').all(part)
}

/// Returns whether a text can name a branch, tag or commit. It becomes part of a path in the cache.
pub(super) fn is_revision(text: &str) -> bool {
    text.split('/')
        .all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains(".."))
        && text
            .chars()
            .all(|c| c.is_ascii_graphic() && !r"\~^:?*[".contains(c))
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.chars().all(|c| c.is_ascii_hexdigit())
}

/// What is fetched from a repository.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// A model; one of several in GGUF, if there is a choice.
    Model(Option<&'a GgufChoice>),
    /// A LoRA adapter.
    Adapter,
}

/// A model or adapter being fetched.
struct Pull<'a> {
    settings: &'a HubSettings,
    id: &'a str,
    revision: &'a str,
    wanted: Wanted<'a>,
    cache: ModelCache,
    progress: bool,
}

impl Pull<'_> {
    fn run(&self) -> Result<PathBuf, HubError> {
        // The files of a commit never change, so no request to the hub is needed.
        if (self.settings.offline || is_commit(self.revision))
            && let Some(snapshot) = self.cached()
        {
            return Ok(snapshot);
        }
        if self.settings.offline {
            return Err(HubError::Offline {
                id: self.name(),
                cache: self.cache.directory().display().to_string(),
            });
        }
        let error = match self.download_in_own_runtime() {
            Err(error) if error.may_pass() => error,
            done => return done,
        };
        let Some(snapshot) = self.cached() else {
            return Err(error);
        };
        tracing::warn!(%error, "hub unavailable, using the cached copy, which may be outdated");
        Ok(snapshot)
    }

    fn name(&self) -> String {
        format!("{}@{}", self.id, self.revision)
    }

    /// Returns the directory of the revision's files if all of them are cached.
    fn cached(&self) -> Option<PathBuf> {
        let commit = if is_commit(self.revision) {
            self.revision.to_owned()
        } else {
            self.cache.commit_of(self.revision)?
        };
        let snapshot = self.cache.snapshot(&commit);
        let mut files = Vec::new();
        list(&snapshot, "", 0, &mut files);
        if let Wanted::Adapter = self.wanted {
            return self.adapter_files(&files).is_ok().then_some(snapshot);
        }
        match self.gguf_files(&files) {
            None => is_whole(&snapshot).then_some(snapshot),
            Some(chosen) => {
                let parts = chosen.ok()?;
                let is_whole = parts.iter().all(|part| snapshot.join(part).exists());
                parts
                    .first()
                    .filter(|_| is_whole)
                    .map(|first| snapshot.join(first))
            }
        }
    }

    /// Returns the files of the model in GGUF among a repository's files; `None` if it is in the Hugging Face
    /// layout.
    fn gguf_files(&self, files: &[String]) -> Option<Result<Vec<String>, HubError>> {
        let files = files.iter().map(String::as_str);
        let choice = match self.wanted {
            Wanted::Model(choice) => choice,
            Wanted::Adapter => return None,
        };
        if choice.is_none() && !has_only_gguf(files.clone()) {
            return None;
        }
        let place = format!("the repository {}", self.name());
        let how = format!(
            "choose one with `{id}:QUANTIZATION` or `{id}/FILE`",
            id = self.id
        );
        Some(choose(&place, &files, choice, &how).map_err(HubError::from))
    }

    /// Returns the files of the adapter among a repository's files.
    fn adapter_files(&self, files: &[String]) -> Result<Vec<&'static str>, HubError> {
        let has = |wanted: &&str| files.iter().any(|file| file == wanted);
        let weights = adapter::WEIGHTS.into_iter().find(has);
        match weights.filter(|_| has(&adapter::CONFIG)) {
            Some(weights) => Ok(vec![adapter::CONFIG, weights]),
            None => Err(HubError::from(IncompleteModel {
                place: format!("the repository {}", self.name()),
                missing: "adapter_config.json with adapter_model.safetensors",
                hint: String::new(),
            })),
        }
    }

    /// Runs the async client on a separate thread, since the caller may already be inside a
    /// runtime.
    fn download_in_own_runtime(&self) -> Result<PathBuf, HubError> {
        let download = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| HubError::Io {
                    file: self.cache.directory().display().to_string(),
                    source,
                })?;
            runtime.block_on(self.download())
        };
        std::thread::scope(|scope| match scope.spawn(download).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    async fn download(&self) -> Result<PathBuf, HubError> {
        let hub = Hub::new(self.settings).map_err(|error| self.explain(error, None))?;
        let asked = self.ask(&hub).await;
        let Revision { commit, files } = asked.map_err(|error| self.explain(error, None))?;
        let snapshot = self.cache.snapshot(&commit);
        if let Some(parts) = self.gguf_files(&files).transpose()? {
            for part in &parts {
                self.file(&hub, &commit, part).await?;
            }
            self.point_to(&commit);
            return Ok(parts
                .first()
                .map_or(snapshot.clone(), |first| snapshot.join(first)));
        }
        if let Wanted::Adapter = self.wanted {
            for file in self.adapter_files(&files)? {
                self.file(&hub, &commit, file).await?;
            }
            self.point_to(&commit);
            return Ok(snapshot);
        }
        let files: HashSet<String> = files.into_iter().collect();
        let present = |file: &str| files.contains(file);
        let layout = Layout::find(&format!("the repository {}", self.name()), present)?;

        for file in layout.files(present) {
            self.file(&hub, &commit, file).await?;
        }
        for part in layout.weights.parts(&snapshot)? {
            self.file(&hub, &commit, &part).await?;
        }
        self.point_to(&commit);
        Ok(snapshot)
    }

    async fn ask(&self, hub: &Hub) -> Result<Revision, FetchError> {
        let within = self.settings.answer_within;
        let retry = Retry::within(within);
        let revision = retry.repeat(async || hub.revision(self.id, self.revision).await);
        let answer = tokio::time::timeout(within, revision).await;
        answer.unwrap_or(Err(FetchError::Silent(within)))
    }

    /// Fetches one file unless it is cached.
    async fn file(&self, hub: &Hub, commit: &str, file: &str) -> Result<(), HubError> {
        if self.cache.snapshot(commit).join(file).exists() {
            return Ok(());
        }
        let fetched = self.fetch(hub, commit, file).await;
        fetched.map_err(|error| self.explain(error, Some(file)))
    }

    async fn fetch(&self, hub: &Hub, commit: &str, file: &str) -> Result<(), FetchError> {
        let metadata = Retry::new()
            .repeat(async || hub.metadata(self.id, commit, file).await)
            .await?;
        let etag = metadata.etag.as_str();
        let io = |error| FetchError::io(self.cache.directory(), error);

        let lock = self.cache.lock(etag).map_err(io)?;
        let blob = self.cache.blob(etag);
        // Another commit may have the same content, or another process may have fetched it
        // meanwhile.
        if !blob.exists() {
            tracing::info!(model = self.id, file, bytes = metadata.size, "downloading");
            let partial = self.cache.partial(etag, lock.is_some()).map_err(io)?;
            let download = Download {
                hub,
                id: self.id,
                commit,
                file,
                metadata: &metadata,
                progress: Progress::new(self.progress, file),
            };
            download.run(partial, blob).await?;
        }
        self.cache.link(etag, commit, file).map_err(io)
    }

    /// Records the commit of the revision, for use while the hub is unreachable.
    fn point_to(&self, commit: &str) {
        if is_commit(self.revision) {
            return;
        }
        if let Err(error) = self.cache.point_to(self.revision, commit) {
            let cache = self.cache.directory().display();
            tracing::warn!(%cache, %error, "revision not recorded, so the cache can't be used offline");
        }
    }
}

/// Appends the names of all files in a directory, relative to the first one.
fn list(directory: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let name = format!("{prefix}{name}");
        let path = entry.path();
        if !path.is_dir() {
            names.push(name);
        } else if depth < MAX_DEPTH {
            list(&path, &format!("{name}/"), depth + 1, names);
        }
    }
}

/// Returns whether a cache directory has all files of a model.
fn is_whole(snapshot: &Path) -> bool {
    let present = |file: &str| snapshot.join(file).exists();
    let parts = Layout::find("", present).map(|layout| layout.weights.parts(snapshot));
    matches!(parts, Ok(Ok(parts)) if parts.iter().all(|part| present(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_revisions_that_could_leave_the_cache_are_refused() {
        for id in ["gpt2", "openai-community/gpt2", "a_b/c.d-1"] {
            assert!(is_id(id), "{id}");
        }
        for id in [
            "", "/gpt2", "a/b/c", "../gpt2", "a--b/c", "a/b..c", "a b", "-a", "a/..",
        ] {
            assert!(!is_id(id), "{id}");
        }
        for revision in [
            "main",
            "v1.0",
            "refs/pr/3",
            "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        ] {
            assert!(is_revision(revision), "{revision}");
        }
        for revision in [
            "", "/main", "a//b", "..", "a/../b", "a b", r"a\b", "a:b", "./a",
        ] {
            assert!(!is_revision(revision), "{revision}");
        }
    }
}
