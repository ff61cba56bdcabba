//! The share of the worker's time that inspections get beside other requests.
//!
//! An observed pass costs far more per token than an ordinary one, so its share is measured in time, not in
//! tokens. What an inspection computes beside `n` other running requests, its prefix included, is followed by
//! `n` times as long for these. Pure arithmetic over measured times.

use std::time::Duration;

/// Maximum requests counted beside an inspection, so that it always makes progress.
const COUNTED: u32 = 16;

/// The time that inspections owe to other requests.
#[derive(Debug, Default)]
pub(super) struct InspectionShare {
    owed: Duration,
}

impl InspectionShare {
    /// Returns whether inspections may get tokens now, beside `others` running requests.
    pub fn is_due(&mut self, others: usize) -> bool {
        if others == 0 {
            self.owed = Duration::ZERO;
        }
        self.owed.is_zero()
    }

    /// Records time that an inspection took beside `others` running requests.
    pub fn inspected(&mut self, took: Duration, others: usize) {
        let counted = u32::try_from(others).map_or(COUNTED, |others| others.min(COUNTED));
        self.owed = self.owed.saturating_add(took.saturating_mul(counted));
    }

    /// Records time that other requests took.
    pub fn others_ran(&mut self, took: Duration) {
        self.owed = self.owed.saturating_sub(took);
    }

    /// Records that no other request can run.
    pub fn others_are_idle(&mut self) {
        self.owed = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn other_requests_run_as_long_each_before_an_inspection_goes_on() {
        let mut share = InspectionShare::default();
        assert!(share.is_due(2));
        share.inspected(10 * MS, 2);
        share.others_ran(19 * MS);
        assert!(!share.is_due(2));
        share.others_ran(5 * MS);
        assert!(share.is_due(2));
        // An unused allowance is not saved up.
        share.inspected(10 * MS, 1);
        assert!(!share.is_due(1));
        assert!(share.is_due(0));
    }

    #[test]
    fn an_inspection_makes_progress_beside_any_number_of_requests() {
        let mut share = InspectionShare::default();
        share.inspected(10 * MS, 1000);
        share.others_ran(160 * MS);
        assert!(share.is_due(1000));
    }
}
