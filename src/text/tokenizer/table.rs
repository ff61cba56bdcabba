//! A hash table from pairs of numbers to pairs of numbers: merges, and the edges of tries.
//!
//! A vocabulary of 262,144 tokens has half a million merges, and tokenizing looks up several per
//! character, so the table is flat and a lookup mostly touches one cache line.

/// Key of a free entry. Ids and nodes are far below it.
const FREE: u64 = u64::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: u64,
    value: (u32, u32),
}

/// A map from pairs to pairs.
#[derive(Debug, Clone)]
pub(super) struct PairTable {
    /// A power of two of entries, at most half of them in use.
    entries: Vec<Entry>,
    used: usize,
}

impl Default for PairTable {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl PairTable {
    /// Creates a table that holds this number of pairs without growing.
    pub(super) fn with_capacity(pairs: usize) -> Self {
        let entries = pairs.saturating_mul(2).next_power_of_two().max(16);
        let free = Entry {
            key: FREE,
            value: (0, 0),
        };
        Self {
            entries: vec![free; entries],
            used: 0,
        }
    }

    /// Returns the value of a pair.
    #[inline]
    pub(super) fn get(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let key = key(left, right);
        let entry = self.entries.get(self.slot(key))?;
        (entry.key == key).then_some(entry.value)
    }

    /// Sets the value of a pair.
    pub(super) fn insert(&mut self, left: u32, right: u32, value: (u32, u32)) {
        if self.used * 2 >= self.entries.len() {
            self.grow();
        }
        let key = key(left, right);
        let slot = self.slot(key);
        if let Some(entry) = self.entries.get_mut(slot) {
            self.used += usize::from(entry.key == FREE);
            *entry = Entry { key, value };
        }
    }

    /// Returns the entry of a key, or the free one where it would be.
    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mask = self.entries.len() - 1;
        // Fibonacci hashing: the high bits of the product depend on all bits of the key.
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let mut slot = usize::try_from(hash).unwrap_or(0) & mask;
        while let Some(entry) = self.entries.get(slot) {
            if entry.key == key || entry.key == FREE {
                break;
            }
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let mut larger = Self::with_capacity(self.entries.len());
        for entry in self.entries.iter().filter(|entry| entry.key != FREE) {
            let slot = larger.slot(entry.key);
            if let Some(free) = larger.entries.get_mut(slot) {
                *free = *entry;
            }
        }
        larger.used = self.used;
        *self = larger;
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_keeps_what_was_set_last_however_it_grows() {
        let mut table = PairTable::default();
        for n in 0..5000 {
            table.insert(n % 50, n, (n, 0));
            table.insert(n % 50, n, (n, n + 1));
        }
        assert_eq!(table.used, 5000);
        for n in 0..5000 {
            assert_eq!(table.get(n % 50, n), Some((n, n + 1)));
            assert_eq!(table.get(n % 50 + 50, n), None);
        }
    }
}
