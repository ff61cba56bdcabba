//! Beam search as a request asks for it.

/// A search for the most likely continuations; see [`crate::engine::beam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamParams {
    /// Beams kept in each step; at least 1.
    pub width: usize,
    /// Beams returned, best first; at least 1, at most `width`.
    pub returned: usize,
    /// The power of a beam's length that its log-probability is divided by: above 0 favours
    /// longer texts, 0 the most likely one, below 0 shorter ones.
    pub length_penalty: f64,
    /// When a search that has its beams ends.
    pub early_stopping: EarlyStopping,
}

impl BeamParams {
    /// Returns how many of the most likely tokens after a beam can matter where `ends` tokens end one:
    /// enough for `width` beams to continue even if each ends in every way, or none may end yet.
    #[must_use]
    pub fn candidates(&self, ends: usize) -> usize {
        let per_beam = (1 + ends).max(2);
        self.width.saturating_mul(per_beam).saturating_add(ends)
    }
}

/// When a search ends once it has as many finished beams as it is wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// At once (`true`).
    Always,
    /// When the best live beam, ended now, would not be better than the worst finished one
    /// (`false`).
    #[default]
    Heuristic,
    /// When no live beam can become better than the worst finished one (`"never"`).
    Never,
}
