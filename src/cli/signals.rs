//! Signals to the first process of a container.
//!
//! The kernel drops a signal to process 1 for which it has no handler, so Ctrl-C and a container
//! engine's `stop` would do nothing. Commands without handlers of their own end at once, as they
//! would outside of a container. No other process gets a handler here: the kernel's own behaviour
//! is right for it.

use std::io;

use futures_util::future::select_all;
use tokio::signal::unix::{SignalKind, signal};

/// A shell's exit code for a command that a signal ended is this and the signal's number.
const SIGNALLED: i32 = 128;

/// Makes each of `kinds` end this process if it is process 1.
///
/// # Errors
/// If the system gives no thread or no handler.
pub(super) fn end_process_one(kinds: &[SignalKind]) -> io::Result<()> {
    if std::process::id() != 1 || kinds.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let context = runtime.enter();
    let handlers = kinds.iter().map(|&kind| Ok((kind, signal(kind)?)));
    let handlers: Vec<_> = handlers.collect::<io::Result<_>>()?;
    drop(context);
    std::thread::Builder::new()
        .name("skald-signals".to_owned())
        .spawn(move || {
            let arrivals = handlers.into_iter().map(|(kind, mut handler)| {
                Box::pin(async move {
                    handler.recv().await;
                    kind
                })
            });
            let (kind, ..) = runtime.block_on(select_all(arrivals));
            std::process::exit(SIGNALLED + kind.as_raw_value());
        })?;
    Ok(())
}
