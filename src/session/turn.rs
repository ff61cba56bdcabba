//! One turn on a session: its history, the prompt and output that are added, and the commit.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio_util::task::TaskTracker;

use super::history::{History, NewHistory};
use super::queue::TurnGuard;
use super::store::HeldSession;
use super::{ForkedFrom, SessionError};
use crate::request::{SessionId, Tenant};

/// The part of a generation's output that was delivered to the client and that the session stores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Number of generated tokens, from the first, that were delivered whole.
    pub tokens: usize,
    /// Encoding of the delivered part of the next token, if a stop string begins within it.
    pub tail: Vec<u32>,
}

/// A turn on a session. Dropping it before the commit leaves the session unchanged.
pub struct Turn {
    /// `None` once the turn has ended.
    open: Option<OpenTurn>,
    /// Runs what outlives the turn.
    background: TaskTracker,
    keeps_kv: bool,
    history: Arc<[u32]>,
    history_lost: bool,
    /// Tokens that the request adds.
    prompt: Vec<u32>,
    /// Stored with the session's first turn.
    forked_from: Option<ForkedFrom>,
    /// Tokens generated after the prompt.
    output: Vec<u32>,
}

/// What is released when the turn ends: first the hold on the session, then the place in the queue.
struct OpenTurn {
    held: HeldSession,
    guard: TurnGuard,
}

impl Turn {
    pub(super) fn new(
        guard: TurnGuard,
        held: HeldSession,
        background: TaskTracker,
        keeps_kv: bool,
    ) -> Self {
        let history = held.history.as_ref();
        Self {
            history: history.map_or_else(|| Arc::from([]), |h| Arc::clone(&h.tokens)),
            history_lost: held.lost,
            open: Some(OpenTurn { held, guard }),
            background,
            keeps_kv,
            prompt: Vec::new(),
            forked_from: None,
            output: Vec::new(),
        }
    }

    /// Returns the tokens of the session before this turn.
    #[must_use]
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// Returns whether the session starts over because its history could not be read. The client must
    /// be told.
    #[must_use]
    pub fn history_lost(&self) -> bool {
        self.history_lost
    }

    /// Returns the tenant and the name of the session; `None` once the turn has ended.
    #[must_use]
    pub fn session(&self) -> Option<(Tenant, &SessionId)> {
        let key = self.open.as_ref()?.guard.key();
        Some((key.tenant, &key.id))
    }

    /// Returns whether evicted KV blocks of this session are written to disk.
    #[must_use]
    pub fn keeps_kv(&self) -> bool {
        self.keeps_kv
    }

