//! A store wrapper that turns panics into errors.
//!
//! A turn ends within a stream that has begun, or after its client has disconnected. A panic there would
//! break the connection without an error, and a panic in the sweep would end it for good. With this
//! wrapper, a panic fails only its own request, with an error like any other of the store. The process's
//! panic hook logs the panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;

use super::history::{History, NewHistory};
use super::store::{Entry, HeldSession, Hold, Store};
use super::{IfBusy, SessionError, SessionKey};
use crate::request::Tenant;

/// Wraps a store, or a hold on one of its sessions.
pub(super) struct Guarded<S>(pub S);

/// Runs an operation of a store, and returns [`SessionError::Panicked`] if it panics.
async fn guarded<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, SessionError>> + Send,
) -> Result<T, SessionError> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or(Err(SessionError::Panicked { what }))
}

#[async_trait]
impl Store for Guarded<Arc<dyn Store>> {
    async fn hold(&self, key: &SessionKey, if_busy: IfBusy) -> Result<HeldSession, SessionError> {
        let held = guarded("opened", self.0.hold(key, if_busy)).await?;
        Ok(HeldSession {
            hold: Box::new(Guarded(held.hold)),
            ..held
        })
    }

    async fn forget(&self, key: &SessionKey) -> Result<(), SessionError> {
        guarded("deleted", self.0.forget(key)).await
    }

    async fn read(&self, keys: &[SessionKey]) -> Result<Vec<(SessionKey, History)>, SessionError> {
        guarded("read", self.0.read(keys)).await
    }

    async fn list(&self, tenant: Tenant) -> Result<Vec<Entry>, SessionError> {
        guarded("listed", self.0.list(tenant)).await
    }

    async fn count_others(
        &self,
        key: &SessionKey,
        ttl: Option<Duration>,
        beginning: &[SessionKey],
    ) -> Result<usize, SessionError> {
        guarded("counted", self.0.count_others(key, ttl, beginning)).await
    }

    fn used(&self, key: &SessionKey) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.0.used(key)));
    }

    async fn count(&self) -> Result<usize, SessionError> {
        guarded("counted", self.0.count()).await
    }

    async fn sweep(&self, ttl: Option<Duration>) -> Result<usize, SessionError> {
        guarded("swept", self.0.sweep(ttl)).await
    }

    async fn close(&self) {
        let _ = AssertUnwindSafe(self.0.close()).catch_unwind().await;
    }
}

#[async_trait]
impl Hold for Guarded<Box<dyn Hold>> {
    fn check(&self) -> Result<(), SessionError> {
        let checked = catch_unwind(AssertUnwindSafe(|| self.0.check()));
        checked.unwrap_or(Err(SessionError::Panicked { what: "checked" }))
    }

    async fn write(&self, new: NewHistory) -> Result<History, SessionError> {
        guarded("written", self.0.write(new)).await
    }

    async fn remove(&self) -> Result<bool, SessionError> {
        guarded("deleted", self.0.remove()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::memory::Memory;
    use super::super::sharing::Sharing;
    use super::*;
    use crate::request::SessionId;

    /// A store in memory whose operation named by `next` panics once.
    struct Panicking {
        memory: Memory,
        next: Arc<Mutex<&'static str>>,
    }

    struct PanickingHold {
        hold: Box<dyn Hold>,
        next: Arc<Mutex<&'static str>>,
    }

    /// Panics if `what` is the next operation to panic.
    fn pass(next: &Mutex<&'static str>, what: &str) {
        let mut next = next
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *next == what {
            *next = "";
            drop(next);
            panic!("injected: {what}");
        }
    }

    #[async_trait]
    impl Store for Panicking {
        async fn hold(
            &self,
            key: &SessionKey,
            if_busy: IfBusy,
        ) -> Result<HeldSession, SessionError> {
            pass(&self.next, "hold");
            let held = self.memory.hold(key, if_busy).await?;
            Ok(HeldSession {
                hold: Box::new(PanickingHold {
                    hold: held.hold,
                    next: Arc::clone(&self.next),
                }),
                ..held
            })
        }

        async fn forget(&self, key: &SessionKey) -> Result<(), SessionError> {
            pass(&self.next, "forget");
            self.memory.forget(key).await
        }

        async fn read(
            &self,
            keys: &[SessionKey],
        ) -> Result<Vec<(SessionKey, History)>, SessionError> {
            pass(&self.next, "read");
            self.memory.read(keys).await
        }

        async fn list(&self, tenant: Tenant) -> Result<Vec<Entry>, SessionError> {
            pass(&self.next, "list");
            self.memory.list(tenant).await
        }

        async fn count_others(
            &self,
            key: &SessionKey,
            ttl: Option<Duration>,
            beginning: &[SessionKey],
        ) -> Result<usize, SessionError> {
            pass(&self.next, "count_others");
            self.memory.count_others(key, ttl, beginning).await
        }

        async fn count(&self) -> Result<usize, SessionError> {
            pass(&self.next, "count");
            self.memory.count().await
        }

        async fn sweep(&self, ttl: Option<Duration>) -> Result<usize, SessionError> {
            pass(&self.next, "sweep");
            self.memory.sweep(ttl).await
        }
    }

    #[async_trait]
    impl Hold for PanickingHold {
        fn check(&self) -> Result<(), SessionError> {
            pass(&self.next, "check");
            self.hold.check()
        }

        async fn write(&self, new: NewHistory) -> Result<History, SessionError> {
            pass(&self.next, "write");
            self.hold.write(new).await
        }

        async fn remove(&self) -> Result<bool, SessionError> {
            pass(&self.next, "remove");
            self.hold.remove().await
        }
    }

    #[track_caller]
    fn panicked<T>(outcome: &Result<T, SessionError>) {
        assert!(matches!(outcome, Err(SessionError::Panicked { .. })));
    }

    #[tokio::test]
    async fn every_panic_of_a_store_is_an_error_and_the_next_call_succeeds() {
        let next = Arc::new(Mutex::new(""));
        let store: Arc<dyn Store> = Arc::new(Panicking {
            memory: Memory::new(10, Sharing::AsOne),
            next: Arc::clone(&next),
        });
        let store = Guarded(store);
        let key = SessionKey {
            tenant: Tenant::ANONYMOUS,
            id: SessionId::parse("a").unwrap(),
        };
        let keys = [key.clone()];
        let inject = |what: &'static str| *next.lock().unwrap() = what;

        inject("hold");
        panicked(&store.hold(&key, IfBusy::Wait).await);
        let held = store.hold(&key, IfBusy::Wait).await.unwrap();
        inject("check");
        panicked(&held.hold.check());
        held.hold.check().unwrap();
        inject("write");
        panicked(&held.hold.write(NewHistory::first([1])).await);
        assert_eq!(store.count().await.unwrap(), 0);
        held.hold.write(NewHistory::first([1])).await.unwrap();
        inject("read");
        panicked(&store.read(&keys).await);
        assert_eq!(store.read(&keys).await.unwrap().len(), 1);
        inject("list");
        panicked(&store.list(key.tenant).await);
        assert_eq!(store.list(key.tenant).await.unwrap().len(), 1);
        inject("count_others");
        panicked(&store.count_others(&key, None, &keys).await);
        inject("count");
        panicked(&store.count().await);
        inject("sweep");
        panicked(&store.sweep(None).await);
        assert_eq!(store.sweep(None).await.unwrap(), 0);
        inject("remove");
        panicked(&held.hold.remove().await);
        assert!(held.hold.remove().await.unwrap());
        inject("forget");
        panicked(&store.forget(&key).await);
        store.forget(&key).await.unwrap();
    }
}
