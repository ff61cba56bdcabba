//! The model: its files, its shape, and its forward pass.
//!
//! Knows a batch of rows, never a sequence, session or request.
//!
//! | module | what it is for |
//! |---|---|
//! | [`source`] | `--model`: built-in, a directory or a hub id; the files of a model |
//! | [`hub`] | fetches a model from the hub into the shared cache |
//! | [`config`] | `config.json`: the shape |
//! | [`generation_config`] | `generation_config.json`: defaults for sampling |
//! | [`tokenizer_config`] | `tokenizer_config.json`: the chat template and its tokens |
//! | [`weights`], `finite` | safetensors files, read where they lie |
//! | [`gpt2`] | the forward pass |
//! | [`trial`] | the pass that a model must survive before it is served |

pub mod config;
mod finite;
pub mod generation_config;
pub mod gpt2;
pub mod hub;
mod layout;
pub mod source;
pub mod tokenizer_config;
pub mod trial;
pub mod weights;

pub use config::Gpt2Config;
pub use generation_config::GenerationConfig;
pub use source::{ModelFiles, ModelSource};
pub use tokenizer_config::TokenizerConfig;
