//! Places for connections: limits the open connections, and chooses which to close when all are taken.
//!
//! A connection *waits* until a request has arrived completely, and again once its answers are complete;
//! otherwise it is *busy*. Half-sent heads and bodies, handshakes, and idle connections all wait. A new
//! connection takes the place of a waiting one, first of those that have never sent a request. If all are
//! busy, it gets one of a few reserved places, in which only probes are answered. If those are taken too,
//! it stays in the system's queue until a reserved place is free, which is soon.
//!
//! A connection of HTTP/2 carries many requests, and each takes memory until its client has read its answer.
//! So requests beyond the first of each connection are counted too, and if there are too many, the
//! connection with the most is closed.
//!
//! Probes are therefore answered whatever clients do with their connections. Busy connections are not
//! closed for any other reason here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::metrics::ConnectionCounts;
use crate::resources::Connections;

/// Groups of waiting connections, in the order in which they are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// Connections that have not sent the head of a request yet.
    Fresh,
    /// Connections kept open between requests.
    Idle,
    /// Connections in reserved places.
    Reserved,
    /// Connections that are sending the body of a request.
    Receiving,
}

impl Group {
    const ALL: [Self; 4] = [Self::Fresh, Self::Idle, Self::Reserved, Self::Receiving];

    /// Returns the time for which a waiting connection is not closed, enough for a client that sends its
    /// request immediately. Probes come from nearby, and bodies take longer than heads.
    fn grace(self) -> Duration {
        match self {
            Self::Fresh | Self::Idle => Duration::from_secs(1),
            Self::Reserved => Duration::from_millis(100),
            Self::Receiving => Duration::from_secs(5),
        }
    }
}

/// Maximum open requests beyond the first of each connection. A request whose client does not read takes
/// 6 KiB.
const FURTHER_REQUESTS: usize = 8192;

/// All places; cheap to clone. Uses one lock, held for a few map operations when a connection opens, closes,
/// or changes between waiting and busy.
#[derive(Clone)]
pub(super) struct Places(Arc<PlaceTable>);

struct PlaceTable {
    limits: Connections,
    counts: ConnectionCounts,
    state: Mutex<State>,
    /// Signalled when a place is free or can be taken from its connection.
    changed: Notify,
}

/// Waiting connections, by the start of their wait.
type Waiting = BTreeMap<(Instant, u64), CancellationToken>;

#[derive(Default)]
struct State {
    ordinary: usize,
    reserved: usize,
    /// Number of connections that are being closed and still have their places.
    leaving: usize,
    next: u64,
    /// Waiting connections by group, longest first.
    waiting: [Waiting; Group::ALL.len()],
    /// Number of open requests beyond the first of each connection.
    further: usize,
    /// Connections with such requests, by the number of their requests.
    crowded: BTreeMap<(usize, u64), CancellationToken>,
}

impl State {
    fn group(&mut self, group: Group) -> &mut Waiting {
        let [fresh, idle, reserved, receiving] = &mut self.waiting;
        match group {
            Group::Fresh => fresh,
            Group::Idle => idle,
            Group::Reserved => reserved,
            Group::Receiving => receiving,
        }
    }

    /// Closes the first connection that has waited long enough, and returns whether there is one. Closes
    /// those in reserved places only if these are `full`.
    fn evict(&mut self, now: Instant, full: bool) -> bool {
        for group in Group::ALL {
            if group == Group::Reserved && !full {
                continue;
            }
            while let Some(longest) = self.group(group).first_entry()
                && now.duration_since(longest.key().0) >= group.grace()
            {
                let longest = longest.remove();
                if self.end(&longest) {
                    return true;
                }
            }
        }
        false
    }

    /// Closes a connection, unless it is already being closed.
    fn end(&mut self, connection: &CancellationToken) -> bool {
        let is_new = !connection.is_cancelled();
        connection.cancel();
        self.leaving += usize::from(is_new);
        is_new
    }

    /// Records a change of a connection's number of open requests. If too many are open, closes the
    /// connection with the most; returns whether it does.
    fn count(&mut self, connection: (u64, &CancellationToken), before: usize, now: usize) -> bool {
        let (id, token) = connection;
        if self.crowded.remove(&(before, id)).is_some() {
            self.further -= before - 1;
        }
        if now < 2 {
            return false;
        }
        self.further += now - 1;
        self.crowded.insert((now, id), token.clone());
        self.further > FURTHER_REQUESTS
            && match self.crowded.last_key_value() {
                Some((_, most)) => {
                    let most = most.clone();
                    self.end(&most)
                }
                None => false,
            }
    }

    /// Returns the time at which the next connection has waited long enough.
    fn next_due(&self) -> Option<Instant> {
        let firsts = self.waiting.iter().zip(Group::ALL);
        let due = |(waiting, group): (&Waiting, Group)| {
            Some(waiting.first_key_value()?.0.0 + group.grace())
        };
        firsts.filter_map(due).min()
    }
}

