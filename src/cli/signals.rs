//! Signals to process 1 of a container.
//!
//! The kernel drops a signal to process 1 that has no handler, so Ctrl-C and a container engine's `stop`
//! would have no effect. Here commands without handlers of their own get one that ends them at once, as
//! outside of a container. Other processes get none: the kernel's default is right for them.

use std::io;

use futures_util::future::select_all;
use tokio::signal::unix::{SignalKind, signal};

/// A shell's exit code for a command that a signal ended is this plus the signal's number.
const SIGNALLED: i32 = 128;

/// Makes each of `kinds` end this process if it is process 1.
///
/// # Errors
/// If the system provides no thread or no handler.
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
