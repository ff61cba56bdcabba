//! Fetches a model from the hub into the cache that all Hugging Face tools share.
//!
//! Only files that are needed are fetched, always of one commit, and a revision's name is moved to
//! a new commit only when all of it is here: what the cache has under a name is whole, and serves
//! when the hub can't be reached. Nothing in the cache is ever trusted to be a model; that is
//! checked when its files are opened.

use std::collections::HashSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::{HFRepository, RepoTypeModel};
use hf_hub::{HFClient, HFError};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::source::{Layout, SourceError, WEIGHTS_INDEX};
use super::weights::shards;

const ENDPOINT: &str = "https://huggingface.co";
const MAIN: &str = "main";
/// Attempts after a failed one, each after a longer pause: 1.4 s of pauses in all, at most.
const RETRIES: usize = 3;

/// Why the hub did not give a model.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// There is no such repository that all may see.
    #[error("{endpoint} has no model `{id}`")]
    NoModel {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("the model `{id}` has no revision `{revision}` at {endpoint}")]
    NoRevision {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
        /// The revision.
        revision: String,
    },
    /// The hub wants a token, or another one.
    #[error(
        "{endpoint} gives `{id}` to known users only ({reason}): it is private or gated, or does \
         not exist; set HF_TOKEN to a token that may read it"
    )]
    Token {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
        /// What the hub says.
        reason: String,
    },
    /// The token is known, but may not read the repository.
    #[error(
        "{endpoint} refuses `{id}` to this token ({reason}); a gated model's terms are accepted \
         at {endpoint}/{id}"
    )]
    Forbidden {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
        /// What the hub says.
        reason: String,
    },
    /// The hub can't be reached, or fails, or is no hub.
    #[error("{endpoint} gives no usable answer for `{id}`: {reason}")]
    NoAnswer {
        /// The hub.
        endpoint: String,
        /// The model, with its revision.
        id: String,
        /// What went wrong.
        reason: String,
    },
    /// Fetching is forbidden and the cache does not have the model, or not all of it.
    #[error("`{id}` is not in the cache {cache}, and HF_HUB_OFFLINE forbids to fetch it")]
    Offline {
        /// The model, with its revision.
        id: String,
        /// The cache's directory for the model.
        cache: String,
    },
    /// A file arrived that is not as long as announced.
    #[error("{file} of `{id}` arrived with {found} bytes, expected {expected}")]
    Incomplete {
        /// The model.
        id: String,
        /// The file.
        file: String,
        /// Bytes that arrived.
        found: u64,
        /// Bytes the hub announced.
        expected: u64,
    },
    /// Anything else that went wrong while fetching.
    #[error("`{id}` can't be fetched: {source}")]
    Other {
        /// The model.
        id: String,
        /// What went wrong.
        source: Box<HFError>,
    },
}

impl HubError {
    /// Whether the same request may succeed at another time, so that what the cache has will do.
    fn may_pass(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::Incomplete { .. })
    }
}

/// How to reach the hub, and where its cache is.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The hub's address.
    pub endpoint: String,
    /// The token to show; if absent, `HF_TOKEN`, else the one `hf auth login` has stored.
    pub token: Option<String>,
    /// The directory of the cache.
    pub cache_dir: PathBuf,
    /// Whether to use the cache alone.
    pub offline: bool,
    /// For how long to wait for the hub's first answer before turning to the cache.
    pub answer_within: Duration,
}

impl HubSettings {
    /// What the environment says: `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`, `HF_HUB_OFFLINE`
    /// (1, on, yes or true), `HF_HUB_ETAG_TIMEOUT` (seconds, 10 if absent).
    #[must_use]
    pub fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default();
        let seconds = variable("HF_HUB_ETAG_TIMEOUT").and_then(|value| value.parse().ok());
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token: None,
            cache_dir: hf_hub::resolve_cache_dir(),
            offline: ["1", "on", "yes", "true"].contains(&offline.to_lowercase().as_str()),
            answer_within: Duration::from_secs(seconds.unwrap_or(10)),
        }
    }

    /// Brings all files of a model that are needed into the cache and gives their directory.
    /// Blocks; may be called from any thread, also one of an async runtime.
    ///
    /// # Errors
    /// [`SourceError::Hub`] if the model can't be had, [`SourceError::Lacks`] if it has no weights
    /// or tokenizer that can be read.
    pub fn pull(
        &self,
        id: &str,
        revision: Option<&str>,
        progress: bool,
    ) -> Result<PathBuf, SourceError> {
        let pull = Pull {
            settings: self,
            id,
            revision: revision.unwrap_or(MAIN),
            directory: self
                .cache_dir
                .join(format!("models--{}", id.replace('/', "--"))),
            progress,
        };
        pull.run()
    }
}

