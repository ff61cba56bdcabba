//! Beam search: which continuations of a prompt are the most likely as a whole.
//!
//! The algorithm is that of Hugging Face's transformers, `GenerationMixin._beam_search` and what
//! it calls (`src/transformers/generation/utils.py`, version 5), for one prompt:
//!
//! 1. Each *live* beam has a sum of log-probabilities. The search starts with one live beam, empty, of
//!    sum 0. In each step every live beam is continued with every token.
//! 2. Of these candidates the ones with the highest sums are kept, enough of them that `width` remain
//!    without those that end. Among equal sums the better beam comes first, then the lower token id
//!    (transformers leave this order undefined).
//! 3. A candidate *ends* with an end-of-text or stop token, or with its last allowed token. If it is among
//!    the first `width` candidates, it is finished with the score `sum / length^length_penalty`; sum and
//!    length include the token that ends it. The `width` finished beams with the highest scores are kept,
//!    the earlier ones first among equals.
//! 4. The first `width` candidates that do not end are the next live beams.
//! 5. The search ends when every candidate has ended (`max_tokens`), or when `width` beams are finished and
//!    `early_stopping` allows it: `true` at once; `false` as soon as the best live beam, scored as if it
//!    ended now, does not beat the worst finished one; `never` likewise, but where that gives a higher score
//!    (`length_penalty` above 0) scored as if it reached `max_tokens` without further loss.
//! 6. The result is the finished beams, best first.
//!
//! Tokens that end a text are not candidates until `min_tokens` are generated. Sums and scores are f32, as in
//! transformers. Where transformers mark a missing beam by a score of -10^9, this search has no beam; the
//! results differ only where true scores are as low.
//!
//! Pure: it must never touch a tensor, a thread, a channel or the scheduler, and it draws no random
//! numbers.

use super::event::{FinishReason, GeneratedToken, TokenLogprob};
use crate::request::{BeamParams, EarlyStopping, StopConditions};

/// A beam search in progress.
#[derive(Debug)]
pub struct BeamSearch {
    params: BeamParams,
    stop: StopConditions,
    /// Tokens a beam may have: what was asked for, less what the window does not hold.
    max_tokens: usize,
    /// The most likely tokens to report beside each.
    top: usize,
    /// Tokens that end a beam.
    ends: Vec<u32>,
    /// The tokens of all beams, each with the one before it.
    nodes: Vec<Node>,
    /// Best first.
    live: Vec<Beam>,
    /// Best first.
    finished: Vec<Finished>,
    /// Tokens of each live beam.
    generated: usize,
}

/// One token of one or more beams.
#[derive(Debug)]
struct Node {
    before: Option<usize>,
    token: TokenLogprob,
    top: Vec<TokenLogprob>,
}

#[derive(Debug, Clone, Copy)]
struct Beam {
    /// Its last token; none in the beginning.
    last: Option<usize>,
    sum: f32,
}

#[derive(Debug, Clone, Copy)]
struct Finished {
    last: usize,
    score: f32,
}

/// A live beam, continued with a token.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    parent: usize,
    token: TokenLogprob,
    sum: f32,
}

/// What follows from a step.
#[derive(Debug, PartialEq)]
pub enum Advance {
    /// The next live beams, best first.
    Continue(Vec<Branch>),
    /// The beams asked for, best first.
    Done(Vec<Hypothesis>),
}

/// A new live beam.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    /// The live beam of the step before that it continues.
    pub parent: usize,
    /// The token it adds.
    pub token: u32,
}

/// A finished beam.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its tokens; the last one has the reason why it ended.
    pub tokens: Vec<GeneratedToken>,
    /// What it was ranked by.
    pub score: f32,
}

impl BeamSearch {
    /// Creates a search. `max_tokens` is at least 1, and the vocabulary has at least
    /// [`BeamParams::candidates`] tokens. `top` of the most likely tokens are reported in each place.
    #[must_use]
    pub fn new(params: BeamParams, stop: StopConditions, max_tokens: usize, top: usize) -> Self {
        let mut ends = [&stop.end_of_text[..], &stop.stop_tokens[..]].concat();
        ends.sort_unstable();
        ends.dedup();
        Self {
            params,
            stop,
            max_tokens,
            top,
            ends,
            nodes: Vec::new(),
            live: vec![Beam {
                last: None,
                sum: 0.0,
            }],
            finished: Vec::new(),
            generated: 0,
        }
    }

