//! Grammars that constrain generated text: JSON, a regular expression, one of several texts, or a
//! context-free grammar.
//!
//! The `llguidance` library computes which tokens may follow at every point of a text. A
//! [`GrammarSource`] comes from a request; [`Grammars`], one per model, compiles it to a
//! [`Grammar`] that the engine can follow, or returns an error. All generations of one grammar
//! share the compiled form but no mutable state, so the cost limits of one generation do not depend
//! on others.
//!
//! Compiling takes milliseconds, or longer for large schemas, so it must not run on the threads of
//! the front end; the [`GrammarCompiler`] compiles for requests, a few at a time. It must never
//! fetch anything: a schema that refers to another by address is refused.

mod compiler;
mod expression;
mod lark;
mod message;
mod reference;
mod schema;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

pub use self::compiler::{CompileError, GrammarCompiler};
use self::expression::Shape;
pub use self::message::reason;
use super::Tokenizer;

/// Number of compiled grammars in the cache.
const CACHED: usize = 32;

/// The schema keyword for the library's own settings.
const OPTIONS: &str = "x-guidance";

/// Stack of a thread that works on grammars. The library's recursion depth follows that of
/// expressions, whose length is bounded by the request's limits; unused stack takes no memory.
pub const STACK: usize = 64 << 20;

/// Returns the cost limits of one grammar: an excessive grammar is refused, or ends its own
/// generation, without affecting others. A schema of 100 kB stays well below each limit.
fn limits() -> ParserLimits {
    ParserLimits {
        // About 40 MB.
        max_lexer_states: 20_000,
        // A mask of at most about 10 ms.
        step_lexer_fuel: 150_000,
        step_max_items: 50_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// The description of a grammar in a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GrammarSource {
    /// A JSON object with any content.
    JsonObject,
    /// JSON that follows this JSON schema.
    JsonSchema(String),
    /// A text that matches a regular expression as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text derived by a context-free grammar in llguidance's dialect of Lark.
    Lark(String),
}

impl GrammarSource {
    /// Returns the length of the description in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text.len(),
            // An empty choice has a cost too.
            Self::Choice(choices) => choices.iter().map(|choice| choice.len() + 1).sum(),
        }
    }

    /// Returns the length of its regular expressions: all of a schema's together, or those of its
    /// context-free grammar with the terminals expanded. The cost of compiling grows with the
    /// square of the length.
    #[must_use]
    pub fn expression_bytes(&self) -> usize {
        match self {
            Self::JsonObject | Self::Choice(_) => 0,
            Self::Regex(text) => text.len(),
            Self::Lark(text) => lark::expression_bytes(text),
            // Invalid JSON is refused with a reason when it is compiled.
            Self::JsonSchema(text) => {
                serde_json::from_str(text).map_or(0, |schema| schema::expression_bytes(&schema))
            }
        }
    }

    fn top_level(&self) -> Result<TopLevelGrammar, GrammarError> {
        let grammar = match self {
            Self::JsonObject => json_schema(json!({"type": "object"})),
            Self::JsonSchema(text) => {
                let mut schema = serde_json::from_str(text)
                    .map_err(|error| GrammarError(format!("the schema is not JSON: {error}")))?;
                schema::prepare(&mut schema)?;
                json_schema(schema)
            }
            Self::Regex(regex) => {
                let regex = without_anchors(regex);
                if regex.is_empty() {
                    return Err(GrammarError("it matches only the empty text".to_owned()));
                }
                Shape::of(regex).check()?;
                GrammarWithLexer::from_regex(regex)
            }
            Self::Choice(choices) => {
                if choices.is_empty() {
                    return Err(GrammarError("the list of choices is empty".to_owned()));
                }
                // A terminal, in capitals, is one regular expression; strings are written as in JSON.
                let choices = choices.iter().map(|choice| json!(choice).to_string());
                let choices: Vec<String> = choices.collect();
                let lark = format!("start: CHOICE\nCHOICE: {}\n", choices.join(" | "));
                GrammarWithLexer::from_lark(lark)
            }
            Self::Lark(text) => GrammarWithLexer::from_lark(lark::prepare(text)?),
        };
        Ok(TopLevelGrammar::from_grammar(grammar))
    }
}

/// Creates a grammar of JSON without whitespace between tokens, unless the schema's `x-guidance`
/// sets it. Then the end of a text is unambiguous, and a model can't generate whitespace forever.
fn json_schema(schema: Value) -> GrammarWithLexer {
    let mut schema = match schema {
        Value::Object(schema) => schema,
        // `true` allows any JSON.
        Value::Bool(true) => Map::new(),
        other => return GrammarWithLexer::from_json_schema(other),
    };
    let mut options = json!({"whitespace_flexible": false});
    if let Some(given) = schema.get(OPTIONS) {
        llguidance::json_merge(&mut options, given);
    }
    schema.insert(OPTIONS.to_owned(), options);
    GrammarWithLexer::from_json_schema(Value::Object(schema))
}

/// Removes the anchors at the ends of a regular expression: it always matches the whole text, and
/// the library does not support anchors.
fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(rest) => {
            let escapes = rest.bytes().rev().take_while(|&byte| byte == b'\\').count();
            if escapes.is_multiple_of(2) {
                rest
            } else {
                regex
            }
        }
        None => regex,
    }
}

/// Reason why a grammar can't be followed, for its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarError(String);

