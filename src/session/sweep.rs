//! The periodic deletion of expired sessions.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::SessionError;
use super::store::Store;

/// Shortest and longest interval between sweeps.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Deletes expired sessions periodically until `stop` is cancelled.
pub(super) async fn sweep(store: Arc<dyn Store>, ttl: Option<Duration>, stop: CancellationToken) {
    let (shortest, longest) = INTERVAL;
    let pause = ttl.map_or(longest, |ttl| (ttl / 4).clamp(shortest, longest));
    while stop
        .run_until_cancelled(tokio::time::sleep(pause))
        .await
        .is_some()
    {
        match store.sweep(ttl).await {
            // An outage of the database has its own log line.
            Ok(0) | Err(SessionError::Away { .. }) => (),
            Ok(expired) => tracing::info!(expired, "expired sessions deleted"),
            Err(error) => tracing::warn!(%error, "expired sessions not deleted"),
        }
    }
}