/// [`HubSettings::pull`] with the settings of the environment.
///
/// # Errors
/// As there.
pub fn pull(id: &str, revision: Option<&str>, progress: bool) -> Result<PathBuf, SourceError> {
    HubSettings::from_env().pull(id, revision, progress)
}

/// Whether a text has the form of a hub id: `organization/name` or `name`.
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

/// Whether a text may name a branch, tag or commit. It becomes part of a path in the cache.
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

/// One model being fetched.
struct Pull<'a> {
    settings: &'a HubSettings,
    id: &'a str,
    revision: &'a str,
    /// The cache's directory for this model: `refs/<revision>` holds a commit, and
    /// `snapshots/<commit>/` its files.
    directory: PathBuf,
    progress: bool,
}

impl Pull<'_> {
    fn run(&self) -> Result<PathBuf, SourceError> {
        // What a commit is made of never changes, so there is nothing to ask the hub.
        if (self.settings.offline || is_commit(self.revision))
            && let Some(snapshot) = self.cached()
        {
            return Ok(snapshot);
        }
        if self.settings.offline {
            return Err(HubError::Offline {
                id: self.name(),
                cache: self.directory.display().to_string(),
            }
            .into());
        }
        let error = match self.download_in_own_runtime() {
            Err(SourceError::Hub(error)) if error.may_pass() => error,
            done => return done,
        };
        let Some(snapshot) = self.cached() else {
            return Err(error.into());
        };
        tracing::warn!(%error, "using the copy in the cache, which may be old");
        Ok(snapshot)
    }

    fn name(&self) -> String {
        format!("{}@{}", self.id, self.revision)
    }

    /// The directory of the revision's files, if the cache has all of them.
    fn cached(&self) -> Option<PathBuf> {
        let commit = if is_commit(self.revision) {
            self.revision.to_owned()
        } else {
            std::fs::read_to_string(self.reference()).ok()?
        };
        let snapshot = self.snapshot(commit.trim());
        is_whole(&snapshot).then_some(snapshot)
    }

    fn reference(&self) -> PathBuf {
        self.directory.join("refs").join(self.revision)
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.directory.join("snapshots").join(commit)
    }

    /// The client is async; a thread of its own lets it run also where a runtime already does.
    fn download_in_own_runtime(&self) -> Result<PathBuf, SourceError> {
        let download = || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(|error| self.other(HFError::Io(error)))?;
            runtime.block_on(self.download())
        };
        std::thread::scope(|scope| match scope.spawn(download).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    async fn download(&self) -> Result<PathBuf, SourceError> {
        let repository = self.repository()?;
        let info = repository.info().revision(self.revision).send();
        let info = tokio::time::timeout(self.settings.answer_within, info).await;
        let info = match info {
            Ok(info) => info.map_err(|error| self.explain(error))?,
            Err(_) => {
                let waited = humantime::format_duration(self.settings.answer_within);
                return Err(self.no_answer(format!("none within {waited}")).into());
            }
        };
        let Some(commit) = info.sha else {
            return Err(self.no_answer("it names no commit".to_owned()).into());
        };
        let files = info.siblings.unwrap_or_default();
        let files: HashSet<String> = files.into_iter().map(|file| file.rfilename).collect();
        let present = |file: &str| files.contains(file);
        let layout = Layout::find(&format!("the repository {}", self.name()), present)?;

        let snapshot = self.snapshot(&commit);
        for file in layout.files(present) {
            self.file(&repository, &commit, file).await?;
        }
        if layout.weights == WEIGHTS_INDEX {
            for shard in shards(&snapshot.join(WEIGHTS_INDEX))? {
                self.file(&repository, &commit, &shard).await?;
            }
        }
        self.point_to(&commit);
        Ok(snapshot)
    }

    fn repository(&self) -> Result<HFRepository<RepoTypeModel>, HubError> {
        let mut client = HFClient::builder()
            .endpoint(&self.settings.endpoint)
            .cache_dir(&self.settings.cache_dir)
            .user_agent(concat!("skald/", env!("CARGO_PKG_VERSION")))
            .retry_max_attempts(RETRIES);
        if let Some(token) = &self.settings.token {
            client = client.token(token);
        }
        let client = client.build().map_err(|error| self.other(error))?;
        let (owner, name) = hf_hub::split_id(self.id);
        Ok(client.model(owner, name))
    }

    /// Fetches one file, unless the cache has it.
    async fn file(
        &self,
        repository: &HFRepository<RepoTypeModel>,
        commit: &str,
        file: &str,
    ) -> Result<(), HubError> {
        if self.snapshot(commit).join(file).exists() {
            return Ok(());
        }
        let meter = Arc::new(Meter::new(self.progress, file));
        let path = loop {
            let download = repository.download_file().filename(file).revision(commit);
            match download.progress(Arc::clone(&meter)).send().await {
                // Another process is at it. The lock ends with that process, whatever happens.
                Err(HFError::CacheLockTimeout { .. }) => {
                    tracing::info!(file, "waiting for another process that fetches this file");
                }
                done => break done.map_err(|error| self.explain(error))?,
            }
        };
        // The client takes whatever body it gets for the file, even that of an error.
        let expected = meter.announced.load(Ordering::Relaxed);
        let found = path.metadata().map_or(0, |metadata| metadata.len());
        if expected != 0 && found != expected {
            remove(&path);
            return Err(HubError::Incomplete {
                id: self.name(),
                file: file.to_owned(),
                found,
                expected,
            });
        }
        Ok(())
    }

    /// Notes which commit the revision is, for when the hub can't be asked.
    fn point_to(&self, commit: &str) {
        let path = self.reference();
        let known = std::fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit);
        if is_commit(self.revision) || known {
            return;
        }
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, commit));
        if let Err(error) = written {
            let file = path.display();
            tracing::warn!(%file, %error, "the cache can't be used offline for this revision");
        }
    }

    fn no_answer(&self, reason: String) -> HubError {
        HubError::NoAnswer {
            endpoint: self.settings.endpoint.clone(),
            id: self.name(),
            reason,
        }
    }

    fn other(&self, error: HFError) -> HubError {
        HubError::Other {
            id: self.name(),
            source: Box::new(error),
        }
    }

    /// What the client reports, in terms of what can be done about it.
    fn explain(&self, error: HFError) -> HubError {
        let (endpoint, id) = (self.settings.endpoint.clone(), self.id.to_owned());
        match error {
            HFError::AuthRequired { context } => HubError::Token {
                endpoint,
                id,
                reason: context.server_message.unwrap_or(context.status.to_string()),
            },
            HFError::Forbidden { context } => HubError::Forbidden {
                endpoint,
                id,
                reason: context.server_message.unwrap_or(context.status.to_string()),
            },
            HFError::RepoNotFound { .. } => HubError::NoModel { endpoint, id },
            // The hub answers 404 for both, and tells them apart in a header.
            HFError::RevisionNotFound { context, .. } => {
                let code = context.and_then(|context| context.error_code);
                if code.as_deref() == Some("RepoNotFound") {
                    HubError::NoModel { endpoint, id }
                } else {
                    HubError::NoRevision {
                        endpoint,
                        id,
                        revision: self.revision.to_owned(),
                    }
                }
            }
            HFError::Request { source, .. } => self.no_answer(with_causes(&source)),
            HFError::Http { context } if context.status.is_server_error() => {
                self.no_answer(context.status.to_string())
            }
            HFError::RateLimited { context, .. } => self.no_answer(context.status.to_string()),
            HFError::MalformedResponse { what, .. } => self.no_answer(what),
            error => self.other(error),
        }
    }
}

