//! Sessions: named token histories that a client goes on with, turn by turn.
//!
//! ```text
//! Sessions::begin ──► Turn { history } ──► a generation over history + prompt ──► Turn::settle
//! ```
//!
//! A session is its tokens and nothing else. Their keys and values are found again through the
//! engine's prefix cache like those of any prompt, so a session costs 4 bytes a token while it
//! rests. One turn runs on a session at a time. A history changes only when its turn is settled,
//! that is, when it is known what the client received.
//!
//! | module | what it is for |
//! |---|---|
//! | [`sessions`](self) | [`Sessions`]: begin a turn; list, show, fork, rewind, delete |
//! | `turn` | [`Turn`]: one client's hold on a session, and what it leaves there |
//! | `queue` | whose turn it is in this process |
//! | `sharing` | whose share of room and places a tenant uses |
//! | `store` | what a place for histories does: `memory`, `dir` or `postgres` |
//! | `guarded` | a store whose panics are errors |
//! | `memory` | histories that end with the process |
//! | `dir` | histories in a directory, which servers can share |
//! | [`postgres`] | histories in a database, for servers on many machines |
//! | `history`, `sealed` | what is in a history's file, and how a damaged one is told |
//! | [`snapshots`] | KV blocks on disk: those that had to leave the cache, and how they come back |
//!
//! Nothing here may know a wire format, or touch model or KV cache but through the engine's handle.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod dir;
mod error;
mod guarded;
mod history;
mod memory;
pub mod postgres;
mod queue;
mod sealed;
mod sessions;
mod sharing;
pub mod snapshots;
mod store;
#[cfg(any(test, fuzzing))]
pub(crate) mod stored_files;
mod turn;

use std::sync::Arc;
use std::time::SystemTime;

pub use error::SessionError;
pub use history::tokenizer_fingerprint;
pub use sealed::Fingerprint;
pub use sessions::{SessionConfig, Sessions};
pub use sharing::Sharing;
pub use turn::{Kept, Turn};

use crate::request::{SessionId, Tenant};

/// A session's full name: whose it is, and what they call it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    /// Whose it is. To others it is as if it were not there.
    pub tenant: Tenant,
    /// Its name among theirs.
    pub id: SessionId,
}

/// What to do about a session that another request is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IfBusy {
    /// Wait; who waits gets on in order of arrival.
    #[default]
    Wait,
    /// Fail with [`SessionError::Busy`].
    Error,
}

/// A session as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionInfo {
    /// Its name.
    pub id: SessionId,
    /// Its whole history.
    pub tokens: Arc<[u32]>,
    /// How many tokens of the context to go on from are in the KV cache.
    pub cached_tokens: usize,
    /// The KV cache has all full blocks of that context.
    pub kv_resident: bool,
    /// When its first turn ended.
    pub created: SystemTime,
    /// When its last turn ended.
    pub last_used: SystemTime,
    /// A turn of this server is running on it.
    pub busy: bool,
}
