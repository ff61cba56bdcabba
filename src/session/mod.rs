//! Sessions: named token histories that clients extend turn by turn.
//!
//! ```text
//! Sessions::begin ──► Turn { history } ──► a generation over history + prompt ──► Turn::commit
//! ```
//!
//! A session is its tokens and nothing else. Their keys and values are found through the engine's
//! prefix cache like those of any prompt, so an idle session costs 4 bytes per token. One turn runs
//! on a session at a time. A history changes only when a turn is committed, once it is known what
//! the client received.
//!
//! | module | purpose |
//! |---|---|
//! | [`sessions`](self) | [`Sessions`]: begin a turn; list, read, fork, rewind, delete |
//! | `turn` | [`Turn`]: exclusive use of a session by one request, until it is committed |
//! | `queue` | the order of turns on each session in this process |
//! | `sharing` | which tenants share memory and waiting places |
//! | `store` | the trait that `memory`, `dir` and `postgres` implement |
//! | `guarded` | a store wrapper that turns panics into errors |
//! | `sweep` | the periodic deletion of expired sessions |
//! | `memory` | histories in memory, lost when the process ends |
//! | `dir` | histories in a directory that servers can share |
//! | [`postgres`] | histories in a database, for servers on many machines |
//! | `history`, `sealed` | the format of history files, and the detection of damage |
//! | [`snapshots`] | evicted KV blocks on disk, and their restoration to the cache |
//!
//! This module must not know a wire format, and must not touch the model or the KV cache except
//! through the engine's handle.

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
mod sweep;
mod turn;

use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;
use utoipa::ToSchema;

pub use error::SessionError;
pub use history::tokenizer_fingerprint;
pub use sealed::Fingerprint;
pub use sessions::{SessionConfig, Sessions};
pub use sharing::Sharing;
pub use turn::{Delivered, Turn};

use crate::request::{SessionId, Tenant};

/// The full name of a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    /// The owner. The session is invisible to other tenants.
    pub tenant: Tenant,
    /// The name, unique per tenant.
    pub id: SessionId,
}

/// What happens if another request is using the session: `wait` queues in order of arrival, `error`
/// fails with status 409.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = IfBusyField)]
pub enum IfBusy {
    /// Wait in order of arrival.
    #[default]
    Wait,
    /// Fail with [`SessionError::Busy`].
    Error,
}

/// Origin of a forked session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkedFrom {
    /// Name of the original session, which may have been changed or deleted since.
    pub id: SessionId,
    /// Number of tokens taken from the original.
    pub at: usize,
}

/// The current state of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionInfo {
    /// The name.
    pub id: SessionId,
    /// The whole history.
    pub tokens: Arc<[u32]>,
    /// Tokens of the next turn's context that are in the KV cache.
    pub cached_tokens: usize,
    /// Whether the KV cache has all full blocks of that context.
    pub kv_resident: bool,
    /// End of the first turn.
    pub created: SystemTime,
    /// End of the last turn.
    pub last_used: SystemTime,
    /// Whether a turn of this server is running on the session.
    pub busy: bool,
    /// The session it was forked from, if any.
    pub forked_from: Option<ForkedFrom>,
}
