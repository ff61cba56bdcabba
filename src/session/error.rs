//! The errors of sessions.

use std::time::Duration;

use crate::engine::GenerateError;

/// Why an operation on a session failed. Except after [`Unknown`](Self::Unknown), the session is
/// unchanged.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Another request is using the session, and this one does not wait.
    #[error(
        "session {id:?} is busy with another request; set `if_busy` to \"wait\" to wait for it"
    )]
    Busy {
        /// The session's name.
        id: String,
    },
    /// Too many requests are waiting for busy sessions.
    #[error("too many requests are waiting for busy sessions ({limit}); retry later")]
    TooManyWait {
        /// Maximum waiting requests.
        limit: usize,
    },
    /// The session was not free in time.
    #[error(
        "session {id:?} is still busy with another request after {limit:?} (`--queue-timeout`); retry later"
    )]
    WaitTimedOut {
        /// The session's name.
        id: String,
        /// Maximum wait.
        limit: Duration,
    },
    /// The tenant has the maximum number of sessions.
    #[error(
        "this API key has reached its limit of {limit} sessions (`--session-limit`); delete one first"
    )]
    Limit {
        /// Maximum sessions per tenant.
        limit: usize,
    },
    /// The session does not exist.
    #[error("session {id:?} does not exist")]
    NotFound {
        /// The requested name.
        id: String,
    },
    /// The name for a new session is already in use.
    #[error("session {id:?} already exists")]
    Exists {
        /// The name.
        id: String,
    },
    /// A fork or rewind exceeds the history.
    #[error("`{field}` is {value}, but session {id:?} has only {tokens} tokens")]
    BeyondHistory {
        /// The field at fault.
        field: &'static str,
        /// The field's value.
        value: usize,
        /// The session's name.
        id: String,
        /// Tokens of the history.
        tokens: usize,
    },
    /// A disk operation failed.
    #[error("session {id:?} could not be {what}: {error}")]
    Disk {
        /// The session's name.
        id: String,
        /// Failed operation: `read`, `written`, …
        what: &'static str,
        /// The system's error.
        error: std::io::Error,
    },
    /// The session directory can't be used.
    #[error("the session directory {path} can't be used: {error}")]
    Directory {
        /// The directory.
        path: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// A store panicked. The log has the panic.
    #[error("a session could not be {what}: the session store failed; see the server's log")]
    Panicked {
        /// Failed operation: `read`, `written`, …
        what: &'static str,
    },
    /// The database can't be reached, or does not respond in time. Nothing was changed.
    #[error("the session database is unavailable: {what}; retry later")]
    Away {
        /// Consequence: the operation that was not done.
        what: &'static str,
    },
    /// The session's lease expired during a turn, and another server took the session.
    #[error(
        "the turn on session {id:?} was not stored: another server took over the session, or it was deleted; \
         send the request again"
    )]
    TakenOver {
        /// The session's name.
        id: String,
    },
    /// The connection broke during a commit, and its outcome could not be read.
    #[error(
        "the session database did not confirm whether the turn on session {id:?} was stored; \
         read the session before you send the request again"
    )]
    Unknown {
        /// The session's name.
        id: String,
    },
    /// The database refused a statement, or a row can't be read.
    #[error("the session database failed; see the server's log")]
    Database(String),
    /// The engine has failed or stopped.
    #[error(transparent)]
    Engine(#[from] GenerateError),
}
