//! The byte-pair merges that make a token of its bytes (Sennrich et al. 2016,
//! <https://arxiv.org/abs/1508.07909>), to look at: the library merges without saying how.
//!
//! A token's merges do not depend on the text around it: no merge crosses the token's ends, or it would
//! be another token.

use std::collections::HashMap;

/// The bytes of two neighbouring parts.
pub(super) type Pair = (Box<[u8]>, Box<[u8]>);

/// The merges of a vocabulary, by the bytes of their two parts.
#[derive(Debug)]
pub(super) struct Merges {
    ranks: HashMap<Pair, u32>,
}

/// One merge on the way to a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// Rank in the tokenizer's list; lower ranks go first.
    pub rank: u32,
    /// The parts of the token after it.
    pub parts: Vec<Vec<u8>>,
}

impl Merges {
    /// Collects merges given in the order of their ranks.
    pub fn new(pairs: impl Iterator<Item = Pair>) -> Self {
        let mut ranks = HashMap::new();
        for (pair, rank) in pairs.zip(0..) {
            ranks.entry(pair).or_insert(rank);
        }
        Self { ranks }
    }

    /// Returns the merges from single bytes to a token of these bytes, in order.
    pub fn of(&self, token: &[u8]) -> Vec<Merge> {
        let mut parts: Vec<Vec<u8>> = token.iter().map(|&byte| vec![byte]).collect();
        let mut merges = Vec::new();
        while let Some((rank, first)) = self.next(&parts) {
            let second = parts.remove(first + 1);
            if let Some(first) = parts.get_mut(first) {
                first.extend(second);
            }
            merges.push(Merge {
                rank,
                parts: parts.clone(),
            });
        }
        merges
    }

    /// Returns the merge of the lowest rank between neighbours, the first among equals: its rank, and the
    /// place of its first part.
    fn next(&self, parts: &[Vec<u8>]) -> Option<(u32, usize)> {
        let pairs = parts.windows(2).enumerate();
        let ranked = pairs.filter_map(|(first, pair)| {
            let [left, right] = pair else { return None };
            let pair = (left.clone().into(), right.clone().into());
            self.ranks.get(&pair).map(|&rank| (rank, first))
        });
        ranked.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_rank_goes_first_and_the_leftmost_among_equals() {
        let pair = |a: &str, b: &str| (a.as_bytes().into(), b.as_bytes().into());
        let pairs = [
            pair("o", "n"),
            pair("u", "p"),
            pair("up", "on"),
            pair("a", "a"),
        ];
        let merges = Merges::new(pairs.into_iter());
        let steps: Vec<_> = merges
            .of(b"upon")
            .into_iter()
            .map(|m| (m.rank, m.parts))
            .collect();
        let parts = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().to_vec()).collect();
        let expected: Vec<(u32, Vec<Vec<u8>>)> = vec![
            (0, parts(&["u", "p", "on"])),
            (1, parts(&["up", "on"])),
            (2, parts(&["upon"])),
        ];
        assert_eq!(steps, expected);
        let steps = merges.of(b"aaa");
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0].parts, [b"aa".to_vec(), b"a".to_vec()]);
        assert!(merges.of(b"x").is_empty());
    }
}
