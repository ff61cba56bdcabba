//! Items in order of use, least recently used first.

use std::collections::BTreeMap;

/// The position of an item in the order, by which it can be found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LastUse(u64);

/// Items in order of use.
#[derive(Debug, Clone)]
pub struct Recency<T> {
    by_use: BTreeMap<u64, T>,
    clock: u64,
}

impl<T> Default for Recency<T> {
    fn default() -> Self {
        Self {
            by_use: BTreeMap::new(),
            clock: 0,
        }
    }
}

impl<T> Recency<T> {
    /// Adds an item as the most recently used one.
    pub fn push(&mut self, thing: T) -> LastUse {
        self.clock += 1;
        self.by_use.insert(self.clock, thing);
        LastUse(self.clock)
    }

    /// Removes an item.
    pub fn remove(&mut self, last_use: LastUse) -> Option<T> {
        self.by_use.remove(&last_use.0)
    }

    /// Makes an item the most recently used one; `None` if it does not exist.
    pub fn touch(&mut self, last_use: LastUse) -> Option<LastUse> {
        let thing = self.remove(last_use)?;
        Some(self.push(thing))
    }

    /// Returns the least recently used item.
    #[must_use]
    pub fn oldest(&self) -> Option<&T> {
        self.by_use.values().next()
    }

    /// Removes the least recently used item.
    pub fn pop_oldest(&mut self) -> Option<T> {
        self.by_use.pop_first().map(|(_, thing)| thing)
    }

    /// Removes the most recently used item.
    pub fn pop_newest(&mut self) -> Option<T> {
        self.by_use.pop_last().map(|(_, thing)| thing)
    }

    /// Returns all items, least recently used first.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.by_use.values()
    }

    /// Returns the item at a position.
    #[must_use]
    pub fn get(&self, last_use: LastUse) -> Option<&T> {
        self.by_use.get(&last_use.0)
    }

    /// Returns the number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_use.len()
    }

    /// Returns whether there are no items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_use.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_leave_in_the_order_of_their_use() {
        let mut recency = Recency::default();
        let [a, b, c, d] = ['a', 'b', 'c', 'd'].map(|thing| recency.push(thing));
        assert_eq!(recency.oldest(), Some(&'a'));
        let a = recency.touch(a).unwrap();
        assert_eq!(recency.get(a), Some(&'a'));
        assert_eq!(recency.iter().collect::<String>(), "bcda");
        assert_eq!(recency.remove(c), Some('c'));
        assert_eq!((recency.remove(c), recency.touch(c)), (None, None));
        assert_eq!(recency.pop_oldest(), Some('b'));
        assert_eq!(recency.get(b), None);
        assert_eq!(recency.pop_newest(), Some('a'));
        assert_eq!((recency.len(), recency.is_empty()), (1, false));
        assert_eq!(recency.remove(d), Some('d'));
        assert_eq!(recency.pop_oldest(), None);
        assert!(recency.is_empty());
    }
}
