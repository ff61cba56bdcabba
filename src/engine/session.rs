//! Named token histories: what lets a client go on where it left off.
//!
//! A session is its tokens and nothing else. Their keys and values are found again through the
//! prefix cache like those of any prompt, and computed again where they were evicted; so there
//! is one mechanism for both, and a session costs 4 bytes a token while it rests.
//!
//! One generation runs on a session at a time; others wait here in order of arrival. A history
//! changes only when a generation on it is settled, that is, when the front end has said what
//! its client received.

use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use super::handle::Submission;
use super::sequence::SequenceId;
use crate::request::SessionId;

pub(super) struct Session {
    pub tokens: Vec<u32>,
    pub created: SystemTime,
    pub last_used: SystemTime,
    busy: Option<SequenceId>,
    /// Larger is later; times may be equal.
    used: u64,
    queue: VecDeque<Box<Submission>>,
}

impl Session {
    pub fn is_busy(&self) -> bool {
        self.busy.is_some()
    }
}

/// All sessions; owned by the worker.
pub(super) struct SessionStore {
    sessions: HashMap<SessionId, Session>,
    limit: usize,
    clock: u64,
}

impl SessionStore {
    /// An empty store that keeps at most `limit` sessions beside those in use.
    pub fn new(limit: usize) -> Self {
        Self {
            sessions: HashMap::new(),
            limit,
            clock: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn get(&self, id: &SessionId) -> Option<&Session> {
        self.sessions.get(id)
    }

    /// All sessions, the last used first.
    pub fn list(&self) -> Vec<(&SessionId, &Session)> {
        let mut all: Vec<_> = self.sessions.iter().collect();
        all.sort_unstable_by_key(|(_, session)| std::cmp::Reverse(session.used));
        all
    }

    /// Makes the session busy with this submission and gives it back with the history so far;
    /// or keeps it in the session's queue and gives `None`.
    pub fn begin(
        &mut self,
        id: &SessionId,
        submission: Box<Submission>,
    ) -> Option<(Box<Submission>, Vec<u32>)> {
        self.clock += 1;
        let now = SystemTime::now();
        let session = self.sessions.entry(id.clone()).or_insert_with(|| Session {
            tokens: Vec::new(),
            created: now,
            last_used: now,
            busy: None,
            used: 0,
            queue: VecDeque::new(),
        });
        session.last_used = now;
        session.used = self.clock;
        if session.busy.is_some() {
            session.queue.push_back(submission);
            return None;
        }
        session.busy = Some(submission.id);
        let history = session.tokens.clone();
        self.evict();
        Some((submission, history))
    }

    /// Ends a generation's hold on its session. `tokens` is the whole new history, or `None` if
    /// the turn leaves no trace. Returns the next submission in the session's queue, if any.
    pub fn settle(
        &mut self,
        id: &SessionId,
        sequence: SequenceId,
        tokens: Option<Vec<u32>>,
    ) -> Option<Box<Submission>> {
        let session = self.sessions.get_mut(id)?;
        if session.busy != Some(sequence) {
            // It was deleted meanwhile, and is perhaps another one by now.
            return None;
        }
        session.busy = None;
        if let Some(tokens) = tokens {
            session.tokens = tokens;
        }
        let next = session.queue.pop_front();
        if next.is_none() && session.tokens.is_empty() {
            // Its first request failed: there never was anything to remember.
            self.sessions.remove(id);
        }
        next
    }

    /// Takes a submission out of whatever queue it waits in.
    pub fn withdraw(&mut self, sequence: SequenceId) {
        for session in self.sessions.values_mut() {
            session.queue.retain(|waiting| waiting.id != sequence);
        }
    }

    /// Forgets a session. `None` if there was none, else the submissions that waited for it.
    pub fn delete(&mut self, id: &SessionId) -> Option<VecDeque<Box<Submission>>> {
        self.sessions.remove(id).map(|session| session.queue)
    }

    /// Takes out every waiting submission.
    pub fn drain_queues(&mut self) -> impl Iterator<Item = Box<Submission>> {
        let queues = self.sessions.values_mut().map(|s| &mut s.queue);
        queues.flat_map(|queue| queue.drain(..))
    }

    /// Forgets the least recently used sessions that no generation runs on.
    fn evict(&mut self) {
        while self.sessions.len() > self.limit {
            let oldest = self
                .sessions
                .iter()
                .filter(|(_, session)| session.busy.is_none())
                .min_by_key(|(_, session)| session.used)
                .map(|(id, _)| id.clone());
            let Some(oldest) = oldest else {
                return;
            };
            self.sessions.remove(&oldest);
        }
    }
}
