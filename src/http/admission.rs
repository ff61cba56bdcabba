//! Admission of work outside the engine: parsing bodies, tokenizing, rendering templates, compiling
//! grammars.
//!
//! Such work takes up to a hundred times its input in memory and milliseconds to seconds of a core, and
//! the engine's own queue does not see it. So each kind has a [`Lane`]: a bounded amount runs at a time,
//! a bounded amount waits, of each tenant in order of arrival, and what is beyond that and the tenant's share
//! is refused with 429 and a `Retry-After` from how long the work has taken. Small inputs never wait behind large ones, which run
//! on threads below the priority of the compute threads.
//!
//! Nothing here may run on a front-end thread but what takes a millisecond. What has begun goes on when
//! its client leaves, and keeps its place until it is through.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytesize::ByteSize;

use super::error::ApiError;
use crate::fair::{Shares, Turn, Turns};
use crate::request::Tenant;
use crate::resources::background::{self, Priority};

/// Bodies up to this many bytes are parsed where they arrive: half a millisecond.
pub(super) const PARSE_INLINE: usize = 64 << 10;
/// Texts up to this many bytes are tokenized where they arrive: a millisecond or so.
pub(super) const TOKENIZE_INLINE: usize = 8 << 10;
/// Inputs beyond this many bytes are large.
const LARGE: usize = 64 << 10;

/// Inputs of medium size in work at a time, and pending, in bytes.
const MEDIUM: (usize, usize) = (512 << 10, 16 << 20);
/// Large inputs in work at a time, in bytes.
const LARGE_AT_A_TIME: usize = 4 << 20;
/// Templates rendered at a time, and pending.
const TEMPLATES: (usize, usize) = (2, 128);
/// How long the rendering of one template may take. Its steps and memory are bounded too, but not the
/// time of a single step.
const RENDER_TIME: Duration = Duration::from_secs(5);

/// The shortest and the longest `Retry-After`.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The lanes of the front end, as one tenant enters them; cheap to clone.
#[derive(Clone)]
pub(super) struct Admission {
    lanes: Arc<Lanes>,
    share: Tenant,
}

struct Lanes {
    medium: Lane,
    large: Lane,
    templates: Lane,
}

impl Admission {
    /// Creates the lanes; `max_pending` are the bytes of large inputs that run or wait.
    pub(super) fn new(max_pending: ByteSize) -> Self {
        let (medium, medium_pending) = MEDIUM;
        let (templates, templates_pending) = TEMPLATES;
        let max_pending = usize::try_from(max_pending.as_u64()).unwrap_or(usize::MAX);
        let bytes = "bytes of other requests are being parsed or tokenized, or wait for it";
        let lanes = Lanes {
            medium: Lane::new(bytes, medium, medium_pending),
            large: Lane::new(bytes, LARGE_AT_A_TIME, max_pending),
            templates: Lane::new(
                "other conversations wait for the chat template",
                templates,
                templates_pending,
            ),
        };
        Self {
            lanes: Arc::new(lanes),
            share: Tenant::ANONYMOUS,
        }
    }

    /// Returns the same lanes, as another tenant enters them.
    pub(super) fn of(&self, share: Tenant) -> Self {
        let lanes = Arc::clone(&self.lanes);
        Self { lanes, share }
    }

    /// Runs work on an input of so many bytes: at once if they are at most `inline`, else off the
    /// front-end threads when there is room.
    ///
    /// # Errors
    /// 429 if too much is pending; an internal error if the work panics.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        inline: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes <= inline {
            return Ok(work());
        }
        if bytes <= LARGE {
            let place = self.lanes.medium.enter(self.share, bytes).await?;
            let done = tokio::task::spawn_blocking(move || {
                let _place = place;
                work()
            });
            return done.await.map_err(|error| failed(&error));
        }
        let place = self.lanes.large.enter(self.share, bytes).await?;
        place.run("skald-large", Priority::Low, work).await
    }

    /// Renders a chat template, which is a program from elsewhere.
    ///
    /// # Errors
    /// 429 if too many are pending; 400 if it takes too long; an internal error if it panics.
    pub(super) async fn render<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let templates = &self.lanes.templates;
        let place = tokio::time::timeout(RENDER_TIME, templates.enter(self.share, 1)).await;
        // Templates that don't come to an end keep their places.
        let place = place.unwrap_or_else(|_| Err(templates.0.busy()))?;
        let rendering = place.run("skald-template", Priority::Normal, work);
        tokio::time::timeout(RENDER_TIME, rendering)
            .await
            .unwrap_or_else(|_| {
                Err(ApiError::invalid(
                    "messages",
                    format!(
                        "the chat template took longer than {RENDER_TIME:?} on these messages; send fewer or shorter ones"
                    ),
                ))
            })
    }
}