    pub(super) fn exists(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| open.held.history.is_some())
    }

    /// Appends to the request's own tokens.
    pub fn prompt(&mut self, prompt: &[u32]) {
        self.prompt.extend_from_slice(prompt);
    }

    /// Checks that the turn can still be committed, without querying the store.
    ///
    /// # Errors
    /// [`SessionError::TakenOver`] if another server has the session.
    pub fn check(&self) -> Result<(), SessionError> {
        match &self.open {
            // A turn continues after its session was deleted, and commits nothing.
            Some(open) if !open.guard.is_deleted() => open.held.hold.check(),
            _ => Ok(()),
        }
    }

    /// Appends a generated token.
    pub fn push(&mut self, token: u32) {
        self.output.push(token);
    }

    /// Ends the turn: the session is now its history, the prompt and the delivered output, and is
    /// free for the next turn. With a session directory or a database, it is durable when this
    /// returns.
    ///
    /// # Errors
    /// If it can't be written ([`SessionError::Disk`], [`SessionError::Away`]) or another server has
    /// the session ([`SessionError::TakenOver`]), the session is unchanged. After
    /// [`SessionError::Unknown`], the turn may or may not have been stored.
    pub async fn commit(mut self, delivered: Delivered) -> Result<(), SessionError> {
        let output = self.output.get(..delivered.tokens).unwrap_or(&self.output);
        let tokens = [&*self.history, &self.prompt, output, &delivered.tail].concat();
        self.end(Some(tokens.into())).await.map(|_| ())
    }

    /// Ends the turn with the first `length` tokens of its history.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn rewind(mut self, length: usize) -> Result<(), SessionError> {
        let kept = self.history.get(..length).unwrap_or(&self.history);
        let kept = Arc::from(kept);
        self.end(Some(kept)).await.map(|_| ())
    }

    /// Commits like [`commit`](Self::commit), in the background if the store has to be waited for.
    /// Used when the client has disconnected. A failure is logged.
    pub fn commit_in_background(self, delivered: Delivered) {
        let background = self.background.clone();
        let mut committing = Box::pin(async move {
            if let Err(error) = self.commit(delivered).await {
                tracing::error!(%error, "turn not stored");
            }
        });
        if (&mut committing).now_or_never().is_none() {
            background.spawn(committing);
        }
    }

    /// Ends the turn and deletes the session.
    pub(super) async fn delete(mut self) -> Result<(), SessionError> {
        let Some(OpenTurn {
            held,
            guard: _guard,
        }) = self.open.take()
        else {
            return Ok(());
        };
        let removed = held.hold.remove().await;
        removed.map(|_| ())
    }

    /// Ends the first turn of a session with a part of another's history.
    pub(super) async fn fork(
        mut self,
        from: ForkedFrom,
        tokens: Arc<[u32]>,
    ) -> Result<Option<History>, SessionError> {
        self.forked_from = Some(from);
        self.end(Some(tokens)).await
    }

    /// Ends the turn with a new history, or with the old one. Returns the resulting history, if any.
    ///
    /// Once begun, it completes even if the returned future is dropped, as happens when the client
    /// disconnects: the next turn must not begin before the store has the result of this one.
    pub(super) async fn end(
        &mut self,
        tokens: Option<Arc<[u32]>>,
    ) -> Result<Option<History>, SessionError> {
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        let id = open.guard.key().id.to_string();
        let mut ending = Box::pin(open.end(tokens, self.forked_from.take()));
        if let Some(ended) = (&mut ending).now_or_never() {
            return ended;
        }
        let ended = self.background.spawn(ending).await;
        ended.unwrap_or_else(|panic| {
            Err(SessionError::Disk {
                id,
                what: "written",
                error: std::io::Error::other(panic),
            })
        })
    }
}

impl OpenTurn {
    async fn end(
        self,
        tokens: Option<Arc<[u32]>>,
        forked_from: Option<ForkedFrom>,
    ) -> Result<Option<History>, SessionError> {
        let Self { held, mut guard } = self;
        let HeldSession {
            history,
            lost,
            hold,
        } = held;
        let mut result = history;
        if let Some(tokens) = tokens.filter(|_| !guard.is_deleted()) {
            let new = match result {
                Some(history) => NewHistory {
                    created: Some(history.created),
                    tokens,
                    forked_from: history.forked_from,
                },
                None => NewHistory {
                    created: None,
                    tokens,
                    forked_from,
                },
            };
            result = match hold.write(new).await {
                Ok(history) => Some(history),
                Err(_) if guard.is_deleted() => None,
                Err(error) => return Err(error),
            };
        }
        if (result.is_some() || lost) && guard.end_unless_deleted() {
            return Ok(result);
        }
        // The session was deleted, or has never had a history.
        match hold.remove().await {
            // Another session of that name exists by now.
            Ok(_) | Err(SessionError::TakenOver { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        let OpenTurn { held, mut guard } = open;
        // The marker of a lost history stays, so that the next turn reports the loss.
        if (held.history.is_some() || held.lost) && guard.end_unless_deleted() {
            return;
        }
        // The turn ends here even if files remain on disk for a moment: a refused request must leave
        // no session behind, not even a busy one, by the time its client gets the refusal.
        let mut removing = Box::pin(async move {
            if let Err(error) = held.hold.remove().await {
                tracing::warn!(%error, "empty session not removed");
            }
        });
        if (&mut removing).now_or_never().is_none() {
            self.background.spawn(removing);
        }
    }
}
