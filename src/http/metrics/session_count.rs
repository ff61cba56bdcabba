//! The number of stored sessions, for requests that must not wait for it.
//!
//! Counting reads a directory or queries a database, which can be slow, hang or fail. It therefore runs
//! on a task of its own: one count at a time, however many requests need it. Each of them waits
//! briefly and then uses the last known number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::serving::Serving;

/// Longest wait for the running count.
const PATIENCE: Duration = Duration::from_millis(250);

/// The last count; cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::http) struct SessionCount {
    /// `None` before the first count, and after one that failed.
    known: Arc<watch::Sender<Option<usize>>>,
    counting: Arc<AtomicBool>,
}

impl Default for SessionCount {
    fn default() -> Self {
        Self {
            known: Arc::new(watch::Sender::new(None)),
            counting: Arc::default(),
        }
    }
}

/// Marks on drop that no count is running.
struct Counting(Arc<AtomicBool>);

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl SessionCount {
    /// Returns the number of stored sessions, or the last known number if counting takes long;
    /// `None` if it is unknown.
    pub(in crate::http) async fn read(&self, serving: &Arc<Serving>) -> Option<usize> {
        let serving = Arc::clone(serving);
        self.read_from(async move {
            let count = serving.sessions.count().await;
            count
                .inspect_err(|error| tracing::warn!(%error, "sessions not counted"))
                .ok()
        })
        .await
    }

    async fn read_from(
        &self,
        count: impl Future<Output = Option<usize>> + Send + 'static,
    ) -> Option<usize> {
        let mut known = self.known.subscribe();
        if !self.counting.swap(true, Ordering::Acquire) {
            let counting = Counting(Arc::clone(&self.counting));
            let sender = Arc::clone(&self.known);
            // Outlives the request on purpose: counts abandoned at each scrape would pile up.
            tokio::spawn(async move {
                let count = count.await;
                drop(counting);
                sender.send_replace(count);
            });
        }
        let _ = timeout(PATIENCE, known.changed()).await;
        *self.known.borrow()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_hanging_store_is_asked_once_and_the_last_count_is_returned() {
        let sessions = SessionCount::default();
        assert_eq!(sessions.read_from(async { Some(3) }).await, Some(3));
        let (answer, hangs) = oneshot::channel::<Option<usize>>();
        let hanging = async move { hangs.await.unwrap() };
        assert_eq!(sessions.read_from(hanging).await, Some(3));
        // The store is not asked again meanwhile.
        let unasked = async { panic!("asked twice") };
        assert_eq!(sessions.read_from(unasked).await, Some(3));
        answer.send(Some(4)).unwrap();
        let mut known = sessions.known.subscribe();
        known.wait_for(|&count| count == Some(4)).await.unwrap();
        assert_eq!(sessions.read_from(async { Some(5) }).await, Some(5));
    }

    #[tokio::test]
    async fn a_failed_count_returns_none_and_is_retried() {
        let sessions = SessionCount::default();
        assert_eq!(sessions.read_from(async { Some(3) }).await, Some(3));
        assert_eq!(sessions.read_from(async { None }).await, None);
        let _ = sessions.read_from(async { panic!("in the store") }).await;
        assert_eq!(sessions.read_from(async { Some(1) }).await, Some(1));
    }
}
