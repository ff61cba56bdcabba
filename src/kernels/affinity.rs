//! Pins each compute thread to its own core.
//!
//! This is done only if there are as many threads as cores available to the process: then caches
//! stay warm, and the system can't put two threads on one core while another is idle. With fewer
//! threads the system places them, because a fixed core might be busy with another process.

/// Returns the core of each of `threads` threads, the caller's first; `None` if the system should
/// place them.
pub(super) fn cores(threads: usize) -> Option<Vec<usize>> {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity};
        let allowed = sched_getaffinity(None).ok()?;
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|&core| allowed.is_set(core))
            .collect();
        (threads > 1 && cores.len() == threads).then_some(cores)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = threads;
        None
    }
}

/// Pins the calling thread to a core.
pub(super) fn pin_to(core: usize) {
    #[cfg(target_os = "linux")]
    {
        let mut only = rustix::thread::CpuSet::new();
        only.set(core);
        if let Err(error) = rustix::thread::sched_setaffinity(None, &only) {
            tracing::debug!(%error, core, "compute thread not pinned");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = core;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn threads_are_pinned_only_if_every_core_has_its_thread() {
        let allowed = std::thread::available_parallelism().unwrap().get();
        assert!(cores(allowed + 1).is_none());
        assert!(cores(1).is_none());
        if let Some(cores) = cores(allowed) {
            assert_eq!(cores.len(), allowed);
        }
    }

    #[test]
    fn a_thread_stays_on_the_core_it_is_pinned_to() {
        let first = |set: rustix::thread::CpuSet| {
            (0..rustix::thread::CpuSet::MAX_CPU).find(|&core| set.is_set(core))
        };
        std::thread::spawn(move || {
            let core = first(sched_getaffinity(None).unwrap()).unwrap();
            pin_to(core);
            let set = sched_getaffinity(None).unwrap();
            assert_eq!((set.count(), first(set)), (1, Some(core)));
        })
        .join()
        .unwrap();
    }
}