impl Places {
    pub(super) fn new(limits: Connections, counts: ConnectionCounts) -> Self {
        Self(Arc::new(PlaceTable {
            limits,
            counts,
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Waits for a place for a new connection.
    pub(super) async fn take(&self) -> Place {
        loop {
            let changed = self.0.changed.notified();
            let next_due = {
                let mut state = self.0.state();
                if state.ordinary < self.0.limits.limit {
                    return self.place(&mut state, false);
                }
                let full = state.reserved >= self.0.limits.reserved;
                if state.leaving == 0 && state.evict(Instant::now(), full) {
                    self.0.counts.evicted.inc();
                }
                if state.leaving > 0 {
                    None
                } else if full {
                    state.next_due()
                } else {
                    return self.place(&mut state, true);
                }
            };
            match next_due {
                Some(due) => {
                    let _ = timeout_at(due.into(), changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// Closes a waiting connection, however short it has waited, because the process has no file
    /// descriptor left.
    pub(super) fn make_room(&self) {
        let mut state = self.0.state();
        for group in Group::ALL {
            while let Some((_, waiting)) = state.group(group).pop_first() {
                if state.end(&waiting) {
                    self.0.counts.evicted.inc();
                    return;
                }
            }
        }
    }

    fn place(&self, state: &mut State, reserved: bool) -> Place {
        if reserved {
            state.reserved += 1;
        } else {
            state.ordinary += 1;
        }
        self.0.counts.open.inc();
        state.next += 1;
        let group = if reserved {
            Group::Reserved
        } else {
            Group::Fresh
        };
        let since = Instant::now();
        let evicted = CancellationToken::new();
        let id = state.next;
        state.group(group).insert((since, id), evicted.clone());
        Place {
            shared: Arc::clone(&self.0),
            id,
            is_reserved: reserved,
            evicted,
            usage: Mutex::new(Usage {
                group,
                waits: Some((group, since)),
                receiving: 0,
                serving: 0,
            }),
        }
    }
}

impl PlaceTable {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place; freed on drop.
pub(super) struct Place {
    shared: Arc<PlaceTable>,
    id: u64,
    is_reserved: bool,
    evicted: CancellationToken,
    usage: Mutex<Usage>,
}

/// Activity of a connection.
struct Usage {
    /// Group of the connection between requests.
    group: Group,
    /// Group in which the connection waits, and since when; `None` while it is busy.
    waits: Option<(Group, Instant)>,
    /// Number of requests that are arriving.
    receiving: usize,
    /// Number of requests that have arrived completely.
    serving: usize,
}

impl Place {
    /// Returns whether the place is reserved for probes.
    pub(super) fn is_reserved(&self) -> bool {
        self.is_reserved
    }

    /// Waits until the connection must be closed.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Records a request whose head has arrived. The request ends when the returned value is dropped.
    pub(super) fn request(self: &Arc<Self>) -> Request {
        self.update(|usage| {
            usage.receiving += 1;
            if !self.is_reserved {
                usage.group = Group::Idle;
            }
        });
        Request {
            place: Arc::clone(self),
            has_arrived: AtomicBool::new(false),
        }
    }

    /// Waits until the connection has been without a request for this time. Checks once per `limit`, so it
    /// can take up to twice as long.
    pub(super) async fn unused_for(&self, limit: Duration) {
        let mut pause = limit;
        loop {
            tokio::time::sleep(pause).await;
            let waits = self.usage().waits;
            pause = match waits {
                Some((Group::Receiving, _)) | None => limit,
                Some((_, since)) => match limit.checked_sub(since.elapsed()) {
                    Some(rest) if !rest.is_zero() => rest,
                    _ => return,
                },
            };
        }
    }

    /// Changes the connection's activity, and moves it to the group of waiting connections that results.
    fn update(&self, change: impl FnOnce(&mut Usage)) {
        let mut usage = self.usage();
        let before = usage.receiving + usage.serving;
        change(&mut usage);
        let open = usage.receiving + usage.serving;
        if before.max(open) >= 2 {
            let mut state = self.shared.state();
            if state.count((self.id, &self.evicted), before, open) {
                self.shared.counts.evicted.inc();
            }
        }
        let group = match (usage.serving, usage.receiving) {
            (0, 0) => Some(usage.group),
            (0, _) if self.is_reserved => Some(Group::Reserved),
            (0, _) => Some(Group::Receiving),
            _ => None,
        };
        if group == usage.waits.map(|(group, _)| group) {
            return;
        }
        let before = usage.waits;
        usage.waits = group.map(|group| (group, Instant::now()));
        let mut state = self.shared.state();
        if let Some((group, since)) = before {
            state.group(group).remove(&(since, self.id));
        }
        // A connection is closed only once.
        if let Some((group, since)) = usage.waits
            && !self.evicted.is_cancelled()
        {
            let token = self.evicted.clone();
            state.group(group).insert((since, self.id), token);
            self.shared.changed.notify_waiters();
        }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let waits = self.usage().waits;
        let mut state = self.shared.state();
        if let Some((group, since)) = waits {
            state.group(group).remove(&(since, self.id));
        }
        if self.evicted.is_cancelled() {
            state.leaving -= 1;
        }
        if self.is_reserved {
            state.reserved -= 1;
        } else {
            state.ordinary -= 1;
        }
        drop(state);
        self.shared.counts.open.dec();
        self.shared.changed.notify_waiters();
    }
}

/// A request on a connection, from its head to the end of its answer.
pub(super) struct Request {
    place: Arc<Place>,
    has_arrived: AtomicBool,
}

impl Request {
    /// Records that the request has arrived completely: its connection is busy from now on.
    pub(super) fn arrived(&self) {
        if !self.has_arrived.swap(true, Ordering::Relaxed) {
            self.place.update(|usage| {
                usage.receiving -= 1;
                usage.serving += 1;
            });
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let has_arrived = *self.has_arrived.get_mut();
        self.place.update(|usage| {
            if has_arrived {
                usage.serving -= 1;
            } else {
                usage.receiving -= 1;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(limit: usize, reserved: usize) -> Places {
        Places::new(Connections { limit, reserved }, ConnectionCounts::default())
    }

    /// Returns a connection that ends when it is evicted.
    fn until_evicted(place: Place) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move { place.evicted().await })
    }

    #[test]
    fn connections_without_requests_are_evicted_first_and_reserved_ones_last() {
        let start = Instant::now();
        let now = start + Duration::from_secs(60);
        let ago = |seconds: u64| start + Duration::from_secs(60 - seconds);
        let mut state = State::default();
        let mut wait = |group, since, id| {
            let token = CancellationToken::new();
            state.group(group).insert((since, id), token.clone());
            token
        };
        let receiving = wait(Group::Receiving, ago(55), 6);
        let idle = wait(Group::Idle, ago(50), 1);
        let older = wait(Group::Fresh, ago(3), 2);
        let younger = wait(Group::Fresh, ago(2), 3);
        let new = wait(Group::Fresh, now, 4);
        let reserved = wait(Group::Reserved, ago(1), 5);
        let in_turn = [&older, &younger, &idle, &receiving];
        for evicted in in_turn {
            assert!(!evicted.is_cancelled());
            assert!(state.evict(now, false));
            assert!(evicted.is_cancelled());
        }
        assert!(!state.evict(now, false) && state.evict(now, true));
        assert!(reserved.is_cancelled() && !new.is_cancelled());
        assert_eq!(state.next_due(), Some(now + Group::Fresh.grace()));
    }

    #[tokio::test]
    async fn a_new_connection_evicts_a_waiting_one() {
        let places = places(1, 0);
        let half_sent = until_evicted(places.take().await);
        let new = places.take().await;
        half_sent.await.unwrap();
        assert!(!new.is_reserved());
        assert_eq!(places.0.counts.evicted.get(), 1);
        assert_eq!(places.0.counts.open.get(), 1);
    }

    #[tokio::test]
    async fn busy_connections_stay_and_reserved_places_are_reused() {
        let places = places(1, 1);
        let first = Arc::new(places.take().await);
        let busy = first.request();
        busy.arrived();
        let half_sent = places.take().await;
        assert!(half_sent.is_reserved());
        let half_sent = until_evicted(half_sent);
        // Waits until the grace time of the other one has passed.
        let probe = places.take().await;
        half_sent.await.unwrap();
        assert!(probe.is_reserved() && !first.evicted.is_cancelled());
        drop(probe);
        drop(busy);
        drop(first);
        assert!(!places.take().await.is_reserved());
    }

    #[tokio::test]
    async fn a_connection_is_unused_only_between_requests() {
        let places = places(1, 0);
        let place = Arc::new(places.take().await);
        let request = place.request();
        let limit = Duration::from_millis(20);
        let unused = place.unused_for(limit);
        let timed_out = tokio::time::timeout(limit * 5, unused).await;
        timed_out.expect_err("a request is open");
        drop(request);
        place.unused_for(limit).await;
    }

    #[tokio::test]
    async fn without_file_descriptors_a_waiting_connection_is_evicted_at_once() {
        let places = places(2, 1);
        let fresh = until_evicted(places.take().await);
        places.make_room();
        fresh.await.unwrap();
    }

    #[tokio::test]
    async fn with_too_many_requests_the_connection_with_the_most_is_evicted() {
        let places = places(10, 0);
        let mut connections = Vec::new();
        for _ in 0..3 {
            connections.push(Arc::new(places.take().await));
        }
        let open = |connection: &Arc<Place>, count: usize| -> Vec<Request> {
            (0..count).map(|_| connection.request()).collect()
        };
        let [few, many, single] = connections.as_slice() else {
            panic!("three");
        };
        let _of_few = open(few, 100);
        let _of_single = open(single, 1);
        let of_many = open(many, FURTHER_REQUESTS - 98);
        assert_eq!(places.0.state().further, FURTHER_REQUESTS);
        assert!(!many.evicted.is_cancelled());
        let _one_more = open(few, 1);
        assert!(many.evicted.is_cancelled());
        assert!(!few.evicted.is_cancelled() && !single.evicted.is_cancelled());
        drop(of_many);
        assert_eq!(places.0.state().further, 100);
        connections.clear();
        assert_eq!(places.0.counts.evicted.get(), 1);
    }
}
