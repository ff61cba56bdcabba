//! What goes into generations and what comes out of them: admitted requests, and steps of text and tokens.

use crate::engine::{FinishReason, GeneratedToken, PromptReport, TokenLogprob};
use crate::request::GenerateRequest;
use crate::session::Turn;
use crate::text::{SpannedToken, Tokenizer};

/// Admitted requests of one HTTP request, ready to be submitted.
pub(in crate::http) struct Submission {
    /// The requests, those for the same prompt one after the other.
    pub requests: Vec<GenerateRequest>,
    /// Generations for the same prompt.
    pub per_prompt: usize,
    /// The session's turn; only with a single request.
    pub turn: Option<Turn>,
    /// A stop string is part of the text it ends.
    pub include_stop: bool,
}

impl Submission {
    /// Returns whether the session begins anew because its stored history could not be read.
    pub(in crate::http) fn history_lost(&self) -> bool {
        self.turn.as_ref().is_some_and(Turn::history_lost)
    }
}

/// One step of a generation, as text.
#[derive(Debug)]
pub(in crate::http) enum GenerationStep {
    /// The prompt is prefilled; always the first step.
    Prompt(PromptReport),
    /// New text, tokens, or the end.
    Text(TextStep),
}

/// A generated token whose text is settled.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::http) struct ShownToken {
    /// The sampled token.
    pub token: TokenLogprob,
    /// The most likely tokens in its place.
    pub top: Vec<TokenLogprob>,
    /// Its part of the text; empty for special tokens, and for the first tokens of a character that several
    /// share.
    pub text: String,
    /// Characters of generated text before it.
    pub offset: usize,
    /// A special token.
    pub special: bool,
}

impl ShownToken {
    pub(super) fn new(spanned: SpannedToken<GeneratedToken>, tokenizer: &Tokenizer) -> Self {
        let GeneratedToken { token, top, .. } = spanned.token;
        Self {
            special: tokenizer.is_special(token.id),
            token,
            top,
            text: spanned.text,
            offset: spanned.offset,
        }
    }
}

/// New text and tokens.
#[derive(Debug)]
pub(in crate::http) struct TextStep {
    /// New text, ready to be shown; may be empty.
    pub text: String,
    /// Tokens whose whole text is now shown.
    pub tokens: Vec<ShownToken>,
    /// Set on the last step.
    pub finish: Option<Finished>,
}

/// How a generation ended.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::http) struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Tokens generated, those not shown included.
    pub generated: usize,
    /// Mean log-probability of these tokens; 0 if there are none.
    pub mean_logprob: f64,
}

/// A generation that is over.
#[derive(Debug)]
pub(in crate::http) struct CompletedGeneration {
    /// What was told of the prompt.
    pub prompt: PromptReport,
    /// The whole text.
    pub text: String,
    /// All tokens that were shown.
    pub tokens: Vec<ShownToken>,
    /// How it ended.
    pub finish: Finished,
}
