//! Why a session could not be used.

use std::time::Duration;

use crate::engine::GenerateError;

/// Why a session could not be used. It is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Another request is on it, and this one did not want to wait.
    #[error("the session {id:?} is busy with another request (`if_busy: \"wait\"` waits for it)")]
    Busy {
        /// Its name.
        id: String,
    },
    /// Too many requests wait for their sessions.
    #[error("the server is busy: {limit} requests are waiting for their sessions already")]
    TooManyWait {
        /// How many may wait.
        limit: usize,
    },
    /// Its turn did not come in time.
    #[error(
        "the session {id:?} is still busy with another request after {limit:?} (`--queue-timeout`); retry later"
    )]
    WaitTimedOut {
        /// Its name.
        id: String,
        /// How long a request may wait.
        limit: Duration,
    },
    /// The tenant has as many sessions as it may have.
    #[error(
        "the limit of {limit} sessions of an API key (`--session-limit`) is reached; delete one first"
    )]
    Limit {
        /// How many it may have.
        limit: usize,
    },
    /// There is no such session.
    #[error("there is no session {id:?}")]
    NotFound {
        /// The name asked for.
        id: String,
    },
    /// The name for a new session is taken.
    #[error("the session {id:?} already exists")]
    Exists {
        /// The name.
        id: String,
    },
    /// A fork or rewind goes beyond the history.
    #[error("`{field}` is {value}; the session {id:?} has {tokens} tokens")]
    BeyondHistory {
        /// The field at fault.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The session.
        id: String,
        /// Tokens of its history.
        tokens: usize,
    },
    /// The disk failed.
    #[error("the session {id:?} could not be {what}: {error}")]
    Disk {
        /// Its name.
        id: String,
        /// `read`, `written`, …
        what: &'static str,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The session directory can't be used.
    #[error("the session directory {path} can't be used: {error}")]
    Directory {
        /// The directory.
        path: String,
        /// The system's reason.
        error: std::io::Error,
    },
    /// A store panicked. Its log line says where.
    #[error("a session could not be {what}: the session store failed; the server's log says more")]
    Panicked {
        /// `read`, `written`, …
        what: &'static str,
    },
    /// The database can't be reached, or does not answer in time. Nothing was changed.
    #[error("the session database is unavailable: {what}; retry later")]
    Away {
        /// What is not done for that reason.
        what: &'static str,
    },
    /// The session's lease expired in the middle of a turn, and another server took the session.
    #[error(
        "the turn on session {id:?} was not kept: another server has taken the session over, or it was deleted; \
         send the request again"
    )]
    TakenOver {
        /// Its name.
        id: String,
    },
    /// The connection broke while a change was committed, and the outcome could not be read.
    #[error(
        "the session database did not say whether the turn on session {id:?} was kept; \
         read the session before you send the request again"
    )]
    Unknown {
        /// Its name.
        id: String,
    },
    /// The database refused a statement, or has a row that can't be read.
    #[error("the session database failed; the server's log has the reason")]
    Database(String),
    /// The engine is not there.
    #[error(transparent)]
    Engine(#[from] GenerateError),
}
