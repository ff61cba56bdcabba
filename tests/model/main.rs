//! Models and their files: checkpoints, the hub, tokenizers, references.

#[path = "../support/mod.rs"]
mod support;

mod checkpoints;
mod hub;
mod real_gpt2;
mod tokenizer;
mod unusable_models;
