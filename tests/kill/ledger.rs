//! Expected state of a session, from all that its client has seen.
//!
//! Completed operations are certain. An operation that was running when the server was killed took effect or
//! not, and a turn may have been kept in part; no other history is allowed.

use crate::reference::{Choice, Reference};

/// A requested turn.
#[derive(Debug, Clone)]
pub struct Turn {
    pub inputs: String,
    pub choice: Choice,
    pub max_tokens: usize,
}

/// A requested operation whose effect is unknown.
#[derive(Debug, Clone)]
pub enum Doubt {
    /// A turn whose answer had not ended.
    Turn(Turn),
    /// A turn whose answer had ended; only its text is known.
    Said { inputs: String, text: String },
    /// A change that results in this history.
    Change(Option<Vec<u32>>),
}

/// A session.
#[derive(Debug, Clone, Default)]
pub struct Tale {
    /// History after all completed operations; `None` if the session does not exist.
    pub known: Option<Vec<u32>>,
    /// The operation with an unknown effect.
    pub doubt: Option<Doubt>,
}

impl Tale {
    /// Returns the length of the history.
    pub fn len(&self) -> usize {
        self.known.as_ref().map_or(0, Vec::len)
    }

    /// Records a completed turn with these tokens.
    pub fn said(&mut self, prompt: &[u32], said: &[u32]) {
        let history = self.known.get_or_insert_default();
        history.extend(prompt);
        history.extend(said);
        self.doubt = None;
    }

    /// Records the history after another completed operation.
    pub fn is_now(&mut self, history: Option<Vec<u32>>) {
        self.known = history;
        self.doubt = None;
    }

    /// Checks the actual history against the expected one, and adopts it.
    ///
    /// # Errors
    /// A description of the difference.
    pub async fn settle(
        &mut self,
        found: Option<Vec<u32>>,
        reference: &Reference,
    ) -> Result<(), String> {
        let allowed = match &self.doubt {
            None => found == self.known,
            Some(Doubt::Change(after)) => found == self.known || found == *after,
            Some(Doubt::Said { inputs, text }) => {
                let rest = self.rest_of(found.as_deref(), &reference.ids(inputs));
                rest.is_some_and(|rest| reference.text(rest) == *text)
            }
            Some(Doubt::Turn(turn)) => {
                found == self.known || self.is_beginning(found.as_deref(), turn, reference).await
            }
        };
        if !allowed {
            return Err(format!("{found:?}\nis not what follows from {self:?}"));
        }
        self.is_now(found);
        Ok(())
    }

    /// Returns the part after the known history and a prompt.
    fn rest_of<'a>(&self, found: Option<&'a [u32]>, prompt: &[u32]) -> Option<&'a [u32]> {
        let known = self.known.as_deref().unwrap_or_default();
        found?.strip_prefix(known)?.strip_prefix(prompt)
    }

    /// Returns whether the history contains a turn up to some token.
    async fn is_beginning(
        &self,
        found: Option<&[u32]>,
        turn: &Turn,
        reference: &Reference,
    ) -> bool {
        let prompt = reference.ids(&turn.inputs);
        let Some(rest) = self.rest_of(found, &prompt) else {
            return false;
        };
        let context = [self.known.as_deref().unwrap_or_default(), &prompt].concat();
        let whole = reference.next(&context, turn.choice, turn.max_tokens).await;
        whole.starts_with(rest)
    }
}
