//! Drafts the next tokens from a sequence's own history, so that one pass verifies several.
//!
//! Prompt lookup (Saxena 2023, <https://github.com/apoorvumang/prompt-lookup-decoding>): if the
//! last three tokens have occurred before, the tokens that followed them are the draft. A pass over
//! a few rows takes hardly longer than one over a single row, because it is bound by reading the
//! weights, so an accepted draft token costs almost nothing. A draft token is accepted only if it
//! equals the token sampled in its place, so the output is the same bit for bit with and without
//! drafts.
//!
//! Pure bookkeeping over one sequence's tokens; it must never influence the sampled tokens.

use std::collections::HashMap;

/// Number of tokens that must match before a draft is proposed.
const MATCH: usize = 3;

/// Maximum tokens of a draft.
pub const MAX_DRAFT: usize = 7;

/// Maximum pause, in steps, after consecutive rejected drafts; the pause doubles with each of them.
const MAX_PAUSE: u32 = 32;

/// Proposes drafts for one sequence.
#[derive(Debug, Clone, Default)]
pub(super) struct Drafter {
    /// Position after the last occurrence of each run of [`MATCH`] tokens.
    after: HashMap<[u32; MATCH], usize>,
    /// Number of tokens indexed in `after`.
    known: usize,
    /// Steps to skip before the next draft.
    pause: u32,
    /// Length of the next pause, in steps.
    next_pause: u32,
}

impl Drafter {
    /// Returns a draft of at most `limit` tokens after `tokens`, which must only grow between
    /// calls.
    pub fn draft(&mut self, tokens: &[u32], limit: usize) -> Vec<u32> {
        self.learn(tokens);
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        let start = tokens.last_chunk().and_then(|last| self.after.get(last));
        let Some(&start) = start else {
            return Vec::new();
        };
        let end = tokens.len().min(start + limit.min(MAX_DRAFT));
        tokens[start..end].to_vec()
    }

    /// Records how many tokens of a draft were accepted.
    pub fn judge(&mut self, proposed: usize, accepted: usize) {
        if proposed == 0 {
            return;
        }
        if accepted > 0 {
            self.next_pause = 0;
        } else {
            self.next_pause = (2 * self.next_pause).clamp(1, MAX_PAUSE);
            self.pause = self.next_pause;
        }
    }

    fn learn(&mut self, tokens: &[u32]) {
        for at in self.known.max(MATCH)..tokens.len() {
            if let Some(run) = tokens[..at].last_chunk() {
                self.after.insert(*run, at);
            }
        }
        self.known = tokens.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_proposed() {
        let mut drafter = Drafter::default();
        assert!(drafter.draft(&[1, 2, 3], 7).is_empty());
        let tokens = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3];
        assert_eq!(drafter.draft(&tokens, 2), [4, 5]);
        assert_eq!(drafter.draft(&tokens, 7), [4, 5, 6, 9, 1, 2, 3]);
        assert!(drafter.draft(&tokens, 0).is_empty());
    }

    #[test]
    fn of_several_places_the_last_counts() {
        let tokens = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3];
        assert_eq!(Drafter::default().draft(&tokens, 1), [5]);
    }

    #[test]
    fn misses_make_it_pause_longer_and_longer_and_a_hit_ends_that() {
        let tokens = [7; 20];
        let mut drafter = Drafter::default();
        for pause in [1, 2, 4] {
            assert_eq!(drafter.draft(&tokens, 1), [7]);
            drafter.judge(1, 0);
            for _ in 0..pause {
                assert!(drafter.draft(&tokens, 1).is_empty());
            }
        }
        assert_eq!(drafter.draft(&tokens, 1), [7]);
        drafter.judge(1, 1);
        assert_eq!(drafter.draft(&tokens, 1), [7]);
    }
}
