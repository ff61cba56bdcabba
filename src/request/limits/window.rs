//! Checks that requests fit the model's window.

use super::Limits;
use crate::request::{InvalidRequest, Overflow, RequestDraft, window_room};

impl Limits {
    /// Returns the maximum number of tokens to generate after the draft's context.
    pub(super) fn fit_window(&self, draft: &RequestDraft) -> Result<usize, InvalidRequest> {
        let max_tokens = self.wanted_tokens(draft);
        if max_tokens > self.max_tokens {
            return Err(InvalidRequest::new(
                draft.max_tokens_field,
                format!(
                    "`{}` must be at most {}, got {}",
                    draft.max_tokens_field, self.max_tokens, max_tokens
                ),
            ));
        }
        let context = draft.context();
        let Some(room) = window_room(self.context_length, context, draft.overflow) else {
            return Ok(max_tokens);
        };
        if context > self.context_length || (room == 0 && max_tokens > 0) {
            return Err(self.too_long(draft.prompt_field, draft, max_tokens));
        }
        let is_given = draft.sampling.max_new_tokens.is_some();
        if max_tokens > room && is_given && draft.overflow == Overflow::Error {
            return Err(self.too_long(draft.max_tokens_field, draft, max_tokens));
        }
        Ok(max_tokens.min(room))
    }

    /// Returns the error of a draft that does not fit the window because of `field`.
    fn too_long(&self, field: &str, draft: &RequestDraft, max_tokens: usize) -> InvalidRequest {
        let (context_length, prompt) = (self.context_length, draft.prompt.len());
        // Clients recognize the first words, which are OpenAI's.
        let limit = format!("this model's maximum context length is {context_length} tokens");
        match draft.history.as_ref().map_or(0, Vec::len) {
            0 if field == draft.prompt_field => InvalidRequest::context_length(
                field,
                format!(
                    "{limit}, prompt and completion together, but `{field}` has {prompt}; shorten it, or set `overflow` to \"slide\""
                ),
            ),
            0 => InvalidRequest::context_length(
                field,
                format!(
                    "{limit}; the prompt ({prompt}) and `{field}` ({max_tokens}) together exceed it: generate fewer tokens, \
                     or set `overflow` to \"stop\" or \"slide\""
                ),
            ),
            history => InvalidRequest::context_length(
                "session_id",
                format!(
                    "{limit}, but the session's {history} tokens, {prompt} new prompt tokens and {max_tokens} tokens to generate exceed it; rewind the session, generate fewer tokens, or set `overflow` to \"slide\""
                ),
            ),
        }
    }

    /// Checks that an input that is only read fits the window; no token is generated after it.
    pub(super) fn fit_input(&self, draft: &RequestDraft) -> Result<usize, InvalidRequest> {
        if draft.prompt.len() <= self.context_length {
            return Ok(0);
        }
        Err(InvalidRequest::context_length(
            draft.prompt_field,
            format!(
                "`{}` has {} tokens; the model's maximum context length is {} tokens",
                draft.prompt_field,
                draft.prompt.len(),
                self.context_length
            ),
        ))
    }

    /// Returns the maximum tokens to generate that the request sets, else the model, else the
    /// dialect.
    fn wanted_tokens(&self, draft: &RequestDraft) -> usize {
        let of_model = self.defaults.max_new_tokens;
        draft
            .sampling
            .max_new_tokens
            .or(of_model.map(|tokens| tokens.min(self.max_tokens)))
            .unwrap_or(draft.default_max_tokens)
    }

    /// Returns the number of prompt tokens, at least 1, that fit the window with the tokens to
    /// generate. Tokens to generate by default take at most half the window, and with
    /// [`Overflow::Slide`] none of it.
    #[must_use]
    pub fn prompt_room(&self, draft: &RequestDraft) -> usize {
        let wanted = self.wanted_tokens(draft);
        let claimed = match draft.overflow {
            Overflow::Slide => 0,
            _ if draft.sampling.max_new_tokens.is_some() => wanted,
            _ => wanted.min(self.context_length / 2),
        };
        self.context_length.saturating_sub(claimed).max(1)
    }
}
