//! Between text and tokens, on the front end's side: the tokenizer, the prompts of conversations,
//! and the way back from a stream of tokens to text that may be shown.
//!
//! - [`tokenizer`]: GPT-2's byte-level BPE, both ways; `cuts` is where long texts are cut.
//! - [`template`]: chat templates; `jinja` is the language they are written in, `guard` keeps
//!   special tokens in messages apart from the template's, `bounded` ends what a template writes
//!   without end.
//! - [`stream`]: the incremental detokenizer of one generation, with the span of each token; [`utf8`] is how
//!   tokens become characters.
//! - [`stop`]: stop strings in a stream of text.
//! - [`grammar`]: what a text may look like, and which tokens may follow in it.
//!
//! Nothing here knows of HTTP, the engine or a model. No input may make it panic.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod bounded;
mod cuts;
pub mod grammar;
mod guard;
mod jinja;
pub mod stop;
pub mod stream;
pub mod template;
pub mod tokenizer;
pub mod utf8;

pub use grammar::{Grammar, GrammarCompiler, GrammarError, GrammarSource, Grammars};
pub use stop::StopMatcher;
pub use stream::{ShownTokens, SpannedToken, TextPiece, TextStream};
pub use template::ChatTemplate;
pub use tokenizer::{TextError, TokenSpan, Tokenizer};
pub use utf8::Utf8Decoder;
