//! Progress of one file's download: a bar for the user, and the length the hub announced.

use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Watches one file arrive.
pub(super) struct Meter {
    bar: ProgressBar,
    announced: AtomicU64,
}

impl Meter {
    /// `visible` draws a bar on standard error, if that is a terminal.
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
        Self {
            bar: bar.with_style(style).with_message(file.to_owned()),
            announced: AtomicU64::new(0),
        }
    }

    /// The length the hub announced, in bytes; 0 if it did not.
    pub(super) fn announced(&self) -> u64 {
        self.announced.load(Ordering::Relaxed)
    }
}

impl ProgressHandler for Meter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                self.announced.store(*total_bytes, Ordering::Relaxed);
                self.bar.set_length(*total_bytes);
            }
            DownloadEvent::Progress { files } => {
                if let Some(file) = files.last() {
                    self.bar.set_position(file.bytes_completed);
                }
            }
            DownloadEvent::AggregateProgress {
                bytes_completed, ..
            } => {
                self.bar.set_position(*bytes_completed);
            }
            DownloadEvent::Complete => self.bar.finish(),
        }
    }
}
