//! Logs panics in the log's format; the standard library would write plain text.
//!
//! The source location of a panic is available even in a stripped program. A backtrace
//! (`RUST_BACKTRACE=1`) has function names only if the program was built with symbols.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

use tracing::Level;

/// Installs a hook that logs every panic of the process. Until logging is started, panics are written by
/// the standard library.
pub fn log() {
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if tracing::enabled!(Level::ERROR) {
            record(panic);
        } else {
            standard(panic);
        }
    }));
}

/// Returns the message of a panic's payload.
#[must_use]
pub fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a value that is not text")
}

fn record(panic: &PanicHookInfo<'_>) {
    let failure = message(panic.payload());
    let location = panic.location().map(tracing::field::display);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    let captured = backtrace.status() == BacktraceStatus::Captured;
    let backtrace = captured.then(|| tracing::field::display(&backtrace));
    tracing::error!(failure, location, thread, backtrace, "thread panicked");
}
