//! Runs a complete load and collects the outcomes of its requests.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::unbounded_channel;

use super::client::Target;
use super::dialect::BodyOptions;
use super::load::{self, Extent, Pace, Progress};
use super::progress::Bar;
use super::report::Measured;
use super::retry;
use super::workload::{RequestNumber, Workload};

/// Interval at which the progress bar is drawn.
const REDRAW: Duration = Duration::from_millis(200);

/// What all requests of a run share.
pub(super) struct Run {
    target: Arc<Target>,
    options: Arc<BodyOptions>,
    workload: Arc<Workload>,
    /// Maximum attempts of a request after its first.
    max_retries: u32,
}

impl Run {
    /// Creates a run against a server.
    pub fn new(target: Target, options: BodyOptions, workload: Workload, max_retries: u32) -> Self {
        Self {
            max_retries,
            target: Arc::new(target),
            options: Arc::new(options),
            workload: Arc::new(workload),
        }
    }

    /// Runs a load to its end, or until Ctrl-C, which cancels the requests in flight.
    pub async fn load(
        &self,
        pace: Pace,
        extent: Extent,
        number: fn(u64) -> RequestNumber,
    ) -> Measured {
        let (target, options) = (Arc::clone(&self.target), Arc::clone(&self.options));
        let workload = Arc::clone(&self.workload);
        let max_retries = self.max_retries;
        let retries = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&retries);
        let one = move |ticket: load::Ticket| {
            let (target, options) = (Arc::clone(&target), Arc::clone(&options));
            let (workload, counter) = (Arc::clone(&workload), Arc::clone(&counter));
            async move {
                let spec = workload.request(number(ticket.number));
                let outcome =
                    retry::stream(&target, &spec, &options, ticket.arrival, max_retries).await;
                counter.fetch_add(u64::from(outcome.retries), Ordering::Relaxed);
                outcome.result
            }
        };
        let (send, mut progress) = unbounded_channel();
        let started = Instant::now();
        let mut load = pin!(load::drive(pace, extent, self.workload.seed, send, one));
        let mut loading = true;
        let mut interrupt = pin!(interrupt());
        let mut redraw = tokio::time::interval(REDRAW);
        let bar = Bar::new(number(0), extent);
        let mut measured = Measured::default();
        loop {
            tokio::select! {
                () = &mut load, if loading => loading = false,
                () = &mut interrupt => {
                    measured.interrupted = true;
                    return measured;
                }
                _ = redraw.tick() => bar.draw(&measured, started.elapsed()),
                event = progress.recv() => match event {
                    Some(Progress::Arrived) => measured.arrived += 1,
                    Some(Progress::Done(outcome)) => {
                        measured.elapsed = started.elapsed();
                        measured.retries = retries.load(Ordering::Relaxed);
                        match outcome {
                            Ok(answered) => measured.answered.push(answered),
                            Err(failure) => measured.failed.add(failure),
                        }
                    }
                    // The load has ended, and all outcomes are collected.
                    None => return measured,
                },
            }
        }
    }
}

/// Returns at Ctrl-C; never returns if the signal can't be handled.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        pending::<()>().await;
    }
}
