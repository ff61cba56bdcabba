//! Models and their files: checkpoints, the hub, tokenizers, references.

#[path = "../reference/mod.rs"]
mod plain;
#[path = "../support/mod.rs"]
mod support;

mod checkpoints;
mod hub;
mod real_gpt2;
mod reference;
mod tokenizer;
mod tokenizer_files;
mod tokenizers;
mod unusable_models;
