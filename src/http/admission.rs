//! Admission of work outside the engine: parsing bodies, tokenizing, rendering templates.
//!
//! Each kind has a [`Lane`]. Small inputs never wait behind large ones, which run on threads with a lower
//! priority than the compute threads.
//!
//! Work on a front-end thread must not take longer than about a millisecond. Work that has started
//! continues when its client disconnects, and keeps its place until it ends.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use super::error::ApiError;
use crate::lane::{Lane, LaneError};
use crate::request::Tenant;
use crate::resources::background::Priority;

/// Maximum bytes of a body that is parsed on the front-end thread: half a millisecond.
pub(super) const PARSE_INLINE: usize = 64 << 10;
/// Maximum bytes of a text that is tokenized on the front-end thread: about a millisecond.
pub(super) const TOKENIZE_INLINE: usize = 8 << 10;
/// Bytes beyond which an input is large.
const LARGE: usize = 64 << 10;

/// Maximum bytes of medium inputs that are processed at a time, and that are pending.
const MEDIUM: (usize, usize) = (512 << 10, 16 << 20);
/// Maximum bytes of large inputs that are processed at a time.
const LARGE_AT_A_TIME: usize = 4 << 20;
/// Maximum templates that are rendered at a time, and that are pending.
const TEMPLATES: (usize, usize) = (2, 128);
/// Maximum time to render a template. Its steps and memory are bounded too, but not the time of a single
/// step.
const RENDER_TIME: Duration = Duration::from_secs(5);

/// The lanes of the front end, for one tenant; cheap to clone.
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
    /// Creates the lanes; `max_pending` is the maximum bytes of large inputs that run or wait.
    pub(super) fn new(max_pending: ByteSize) -> Self {
        let (medium, medium_pending) = MEDIUM;
        let (templates, templates_pending) = TEMPLATES;
        let max_pending = usize::try_from(max_pending.as_u64()).unwrap_or(usize::MAX);
        let bytes = "bytes of other requests are being parsed or tokenized, or waiting for it";
        let lanes = Lanes {
            medium: Lane::new(bytes, medium, medium_pending),
            large: Lane::new(bytes, LARGE_AT_A_TIME, max_pending),
            templates: Lane::new(
                "other conversations are waiting for the chat template",
                templates,
                templates_pending,
            ),
        };
        Self {
            lanes: Arc::new(lanes),
            share: Tenant::ANONYMOUS,
        }
    }

    /// Returns the same lanes for another tenant.
    pub(super) fn of(&self, share: Tenant) -> Self {
        let lanes = Arc::clone(&self.lanes);
        Self { lanes, share }
    }

    /// Runs work on an input of `bytes` bytes: immediately if at most `inline`, otherwise off the
    /// front-end threads once its lane has room.
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
            return Ok(done.await.map_err(|error| LaneError::failed(&error))?);
        }
        let place = self.lanes.large.enter(self.share, bytes).await?;
        Ok(place.run("skald-large", Priority::Low, work).await?)
    }

    /// Renders a chat template, which is an untrusted program.
    ///
    /// # Errors
    /// 429 if too many are pending; 400 if it takes too long; an internal error if it panics.
    pub(super) async fn render<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let templates = &self.lanes.templates;
        let place = tokio::time::timeout(RENDER_TIME, templates.enter(self.share, 1)).await;
        // Templates that never end keep their places.
        let place = place.unwrap_or_else(|_| Err(templates.busy()))?;
        let rendering = place.run("skald-template", Priority::Normal, work);
        match tokio::time::timeout(RENDER_TIME, rendering).await {
            Ok(rendered) => Ok(rendered?),
            Err(_) => Err(ApiError::invalid(
                "messages",
                format!(
                    "the chat template took longer than {RENDER_TIME:?} on these messages; send fewer or shorter ones"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_internal_error_and_frees_its_place() {
        let admission = Admission::new(ByteSize::mib(1)).of(Tenant::ANONYMOUS);
        let panics = || -> () { panic!("injected") };
        let failures = [
            admission.run(PARSE_INLINE, 0, panics).await,
            admission.run(LARGE + 1, 0, panics).await,
            admission.render(panics).await,
        ];
        for failed in failures {
            let failed = failed.expect_err("it panics").to_string();
            assert!(failed.contains("work on the request failed"), "{failed}");
        }
        let lanes = &admission.lanes;
        for lane in [&lanes.medium, &lanes.large, &lanes.templates] {
            assert_eq!(lane.pending(), 0);
        }
        assert_eq!(admission.run(LARGE + 1, 0, || 7).await.ok(), Some(7));
    }
}
