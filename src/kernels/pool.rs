//! The compute pool: the one set of threads that all kernels share.
//!
//! The caller of [`Pool::run`] (the inference worker) is one of the threads. A call's tasks are
//! split into one contiguous range per thread. A thread works its range from the front, so that
//! neighbouring tasks stream through neighbouring memory; when its range is empty, it takes tasks
//! from the back of the longest range. So all threads finish together, even if the front end takes
//! a core for a while, and a call does not wait for a thread that wakes late.
//!
//! Between calls the threads wait, first spinning for a bounded time, then parked. A call does not
//! allocate, and takes no lock unless a thread has parked. Spinning threads prefetch the memory
//! that the next call reads, if it was announced ([`Pool::announce`]), since the memory bus is idle
//! between calls.
//!
//! [`Pool::run`] must never be called from within a task, nor by two callers at once (a lock makes
//! the second caller wait).

use std::any::Any;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::affinity;
use super::prefetch::{MemoryRange, prefetch_range};

/// Time that a thread spins for work before it parks: longer than the pause between two steps of a
/// busy server, but too short to affect an idle server's power consumption.
const SPIN: Duration = Duration::from_micros(500);

/// Spins between two reads of the clock.
const SPINS_PER_LOOK: usize = 32;

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// One call of [`Pool::run`], on its caller's stack.
struct Job<'a> {
    task: &'a Task<'a>,
}

/// The remaining tasks of one thread: `first..end` in the halves of one word, on a cache line of
/// its own.
#[repr(align(128))]
#[derive(Default)]
struct TaskRange(AtomicU64);

impl TaskRange {
    fn set(&self, first: usize, end: usize) {
        // Release: a thread that claims from the range sees the job it belongs to.
        self.0
            .store((first as u64) << 32 | end as u64, Ordering::Release);
    }

    fn split(word: u64) -> (u64, u64) {
        (word >> 32, word & 0xffff_ffff)
    }

    fn left(&self) -> u64 {
        let (first, end) = Self::split(self.0.load(Ordering::Relaxed));
        end.saturating_sub(first)
    }

    /// Claims a task: the first of the thread's own range, or the last of another thread's.
    ///
    /// A successful exchange is valid regardless of changes since the word was read, because the
    /// word holds everything that a claim needs, and the job is looked up afterwards.
    fn claim(&self, own: bool) -> Option<usize> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let (first, end) = Self::split(word);
            if first >= end {
                return None;
            }
            let (task, rest) = if own {
                (first, word + (1 << 32))
            } else {
                (end - 1, word - 1)
            };
            match self
                .0
                .compare_exchange_weak(word, rest, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Some(task as usize),
                Err(now) => word = now,
            }
        }
    }
}

/// The [`MemoryRange`] that is read next, divided among threads in the same way as tasks.
#[derive(Default)]
struct Upcoming {
    address: AtomicUsize,
    bytes: AtomicUsize,
}

impl Upcoming {
    /// Maximum bytes that a thread prefetches: what fits its second-level cache beside the
    /// activations.
    const MAX_BYTES: usize = 512 << 10;
    /// Bytes prefetched between two checks for work.
    const STRIDE: usize = 256;

    /// Returns the addresses that thread `me` prefetches.
    fn of_thread(&self, me: usize, threads: usize) -> std::ops::Range<usize> {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let start = self.address.load(Ordering::Relaxed) + bytes / threads * me;
        start..start + (bytes / threads).min(Self::MAX_BYTES)
    }

    /// Prefetches the next few lines.
    fn prefetch(addresses: &mut std::ops::Range<usize>) {
        if addresses.start >= addresses.end {
            return;
        }
        prefetch_range(addresses.start..addresses.start + Self::STRIDE);
        addresses.start += Self::STRIDE;
    }
}

