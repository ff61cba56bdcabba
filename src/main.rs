//! The `skald` command: parses the command line and hands over to [`skald::cli`].

use std::process::ExitCode;

use skald::cli::Cli;

fn main() -> ExitCode {
    skald::panics::log();
    Cli::parse_arguments().run()
}
