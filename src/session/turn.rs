//! One client's hold on a session: from its history, through what is generated, to what it keeps.

use std::sync::Arc;

use futures_util::FutureExt;

use super::SessionError;
use super::history::History;
use super::queue::OnTurn;
use super::sessions::Shared;
use super::store::Held;
use crate::request::{SessionId, Tenant};

/// What of a generation's output was delivered, so that a session keeps exactly that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// So many of the generated tokens, from the first.
    pub tokens: usize,
    /// Then these: the text shown of a further token that was shown only in part (a stop string
    /// began within it), encoded anew.
    pub tail: Vec<u32>,
}

/// A turn on a session. Dropped before it is settled, it leaves the session as it was.
pub struct Turn {
    /// `None` once it is over.
    open: Option<Open>,
    shared: Arc<Shared>,
    history: Arc<[u32]>,
    history_lost: bool,
    /// What the request adds.
    prompt: Vec<u32>,
    /// What was generated after it.
    output: Vec<u32>,
}

/// What must be given back at the end: first the hold on the session, then the turn.
struct Open {
    held: Held,
    on_turn: OnTurn,
}

impl Turn {
    pub(super) fn new(shared: Arc<Shared>, on_turn: OnTurn, held: Held) -> Self {
        let history = held.history.as_ref();
        Self {
            history: history.map_or_else(|| Arc::from([]), |h| Arc::clone(&h.tokens)),
            history_lost: held.lost,
            open: Some(Open { held, on_turn }),
            shared,
            prompt: Vec::new(),
            output: Vec::new(),
        }
    }

    /// The tokens the session has.
    #[must_use]
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// Returns whether the session begins anew because its history could not be read, which its client
    /// must be told.
    #[must_use]
    pub fn history_lost(&self) -> bool {
        self.history_lost
    }

    /// Its session's name, and whose it is; `None` once it is over.
    #[must_use]
    pub fn session(&self) -> Option<(Tenant, &SessionId)> {
        let key = self.open.as_ref()?.on_turn.key();
        Some((key.tenant, &key.id))
    }

    /// Whether evicted keys and values of this session find a place on disk.
    #[must_use]
    pub fn keeps_kv(&self) -> bool {
        self.shared.snapshots.is_some()
    }

    pub(super) fn exists(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| open.held.history.is_some())
    }

    /// The request's own tokens.
    pub fn prompt(&mut self, prompt: &[u32]) {
        self.prompt.extend_from_slice(prompt);
    }

    /// Checks that the turn can still be kept, as far as it is known without asking.
    ///
    /// # Errors
    /// [`SessionError::TakenOver`] if another server has the session.
    pub fn check(&self) -> Result<(), SessionError> {
        match &self.open {
            // A session that was deleted is not this turn's any more, and the turn goes on.
            Some(open) if !open.on_turn.is_deleted() => open.held.hold.check(),
            _ => Ok(()),
        }
    }

    /// A token was generated.
    pub fn push(&mut self, token: u32) {
        self.output.push(token);
    }

    /// Ends the turn: the session now has history, prompt and what is kept of the output, and is
    /// free for the next turn. With a session directory or a database, all that is durable when this
    /// returns.
    ///
    /// # Errors
    /// If it can't be written ([`SessionError::Disk`], [`SessionError::Away`]) or another server has
    /// the session ([`SessionError::TakenOver`]), the session is as it was; after
    /// [`SessionError::Unknown`] it is not known.
    pub async fn settle(mut self, kept: Kept) -> Result<(), SessionError> {
        let output = self.output.get(..kept.tokens).unwrap_or(&self.output);
        let tokens = [&*self.history, &self.prompt, output, &kept.tail].concat();
        self.end(Some(tokens.into())).await.map(|_| ())
    }

    /// As [`settle`](Self::settle), but where the disk must be waited for it goes on by itself: for
    /// who can't wait, because the client went away. A failure is logged.
    pub fn settle_soon(self, kept: Kept) {
        let shared = Arc::clone(&self.shared);
        let mut settling = Box::pin(async move {
            if let Err(error) = self.settle(kept).await {
                tracing::error!(%error, "a turn was lost");
            }
        });
        if (&mut settling).now_or_never().is_none() {
            shared.background.spawn(settling);
        }
    }

    /// Ends the turn, and the session with it.
    pub(super) async fn delete(mut self) -> Result<(), SessionError> {
        let Some(Open {
            held,
            on_turn: _on_turn,
        }) = self.open.take()
        else {
            return Ok(());
        };
        let removed = held.hold.remove().await;
        removed.map(|_| ())
    }

    /// Ends the turn with a new history, or with the old one; gives what there is now, if anything.
    ///
    /// Once begun it comes to its end even if this is dropped, as it is where the client goes away:
    /// nobody is on the session before the disk has what it is to have.
    pub(super) async fn end(
        &mut self,
        tokens: Option<Arc<[u32]>>,
    ) -> Result<Option<History>, SessionError> {
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        let id = open.on_turn.key().id.to_string();
        let mut ending = Box::pin(open.end(tokens));
        if let Some(ended) = (&mut ending).now_or_never() {
            return ended;
        }
        let ended = self.shared.background.spawn(ending).await;
        ended.unwrap_or_else(|panic| {
            Err(SessionError::Disk {
                id,
                what: "written",
                error: std::io::Error::other(panic),
            })
        })
    }
}

impl Open {
    async fn end(self, tokens: Option<Arc<[u32]>>) -> Result<Option<History>, SessionError> {
        let Self { held, mut on_turn } = self;
        let Held {
            history,
            lost,
            hold,
        } = held;
        let mut left = history;
        if let Some(tokens) = tokens.filter(|_| !on_turn.is_deleted()) {
            let created = left.map(|was| was.created);
            left = match hold.write(created, tokens).await {
                Ok(history) => Some(history),
                Err(_) if on_turn.is_deleted() => None,
                Err(error) => return Err(error),
            };
        }
        if (left.is_some() || lost) && on_turn.end_unless_deleted() {
            return Ok(left);
        }
        // It was deleted, or there never was anything to remember.
        match hold.remove().await {
            // By now there is another of that name.
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
        let Open { held, mut on_turn } = open;
        // What stands for a lost history is left there, for the next turn to tell of it.
        if (held.history.is_some() || held.lost) && on_turn.end_unless_deleted() {
            return;
        }
        // The turn ends here, though not all may be gone from the disk: who is refused has left no
        // session, not even a busy one, by the time it is told.
        let mut removing = Box::pin(async move {
            if let Err(error) = held.hold.remove().await {
                tracing::warn!(%error, "a session that never was is not removed");
            }
        });
        if (&mut removing).now_or_never().is_none() {
            self.shared.background.spawn(removing);
        }
    }
}