/// State shared by all threads of a pool.
struct Shared {
    /// Number of calls; waiting threads watch it for a change.
    epoch: AtomicUsize,
    /// Remaining tasks per thread, the caller's first.
    ranges: Box<[TaskRange]>,
    /// The current call; read only by a thread that has claimed one of its tasks.
    job: AtomicPtr<Job<'static>>,
    /// Unfinished tasks of the current call.
    pending: AtomicUsize,
    /// Number of threads that wait for `wake`, or are about to.
    parked: AtomicUsize,
    upcoming: Upcoming,
    stop: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A fixed set of compute threads.
pub struct Pool {
    shared: Arc<Shared>,
    caller: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
    /// Core of each thread, the caller's first, if threads are pinned.
    cores: Option<Vec<usize>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts a pool of `threads` threads, including the caller of [`run`](Self::run).
    ///
    /// # Panics
    /// If the operating system refuses to start a thread.
    #[must_use]
    pub fn new(threads: NonZeroUsize) -> Arc<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            ranges: (0..threads.get()).map(|_| TaskRange::default()).collect(),
            job: AtomicPtr::new(ptr::null_mut()),
            pending: AtomicUsize::new(0),
            parked: AtomicUsize::new(0),
            upcoming: Upcoming::default(),
            stop: AtomicBool::new(false),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let cores = affinity::cores(threads.get());
        let threads = (1..threads.get())
            .map(|n| {
                let shared = Arc::clone(&shared);
                let core = cores.as_ref().map(|cores| cores[n]);
                std::thread::Builder::new()
                    .name(format!("skald-compute-{n}"))
                    .spawn(move || {
                        if let Some(core) = core {
                            affinity::pin_to(core);
                        }
                        shared.serve(n);
                    })
                    .expect("the operating system starts a compute thread")
            })
            .collect();
        Arc::new(Self {
            shared,
            caller: Mutex::new(()),
            threads,
            cores,
        })
    }

    /// Pins the calling thread, which must be the one that calls [`run`](Self::run), to its core,
    /// as the pool's own threads are.
    pub fn adopt_caller(&self) {
        if let Some(&core) = self.cores.as_ref().and_then(|cores| cores.first()) {
            affinity::pin_to(core);
        }
    }

    /// Returns the number of threads that work on a call of [`run`](Self::run), the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Announces the memory that a later call reads, in the order of its tasks, so that waiting
    /// threads prefetch the beginning of their parts.
    pub fn announce(&self, memory: MemoryRange) {
        let upcoming = &self.shared.upcoming;
        upcoming.address.store(memory.address, Ordering::Relaxed);
        upcoming.bytes.store(memory.bytes, Ordering::Relaxed);
    }

