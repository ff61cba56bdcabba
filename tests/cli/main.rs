//! The `skald` command from outside: exit codes, messages, settings, logs.

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod health;
mod keys;
mod logs;
mod models;
mod prompt_log;
mod terminal;
mod trace;
