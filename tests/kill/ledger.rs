//! What must be true of a session, by all that its client has seen.
//!
//! What has ended is certain. What was under way when the server went away has happened or not, and
//! a turn may have happened in part; but a history is never anything else.

use crate::reference::{Choice, Reference};

/// One turn that was asked for.
#[derive(Debug, Clone)]
pub struct Turn {
    pub inputs: String,
    pub choice: Choice,
    pub max_tokens: usize,
}

/// What was asked of a session and is not known to be done.
#[derive(Debug, Clone)]
pub enum Doubt {
    /// A turn whose answer had not ended.
    Turn(Turn),
    /// A turn whose answer had ended; all that is known of it is its text.
    Said { inputs: String, text: String },
    /// A change after which this is the history.
    Change(Option<Vec<u32>>),
}

/// One session.
#[derive(Debug, Clone, Default)]
pub struct Tale {
    /// Its history after all that has ended; `None` where there is no such session.
    pub known: Option<Vec<u32>>,
    /// What was under way.
    pub doubt: Option<Doubt>,
}

impl Tale {
    /// The history, as long as something is to be told of it.
    pub fn len(&self) -> usize {
        self.known.as_ref().map_or(0, Vec::len)
    }

    /// A turn has ended and these are its tokens.
    pub fn said(&mut self, prompt: &[u32], said: &[u32]) {
        let history = self.known.get_or_insert_default();
        history.extend(prompt);
        history.extend(said);
        self.doubt = None;
    }

    /// Something else has ended, after which this is the history.
    pub fn is_now(&mut self, history: Option<Vec<u32>>) {
        self.known = history;
        self.doubt = None;
    }

    /// Checks what was found against what is known, and takes it over.
    ///
    /// # Errors
    /// What is wrong with it.
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

    /// What comes after what is known and a prompt.
    fn rest_of<'a>(&self, found: Option<&'a [u32]>, prompt: &[u32]) -> Option<&'a [u32]> {
        let known = self.known.as_deref().unwrap_or_default();
        found?.strip_prefix(known)?.strip_prefix(prompt)
    }

    /// Whether a turn was kept up to some token.
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
