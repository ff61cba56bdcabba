//! Synchronisation with a server that runs beside the test, however fast or slow the machine is: wait for a
//! state instead of a time, and hold the engine while the test acts.

#![allow(dead_code, reason = "every test program uses its own part")]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use skald::engine::StepHook;

/// Longest wait for a state. Only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits for a state.
///
/// # Panics
/// If it is not reached within [`PATIENCE`].
#[track_caller]
pub fn until(what: &str, reached: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    wait(what, caller, reached)
}

async fn wait(
    what: &str,
    caller: &std::panic::Location<'_>,
    mut reached: impl AsyncFnMut() -> bool,
) {
    let deadline = Instant::now() + PATIENCE;
    while !reached().await {
        let in_time = Instant::now() < deadline;
        assert!(in_time, "{caller}: not {what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Allows the engine's worker its steps, one by one or all at once. While held, the worker accepts and
/// answers no requests; the front end continues. Dropping the gate opens it.
pub struct Gate(Arc<State>);

#[derive(Default)]
struct State {
    /// Steps that are still allowed; `None` if all are.
    allowed: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Gate {
    /// Creates a gate that allows this many steps and then holds the worker.
    pub fn after(steps: usize) -> Self {
        let state = State::default();
        *state.allowed() = Some(steps);
        Self(Arc::new(state))
    }

    /// Returns the step hook for the engine.
    pub fn hook(&self) -> StepHook {
        let state = Arc::clone(&self.0);
        Arc::new(move |_| state.pass())
    }

    /// Allows further steps.
    pub fn allow(&self, steps: usize) {
        if let Some(allowed) = &mut *self.0.allowed() {
            *allowed += steps;
        }
        self.0.changed.notify_all();
    }

    /// Allows all steps from now on.
    pub fn open(&self) {
        *self.0.allowed() = None;
        self.0.changed.notify_all();
    }
}

impl State {
    fn allowed(&self) -> MutexGuard<'_, Option<usize>> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) {
        let mut allowed = self.allowed();
        while *allowed == Some(0) {
            let woken = self.changed.wait(allowed);
            allowed = woken.unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(steps) = &mut *allowed {
            *steps -= 1;
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}
