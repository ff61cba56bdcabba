//! A bounded amount whose parts are released on drop.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Shares;
use crate::request::Tenant;

/// [`Shares`] whose parts are released when they are dropped. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Holds(Arc<Mutex<Shares>>);

/// A part of [`Holds`], released when it is dropped.
#[derive(Debug)]
pub struct Hold {
    holds: Holds,
    tenant: Tenant,
    amount: usize,
}

impl Holds {
    /// Creates an amount that is not held yet.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Shares::new(limit))))
    }

    /// Holds a part of this size if [`Shares::try_add`] allows it.
    #[must_use]
    pub fn try_hold(&self, tenant: Tenant, amount: usize) -> Option<Hold> {
        self.shares().try_add(tenant, amount).then(|| Hold {
            holds: self.clone(),
            tenant,
            amount,
        })
    }

    /// Returns the sum of all held parts.
    #[must_use]
    pub fn total(&self) -> usize {
        self.shares().total()
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.shares().remove(self.tenant, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_given_back_when_it_is_dropped() {
        let holds = Holds::new(2);
        let both = holds.try_hold(Tenant::ANONYMOUS, 2);
        assert!(both.is_some() && holds.total() == 2);
        assert!(holds.try_hold(Tenant::ANONYMOUS, 1).is_none());
        assert_eq!(holds.total(), 2);
        drop(both);
        assert_eq!(holds.total(), 0);
        assert!(holds.try_hold(Tenant::ANONYMOUS, 1).is_some());
    }
}
