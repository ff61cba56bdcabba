//! A semaphore that serves its waiters fairly between tenants.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{FairQueue, Tenant};

/// A semaphore whose next waiter is the longest-waiting one of the tenant that has received the
/// fewest units. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: FairQueue<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    units: usize,
    granted: oneshot::Sender<Turn>,
}

/// Units in use, released when this is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    units: usize,
}

impl Turns {
    /// Creates a semaphore of `units`.
    #[must_use]
    pub fn new(units: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: units,
            waiting: FairQueue::default(),
        })))
    }

    /// Waits for units, which must not exceed the size of the semaphore. Lower priority values come
    /// first. Within one tenant and priority, waiters are served in order of arrival, even if a
    /// later one needs fewer units.
    ///
    /// Dropping the future removes the waiter from the queue.
    pub async fn wait(&self, tenant: Tenant, priority: i32, units: usize) -> Turn {
        let leaving = Leaving(self);
        let (granted, turn) = oneshot::channel();
        let waiter = Waiter { units, granted };
        self.state().waiting.push(tenant, priority, waiter);
        self.grant();
        let turn = turn.await.unwrap_or_else(|_| Turn {
            // Unreachable: waiters are dropped with the semaphore, which this function holds.
            turns: self.clone(),
            units: 0,
        });
        std::mem::forget(leaving);
        turn
    }

    /// Grants the free units to the next waiters.
    fn grant(&self) {
        loop {
            let (waiter, turn) = {
                let mut state = self.state();
                let Some(next) = state.next() else {
                    return;
                };
                let turn = Turn {
                    turns: self.clone(),
                    units: next.units,
                };
                (next, turn)
            };
            // Dropping the turn of a waiter that has left takes the lock, and grants the units to
            // the next one.
            if waiter.granted.send(turn).is_err() {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes the next waiter if enough units are free, and reserves them for it.
    fn next(&mut self) -> Option<Waiter> {
        let first = self.waiting.first()?.2;
        if first.units > self.free {
            return None;
        }
        let next = self.waiting.pop()?;
        self.free -= next.item.units;
        self.waiting.charge(next.tenant, next.item.units);
        Some(next.item)
    }
}

/// Removes a waiter that has left from the queue on drop, after which the units may suffice for a
/// later one.
struct Leaving<'a>(&'a Turns);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let left = |waiter: &Waiter| waiter.granted.is_closed();
        let waiter = self.0.state().waiting.remove(left);
        drop(waiter);
        self.0.grant();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.state().free += self.units;
        self.turns.grant();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn tenant(n: u8) -> Tenant {
        Tenant::of_key(&[n])
    }

    #[tokio::test]
    async fn the_waiters_of_one_tenant_do_not_delay_those_of_another() {
        let turns = Turns::new(2);
        let mut running = vec![turns.wait(tenant(0), 0, 2).await];
        let mut many: Vec<_> = (0..500)
            .map(|_| Box::pin(turns.wait(tenant(0), 0, 1)))
            .collect();
        for waiter in &mut many {
            assert!(waiter.now_or_never().is_none());
        }
        let mut few = Box::pin(turns.wait(tenant(1), 0, 1));
        assert!((&mut few).now_or_never().is_none());
        running.clear();
        assert!((&mut few).now_or_never().is_some());
        let mut begun = many.iter_mut().filter_map(FutureExt::now_or_never);
        let first = begun.next().expect("the other unit");
        // Waiters that leave are skipped, and no unit is lost.
        drop(begun);
        drop(many);
        drop(first);
        let all = turns.wait(tenant(2), 0, 2).now_or_never();
        assert!(all.is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_with_its_turn_gives_it_back() {
        let turns = Turns::new(1);
        let running = turns.wait(tenant(0), 0, 1).await;
        let mut leaves = Box::pin(turns.wait(tenant(0), 0, 1));
        let mut stays = Box::pin(turns.wait(tenant(0), 0, 1));
        assert!((&mut leaves).now_or_never().is_none());
        assert!((&mut stays).now_or_never().is_none());
        // The waiter is granted its turn, but leaves before it receives it.
        drop(running);
        drop(leaves);
        assert!(stays.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_makes_room_for_the_next() {
        let turns = Turns::new(2);
        let _running = turns.wait(tenant(0), 0, 1).await;
        let mut large = Box::pin(turns.wait(tenant(0), 0, 2));
        let mut small = Box::pin(turns.wait(tenant(0), 0, 1));
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        assert_eq!(turns.state().waiting.len(), 0);
        assert!(small.now_or_never().is_some());
    }
}
