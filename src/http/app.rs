//! What every handler shares: the settings of the front end, and whether a model is being served.
//!
//! The state only moves forward: loading -> ready -> leaving -> draining, or loading -> failed. Nothing here
//! may know a wire format.

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
    /// How long requests are still accepted, while the server says that it is not ready, after it
    /// was asked to stop.
    pub drain_delay: Duration,
    /// How long streams in flight may go on after the server was asked to stop.
    pub drain_timeout: Duration,
    /// A stream that is silent for so long sends a comment, so that proxies keep it open.
    pub keep_alive: Duration,
    /// How long a client may take nothing of an answer before the answer is ended.
    pub stall_timeout: Duration,
    /// How long the worker may have work and make no step before the server counts as broken.
    pub watchdog_timeout: Duration,
    /// How long a client may take to send the head of a request; also how long a connection may
    /// stay open unused.
    pub header_timeout: Duration,
    /// How long a client may take to send the body of a request.
    pub body_timeout: Duration,
    /// The largest body of a request.
    pub max_body: ByteSize,
    /// Bytes of large requests that may be parsed and tokenized, or wait for it; also bytes of bodies that have
    /// not arrived as a whole, and of whole answers that their clients have not read.
    pub max_pending: ByteSize,
    /// How many connections may be open.
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

/// Where the server is on its way from start to stop.
#[derive(Clone)]
pub(super) enum State {
    /// The model is being loaded.
    Loading,
    /// Requests are welcome.
    Ready(Arc<Serving>),
    /// Requests are still served, but not asked for: routers are to send them elsewhere.
    Leaving(Arc<Serving>),
    /// No new generations; those in flight finish. `None` if the model was never there.
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

/// Kept by a generating request until its last byte is made: the drain waits for it.
pub(super) struct InFlight(#[expect(dead_code, reason = "held for its drop")] TaskTrackerToken);

impl App {
    /// Creates a front end without a model: alive, not ready.
    #[must_use]
    pub fn new(config: HttpConfig) -> Self {
        Self::with(config, Access::default(), None)
    }

    /// Creates one that lets in further hosts and origins, and makes a span of every request if there
    /// is a tracer.
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

    /// Returns its settings.
    #[must_use]
    pub fn config(&self) -> &HttpConfig {
        &self.0.config
    }

    /// Returns the admission of a tenant's work outside the engine.
    pub(super) fn admission(&self, share: Tenant) -> Admission {
        self.0.admission.of(share)
    }

    /// Returns the room for answers that are not read.
    pub(super) fn unread(&self) -> &Room {
        &self.0.unread
    }

    /// Returns the room for bodies that have not arrived as a whole.
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

    /// Returns the number of stored sessions, as far as it is known.
    pub(super) fn session_count(&self) -> &SessionCount {
        &self.0.sessions
    }

    /// Records that the model is loaded: generations are accepted from now on. If the server was asked to stop
    /// meanwhile, the engine is stopped instead.
    pub fn ready(&self, serving: Serving) {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Loading) {
            *state = State::Ready(Arc::new(serving));
        } else {
            serving.engine.stop();
        }
    }

    /// Records that the model can't be loaded; readiness probes get `why`.
    pub fn fail(&self, why: String) {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Loading) {
            *state = State::Failed(why);
        }
    }

    /// Not ready from now on, though requests are still served. Returns whether they were welcome
    /// until now.
    pub fn leave(&self) -> bool {
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        let State::Ready(serving) = &*state else {
            return false;
        };
        *state = State::Leaving(Arc::clone(serving));
        true
    }

    /// No new generations from now on.
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

    /// Returns whether the server is about to stop: connections are then closed after the next answer, so
    /// that clients that keep them open come to another server.
    pub(super) fn is_stopping(&self) -> bool {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        matches!(*state, State::Leaving(_) | State::Draining(_))
    }

    /// Returns the model, for what does not generate: also while draining.
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

    /// Returns the model, for a tenant's generation; hold on to [`InFlight`] until its end.
    pub(super) fn begin(&self, share: Tenant) -> Result<(Arc<Serving>, InFlight), ApiError> {
        // Counted before the state is read: a drain that begins in between waits for us.
        let in_flight = InFlight(self.0.in_flight.token());
        match self.state() {
            State::Ready(serving) | State::Leaving(serving) => {
                self.check_worker(&serving)?;
                // Before its prompt is tokenized: refusing has to cost next to nothing.
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
    /// Why it can't serve a request.
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

    /// Waits until no generation is in flight; only after [`App::drain`].
    pub(super) async fn drained(&self) {
        self.0.in_flight.wait().await;
    }
}