fn failed(error: &impl std::fmt::Display) -> ApiError {
    ApiError::internal(format!("work on the request failed: {error}"))
}

/// A bounded amount of one kind of work, in its own units (bytes, or pieces).
pub(super) struct Lane(Arc<Shared>);

struct Shared {
    /// What is pending, for messages: "… bytes of other requests are being tokenized".
    pending_what: &'static str,
    running: Turns,
    /// Units that run at a time.
    at_a_time: usize,
    /// Units that run or wait.
    pending: Mutex<Shares>,
    /// Pieces of work that run or wait.
    pieces: AtomicUsize,
    /// Nanoseconds that a piece of work takes, a moving mean.
    mean: AtomicU64,
}

impl Lane {
    /// Creates a lane in which `at_a_time` units run and `max_pending` run or wait. One piece of each
    /// tenant's work is always taken, whatever its size.
    pub(super) fn new(pending_what: &'static str, at_a_time: usize, max_pending: usize) -> Self {
        Self(Arc::new(Shared {
            pending_what,
            running: Turns::new(at_a_time),
            at_a_time,
            pending: Mutex::new(Shares::new(max_pending)),
            pieces: AtomicUsize::new(0),
            mean: AtomicU64::new(0),
        }))
    }

    /// Waits for a tenant's turn.
    ///
    /// # Errors
    /// 429 if so much more would be too much.
    pub(super) async fn enter(&self, share: Tenant, units: usize) -> Result<Place, ApiError> {
        let pending = Pending::add(&self.0, share, units)?;
        let wanted = units.min(self.0.at_a_time);
        let turn = self.0.running.wait(share, 0, wanted).await;
        Ok(Place {
            pending,
            began: Instant::now(),
            _turn: turn,
        })
    }
}

impl Shared {
    /// The refusal of more.
    fn busy(&self) -> ApiError {
        let (pending, what) = (self.pending().total(), self.pending_what);
        ApiError::busy(
            format!("the server is busy: {pending} {what}; retry later"),
            self.retry_after(),
        )
    }

    fn pending(&self) -> MutexGuard<'_, Shares> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long until what is pending now is through.
    fn retry_after(&self) -> Duration {
        let pieces = self.pieces.load(Ordering::Relaxed).max(1);
        let pending = self.pending().total().max(1);
        let at_a_time = (self.at_a_time.saturating_mul(pieces) / pending).max(1);
        let turns = pieces.div_ceil(at_a_time);
        let mean = Duration::from_nanos(self.mean.load(Ordering::Relaxed));
        let (least, most) = RETRY;
        let turns = u32::try_from(turns).unwrap_or(u32::MAX);
        mean.saturating_mul(turns).clamp(least, most)
    }
}

/// Work that runs or waits; counted until it is dropped.
struct Pending {
    lane: Arc<Shared>,
    share: Tenant,
    units: usize,
}

