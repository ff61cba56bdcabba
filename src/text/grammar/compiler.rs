//! Compiles grammars outside the front end's threads, in bounded lanes.

use std::sync::Arc;

use super::{Grammar, GrammarError, GrammarSource, Grammars};
use crate::fair::Tenant;
use crate::lane::{Lane, LaneError};
use crate::resources::background::Priority;
use crate::text::Tokenizer;

/// Grammars compiled at a time in each lane; the cores are left to the engine.
const AT_A_TIME: usize = 1;
/// Maximum grammars being compiled or waiting in each lane.
const MAX_PENDING: usize = 32;
/// Maximum bytes of a description, and of the expressions in it, that compile in a few
/// milliseconds.
const QUICK: (usize, usize) = (8 << 10, 256);

/// Error of compiling a description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The grammar can't be followed.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The grammar was not compiled.
    #[error(transparent)]
    Lane(#[from] LaneError),
}

/// Compiles grammars on background threads, a few at a time, so that the cores are left to the
/// engine. Small grammars do not wait for large ones.
pub struct GrammarCompiler {
    grammars: Arc<Grammars>,
    quick: Lane,
    slow: Lane,
}

impl GrammarCompiler {
    /// Creates the compiler of a model with `vocab_size` tokens; the tokens `end_of_text` end a
    /// text.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, end_of_text: &[u32]) -> Self {
        let lane = || Lane::new("other grammars wait to be compiled", AT_A_TIME, MAX_PENDING);
        Self {
            grammars: Arc::new(Grammars::new(tokenizer, vocab_size, end_of_text)),
            quick: lane(),
            slow: lane(),
        }
    }

    /// Compiles a grammar for a tenant, or returns it from the cache.
    ///
    /// # Errors
    /// [`CompileError`] if the grammar can't be followed, too many are waiting, or the compiler
    /// itself fails.
    pub async fn compile(
        &self,
        source: GrammarSource,
        share: Tenant,
    ) -> Result<Grammar, CompileError> {
        if let Some(grammar) = self.grammars.known(&source) {
            return Ok(grammar);
        }
        let (bytes, expressions) = QUICK;
        let is_quick = source.bytes() <= bytes && source.expression_bytes() <= expressions;
        let lane = if is_quick { &self.quick } else { &self.slow };
        let place = lane.enter(share, 1).await?;
        let grammars = Arc::clone(&self.grammars);
        let work = move || grammars.compile(&source);
        Ok(place.run("skald-grammar", Priority::Low, work).await??)
    }
}
