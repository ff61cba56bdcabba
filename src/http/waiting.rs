//! How long a request may wait: for its place in the batch (`--queue-timeout`), and for its whole answer
//! (its own `timeout`). Both are kept by the front end, so they hold also if the worker is stuck.

use std::pin::pin;

use tokio::time::{sleep, timeout_at};

use super::error::ApiError;
use crate::request::{Deadline, Tenant};
use crate::serving::Serving;

/// Does `work` before the deadline.
///
/// # Errors
/// Its own, or that the deadline came first.
pub(super) async fn before<T>(
    deadline: Option<Deadline>,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let Some(deadline) = deadline else {
        return work.await;
    };
    let done = timeout_at(deadline.at().into(), work).await;
    done.unwrap_or_else(|_| Err(ApiError::past_deadline(deadline.timeout())))
}

/// Does `work` for a tenant, which has to begin to run within the queue's timeout.
///
/// # Errors
/// Its own, or that it has not begun in time.
pub(super) async fn begun_in_time<T>(
    serving: &Serving,
    share: Tenant,
    begun: impl Future<Output = ()>,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = begun => (),
        () = sleep(serving.engine.limits().queue_timeout) => {
            return Err(serving.engine.queue_timed_out(share).into());
        }
    }
    work.await
}
