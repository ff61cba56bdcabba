//! Panics in the log, in the log's form: the standard library writes plain text beside it.
//!
//! A panic's place in the source is part of the program and so also of a stripped one. A backtrace
//! (`RUST_BACKTRACE=1`) has names of functions only where the program was built with symbols.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

use tracing::Level;

/// Logs every panic of the process from now on; before logs are started, as the standard library
/// writes it.
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

fn record(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let failure = text.unwrap_or("a value that is not text");
    let location = panic.location().map(tracing::field::display);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    let captured = backtrace.status() == BacktraceStatus::Captured;
    let backtrace = captured.then(|| tracing::field::display(&backtrace));
    tracing::error!(failure, location, thread, backtrace, "thread panicked");
}
