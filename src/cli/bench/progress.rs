//! How far a load is, on standard error if that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::load::Extent;
use super::report::Measured;
use super::workload::Number;

/// A progress bar; gone when dropped.
pub(super) struct Bar {
    bar: ProgressBar,
    extent: Extent,
}

impl Bar {
    /// For a load of requests such as `first`.
    pub fn new(first: Number, extent: Extent) -> Self {
        let (length, unit) = match extent {
            Extent::Requests(requests) => (requests, "requests"),
            Extent::Duration(duration) => (duration.as_secs(), "s"),
        };
        let name = match first {
            Number::Warmup(_) => "warming up",
            Number::Measured(_) => "measuring",
        };
        let bar = ProgressBar::new(length).with_prefix(name);
        let template = format!("{{prefix}} {{wide_bar}} {{pos}}/{{len}} {unit}, {{msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self { bar, extent }
    }

    /// Shows how far it is.
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
