//! Why the hub did not give a model, in terms of what can be done about it.

use std::error::Error;

use hf_hub::HFError;

use super::Pull;

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
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::Incomplete { .. })
    }
}

impl Pull<'_> {
    pub(super) fn no_answer(&self, reason: String) -> HubError {
        HubError::NoAnswer {
            endpoint: self.settings.endpoint.clone(),
            id: self.name(),
            reason,
        }
    }

    pub(super) fn other(&self, error: HFError) -> HubError {
        HubError::Other {
            id: self.name(),
            source: Box::new(error),
        }
    }

    /// What the client reports, in terms of what can be done about it.
    pub(super) fn explain(&self, error: HFError) -> HubError {
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
