//! The messages from the front end to the worker.

use tokio::sync::{mpsc, oneshot};

use super::event::{GenerateError, TimedEvent};
use super::queue::Place;
use super::sequence::SequenceId;
use super::stored::{Resident, StoredBlock};
use crate::request::{GenerateRequest, Tenant};

/// A message to the worker.
pub(super) enum Command {
    Submit(Box<Submission>),
    /// The front end has dropped a generation, finished or not.
    Close(SequenceId),
    Exchange(Exchange),
    /// A client has read half of its events: its request may be resumed if it is set aside.
    Wake,
    /// Fail all running and waiting requests and end.
    Stop,
}

/// A request on its way to the worker.
pub(super) struct Submission {
    pub id: SequenceId,
    pub request: GenerateRequest,
    /// Receives whether the request is accepted.
    pub verdict: oneshot::Sender<Result<(), GenerateError>>,
    /// One client, or one per returned beam.
    pub clients: Vec<mpsc::Sender<TimedEvent>>,
    /// Place in the queue, released when the request starts to run or ends.
    pub place: Place,
}

/// A question about the KV cache, or content for it.
pub(super) enum Exchange {
    /// Asks how much of a context is in the cache.
    Resident {
        tenant: Tenant,
        tokens: Vec<u32>,
        reply: oneshot::Sender<Resident>,
    },
    /// Restores blocks of a context.
    Import {
        tenant: Tenant,
        tokens: Vec<u32>,
        first_block: usize,
        blocks: Vec<StoredBlock>,
        reply: oneshot::Sender<usize>,
    },
}
