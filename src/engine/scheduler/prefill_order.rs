//! The order in which the prefills of one tenant and priority get a step's tokens.
//!
//! The oldest gets half of them, and what the others leave: so it is finished however many short prompts
//! arrive. The other half goes to the running ones that are shorter than what is left of it, the shortest
//! first, and to the waiting ones in order of arrival. So a short prompt does not wait for a long one. A
//! waiting one that is longer than what is left of the oldest starts with a block only, so that those after
//! it start soon and the oldest is not slowed down by prompts that will be read after it anyway.
//!
//! Pure order: it must never plan, allocate or admit.

use std::collections::VecDeque;

use super::Chunk;
use crate::engine::sequence::{Sequence, SequenceId};
use crate::request::Tenant;

/// A sequence in prefill, and the number of its tokens left before the step.
type Left = (SequenceId, usize);

/// The running sequences in prefill of one tenant and priority.
pub(super) struct Prefills {
    pub share: Tenant,
    pub priority: i32,
    /// All, the oldest first.
    all: Vec<Left>,
    /// Those with less left than the oldest, the least first.
    shorter: VecDeque<Left>,
    /// Whether the oldest has got its half.
    oldest_served: bool,
    /// Number of `all` that have got the rest.
    rest_served: usize,
}

/// When a sequence gets tokens in a step, among those of its tenant and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The oldest and shorter ones.
    First,
    /// Those that are admitted.
    Waiting,
    /// What is left, by age.
    Rest,
}

/// Maximum of what a step can still spend on prefill that a sequence gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Portion {
    All,
    Half,
    Block,
}

impl Prefills {
    /// Returns the group of a sequence, a new one if there is none.
    pub fn of<'a>(sequence: &Sequence, groups: &'a mut Vec<Self>) -> &'a mut Self {
        let (share, priority) = (sequence.share, sequence.priority);
        let is_its = |group: &Self| (group.share, group.priority) == (share, priority);
        let at = groups.iter().position(is_its).unwrap_or_else(|| {
            groups.push(Self {
                share,
                priority,
                all: Vec::new(),
                shorter: VecDeque::new(),
                oldest_served: false,
                rest_served: 0,
            });
            groups.len() - 1
        });
        &mut groups[at]
    }

    /// Adds a sequence that was running before the step; the older ones have been added.
    pub fn add(&mut self, sequence: &Sequence) {
        let new = (sequence.id, sequence.pending());
        if self.all.first().is_some_and(|oldest| new.1 < oldest.1) {
            let at = self.shorter.partition_point(|other| other.1 <= new.1);
            self.shorter.insert(at, new);
        }
        self.all.push(new);
    }

    /// Adds a sequence that the step has admitted; returns what it gets at once.
    pub fn begin(&mut self, sequence: &Sequence, plan: &[Chunk]) -> Portion {
        let lefts = self.all.iter();
        let mut lefts = lefts.map(|&(id, left)| left.saturating_sub(planned(plan, id)));
        let oldest = lefts.find(|&left| left > 0);
        self.all.push((sequence.id, sequence.pending()));
        match oldest {
            None => {
                self.oldest_served = true;
                Portion::Half
            }
            Some(left) if sequence.pending() > left => Portion::Block,
            Some(_) => Portion::All,
        }
    }

    /// Returns when its next sequence gets tokens; `None` after the last.
    pub fn stage(&self) -> Option<Stage> {
        if !self.oldest_served || !self.shorter.is_empty() {
            return Some(Stage::First);
        }
        (self.rest_served < self.all.len()).then_some(Stage::Rest)
    }

    /// Takes the next sequence, and what it gets.
    pub fn next(&mut self) -> Option<(SequenceId, Portion)> {
        if !self.oldest_served {
            self.oldest_served = true;
            return self.all.first().map(|oldest| (oldest.0, Portion::Half));
        }
        if let Some((id, _)) = self.shorter.pop_front() {
            return Some((id, Portion::All));
        }
        let next = self.all.get(self.rest_served)?;
        self.rest_served += 1;
        Some((next.0, Portion::All))
    }
}

/// Returns the number of tokens of a sequence that are planned.
pub(super) fn planned(plan: &[Chunk], id: SequenceId) -> usize {
    let chunk = plan.iter().find(|chunk| chunk.id == id);
    chunk.map_or(0, |chunk| chunk.tokens)
}
