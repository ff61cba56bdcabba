//! The progress bar, on standard error if that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::load::Extent;
use super::report::Measured;
use super::workload::RequestNumber;

/// A progress bar; cleared when dropped.
pub(super) struct Bar {
    bar: ProgressBar,
    extent: Extent,
}

impl Bar {
    /// Creates the bar of a load whose first request is `first`.
    pub fn new(first: RequestNumber, extent: Extent) -> Self {
        let (length, unit) = match extent {
            Extent::Requests(requests) => (requests, "requests"),
            Extent::Duration(duration) => (duration.as_secs(), "s"),
        };
        let name = match first {
            RequestNumber::Warmup(_) => "warming up",
            RequestNumber::Measured(_) => "measuring",
        };
        let bar = ProgressBar::new(length).with_prefix(name);
        let template = format!("{{prefix}} {{wide_bar}} {{pos}}/{{len}} {unit}, {{msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self { bar, extent }
    }

    /// Draws the current progress.
    pub fn draw(&self, measured: &Measured, elapsed: Duration) {
        let unfinished = measured.unfinished();
        self.bar.set_position(match self.extent {
            Extent::Requests(_) => measured.arrived - unfinished,
            Extent::Duration(duration) => elapsed.min(duration).as_secs(),
        });
        let failed = measured.failed.total();
        self.bar
            .set_message(format!("{unfinished} in flight, {failed} failed"));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
