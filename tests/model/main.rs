//! Models and their files: checkpoints, the hub, tokenizers, references.

#[path = "../reference/mod.rs"]
mod plain;
#[path = "../support/mod.rs"]
mod support;

mod adapters;
mod architectures;
mod checkpoints;
mod gguf;
mod gpt2_family;
mod hub;
mod real;
mod real_gpt2;
mod reference;
mod runner;
mod tokenizer;
mod tokenizer_classes;
mod tokenizer_files;
mod tokenizers;
mod unusable_models;
