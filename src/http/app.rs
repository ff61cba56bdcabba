//! The state that all handlers share: the settings of the front end, and whether a model is served.
//!
//! The state only moves forward: loading -> ready -> leaving -> draining, or loading -> failed. This module
//! must not know a wire format.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytesize::ByteSize;
use opentelemetry_sdk::trace::SdkTracer;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::access::Access;
use super::admission::Admission;
use super::error::ApiError;
use super::metrics::{Observations, SessionCount};
use super::room::Room;
use crate::request::Tenant;
use crate::resources::Connections;
use crate::serving::Serving;

/// The settings of the front end.
#[derive(Debug, Clone, Copy)]
pub struct HttpConfig {
    /// Time for which requests are accepted after the server was asked to stop, while it reports that it
    /// is not ready.
    pub drain_delay: Duration,
    /// Maximum time for which streams in flight continue after that.
    pub drain_timeout: Duration,
    /// Interval of comments in a silent stream, so that proxies keep it open.
    pub keep_alive: Duration,
    /// Maximum time for which a client can read none of its answer before the answer is ended.
    pub stall_timeout: Duration,
    /// Maximum time for which the worker can have work but make no step before the server counts as broken.
    pub watchdog_timeout: Duration,
    /// Maximum time to send the head of a request; also the time after which an unused connection is
    /// closed.
    pub header_timeout: Duration,
    /// Maximum time to send the body of a request.
    pub body_timeout: Duration,
    /// Maximum size of a request body.
    pub max_body: ByteSize,
    /// Maximum bytes of large requests that are parsed or tokenized or wait for it; also of bodies that are
    /// arriving, and of whole answers that clients have not read.
    pub max_pending: ByteSize,
    /// Limits of open connections.
    pub connections: Connections,
    /// Whether prompts and answers are logged.
    pub log_prompts: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
            watchdog_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            max_body: ByteSize::mib(2),
            max_pending: ByteSize::mib(64),
            connections: Connections::default(),
            log_prompts: false,
        }
    }
}

/// Stage of the server between start and stop.
#[derive(Clone)]
pub(super) enum State {
    /// The model is being loaded.
    Loading,
    /// Requests are served.
    Ready(Arc<Serving>),
    /// Requests are still served, but the server reports that it is not ready, so that routers send them
    /// elsewhere.
    Leaving(Arc<Serving>),
    /// New generations are refused; those in flight finish. `None` if the model was never loaded.
    Draining(Option<Arc<Serving>>),
    /// The model could not be loaded.
    Failed(String),
}

struct Inner {
    config: HttpConfig,
    access: Access,
    tracer: Option<SdkTracer>,
    state: RwLock<State>,
    in_flight: TaskTracker,
    admission: Admission,
    unread: Room,
    receiving: Room,
    observations: Arc<Observations>,
    sessions: SessionCount,
}

