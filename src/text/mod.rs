//! Conversion between text and tokens, for the front end: the tokenizer, prompts of conversations,
//! and text from a stream of tokens.
//!
//! - [`tokenizer`]: from text to tokens, and the bytes of each token.
//! - [`template`]: chat templates; `jinja` is their language, `guard` tells special tokens in
//!   messages from the template's, `bounded` limits their output.
//! - [`stream`]: the incremental detokenizer of one generation, with the span of each token;
//!   [`utf8`] decodes tokens to characters.
//! - [`stop`]: stop strings in a stream of text.
//! - [`grammar`]: grammars for text, and the tokens that they allow.
//!
//! This module must never know about HTTP, the engine or a model, and no input may make it panic.

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
pub use tokenizer::{
    AddedToken, Merge, Speller, TextError, TokenSpan, Tokenizer, TokenizerSettings,
    VocabularyArrays,
};
pub use utf8::Utf8Decoder;
