//! Background threads with a lower priority than the compute threads.
//!
//! A step of the engine takes as long as its slowest compute thread, so work with equal priority would
//! stall every stream. At a lower priority it gets idle time, and about a tenth of a core if there is
//! none. Work must be bounded by itself, since a thread can't be stopped.

use std::io;
use std::thread;

use tokio::sync::oneshot;

/// Niceness of a background thread: a tenth of the weight of a compute thread.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Stack size in bytes, large because the work itself bounds its recursion. Unused stack takes no memory.
pub const STACK: usize = 64 << 20;

/// The priority of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// The same as other threads: for work that takes milliseconds.
    Normal,
    /// Below the compute threads.
    Low,
}

/// Runs `work` on a new thread. The receiver fails if the work panics; dropping it does not stop the
/// thread.
///
/// # Errors
/// If the thread can't be started.
pub fn spawn<T: Send + 'static>(
    name: &str,
    priority: Priority,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (done, result) = oneshot::channel();
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(move || {
            if priority == Priority::Low {
                lower();
            }
            // Fails if the receiver was dropped, for example because the client disconnected.
            let _ = done.send(work());
        })?;
    Ok(result)
}

/// Lowers the priority of the calling thread.
fn lower() {
    #[cfg(target_os = "linux")]
    // On Linux, niceness applies to the calling thread.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "background thread priority not lowered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_returned_and_a_panic_is_an_error() {
        let result = spawn("test", Priority::Low, || 3).unwrap();
        assert_eq!(result.blocking_recv(), Ok(3));
        let result = spawn("test", Priority::Normal, || panic!("on purpose")).unwrap();
        let error = result.blocking_recv().unwrap_err();
        assert_eq!(error.to_string(), "channel closed");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn only_the_background_thread_has_a_lower_priority() {
        use rustix::process::getpriority_process;
        let before = getpriority_process(None).unwrap();
        let own = || getpriority_process(None).unwrap();
        let lowered = spawn("test", Priority::Low, own).unwrap();
        assert!(lowered.blocking_recv().unwrap() > before);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
