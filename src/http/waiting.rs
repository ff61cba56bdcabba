//! Timeouts of waiting requests: for a place in the batch (`--queue-timeout`), and for the whole answer (the
//! request's own `timeout`). The front end enforces both, so they hold even if the worker is stuck.

use std::pin::pin;

use tokio::time::{sleep, timeout_at};

use super::error::ApiError;
use crate::request::{Deadline, Tenant};
use crate::serving::Serving;

/// Runs `work` until the deadline.
///
/// # Errors
/// The error of `work`, or that of the deadline if it is reached first.
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

/// Runs `work` for a tenant, which must start within the queue's timeout.
///
/// # Errors
/// The error of `work`, or that of the timeout if it has not started in time.
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
