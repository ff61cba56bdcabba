//! Guessing the next tokens from a sequence's own history, to verify several in one pass.
//!
//! Prompt lookup (Saxena 2023, <https://github.com/apoorvumang/prompt-lookup-decoding>): where the
//! last three tokens stood before, what followed them then is proposed now. A pass over few rows
//! costs hardly more than one over a single row, because it is bound by reading the weights; so a
//! right guess is a token gained for nothing. Every guess is checked against the token really
//! drawn in its place, so the output is the same, bit for bit, with or without.
//!
//! Pure bookkeeping over one sequence's tokens; it must never influence the sampled tokens.

use std::collections::HashMap;

/// Tokens that have to agree before what followed them is proposed.
const MATCH: usize = 3;

/// Tokens proposed at most.
pub const MAX_DRAFT: usize = 7;

/// Steps without a proposal after misses in a row: doubled with each, up to this.
const LONGEST_PAUSE: u32 = 32;

/// Proposes continuations of one sequence.
#[derive(Debug, Clone, Default)]
pub(super) struct Drafter {
    /// Where the token after each run of [`MATCH`] tokens stands, the last place of each run.
    after: HashMap<[u32; MATCH], usize>,
    /// Tokens taken into `after`.
    known: usize,
    /// Steps to let pass before the next proposal.
    pause: u32,
    /// The next pause.
    next_pause: u32,
}

impl Drafter {
    /// Returns a draft of at most `limit` tokens after `tokens`. `tokens` only ever grows between calls.
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

    /// Says how many tokens of a proposal were right.
    pub fn judge(&mut self, proposed: usize, right: usize) {
        if proposed == 0 {
            return;
        }
        if right > 0 {
            self.next_pause = 0;
        } else {
            self.next_pause = (2 * self.next_pause).clamp(1, LONGEST_PAUSE);
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
