//! A bounded amount in which every tenant gets its share.

use std::collections::HashMap;

use super::Tenant;

/// A limited amount, parts of which tenants hold.
///
/// A single tenant can hold all of it. When it is used up, a tenant still gets more while it holds
/// less than its share: the limit divided by the number of tenants that hold a part, itself
/// included. So `k` tenants hold at most `limit * (1 + 1/2 + … + 1/k)`, plus one part each.
#[derive(Debug)]
pub struct Shares {
    limit: usize,
    total: usize,
    held: HashMap<Tenant, usize>,
}

impl Shares {
    /// Creates an amount that is not held yet.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            total: 0,
            held: HashMap::new(),
        }
    }

    /// Returns the sum of all held parts.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Returns the amount that a tenant holds.
    #[must_use]
    pub fn of(&self, tenant: Tenant) -> usize {
        self.held.get(&tenant).copied().unwrap_or(0)
    }

    /// Returns the number of tenants that hold a part.
    #[must_use]
    pub fn tenants(&self) -> usize {
        self.held.len()
    }

    /// Returns the amount that each tenant holds.
    pub fn iter(&self) -> impl Iterator<Item = (Tenant, usize)> {
        self.held.iter().map(|(tenant, held)| (*tenant, *held))
    }

    /// Adds to a tenant's part if the limit or the tenant's share allows it; a tenant's first part
    /// is always allowed. Returns whether it was added.
    #[must_use]
    pub fn try_add(&mut self, tenant: Tenant, amount: usize) -> bool {
        let own = self.of(tenant);
        let share = self.limit / (self.tenants() + usize::from(own == 0));
        let fits = self.total.saturating_add(amount) <= self.limit;
        if fits || own == 0 || own.saturating_add(amount) <= share {
            self.add(tenant, amount);
            return true;
        }
        false
    }

    /// Adds to a tenant's part, even beyond the limit.
    pub fn add(&mut self, tenant: Tenant, amount: usize) {
        self.total += amount;
        *self.held.entry(tenant).or_default() += amount;
    }

    /// Removes an amount from a tenant's part.
    pub fn remove(&mut self, tenant: Tenant, amount: usize) {
        self.total = self.total.saturating_sub(amount);
        if let Some(held) = self.held.get_mut(&tenant) {
            *held = held.saturating_sub(amount);
            if *held == 0 {
                self.held.remove(&tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: u8) -> Tenant {
        Tenant::of_key(&[n])
    }

    /// Adds parts of 1 until one is refused.
    fn fill(shares: &mut Shares, tenant: Tenant) -> usize {
        (0..1000).take_while(|_| shares.try_add(tenant, 1)).count()
    }

    #[test]
    fn one_alone_has_all_and_others_still_get_their_shares() {
        let mut shares = Shares::new(12);
        assert_eq!(fill(&mut shares, tenant(0)), 12);
        assert_eq!(fill(&mut shares, tenant(1)), 6);
        assert_eq!(fill(&mut shares, tenant(2)), 4);
        // The first tenant holds more than its share until the others have released theirs.
        shares.remove(tenant(0), 3);
        assert_eq!(fill(&mut shares, tenant(0)), 0);
        shares.remove(tenant(1), 6);
        shares.remove(tenant(2), 4);
        assert_eq!(fill(&mut shares, tenant(0)), 3);
        assert_eq!((shares.total(), shares.tenants()), (12, 1));
    }

    #[test]
    fn the_first_piece_is_always_taken() {
        let mut shares = Shares::new(4);
        assert!(shares.try_add(tenant(0), 100));
        assert!(!shares.try_add(tenant(0), 1));
        assert!(shares.try_add(tenant(1), 100));
        shares.remove(tenant(0), 100);
        shares.remove(tenant(1), 100);
        assert_eq!((shares.total(), shares.tenants()), (0, 0));
    }

    proptest! {
        #[test]
        fn what_is_held_is_bounded(
            limit in 1usize..100,
            changes in prop::collection::vec((0u8..8, prop::bool::weighted(0.7)), 1..600),
        ) {
            let mut shares = Shares::new(limit);
            for (n, adds) in changes {
                if !adds {
                    shares.remove(tenant(n), usize::from(shares.of(tenant(n)) > 0));
                } else if !shares.try_add(tenant(n), 1) {
                    let share = limit / shares.tenants();
                    prop_assert!(shares.of(tenant(n)) >= share.max(1));
                }
                let holders = shares.tenants();
                let bound: usize = (1..=holders).map(|k| (limit / k).max(1)).sum();
                prop_assert!(shares.total() <= bound);
                prop_assert_eq!(shares.iter().map(|held| held.1).sum::<usize>(), shares.total());
            }
        }
    }
}