/// The front end's shared state; cheap to clone. One lock, read a few times per request and written
/// four times in the server's life.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// Held by a generating request until the last byte of its answer exists; the drain waits for it.
pub(super) struct InFlight(#[expect(dead_code, reason = "held for its drop")] TaskTrackerToken);

impl App {
    /// Creates a front end without a model, which is alive but not ready.
    #[must_use]
    pub fn new(config: HttpConfig) -> Self {
        Self::with(config, Access::default(), None)
    }

    /// Creates a front end with access rules, and with a span for every request if there is a tracer.
    #[must_use]
    pub fn with(config: HttpConfig, access: Access, tracer: Option<SdkTracer>) -> Self {
        Self(Arc::new(Inner {
            config,
            access,
            tracer,
            state: RwLock::new(State::Loading),
            in_flight: TaskTracker::new(),
            admission: Admission::new(config.max_pending),
            unread: Room::new(config.max_pending),
            receiving: Room::new(config.max_pending),
            observations: Arc::default(),
            sessions: SessionCount::default(),
        }))
    }

    /// Returns the settings.
    #[must_use]
    pub fn config(&self) -> &HttpConfig {
        &self.0.config
    }

    /// Returns the admission for a tenant's work outside the engine.
    pub(super) fn admission(&self, share: Tenant) -> Admission {
        self.0.admission.of(share)
    }

    /// Returns the room for answers that clients have not read.
    pub(super) fn unread(&self) -> &Room {
        &self.0.unread
    }

    /// Returns the room for bodies that are arriving.
    pub(super) fn receiving(&self) -> &Room {
        &self.0.receiving
    }

    /// Returns the access rules.
    pub(super) fn access(&self) -> &Access {
        &self.0.access
    }

    /// Returns the tracer, if spans are exported.
    pub(super) fn tracer(&self) -> Option<&SdkTracer> {
        self.0.tracer.as_ref()
    }

    /// Returns the counts of requests and generations since the start.
    pub(super) fn observations(&self) -> &Arc<Observations> {
        &self.0.observations
    }

    /// Returns the last known number of stored sessions.
    pub(super) fn session_count(&self) -> &SessionCount {
        &self.0.sessions
    }

    /// Records that the model is loaded: generations are accepted from now on. Stops the engine instead if
    /// the server was asked to stop meanwhile.
    pub fn ready(&self, serving: Serving) {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Loading) {
            *state = State::Ready(Arc::new(serving));
        } else {
            serving.engine.stop();
        }
    }

    /// Records that the model can't be loaded; readiness probes report `why`.
    pub fn fail(&self, why: String) {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Loading) {
            *state = State::Failed(why);
        }
    }

    /// Makes readiness probes fail, while requests are still served. Returns whether the server was ready.
    pub fn leave(&self) -> bool {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        let State::Ready(serving) = &*state else {
            return false;
        };
        *state = State::Leaving(Arc::clone(serving));
        true
    }

    /// Refuses new generations from now on.
    pub fn drain(&self) {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        *state = match &*state {
            State::Ready(serving) | State::Leaving(serving) => {
                State::Draining(Some(Arc::clone(serving)))
            }
            State::Draining(serving) => State::Draining(serving.clone()),
            State::Loading | State::Failed(_) => State::Draining(None),
        };
        self.0.in_flight.close();
    }

    pub(super) fn state(&self) -> State {
        self.0
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns whether the server is about to stop. Connections are then closed after the next answer, so
    /// that clients that keep them open connect to another server.
    pub(super) fn is_stopping(&self) -> bool {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        matches!(*state, State::Leaving(_) | State::Draining(_))
    }

    /// Returns the model for a request that does not generate, even while draining.
    pub(super) fn serving(&self) -> Result<Arc<Serving>, ApiError> {
        match self.state() {
            State::Ready(serving) | State::Leaving(serving) | State::Draining(Some(serving)) => {
                Ok(serving)
            }
            State::Loading => Err(ApiError::loading()),
            State::Draining(None) => Err(ApiError::draining()),
            State::Failed(why) => Err(ApiError::failed(&why)),
        }
    }

    /// Returns the model for a tenant's generation, which must hold the [`InFlight`] until its end.
    pub(super) fn begin(&self, share: Tenant) -> Result<(Arc<Serving>, InFlight), ApiError> {
        // Counted before the state is read, so that a drain that begins in between waits for it.
        let in_flight = InFlight(self.0.in_flight.token());
        match self.state() {
            State::Ready(serving) | State::Leaving(serving) => {
                self.check_worker(&serving)?;
                // Before the prompt is tokenized, so that a refusal costs next to nothing.
                serving.engine.check_queue(share)?;
                Ok((serving, in_flight))
            }
            State::Draining(_) => Err(ApiError::draining()),
            State::Loading => Err(ApiError::loading()),
            State::Failed(why) => Err(ApiError::failed(&why)),
        }
    }

    /// Checks that the worker makes steps.
    ///
    /// # Errors
    /// If the worker has stopped or is stuck.
    pub(super) fn check_worker(&self, serving: &Serving) -> Result<(), ApiError> {
        let status = serving.engine.status();
        let limit = self.config().watchdog_timeout;
        if !status.alive {
            Err(ApiError::worker_gone())
        } else if status.silence >= limit {
            Err(ApiError::worker_stalled(status.silence, limit))
        } else {
            Ok(())
        }
    }

    /// Waits until no generation is in flight. May only be called after [`App::drain`].
    pub(super) async fn drained(&self) {
        self.0.in_flight.wait().await;
    }
}
