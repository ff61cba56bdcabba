//! The pace of requests.
//!
//! - A **closed loop** keeps a fixed number of requests in flight: each is sent when an earlier one
//!   ends. It measures the capacity of a server, but not how long users wait, since a server that
//!   stalls gets fewer requests.
//! - An **open loop** sends at random times (a Poisson process) whether or not the server keeps up,
//!   like independent users. With a cap on requests in flight, further requests wait in the client, in
//!   order of arrival.
//!
//! In an open loop every request carries its *scheduled* time, and latencies count from there.
//! Counting from the actual sending would omit exactly the waiting that an overloaded server causes
//! ("coordinated omission").

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinError, JoinSet};

use super::lengths::above_zero;

/// The rule that decides when a request is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// A closed loop with this number of requests in flight.
    Closed(NonZeroUsize),
    /// An open loop.
    Open {
        /// Mean requests per second.
        rate: f64,
        /// Maximum requests in flight.
        cap: Option<NonZeroUsize>,
    },
}

/// The end of a load. Requests in flight are waited for: cancelling them would omit the slowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Number of requests.
    Requests(u64),
    /// Time after which no request is sent (in an open loop: arrives).
    Duration(Duration),
}

/// Permission to send a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    /// Number of the request, from 0.
    pub number: u64,
    /// Scheduled arrival, in an open loop.
    pub arrival: Option<Instant>,
}

/// An event of a running load.
#[derive(Debug)]
pub(super) enum Progress<T> {
    /// A request has arrived; the cap may delay it.
    Arrived,
    /// A request has ended.
    Done(T),
}

/// Runs `one` for every request, and reports all events to `progress`. Dropping the future cancels the
/// requests in flight.
pub(super) async fn drive<T, F, R>(
    pace: Pace,
    extent: Extent,
    seed: u64,
    progress: UnboundedSender<Progress<T>>,
    one: F,
) where
    T: Send + 'static,
    F: Fn(Ticket) -> R + Clone + Send + 'static,
    R: Future<Output = T> + Send + 'static,
{
    match pace {
        Pace::Closed(concurrency) => closed(concurrency, extent, progress, one).await,
        Pace::Open { rate, cap } => {
            let arrivals = extent.limit(arrivals(rate, seed));
            let arrivals = paced(Instant::now(), arrivals, progress.clone());
            open(arrivals, cap, progress, one).await;
        }
    }
}

async fn closed<T, F, R>(
    concurrency: NonZeroUsize,
    extent: Extent,
    progress: UnboundedSender<Progress<T>>,
    one: F,
) where
    T: Send + 'static,
    F: Fn(Ticket) -> R + Clone + Send + 'static,
    R: Future<Output = T> + Send + 'static,
{
    let started = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut users = JoinSet::new();
    for _ in 0..concurrency.get() {
        let (next, progress, one) = (Arc::clone(&next), progress.clone(), one.clone());
        users.spawn(async move {
            while !extent.is_over(started.elapsed()) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if !extent.includes(number) {
                    break;
                }
                // Fails only if the run is being cancelled.
                let _ = progress.send(Progress::Arrived);
                let arrival = None;
                let done = one(Ticket { number, arrival }).await;
                let _ = progress.send(Progress::Done(done));
            }
        });
    }
    while let Some(ended) = users.join_next().await {
        or_unwind(ended);
    }
}

async fn open<T, F, R>(
    mut arrivals: UnboundedReceiver<Instant>,
    cap: Option<NonZeroUsize>,
    progress: UnboundedSender<Progress<T>>,
    one: F,
) where
    T: Send + 'static,
    F: Fn(Ticket) -> R + Clone + Send + 'static,
    R: Future<Output = T> + Send + 'static,
{
    let places = cap.map_or(Semaphore::MAX_PERMITS, NonZeroUsize::get);
    let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
    let mut requests = JoinSet::new();
    let mut number = 0;
    while let Some(arrival) = arrivals.recv().await {
        // Acquired here rather than in the task, so that requests are sent in order.
        let place = Arc::clone(&places).acquire_owned().await;
        let ticket = Ticket {
            number,
            arrival: Some(arrival),
        };
        number += 1;
        let (progress, one) = (progress.clone(), one.clone());
        requests.spawn(async move {
            let done = one(ticket).await;
            drop(place);
            let _ = progress.send(Progress::Done(done));
        });
        while let Some(ended) = requests.try_join_next() {
            or_unwind(ended);
        }
    }
    while let Some(ended) = requests.join_next().await {
        or_unwind(ended);
    }
}

/// Propagates a panic of a request's task: it is a bug of the client and must not count as a failure of
/// the server.
fn or_unwind(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        resume_unwind(error.into_panic());
    }
}

impl Extent {
    fn includes(self, number: u64) -> bool {
        !matches!(self, Self::Requests(requests) if number >= requests)
    }

    fn is_over(self, elapsed: Duration) -> bool {
        matches!(self, Self::Duration(duration) if elapsed >= duration)
    }

    /// Limits arrivals to those within the extent.
    fn limit(self, arrivals: impl Iterator<Item = Duration>) -> impl Iterator<Item = Duration> {
        arrivals
            .zip(0..)
            .take_while(move |&(at, number)| self.includes(number) && !self.is_over(at))
            .map(|(at, _)| at)
    }
}

