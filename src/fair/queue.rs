//! A queue of items of several tenants, ordered by the tenants' service.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Tenant;

/// An item's position among those of its tenant: by priority, then preempted items, most recent
/// first, then returned items, then all others, both in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    priority: i32,
    entry: Entry,
}

/// How an item entered the queue, with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    Preempted(Reverse<u64>),
    Returned(u64),
    Arrived(u64),
}

/// A tenant's position among the tenants with waiting items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Priority of the tenant's first item.
    priority: i32,
    service: u64,
    /// Entry of the tenant's first item.
    entry: Entry,
    tenant: Tenant,
}

#[derive(Debug)]
struct Account<T> {
    /// Units of service that the tenant was charged, or credited with while it was idle.
    service: u64,
    waiting: BTreeMap<Position, T>,
    /// The tenant's position in the order, while it has waiting items.
    rank: Option<Rank>,
}

/// An item taken from the queue, which can be put back in its old position.
#[derive(Debug)]
pub struct Waiting<T> {
    /// The tenant of the item.
    pub tenant: Tenant,
    /// The item.
    pub item: T,
    position: Position,
}

/// A queue of items of several tenants. Among the items with the lowest priority value, those of
/// the tenant with the least service come first.
#[derive(Debug)]
pub struct FairQueue<T> {
    accounts: BTreeMap<Tenant, Account<T>>,
    /// The tenants with waiting items.
    order: BTreeSet<Rank>,
    /// Initial service of a new tenant.
    level: u64,
    /// Number of the next entry.
    next: u64,
    len: usize,
    /// Number of preempted or returned items.
    resumed: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            accounts: BTreeMap::new(),
            order: BTreeSet::new(),
            level: 0,
            next: 0,
            len: 0,
            resumed: 0,
        }
    }
}

impl<T> FairQueue<T> {
    /// Returns the number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the queue is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of preempted or returned items.
    #[must_use]
    pub fn resumed(&self) -> usize {
        self.resumed
    }

    /// Returns the number of known tenants.
    #[must_use]
    pub fn tenants(&self) -> usize {
        self.accounts.len()
    }

    /// Returns a tenant's service: the units it was charged, or credited with while it was idle.
    #[must_use]
    pub fn service(&self, tenant: Tenant) -> u64 {
        let account = self.accounts.get(&tenant);
        account.map_or(self.level, |account| account.service)
    }

    /// Adds an item after the others of its tenant and priority.
    pub fn push(&mut self, tenant: Tenant, priority: i32, item: T) {
        if self.joins(tenant) {
            self.lift(tenant);
            self.forget();
        }
        let entry = Entry::Arrived(self.number());
        self.insert(tenant, Position { priority, entry }, item);
    }

    /// Adds an item that was being served, ahead of all others of its tenant and priority.
    pub fn push_preempted(&mut self, tenant: Tenant, priority: i32, item: T) {
        let entry = Entry::Preempted(Reverse(self.number()));
        self.lift(tenant);
        self.insert(tenant, Position { priority, entry }, item);
    }

    /// Adds an item that has waited before, after the preempted items of its tenant and priority.
    pub fn push_returned(&mut self, tenant: Tenant, priority: i32, item: T) {
        let entry = Entry::Returned(self.number());
        self.lift(tenant);
        self.insert(tenant, Position { priority, entry }, item);
    }

    /// Returns the next item, with its priority and its tenant's service.
    #[must_use]
    pub fn first(&self) -> Option<(i32, u64, &T)> {
        let rank = self.order.first()?;
        let item = self.accounts.get(&rank.tenant)?.waiting.values().next()?;
        Some((rank.priority, rank.service, item))
    }

    /// Removes and returns the next item.
    pub fn pop(&mut self) -> Option<Waiting<T>> {
        let tenant = self.order.first()?.tenant;
        let position = *self.accounts.get(&tenant)?.waiting.keys().next()?;
        self.take(tenant, position)
    }

    /// Puts an item back in its old position.
    pub fn put_back(&mut self, waiting: Waiting<T>) {
        self.insert(waiting.tenant, waiting.position, waiting.item);
    }

