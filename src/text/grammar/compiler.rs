//! Compiles grammars off the front end's threads, in bounded lanes.

use std::sync::Arc;

use super::{Grammar, GrammarError, GrammarSource, Grammars};
use crate::fair::Tenant;
use crate::lane::{Lane, LaneError};
use crate::resources::background::Priority;
use crate::text::Tokenizer;

/// Grammars compiled at a time in each lane: the cores are the engine's.
const AT_A_TIME: usize = 1;
/// Grammars that are compiled or wait in each lane.
const MAX_PENDING: usize = 32;
/// Bytes of a description, and of the expressions in it, that are compiled in a few milliseconds.
const QUICK: (usize, usize) = (8 << 10, 256);

/// Why there is no grammar of a description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// It can't be followed.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// It was not compiled.
    #[error(transparent)]
    Lane(#[from] LaneError),
}

/// Compiles grammars on threads that leave the cores to the engine, a few at a time: small ones do not
/// wait for large ones.
pub struct GrammarCompiler {
    grammars: Arc<Grammars>,
    quick: Lane,
    slow: Lane,
}

impl GrammarCompiler {
    /// Creates the compiler of a model of `vocab_size` tokens, of which `end_of_text` end a text.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, end_of_text: &[u32]) -> Self {
        let lane = || Lane::new("other grammars wait to be compiled", AT_A_TIME, MAX_PENDING);
        Self {
            grammars: Arc::new(Grammars::new(tokenizer, vocab_size, end_of_text)),
            quick: lane(),
            slow: lane(),
        }
    }

    /// Compiles a grammar for a tenant, or takes the one that is still known.
    ///
    /// # Errors
    /// [`CompileError`] if it can't be followed, too many are waiting, or the compiler itself fails.
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
