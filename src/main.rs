//! The `skald` command: parses the command line and hands over to [`skald::cli`].

use std::process::ExitCode;

use clap::Parser;
use skald::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
