//! The compute pool: the one set of threads that all kernels share.
//!
//! The caller of [`Pool::run`] (the inference worker) is one of the threads; the others wait,
//! first spinning for a short bounded time, then parked. Tasks are claimed one by one from a
//! counter, so a core that loses time to the front end simply claims fewer. Nothing is
//! allocated per call.
//!
//! It must never be entered from within a task, nor by two callers at once (a lock makes the
//! second caller wait).

use std::any::Any;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How many spins a thread waits for work or for the others before it parks or yields. At about
/// 30 ns each this outlasts the gap between two kernels of one step, not the gap between steps
/// of an idle server.
const SPINS: usize = 4000;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// The task of the current epoch; only dereferenced between the start and the end of one `run`.
#[derive(Clone, Copy)]
struct TaskPointer(*const Task<'static>);
// SAFETY: the pointee is `Sync`, and `run` keeps it alive until every thread is done with it.
unsafe impl Send for TaskPointer {}

struct Job {
    task: Option<TaskPointer>,
    tasks: usize,
    stop: bool,
}

struct Shared {
    /// Counts jobs; a change is what waiting threads look for.
    epoch: AtomicUsize,
    job: Mutex<Job>,
    wake: Condvar,
    next: AtomicUsize,
    /// Threads besides the caller that have not finished the current job.
    busy: AtomicUsize,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A fixed set of compute threads.
pub struct Pool {
    shared: Arc<Shared>,
    caller: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts a pool in which `threads` threads work, the caller of [`run`](Self::run) included.
    ///
    /// # Panics
    /// If the operating system refuses to start a thread.
    #[must_use]
    pub fn new(threads: NonZeroUsize) -> Arc<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: Mutex::new(Job {
                task: None,
                tasks: 0,
                stop: false,
            }),
            wake: Condvar::new(),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let threads = (1..threads.get())
            .map(|n| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("skald-compute-{n}"))
                    .spawn(move || shared.work())
                    .expect("the operating system starts a compute thread")
            })
            .collect();
        Arc::new(Self {
            shared,
            caller: Mutex::new(()),
            threads,
        })
    }

    /// How many threads work on a call of [`run`](Self::run), the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `task(i)` once for every `i` in `0..tasks`, spread over the threads, and returns
    /// when all are done. Which thread runs which task is not defined: a result must not depend
    /// on it.
    ///
    /// # Panics
    /// With the first panic of a task, once no thread is in a task any more.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.threads.is_empty() {
            (0..tasks).for_each(task);
            return;
        }
        let _only_caller = lock(&self.caller);
        let shared = &*self.shared;
        let borrowed: *const Task<'_> = &raw const task;
        // SAFETY: only the lifetime changes; every thread is done with the pointer before `run`
        // returns, also when a task panics.
        #[allow(clippy::transmute_ptr_to_ptr)] // a cast can't change a lifetime
        let erased =
            unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(borrowed) };
        {
            let mut job = lock(&shared.job);
            job.task = Some(TaskPointer(erased));
            job.tasks = tasks;
            shared.next.store(0, Ordering::Relaxed);
            shared.busy.store(self.threads.len(), Ordering::Relaxed);
            shared.epoch.fetch_add(1, Ordering::Release);
        }
        shared.wake.notify_all();
        shared.claim(&task, tasks);
        let mut spins = 0;
        while shared.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        if shared.panicked.swap(false, Ordering::AcqRel) {
            let panic = lock(&shared.panic).take();
            resume_unwind(panic.unwrap_or_else(|| Box::new("a compute task panicked")));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let mut job = lock(&self.shared.job);
            job.stop = true;
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Claims and runs tasks until none are left; keeps the first panic.
    fn claim(&self, task: &Task<'_>, tasks: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(index))) {
                lock(&self.panic).get_or_insert(panic);
                self.panicked.store(true, Ordering::Release);
                self.next.store(tasks, Ordering::Relaxed);
                return;
            }
        }
    }

    /// A compute thread's life: wait for a new epoch, help with its job, repeat.
    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_epoch_after(seen);
            let (task, tasks) = {
                let job = lock(&self.job);
                if job.stop {
                    return;
                }
                (job.task, job.tasks)
            };
            if let Some(TaskPointer(task)) = task {
                // SAFETY: `run` waits for `busy` to reach zero before the task goes away, and
                // this thread counts down only after its last use.
                self.claim(unsafe { &*task }, tasks);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    fn wait_for_epoch_after(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        let mut job = lock(&self.job);
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in 1..5 {
            let pool = Pool::new(NonZeroUsize::new(threads).unwrap());
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(NonZeroUsize::new(3).unwrap());
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(10, |i| assert!(i != 5, "task five fails"));
        }));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