    /// Removes and returns the first item that matches.
    pub fn remove(&mut self, wanted: impl Fn(&T) -> bool) -> Option<T> {
        let (tenant, position) = self.accounts.iter().find_map(|(tenant, account)| {
            let mut waiting = account.waiting.iter();
            let found = waiting.find(|(_, item)| wanted(item))?;
            Some((*tenant, *found.0))
        })?;
        self.take(tenant, position).map(|waiting| waiting.item)
    }

    /// Adds to a tenant's service.
    pub fn charge(&mut self, tenant: Tenant, units: usize) {
        let account = self.account(tenant);
        account.service = account.service.saturating_add(units as u64);
        if account.rank.is_some() {
            self.rank(tenant);
        }
    }

    /// Returns all items, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.accounts.values().flat_map(|a| a.waiting.values())
    }

    /// Removes all items and tenants.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Returns whether a tenant does not have a waiting item.
    fn joins(&self, tenant: Tenant) -> bool {
        let account = self.accounts.get(&tenant);
        account.is_none_or(|account| account.waiting.is_empty())
    }

    /// Raises the service of a tenant without waiting items to the least of the waiting tenants: it
    /// did not wait, so it is not owed the difference. In an empty queue, no tenant is owed any
    /// service.
    fn lift(&mut self, tenant: Tenant) {
        if !self.joins(tenant) {
            return;
        }
        let least = self.order.iter().map(|rank| rank.service).min();
        let most = || self.accounts.values().map(|account| account.service).max();
        let level = least.or_else(most).unwrap_or_default();
        self.level = self.level.max(level);
        let service = self.service(tenant).max(self.level);
        self.account(tenant).service = service;
    }

    /// Removes tenants without waiting items whose service would be raised if they returned.
    fn forget(&mut self) {
        let level = self.level;
        self.accounts
            .retain(|_, account| !account.waiting.is_empty() || account.service > level);
    }

    fn account(&mut self, tenant: Tenant) -> &mut Account<T> {
        let level = self.level;
        self.accounts.entry(tenant).or_insert_with(|| Account {
            service: level,
            waiting: BTreeMap::new(),
            rank: None,
        })
    }

    fn insert(&mut self, tenant: Tenant, position: Position, item: T) {
        self.account(tenant).waiting.insert(position, item);
        self.len += 1;
        self.resumed += usize::from(position.is_resumed());
        self.rank(tenant);
    }

    fn take(&mut self, tenant: Tenant, position: Position) -> Option<Waiting<T>> {
        let item = self.accounts.get_mut(&tenant)?.waiting.remove(&position)?;
        self.len -= 1;
        self.resumed -= usize::from(position.is_resumed());
        self.rank(tenant);
        Some(Waiting {
            tenant,
            item,
            position,
        })
    }

    /// Updates a tenant's position in the order.
    fn rank(&mut self, tenant: Tenant) {
        let Some(account) = self.accounts.get_mut(&tenant) else {
            return;
        };
        let first = account.waiting.keys().next();
        let rank = first.map(|first| Rank {
            priority: first.priority,
            service: account.service,
            entry: first.entry,
            tenant,
        });
        let before = std::mem::replace(&mut account.rank, rank);
        if before != rank {
            if let Some(before) = before {
                self.order.remove(&before);
            }
            self.order.extend(rank);
        }
    }
}

impl Position {
    fn is_resumed(self) -> bool {
        !matches!(self.entry, Entry::Arrived(_))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: u8) -> Tenant {
        Tenant::of_key(&[n])
    }

    fn popped<T>(queue: &mut FairQueue<T>) -> Option<T> {
        queue.pop().map(|waiting| waiting.item)
    }