impl GrammarError {
    /// Returns the library's message in Skald's terms.
    fn from_library(error: &impl fmt::Display) -> Self {
        Self(reason(&format!("{error:#}")))
    }
}

/// A grammar that can be followed; cheap to clone.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    source: GrammarSource,
    /// A matcher at the start of a text; it never advances.
    matcher: Mutex<Matcher>,
    end_of_text: Arc<[u32]>,
    special: Arc<[u32]>,
}

impl Grammar {
    /// Creates a matcher at the start of a text.
    #[must_use]
    pub fn matcher(&self) -> Matcher {
        let matcher = &self.0.matcher;
        // A deep clone, so that lexer states it adds are not shared.
        matcher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .deep_clone()
    }

    /// Returns the tokens that end a text.
    #[must_use]
    pub fn end_of_text(&self) -> &[u32] {
        &self.0.end_of_text
    }

    /// Returns the tokens that no grammar derives, including those that end a text.
    #[must_use]
    pub fn special(&self) -> &[u32] {
        &self.0.special
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grammar").field(&self.0.source).finish()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        self.0.source == other.0.source
    }
}

/// Compiles grammars for one model. The tokenizer's vocabulary is prepared with the first grammar.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    vocab_size: usize,
    end_of_text: Arc<[u32]>,
    special: Arc<[u32]>,
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    /// Cached grammars, the most recently used first.
    cached: Mutex<VecDeque<Grammar>>,
}

impl Grammars {
    /// Creates the grammars of a model with `vocab_size` tokens; the tokens `end_of_text` end a
    /// text.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, end_of_text: &[u32]) -> Self {
        let ids = u32::try_from(vocab_size).unwrap_or(u32::MAX);
        let end_of_text: Arc<[u32]> = end_of_text.iter().copied().filter(|&id| id < ids).collect();
        let special = (0..ids)
            .filter(|id| tokenizer.is_control(*id) || end_of_text.contains(id))
            .collect();
        Self {
            tokenizer,
            vocab_size,
            end_of_text,
            special,
            factory: OnceLock::new(),
            cached: Mutex::default(),
        }
    }

    /// Returns the grammar of a description, compiled or from the cache.
    ///
    /// # Errors
    /// The reason why it can't be followed.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        if let Some(grammar) = self.known(source) {
            return Ok(grammar);
        }
        let factory = self.factory.get_or_init(|| self.prepare()).as_ref();
        let factory = factory.map_err(Clone::clone)?;
        let matcher = with_deep_stack(|| make(factory, source))??;
        let grammar = Grammar(Arc::new(Compiled {
            source: source.clone(),
            matcher: Mutex::new(matcher),
            end_of_text: Arc::clone(&self.end_of_text),
            special: Arc::clone(&self.special),
        }));
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        cached.truncate(CACHED - 1);
        cached.push_front(grammar.clone());
        Ok(grammar)
    }

    /// Returns the grammar of a description if it is cached.
    #[must_use]
    pub fn known(&self, source: &GrammarSource) -> Option<Grammar> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let at = cached
            .iter()
            .position(|grammar| grammar.0.source == *source)?;
        let grammar = cached.remove(at)?;
        cached.push_front(grammar.clone());
        Some(grammar)
    }

    fn prepare(&self) -> Result<ParserFactory, GrammarError> {
        let environment: TokEnv = Arc::new(Vocabulary {
            trie: self.trie(),
            tokenizer: Arc::clone(&self.tokenizer),
        });
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
                .map_err(|error| GrammarError::from_library(&error))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(factory)
    }

    /// Returns the bytes of all tokens except special ones. Tokens that begin with FF, which does
    /// not occur in UTF-8, are omitted too, because the library would treat them as special.
    fn trie(&self) -> TokTrie {
        let ids = u32::try_from(self.vocab_size).unwrap_or(u32::MAX);
        let words: Vec<Vec<u8>> = (0..ids)
            .map(|id| match self.tokenizer.token_bytes(id) {
                Some(bytes)
                    if bytes.first() != Some(&0xff) && self.special.binary_search(&id).is_err() =>
                {
                    bytes.to_vec()
                }
                _ => Vec::new(),
            })
            .collect();
        let first = self.end_of_text.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(ids, first), &words);
        if self.end_of_text.is_empty() {
            trie
        } else {
            trie.with_eos_tokens(&self.end_of_text)
        }
    }
}

fn make(factory: &ParserFactory, source: &GrammarSource) -> Result<Matcher, GrammarError> {
    let parser = factory
        .create_parser(source.top_level()?)
        .map_err(|error| GrammarError::from_library(&error))?;
    let mut matcher = Matcher::new(Ok(parser));
    // A grammar that derives no text fails at its first token.
    matcher
        .deep_clone()
        .compute_mask_or_eos()
        .map_err(|error| GrammarError::from_library(&error))?;
    if let Some(error) = matcher.get_error() {
        return Err(GrammarError::from_library(&error));
    }
    for warning in matcher.grammar_warnings() {
        tracing::debug!(warning, "grammar compiled with a warning");
    }
    Ok(matcher)
}

/// Runs work on a thread whose stack suffices for the deepest expression.
fn with_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, GrammarError> {
    let failed = |why: String| GrammarError(format!("it could not be compiled: {why}"));
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("skald-grammar".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|error| failed(error.to_string()))?
            .join()
            .map_err(|_| failed("the library panicked".to_owned()))
    })
}

/// The model's tokens in the library's interface.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokenizer
                .encode_continued(text, false)
                .unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