    /// Calls `task(i)` once for every `i` in `0..tasks`, spread over the threads, and returns
    /// when all are done. A result must not depend on which thread runs which task.
    ///
    /// # Panics
    /// With the first panic of a task, after all running tasks have returned, or if `tasks` is 2^32
    /// or more.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.threads.is_empty() {
            (0..tasks).for_each(task);
            return;
        }
        assert!(u32::try_from(tasks).is_ok(), "{tasks} tasks");
        let _only_caller = lock(&self.caller);
        let shared = &*self.shared;
        let job = Job { task: &task };
        // Only the lifetime changes; see `Shared::work` for why it holds.
        let job = ptr::from_ref(&job).cast_mut().cast::<Job<'static>>();
        shared.job.store(job, Ordering::Relaxed);
        shared.pending.store(tasks, Ordering::Relaxed);
        let threads = shared.ranges.len();
        for (n, range) in shared.ranges.iter().enumerate() {
            range.set(n * tasks / threads, (n + 1) * tasks / threads);
        }
        // Sequentially consistent with `Shared::park`: either this call sees the parked thread, or
        // that thread sees the new epoch.
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.parked.load(Ordering::SeqCst) > 0 {
            let _sleep = lock(&shared.sleep);
            shared.wake.notify_all();
        }
        shared.work(0);
        spin_until(None, || shared.pending.load(Ordering::Acquire) == 0);
        if shared.panicked.swap(false, Ordering::AcqRel) {
            let panic = lock(&shared.panic).take();
            resume_unwind(panic.unwrap_or_else(|| Box::new("a compute task panicked")));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        {
            let _sleep = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Claims and runs tasks as thread `me` until none are left; keeps the first panic.
    fn work(&self, me: usize) {
        let mut done = 0;
        while let Some(task) = self.claim(me) {
            if !self.panicked.load(Ordering::Relaxed) {
                // SAFETY: the claim's Acquire load saw the range that `run` released after storing
                // this job, and `run` does not return before `pending` counts the claimed task as
                // done.
                let job = unsafe { &*self.job.load(Ordering::Relaxed) };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.task)(task))) {
                    lock(&self.panic).get_or_insert(panic);
                    self.panicked.store(true, Ordering::Release);
                }
            }
            done += 1;
        }
        if done > 0 {
            self.pending.fetch_sub(done, Ordering::Release);
        }
    }

    /// Claims the next task of the thread's own range, else the last task of the longest range.
    fn claim(&self, me: usize) -> Option<usize> {
        if let Some(task) = self.ranges[me].claim(true) {
            return Some(task);
        }
        loop {
            let fullest = self.ranges.iter().max_by_key(|range| range.left())?;
            if fullest.left() == 0 {
                return None;
            }
            if let Some(task) = fullest.claim(false) {
                return Some(task);
            }
        }
    }

    /// Runs a compute thread: waits for a new epoch, helps with its tasks, repeats.
    fn serve(&self, me: usize) {
        let mut seen = 0;
        loop {
            let mut upcoming = self.upcoming.of_thread(me, self.ranges.len());
            let is_new = || {
                Upcoming::prefetch(&mut upcoming);
                self.epoch.load(Ordering::Acquire) != seen
            };
            if !spin_until(Some(SPIN), is_new) {
                self.park(seen);
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            seen = self.epoch.load(Ordering::Acquire);
            self.work(me);
        }
    }

    /// Sleeps until the epoch differs from `seen`.
    fn park(&self, seen: usize) {
        let mut sleep = lock(&self.sleep);
        self.parked.fetch_add(1, Ordering::SeqCst);
        while self.epoch.load(Ordering::SeqCst) == seen {
            sleep = self
                .wake
                .wait(sleep)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.parked.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Spins until a condition is true; returns `false` if the limit passes first. Without a limit the
/// thread yields the processor after [`SPIN`].
fn spin_until(limit: Option<Duration>, mut condition: impl FnMut() -> bool) -> bool {
    let mut since = None;
    loop {
        for _ in 0..SPINS_PER_LOOK {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        let waited = now - *since.get_or_insert(now);
        match limit {
            Some(limit) if waited > limit => return false,
            None if waited > SPIN => std::thread::yield_now(),
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panics;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in 1..5 {
            let pool = Pool::new(NonZeroUsize::new(threads).unwrap());
            for tasks in [0, 1, 2, 3, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    /// Makes many short calls in a row, some after a pause in which the threads park.
    #[test]
    fn every_task_of_many_short_calls_is_run() {
        let pool = Pool::new(NonZeroUsize::new(3).unwrap());
        for round in 0..3000 {
            let sum = AtomicUsize::new(0);
            let tasks = 2 + round % 9;
            pool.run(tasks, |i| {
                sum.fetch_add(i + 1, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), tasks * (tasks + 1) / 2);
            if round % 500 == 0 {
                std::thread::sleep(2 * SPIN);
            }
        }
    }

    #[test]
    fn idle_threads_take_tasks_of_busy_ones() {
        let pool = Pool::new(NonZeroUsize::new(2).unwrap());
        let caller = std::thread::current().id();
        let (slow, quick) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let deadline = Instant::now() + Duration::from_secs(180);
        pool.run(64, |_| {
            if std::thread::current().id() != caller {
                quick.fetch_add(1, Ordering::Relaxed);
                return;
            }
            slow.fetch_add(1, Ordering::Relaxed);
            // Wait until the other thread has taken more than its own half.
            while quick.load(Ordering::Relaxed) <= 32 && Instant::now() < deadline {
                std::thread::yield_now();
            }
        });
        assert!(slow.into_inner() < 32);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(NonZeroUsize::new(3).unwrap());
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(10, |i| assert!(i != 5, "task five fails"));
        }));
        assert_eq!(panics::message(&*caught.unwrap_err()), "task five fails");
        let sum = AtomicUsize::new(0);
        pool.run(10, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