/// Returns the arrivals of a Poisson process, whose gaps are exponentially distributed.
fn arrivals(rate: f64, seed: u64) -> impl Iterator<Item = Duration> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut seconds = 0.0;
    std::iter::from_fn(move || {
        seconds -= above_zero(&mut rng).ln() / rate;
        Duration::try_from_secs_f64(seconds).ok()
    })
}

/// Sends every arrival at its time. Uses a dedicated thread, because tokio's timers round up to whole
/// milliseconds.
fn paced<T: Send + 'static>(
    start: Instant,
    arrivals: impl Iterator<Item = Duration> + Send + 'static,
    progress: UnboundedSender<Progress<T>>,
) -> UnboundedReceiver<Instant> {
    let (send, receive) = unbounded_channel();
    std::thread::spawn(move || {
        for offset in arrivals {
            let Some(at) = start.checked_add(offset) else {
                break;
            };
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            // In this order, so that a request never ends before it has arrived.
            let _ = progress.send(Progress::Arrived);
            if send.send(at).is_err() {
                break;
            }
        }
    });
    receive
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const STEP: Duration = Duration::from_millis(20);

    /// Runs a load of requests that take [`STEP`] each. Returns their tickets and times of sending, in the
    /// order in which they end, and the maximum in flight.
    async fn run(pace: Pace, extent: Extent) -> (Vec<(Ticket, Instant)>, usize) {
        let (progress, mut receive) = unbounded_channel();
        let (in_flight, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let peak = Arc::clone(&most);
        drive(pace, extent, 7, progress, move |ticket| {
            let (in_flight, most) = (Arc::clone(&in_flight), Arc::clone(&most));
            async move {
                let sent = Instant::now();
                most.fetch_max(
                    in_flight.fetch_add(1, Ordering::SeqCst) + 1,
                    Ordering::SeqCst,
                );
                tokio::time::sleep(STEP).await;
                in_flight.fetch_sub(1, Ordering::SeqCst);
                (ticket, sent)
            }
        })
        .await;
        let (mut arrived, mut done) = (0, Vec::new());
        while let Some(progress) = receive.recv().await {
            match progress {
                Progress::Arrived => arrived += 1,
                Progress::Done(request) => done.push(request),
            }
        }
        assert_eq!(arrived, done.len());
        (done, peak.load(Ordering::SeqCst))
    }

    fn closed_at(concurrency: usize) -> Pace {
        Pace::Closed(NonZeroUsize::new(concurrency).unwrap())
    }

    #[tokio::test]
    async fn a_closed_loop_keeps_the_requested_number_in_flight() {
        let (done, most) = run(closed_at(3), Extent::Requests(8)).await;
        assert_eq!(most, 3);
        let mut numbers: Vec<u64> = done.iter().map(|(ticket, _)| ticket.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..8).collect::<Vec<_>>());
        assert!(done.iter().all(|(ticket, _)| ticket.arrival.is_none()));
    }

    #[tokio::test]
    async fn no_request_is_sent_after_the_duration_and_all_sent_are_waited_for() {
        let started = Instant::now();
        let (done, _) = run(closed_at(2), Extent::Duration(STEP / 2)).await;
        assert_eq!(done.len(), 2);
        assert!(started.elapsed() >= STEP);
    }

    #[tokio::test]
    async fn an_open_loop_does_not_wait_for_responses() {
        let pace = Pace::Open {
            rate: 10_000.0,
            cap: None,
        };
        let (done, most) = run(pace, Extent::Requests(50)).await;
        assert_eq!(done.len(), 50);
        assert!(most > 10, "{most} in flight");
    }

    /// The schedule stays the same when the cap delays requests, so the waiting is measured.
    #[tokio::test]
    async fn a_cap_delays_sending_but_not_arrivals() {
        let pace = Pace::Open {
            rate: 10_000.0,
            cap: NonZeroUsize::new(1),
        };
        let (done, most) = run(pace, Extent::Requests(6)).await;
        assert_eq!(most, 1);
        let arrivals: Vec<Instant> = done.iter().filter_map(|(t, _)| t.arrival).collect();
        assert!(arrivals[5] - arrivals[0] < STEP);
        for (number, (ticket, sent)) in done.iter().enumerate() {
            assert_eq!(ticket.number, number as u64, "first come, first served");
            let waited = *sent - ticket.arrival.unwrap();
            assert!(
                waited + STEP >= STEP * number as u32,
                "{number}: {waited:?}"
            );
        }
    }

    #[test]
    fn arrivals_are_a_seeded_poisson_process() {
        let schedule = |seed| arrivals(50.0, seed).take(20_000).collect::<Vec<_>>();
        let times = schedule(7);
        assert_eq!(times, schedule(7));
        assert_ne!(times, schedule(8));
        let mean = times.last().unwrap().as_secs_f64() / times.len() as f64;
        assert!((mean - 0.02).abs() < 0.0006, "{mean}");
        // In an exponential distribution, a share of 1 - 1/e is below the mean.
        let gaps = times
            .windows(2)
            .map(|pair| pair[1].as_secs_f64() - pair[0].as_secs_f64());
        let below = gaps.filter(|&gap| gap < 0.02).count() as f64 / times.len() as f64;
        assert!((below - 0.632).abs() < 0.015, "{below}");
    }

    #[test]
    fn an_extent_limits_arrivals_by_number_or_time() {
        let every_second = || (1..).map(Duration::from_secs);
        assert_eq!(Extent::Requests(3).limit(every_second()).count(), 3);
        let duration = Extent::Duration(Duration::from_secs(5));
        assert_eq!(duration.limit(every_second()).count(), 4);
    }
}