    /// Returns the number of most likely tokens needed after each live beam.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.params.candidates(self.ends.len()).max(self.top)
    }

    /// Returns the tokens of a live beam.
    #[must_use]
    pub fn tokens(&self, beam: usize) -> Vec<u32> {
        let last = self.live.get(beam).and_then(|beam| beam.last);
        self.path(last).map(|node| node.token.id).collect()
    }

    /// Advances by one step: `rows` are the most likely tokens after each live beam, most likely first, as
    /// many as [`wanted`](Self::wanted).
    pub fn advance(&mut self, rows: &[Vec<TokenLogprob>]) -> Advance {
        let candidates = self.candidates(rows);
        self.generated += 1;
        let parents = std::mem::take(&mut self.live);
        let mut branches = Vec::with_capacity(self.params.width);
        for (rank, candidate) in candidates.iter().enumerate() {
            let ends = self.ends_with(candidate.token.id);
            let counts = if ends {
                rank < self.params.width
            } else {
                branches.len() < self.params.width
            };
            if !counts {
                continue;
            }
            let last = self.nodes.len();
            let top = rows[candidate.parent].iter().take(self.top);
            self.nodes.push(Node {
                before: parents[candidate.parent].last,
                token: candidate.token,
                top: top.copied().collect(),
            });
            if ends {
                let score = candidate.sum / self.penalty(self.generated);
                self.finished.push(Finished { last, score });
            } else {
                self.live.push(Beam {
                    last: Some(last),
                    sum: candidate.sum,
                });
                branches.push(Branch {
                    parent: candidate.parent,
                    token: candidate.token.id,
                });
            }
        }
        // Stable: the earlier ones stay first among equals.
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(self.params.width);
        if self.goes_on() {
            Advance::Continue(branches)
        } else {
            Advance::Done(self.results())
        }
    }

    /// Returns the best continuations of all live beams, best first.
    fn candidates(&self, rows: &[Vec<TokenLogprob>]) -> Vec<Candidate> {
        let may_end = self.generated >= self.stop.min_tokens;
        let mut all: Vec<Candidate> = Vec::new();
        for (parent, (beam, row)) in self.live.iter().zip(rows).enumerate() {
            let allowed = row.iter().filter(|t| may_end || !self.ends.contains(&t.id));
            all.extend(allowed.map(|&token| Candidate {
                parent,
                token,
                sum: beam.sum + token.logprob,
            }));
        }
        all.sort_unstable_by(|a, b| {
            let tie = (a.parent, a.token.id).cmp(&(b.parent, b.token.id));
            b.sum.total_cmp(&a.sum).then(tie)
        });
        all.truncate(self.params.candidates(self.ends.len()));
        all
    }

    /// Returns whether a beam with this newest token has ended.
    fn ends_with(&self, token: u32) -> bool {
        self.finish_reason(token, self.generated).is_some()
    }

    fn finish_reason(&self, token: u32, length: usize) -> Option<FinishReason> {
        FinishReason::after(token, length, &self.stop, self.max_tokens)
    }

    /// Returns the divisor of a sum over this number of tokens.
    fn penalty(&self, length: usize) -> f32 {
        (length as f64).powf(self.params.length_penalty) as f32
    }

    fn goes_on(&self) -> bool {
        let Some(best) = self.live.first() else {
            return false;
        };
        let worst = match self.finished.last() {
            Some(worst) if self.finished.len() == self.params.width => worst.score,
            _ => return true,
        };
        let length = match self.params.early_stopping {
            EarlyStopping::Always => return false,
            EarlyStopping::Never if self.params.length_penalty > 0.0 => self.max_tokens,
            EarlyStopping::Heuristic | EarlyStopping::Never => self.generated,
        };
        best.sum / self.penalty(length) > worst
    }

    fn results(&self) -> Vec<Hypothesis> {
        let best = self.finished.iter().take(self.params.returned);
        best.map(|finished| {
            let tokens = self.path(Some(finished.last)).enumerate();
            Hypothesis {
                tokens: tokens
                    .map(|(n, node)| GeneratedToken {
                        token: node.token,
                        top: node.top.clone(),
                        finish: self.finish_reason(node.token.id, n + 1),
                    })
                    .collect(),
                score: finished.score,
            }
        })
        .collect()
    }

    /// Returns the tokens up to and including `last`.
    fn path(&self, last: Option<usize>) -> impl Iterator<Item = &Node> {
        let backwards = std::iter::successors(last, |&at| self.nodes[at].before);
        let mut path: Vec<usize> = backwards.collect();
        path.reverse();
        path.into_iter().map(|at| &self.nodes[at])
    }
}

#[cfg(test)]
#[path = "beam_tests.rs"]
pub(super) mod tests;