impl Pending {
    fn add(lane: &Arc<Shared>, share: Tenant, units: usize) -> Result<Self, ApiError> {
        if !lane.pending().try_add(share, units) {
            return Err(lane.busy());
        }
        lane.pieces.fetch_add(1, Ordering::Relaxed);
        // From here on dropping it takes it out again.
        Ok(Self {
            lane: Arc::clone(lane),
            share,
            units,
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.lane.pending().remove(self.share, self.units);
        self.lane.pieces.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A piece of work's place in its lane, to be kept until the work is through.
pub(super) struct Place {
    pending: Pending,
    began: Instant,
    _turn: Turn,
}

impl Place {
    /// Runs work in this place, on a thread of its own.
    ///
    /// # Errors
    /// An internal error if there is no thread to be had or the work panics.
    pub(super) async fn run<T: Send + 'static>(
        self,
        thread: &str,
        priority: Priority,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let done = background::spawn(thread, priority, move || {
            let _place = self;
            work()
        });
        let done = done.map_err(|error| failed(&error))?;
        done.await.map_err(|_| failed(&"its thread panicked"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let took = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Two that end together may lose one of the two values: it is a mean.
        let mean = &self.pending.lane.mean;
        let was = mean.load(Ordering::Relaxed);
        let now = if was == 0 {
            took
        } else {
            was - was / 8 + took / 8
        };
        mean.store(now, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_is_too_much_is_refused_until_there_is_room() {
        let lane = Lane::new("bytes wait", 2, 4);
        let first = lane.enter(Tenant::ANONYMOUS, 2).await.ok();
        assert!(first.is_some());
        // It waits.
        let mut second = Box::pin(lane.enter(Tenant::ANONYMOUS, 2));
        assert!((&mut second).now_or_never().is_none());
        let refused = lane
            .enter(Tenant::ANONYMOUS, 1)
            .await
            .err()
            .map(|error| error.to_string());
        assert!(refused.is_some_and(|message| message.contains("4 bytes wait")));
        drop(first);
        let second = second.await.ok();
        assert!(second.is_some());
        // Its place is still taken, but there is room to wait.
        let mut third = Box::pin(lane.enter(Tenant::ANONYMOUS, 1));
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        assert!(third.await.is_ok());
        // What is larger than the lane is taken where nothing else is.
        assert!(lane.enter(Tenant::ANONYMOUS, 100).await.is_ok());
    }

    #[tokio::test]
    async fn one_tenant_leaves_room_for_another_and_does_not_delay_it() {
        let (many, few) = (Tenant::of_key(b"many"), Tenant::of_key(b"few"));
        let lane = Lane::new("bytes wait", 1, 4);
        let running = lane.enter(many, 1).await.ok();
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(lane.enter(many, 1))).collect();
        for one in &mut waiting {
            assert!(one.now_or_never().is_none());
        }
        assert!(lane.enter(many, 1).await.is_err());
        let mut other = Box::pin(lane.enter(few, 2));
        assert!((&mut other).now_or_never().is_none());
        assert!(lane.enter(few, 1).await.is_err());
        // A tenant that comes counts as having had as much as the one that was served the least: of two
        // that are equal the first in the queue is next, and then the other.
        drop(running);
        assert!((&mut other).now_or_never().is_none());
        let served = waiting.remove(0).now_or_never();
        assert!(served.as_ref().is_some_and(Result::is_ok));
        drop(served);
        assert!(other.now_or_never().is_some_and(|place| place.is_ok()));
        assert!(waiting.remove(0).now_or_never().is_some());
    }

    #[tokio::test]
    async fn work_that_panics_is_an_internal_error_and_gives_its_place_back() {
        let admission = Admission::new(ByteSize::mib(1)).of(Tenant::ANONYMOUS);
        let panics = || -> () { panic!("injected") };
        for bytes in [PARSE_INLINE, LARGE + 1] {
            let failed = admission.run(bytes, 0, panics).await;
            let failed = failed.expect_err("it panics").to_string();
            assert!(failed.contains("work on the request failed"), "{failed}");
        }
        assert!(admission.render(panics).await.is_err());
        let lanes = &admission.lanes;
        for lane in [&lanes.medium, &lanes.large, &lanes.templates] {
            assert_eq!(lane.0.pending().total(), 0);
        }
        assert_eq!(admission.run(LARGE + 1, 0, || 7).await.ok(), Some(7));
    }

    #[tokio::test]
    async fn the_hint_follows_how_long_work_takes() {
        let lane = Lane::new("pieces wait", 1, 2);
        lane.0.mean.store(7_000_000_000, Ordering::Relaxed);
        let _running = lane.enter(Tenant::ANONYMOUS, 1).await.ok();
        let mut waiting = Box::pin(lane.enter(Tenant::ANONYMOUS, 1));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(lane.0.retry_after(), Duration::from_secs(14));
    }

    #[tokio::test]
    async fn one_that_leaves_while_it_waits_counts_no_more() {
        let lane = Lane::new("pieces wait", 1, 2);
        let running = lane.enter(Tenant::ANONYMOUS, 1).await.ok();
        let mut waiting = Box::pin(lane.enter(Tenant::ANONYMOUS, 1));
        assert!((&mut waiting).now_or_never().is_none());
        drop(waiting);
        assert_eq!(lane.0.pending().total(), 1);
        drop(running);
        assert_eq!(lane.0.pending().total(), 0);
    }
}
