//! Threads for work that can wait, which leave the cores to the compute threads.
//!
//! A step of the engine takes as long as its slowest compute thread. Work that shares the cores on
//! equal terms would stall every stream; at a lower priority it gets what is left, and about a tenth of
//! a core where nothing is. What runs here must be bounded by itself: a thread can't be stopped.

use std::io;
use std::thread;

use tokio::sync::oneshot;

/// The niceness of such a thread: a tenth of the weight of a compute thread.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Stack of a thread whose depth the work itself bounds. What is not used takes no memory.
pub const STACK: usize = 64 << 20;

/// Whether a thread yields to the compute threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// As every thread: for work that takes milliseconds.
    Normal,
    /// Below the compute threads.
    Low,
}

/// Runs `work` on a thread of its own. The receiver fails if the work panics; dropping it does not
/// stop the thread.
///
/// # Errors
/// The system's reason if there is no thread to be had.
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
            // Its client may be gone.
            let _ = done.send(work());
        })?;
    Ok(result)
}

/// Lowers the priority of the calling thread.
fn lower() {
    #[cfg(target_os = "linux")]
    // On Linux niceness belongs to the thread.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "background thread without lower priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_result_comes_back() {
        let result = spawn("test", Priority::Low, || 3).unwrap();
        assert_eq!(result.blocking_recv(), Ok(3));
        let result = spawn("test", Priority::Normal, || panic!("on purpose")).unwrap();
        assert!(result.blocking_recv().is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn only_the_thread_itself_yields() {
        use rustix::process::getpriority_process;
        let before = getpriority_process(None).unwrap();
        let own = || getpriority_process(None).unwrap();
        let lowered = spawn("test", Priority::Low, own).unwrap();
        assert!(lowered.blocking_recv().unwrap() > before);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
