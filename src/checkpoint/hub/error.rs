//! Errors of fetching a model: of a single request ([`FetchError`]), and for the user, with a
//! remedy ([`HubError`]).

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use reqwest::StatusCode;

use super::Pull;
use crate::shown_url::shown_url;

use crate::checkpoint::gguf::ChoiceError;
use crate::checkpoint::layout::IncompleteModel;
use crate::checkpoint::weights::WeightsError;

/// Error of fetching a model from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The hub does not have a public repository of this name.
    #[error("model `{id}` not found at {endpoint}")]
    NoModel {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("revision `{revision}` of the model `{id}` not found at {endpoint}")]
    NoRevision {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
        /// The revision.
        revision: String,
    },
    /// The repository lacks a file that its index of shards names.
    #[error("file {file} of the model `{id}` not found at {endpoint}")]
    NoFile {
        /// The hub.
        endpoint: String,
        /// The model, with its revision.
        id: String,
        /// The file.
        file: String,
    },
    /// The hub requires a token, or a different one.
    #[error(
        "{endpoint} requires authentication for `{id}` ({reason}): the model is private, gated or \
         does not exist; set HF_TOKEN to a token that can read it"
    )]
    Token {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
        /// The hub's reason.
        reason: String,
    },
    /// The token is valid but has no access to the repository.
    #[error(
        "{endpoint} denies this token access to `{id}` ({reason}); accept the terms of a gated \
         model at {endpoint}/{id}"
    )]
    Forbidden {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
        /// The hub's reason.
        reason: String,
    },
    /// The hub can't be reached, fails, or is not a model hub.
    #[error("can't fetch `{id}` from {endpoint}: {reason}")]
    NoAnswer {
        /// The hub.
        endpoint: String,
        /// The model, with its revision.
        id: String,
        /// What went wrong.
        reason: String,
    },
    /// Downloads are disabled, and the model is not completely cached.
    #[error("`{id}` is not in the cache {cache}, and HF_HUB_OFFLINE disables downloads")]
    Offline {
        /// The model, with its revision.
        id: String,
        /// The cache's directory for the model.
        cache: String,
    },
    /// A downloaded file does not match the hub's metadata.
    #[error("downloaded {file} of `{id}` does not match the hub's metadata: {reason}; try again")]
    Damaged {
        /// The model, with its revision.
        id: String,
        /// The file.
        file: String,
        /// The difference.
        reason: String,
    },
    /// `HF_ENDPOINT` is not an address.
    #[error("HF_ENDPOINT `{endpoint}` is not a valid address: {reason}")]
    Endpoint {
        /// The value.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token contains characters that can't be sent.
    #[error(
        "the hub token (HF_TOKEN, or the file written by `hf auth login`) is not valid: it contains \
         characters that can't be sent in a header"
    )]
    TokenSyntax,
    /// The repository lacks a file.
    #[error(transparent)]
    Incomplete(#[from] IncompleteModel),
    /// The repository has no such model in GGUF, or several.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// The index of shards can't be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file of the cache can't be written or read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The HTTP client can't be set up.
    #[error("can't create an HTTP client for {endpoint}: {reason}")]
    Client {
        /// The hub.
        endpoint: String,
        /// What went wrong.
        reason: String,
    },
}

impl HubError {
    /// Returns whether the failure is temporary, so that the cached revision can serve.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::Damaged { .. })
    }
}

/// Error of one request of the hub's protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0}")]
    Endpoint(String),
    #[error("the token can't be sent")]
    Token,
    #[error("{}", with_causes(.0))]
    Client(reqwest::Error),
    #[error("no response within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    #[error("{status}{}", .message.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        status: StatusCode,
        /// The hub's error code.
        code: Option<String>,
        message: Option<String>,
        retry_after: Option<Duration>,
    },
    #[error("more than {0} redirects")]
    Redirects(usize),
    #[error("{0}")]
    Malformed(String),
    #[error("the response has a different range of the file than requested")]
    Range,
    #[error("{found} bytes, expected {expected}")]
    Incomplete { found: u64, expected: u64 },
    #[error("{found} bytes or more, expected {expected}")]
    TooLong { found: u64, expected: u64 },
    #[error("checksum mismatch")]
    Corrupt,
    #[error("{file}: {source}")]
    Io { file: String, source: io::Error },
}

impl From<reqwest::Error> for FetchError {
    /// Wraps a client error without its URL, because the URLs of the content network are secret.
    fn from(error: reqwest::Error) -> Self {
        Self::Client(error.without_url())
    }
}

impl FetchError {
    pub(super) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let file = path.display().to_string();
        Self::Io { file, source }
    }

    /// Returns whether a retry may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Client(error) => !error.is_builder(),
            Self::Refused { status, .. } => {
                let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                status.is_server_error() || passing.contains(status)
            }
            Self::Range | Self::Incomplete { .. } => true,
            _ => false,
        }
    }

    /// Returns the pause that the hub requests.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Pull<'_> {
    /// Converts the error of a request into one about the model or one of its files.
    pub(super) fn explain(&self, error: FetchError, file: Option<&str>) -> HubError {
        let (endpoint, id) = (shown_url(&self.settings.endpoint), self.name());
        let of_file = file.is_some();
        let file = || file.unwrap_or_default().to_owned();
        let reason = error.to_string();
        match error {
            FetchError::Endpoint(reason) => HubError::Endpoint { endpoint, reason },
            FetchError::Token => HubError::TokenSyntax,
            FetchError::Io { file, source } => HubError::Io { file, source },
            FetchError::Client(error) if error.is_builder() => {
                HubError::Client { endpoint, reason }
            }
            FetchError::Incomplete { .. } | FetchError::TooLong { .. } | FetchError::Corrupt => {
                let file = file();
                HubError::Damaged { id, file, reason }
            }
            FetchError::Refused {
                status,
                code,
                message,
                ..
            } => {
                // The content network sends its own errors, for example for an expired URL.
                let is_hub = !of_file || code.is_some() || message.is_some();
                let message = message.unwrap_or_else(|| status.to_string());
                let refused = is_hub.then(|| self.refused(status, code.as_deref(), message));
                let refused = refused.flatten();
                refused.unwrap_or_else(|| match code.as_deref() {
                    Some("EntryNotFound") => {
                        let file = file();
                        HubError::NoFile { endpoint, id, file }
                    }
                    _ => HubError::NoAnswer {
                        endpoint,
                        id,
                        reason,
                    },
                })
            }
            _ => HubError::NoAnswer {
                endpoint,
                id,
                reason,
            },
        }
    }

    /// Returns the error if the model or the token is at fault, else `None`. The hub responds 404
    /// to several errors and distinguishes them by a header.
    fn refused(&self, status: StatusCode, code: Option<&str>, reason: String) -> Option<HubError> {
        let (endpoint, id) = (self.settings.endpoint.clone(), self.id.to_owned());
        match (status, code) {
            (_, Some("RevisionNotFound")) => {
                let revision = self.revision.to_owned();
                Some(HubError::NoRevision {
                    endpoint,
                    id,
                    revision,
                })
            }
            (StatusCode::UNAUTHORIZED, _) => Some(HubError::Token {
                endpoint,
                id,
                reason,
            }),
            (StatusCode::FORBIDDEN, _) => Some(HubError::Forbidden {
                endpoint,
                id,
                reason,
            }),
            (StatusCode::NOT_FOUND, None | Some("RepoNotFound")) => {
                Some(HubError::NoModel { endpoint, id })
            }
            _ => None,
        }
    }
}

/// Joins the messages of an error and its sources: the client's own message omits the reason.
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
