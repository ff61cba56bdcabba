//! How requests come and go: accepted or refused, finished, failed, closed; and the sessions they
//! go on with.

use tokio::sync::oneshot;
use tracing::debug;

use super::{Unsettled, Worker};
use crate::engine::active::Active;
use crate::engine::beams::{Beams, blocks_needed};
use crate::engine::blocks::BLOCK_SIZE;
use crate::engine::event::GenerateError;
use crate::engine::handle::{KeptOutput, SessionInfo, Submission};
use crate::engine::sequence::{Sequence, SequenceId, context_start};
use crate::request::{GenerateRequest, Output, Overflow, SessionId, Tenant, window_room};

impl Worker {
    /// Accepts a request, or lets it wait for its session, or says why it can never run.
    pub(super) fn submit(&mut self, submission: Box<Submission>) {
        let (submission, history) = match submission.request.session.clone() {
            None => (submission, Vec::new()),
            Some(session) => match self.sessions.begin(&session, submission) {
                Some(begun) => begun,
                None => return,
            },
        };
        let id = submission.id;
        let session = submission.request.session.clone();
        if let Err(refusal) = self.accept(submission, history)
            && let Some(session) = session
        {
            debug!(%session, %refusal, "refused");
            self.settle(&session, id, None);
        }
    }

    fn accept(
        &mut self,
        submission: Box<Submission>,
        history: Vec<u32>,
    ) -> Result<(), GenerateError> {
        let Submission {
            id,
            request,
            verdict,
            clients,
            place,
        } = *submission;
        let n_positions = self.model.config().n_positions;
        let fits = self.check_fit(&request, history.len());
        let max_tokens = match fits {
            Ok(max_tokens) => max_tokens,
            Err(refusal) => {
                let _ = verdict.send(Err(refusal.clone()));
                return Err(refusal);
            }
        };
        let history_length = history.len();
        let mut tokens = history;
        tokens.extend_from_slice(&request.prompt);
        // What is in the cache has neither logits nor hidden states.
        let may_reuse = !request.logprobs.prompt && request.output == Output::Text;
        let mut active = Active::new(
            request,
            clients,
            place,
            &tokens,
            history_length,
            max_tokens,
            self.model.config(),
        );
        let root = self.root(active.request.tenant);
        let keep = active.request.keep_kv && self.config.evicted.is_some();
        let sequence = Sequence::new(id, tokens, n_positions, may_reuse);
        let mut sequence = sequence.with_root(root).with_keep(keep);
        active.beams = Beams::new(&active.request, &mut sequence, max_tokens);
        self.active.insert(id, Box::new(active));
        self.scheduler.add(sequence);
        // If the client is gone already, a `Close` follows.
        let _ = verdict.send(Ok(()));
        Ok(())
    }

    /// How many tokens a request may generate after `history` session tokens; or why it can
    /// never run.
    fn check_fit(&self, request: &GenerateRequest, history: usize) -> Result<usize, GenerateError> {
        let n_positions = self.model.config().n_positions;
        let wanted = request.stop.max_tokens;
        let total = history + request.prompt.len();
        if total == 0 {
            return Err(GenerateError::NothingToContinue);
        }
        let max_tokens = match window_room(n_positions, total, request.overflow) {
            None => wanted,
            Some(room) => {
                let refused = total > n_positions
                    || (room == 0 && wanted > 0)
                    || (request.overflow == Overflow::Error && wanted > room);
                if refused {
                    return Err(GenerateError::ContextLength {
                        history,
                        prompt: request.prompt.len(),
                        max_tokens: wanted,
                        n_positions,
                    });
                }
                wanted.min(room)
            }
        };
        let longest = if total + max_tokens > n_positions {
            n_positions
        } else {
            total - context_start(total, n_positions) + max_tokens
        };
        self.check_width(request)?;
        let needed = blocks_needed(request, total, longest);
        let available = self.scheduler.blocks().capacity();
        if needed > available {
            return Err(GenerateError::KvTooSmall {
                needed,
                available,
                block_size: BLOCK_SIZE,
            });
        }
        Ok(max_tokens)
    }

    pub(super) fn fail(&mut self, id: SequenceId, error: GenerateError) {
        if let Some(active) = self.active.get(&id) {
            active.fail(error);
        }
        self.finish(id);
    }

    /// Takes a generation out of the batch; on a session, its tokens are kept until it is closed.
    pub(super) fn finish(&mut self, id: SequenceId) {
        let sequence = self.scheduler.remove_request(id);
        let active = self.active.remove(&id);
        if let (Some(sequence), Some(active)) = (sequence, active)
            && active.request.session.is_some()
        {
            let tokens = sequence.tokens;
            self.unsettled.insert(id, Unsettled { active, tokens });
        }
    }

    /// The front end is done with a generation, finished or not.
    pub(super) fn close(
        &mut self,
        id: SequenceId,
        kept: Option<&KeptOutput>,
        done: Option<oneshot::Sender<()>>,
    ) {
        let stays = self
            .active
            .get_mut(&id)
            .is_some_and(|active| !active.leave());
        if !stays {
            self.finish(id);
        }
        if let Some(Unsettled { active, tokens }) = self.unsettled.remove(&id) {
            if let Some(session) = &active.request.session {
                let history = kept.map(|kept| active.history_to_keep(&tokens, kept));
                self.settle(session, id, history);
            }
        } else {
            self.sessions.withdraw(id);
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    fn settle(&mut self, session: &SessionId, id: SequenceId, history: Option<Vec<u32>>) {
        if let Some(next) = self.sessions.settle(session, id, history) {
            self.submit(next);
        }
    }

    pub(super) fn session_info(&self, id: &SessionId) -> Option<SessionInfo> {
        let session = self.sessions.get(id)?;
        let start = context_start(session.tokens.len(), self.model.config().n_positions);
        let cached = self
            .scheduler
            .blocks()
            .find_prefix(self.root(Tenant::ANONYMOUS), &session.tokens[start..]);
        Some(SessionInfo {
            id: id.clone(),
            tokens: session.tokens.clone(),
            cached_tokens: cached.len() * BLOCK_SIZE,
            created: session.created,
            last_used: session.last_used,
            busy: session.is_busy(),
        })
    }

    pub(super) fn fail_everything(&mut self, error: &GenerateError) {
        for active in self.active.values() {
            active.fail(error.clone());
        }
        self.active.clear();
        for submission in self.sessions.drain_queues() {
            let _ = submission.verdict.send(Err(error.clone()));
        }
        self.publish_gauges();
    }
}
