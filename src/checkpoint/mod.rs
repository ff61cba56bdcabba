//! Checkpoints: the source of a model, its files, and their content.
//!
//! This module reads and checks files. It must never compute with the weights, or know about the
//! engine, requests or sessions.
//!
//! | module | what it is for |
//! |---|---|
//! | [`source`] | `--model`: built-in, a directory or a hub id; the files of a model |
//! | [`hub`] | fetches a model from the hub into the shared cache |
//! | `layout` | files of the Hugging Face layout |
//! | [`config`] | `config.json`: the model's shape, of any architecture |
//! | [`gpt2_config`], [`gemma_config`], [`llama_config`] | the shape of one architecture |
//! | [`decoder_fields`], [`rope`], `config_error` | what architectures have in common: sizes, rotary positions, errors |
//! | [`generation_config`] | `generation_config.json`: sampling defaults |
//! | [`tokenizer_config`] | `tokenizer_config.json`: the chat template and its tokens |
//! | `tokenizer_files` | a tokenizer in the Hugging Face layout |
//! | `word_piece`, `sentence_piece` | `vocab.txt` of a `BertTokenizer` and `spiece.model`, as `tokenizer.json` |
//! | [`gguf`] | models in GGUF: metadata as the files above, names, tokenizer |
//! | [`json`] | JSON files with errors that name the field |
//! | [`weights`], `shards`, `mapped`, `tensor`, `finite` | files of weights, memory-mapped; their tensors; the check of their values |
//! | [`adapter`] | LoRA adapters as peft saves them |
//! | `torch` | weights as PyTorch saves them |

pub mod adapter;
pub mod config;
mod config_error;
pub mod decoder_fields;
mod finite;
pub mod gemma_config;
pub mod generation_config;
pub mod gguf;
pub mod gpt2_config;
pub mod hub;
pub mod json;
mod layout;
pub mod llama_config;
mod mapped;
pub mod rope;
mod sentence_piece;
mod shards;
pub mod source;
mod tensor;
pub mod tokenizer_config;
mod tokenizer_files;
mod torch;
pub mod weights;
mod word_piece;

pub use config::ModelConfig;
pub use gemma_config::GemmaConfig;
pub use generation_config::GenerationConfig;
pub use gguf::Gguf;
pub use gpt2_config::Gpt2Config;
pub use llama_config::LlamaConfig;
pub use source::{ModelFiles, ModelSource};
pub use tokenizer_config::TokenizerConfig;
pub use weights::Checkpoint;