    #[test]
    fn one_tenants_items_come_in_order_and_preempted_ones_first() {
        let mut queue = FairQueue::default();
        let only = tenant(0);
        for item in [1, 2, 3] {
            queue.push(only, 0, item);
        }
        queue.charge(only, 1000);
        queue.push_preempted(only, 0, 5);
        queue.push_returned(only, 0, 6);
        queue.push_preempted(only, 0, 4);
        queue.push_returned(only, 0, 7);
        assert_eq!((queue.len(), queue.resumed()), (7, 4));
        let second = queue.pop();
        queue.put_back(second.expect("an item"));
        assert_eq!(queue.remove(|&item| item == 2), Some(2));
        let order: Vec<i32> = std::iter::from_fn(|| popped(&mut queue)).collect();
        assert_eq!(order, [4, 5, 6, 7, 1, 3]);
        assert_eq!((queue.len(), queue.resumed()), (0, 0));
    }

    #[test]
    fn the_tenant_with_the_least_service_is_next() {
        let mut queue = FairQueue::default();
        let (many, few) = (tenant(0), tenant(1));
        for n in 0..500 {
            queue.push(many, 0, (many, n));
        }
        queue.push(few, 0, (few, 0));
        queue.push(few, 0, (few, 1));
        let mut order = Vec::new();
        while let Some((whose, n)) = popped(&mut queue) {
            queue.charge(whose, 10);
            order.push((whose, n));
        }
        let last = order.iter().position(|&item| item == (few, 1));
        assert_eq!(last, Some(3));
        assert_eq!(order.len(), 502);
    }

    #[test]
    fn idle_time_is_not_saved_up_and_debts_are_not_forgotten() {
        let mut queue = FairQueue::default();
        let (busy, idle, greedy) = (tenant(0), tenant(1), tenant(2));
        queue.push(busy, 0, 0);
        queue.charge(greedy, 5000);
        queue.charge(busy, 1000);
        queue.push(idle, 0, 1);
        assert_eq!(queue.service(idle), 1000);
        // The tenant returns with its debt.
        queue.push(greedy, 0, 2);
        assert_eq!(queue.service(greedy), 5000);
        assert_eq!(queue.remove(|&item| item == 1), Some(1));
        queue.push(idle, 0, 1);
        assert_eq!(queue.service(idle), 1000);
    }

    #[test]
    fn a_lower_priority_value_comes_first_regardless_of_the_tenant() {
        let mut queue = FairQueue::default();
        queue.push(tenant(0), 0, "later");
        queue.push(tenant(1), -1, "first");
        queue.charge(tenant(1), 1_000_000);
        queue.push(tenant(0), 1, "last");
        queue.push(tenant(0), -1, "before");
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue)).collect();
        assert_eq!(order, ["before", "first", "later", "last"]);
    }

    proptest! {
        /// Checks that the service of two tenants that always wait differs by at most the largest
        /// cost of an item, while others come and go, and that tenants without items are removed.
        #[test]
        fn tenants_that_wait_get_the_same_service(
            costs in prop::collection::vec((1usize..100, 1usize..100, 0u8..20), 1..400),
        ) {
            let mut queue = FairQueue::default();
            let always = [tenant(100), tenant(101)];
            let mut served = [0usize; 2];
            for whose in always {
                for _ in 0..=costs.len() {
                    queue.push(whose, 0, whose);
                }
            }
            for (a, b, passing) in costs {
                queue.push(tenant(passing), 0, tenant(passing));
                let whose = popped(&mut queue).expect("it waits");
                let cost = if whose == always[0] { a } else { b };
                queue.charge(whose, cost);
                if let Some(at) = always.iter().position(|&one| one == whose) {
                    served[at] += cost;
                }
                prop_assert!(served[0].abs_diff(served[1]) <= 100, "{:?}", served);
                prop_assert!(queue.order.len() <= queue.tenants() && queue.tenants() <= 22);
            }
        }
    }

    #[test]
    fn tenants_that_are_gone_are_forgotten() {
        let mut queue = FairQueue::default();
        for n in 0..=255 {
            for m in 0..=3 {
                queue.push(Tenant::of_key(&[n, m]), 0, ());
                queue.charge(Tenant::of_key(&[n, m]), 1);
                popped(&mut queue);
            }
        }
        assert!(queue.tenants() <= 2, "{}", queue.tenants());
    }
}