/// Whether a directory of the cache has all files of a model.
fn is_whole(snapshot: &Path) -> bool {
    let present = |file: &str| snapshot.join(file).exists();
    match Layout::find("", present) {
        Ok(layout) if layout.weights == WEIGHTS_INDEX => shards(&snapshot.join(WEIGHTS_INDEX))
            .is_ok_and(|shards| shards.iter().all(|shard| present(shard))),
        Ok(_) => true,
        Err(_) => false,
    }
}

/// Takes a file out of the cache: the link in the snapshot and what it points to.
fn remove(path: &Path) {
    let blob = path.canonicalize();
    for path in blob.iter().map(PathBuf::as_path).chain([path]) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(file = %path.display(), %error, "can't be removed from the cache");
        }
    }
}

/// An error and all that lies under it: the client's own text leaves out the reason.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Watches one file arrive.
struct Meter {
    bar: ProgressBar,
    /// The length the hub announced, in bytes; 0 if it did not.
    announced: AtomicU64,
}

impl Meter {
    fn new(visible: bool, file: &str) -> Self {
        let target = if visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        );
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(None, target);
        Self {
            bar: bar.with_style(style).with_message(file.to_owned()),
            announced: AtomicU64::new(0),
        }
    }
}

impl ProgressHandler for Meter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                self.announced.store(*total_bytes, Ordering::Relaxed);
                self.bar.set_length(*total_bytes);
            }
            DownloadEvent::Progress { files } => {
                if let Some(file) = files.last() {
                    self.bar.set_position(file.bytes_completed);
                }
            }
            DownloadEvent::AggregateProgress {
                bytes_completed, ..
            } => {
                self.bar.set_position(*bytes_completed);
            }
            DownloadEvent::Complete => self.bar.finish(),
        }
    }
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
