//! The progress bar of one file's download.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on standard error.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Creates a bar that is shown if `visible` is set and standard error is a terminal.
    pub(super) fn new(visible: bool, file: &str) -> Self {
        let target = if visible {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        );
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(None, target);
        Self(bar.with_style(style).with_message(file.to_owned()))
    }

    /// Starts at byte `at` of `size`: rate and remaining time cover the rest only.
    pub(super) fn begin(&self, size: Option<u64>, at: u64) {
        if let Some(size) = size {
            self.0.set_length(size);
        }
        self.0.set_position(at);
        self.0.reset_eta();
    }

    /// Moves to byte `at`.
    pub(super) fn at(&self, at: u64) {
        self.0.set_position(at);
    }

    /// Ends with a full bar.
    pub(super) fn finish(&self) {
        self.0.finish();
    }
}
