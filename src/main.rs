//! The `skald` command: parses the command line and runs [`skald::cli`].

use std::io;
use std::process::ExitCode;

use skald::cli::Cli;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    skald::panics::log();
    if let Err(error) = survive_file_size_limit() {
        skald::telemetry::say(&format!(
            "skald: can't handle SIGXFSZ; a file that reaches its size limit will end this command: {error}"
        ));
    }
    Cli::parse_arguments().run()
}

/// Makes writes beyond the limit of the file size (`ulimit -f`) fail as they do on a full disk. Without a
/// handler, the signal would end the process and leave unfinished files.
fn survive_file_size_limit() -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let _context = runtime.enter();
    // The handler outlives the runtime.
    signal(SignalKind::from_raw(libc::SIGXFSZ)).map(drop)
}
