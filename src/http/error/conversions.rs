//! Errors of the layers below, as answers.

use super::{ApiError, Kind, shown};
use crate::engine::GenerateError;
use crate::keys::{LimitKind, LimitReached};
use crate::lane::LaneError;
use crate::request::InvalidRequest;
use crate::session::SessionError;
use crate::text::TextError;
use crate::text::template::TemplateError;

impl From<InvalidRequest> for ApiError {
    fn from(invalid: InvalidRequest) -> Self {
        let kind = if invalid.context_length_exceeded {
            Kind::ContextLength
        } else {
            Kind::Invalid
        };
        Self {
            param: Some(shown(&invalid.field)),
            ..Self::new(kind, invalid.message)
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let (kind, param) = match &error {
            GenerateError::QueueFull { .. }
            | GenerateError::QueueTooSlow { .. }
            | GenerateError::Stalled { .. } => (Kind::Busy, None),
            GenerateError::QueueTimeout { .. } => (Kind::QueueTimeout, None),
            GenerateError::BatchTooSmall { .. } => (Kind::Invalid, Some("best_of")),
            GenerateError::NoCandidates => (Kind::Invalid, Some("logit_bias")),
            GenerateError::KvTooSmall { .. } | GenerateError::Grammar(_) => (Kind::Invalid, None),
            GenerateError::NotFinite | GenerateError::StepFailed(_) => (Kind::Generation, None),
            GenerateError::Incomplete => (Kind::Incomplete, None),
            GenerateError::ShuttingDown => (Kind::Draining, None),
            GenerateError::EngineGone => (Kind::Unavailable, None),
        };
        let retry_after = match &error {
            GenerateError::QueueFull { retry_after, .. }
            | GenerateError::QueueTooSlow { retry_after, .. }
            | GenerateError::QueueTimeout { retry_after, .. } => Some(*retry_after),
            _ => None,
        };
        Self {
            param: param.map(str::to_owned),
            retry_after,
            ..Self::new(kind, error.to_string())
        }
    }
}

impl From<LimitReached> for ApiError {
    fn from(reached: LimitReached) -> Self {
        let (kind, retry_after) = match &reached {
            LimitReached::Requests { retry_after, .. } => {
                (Kind::KeyLimit(LimitKind::Requests), Some(*retry_after))
            }
            LimitReached::Tokens { retry_after, .. } => {
                (Kind::KeyLimit(LimitKind::Tokens), Some(*retry_after))
            }
            LimitReached::Concurrent { .. } => (Kind::KeyLimit(LimitKind::Concurrent), None),
            LimitReached::PromptTooLarge { .. } => (Kind::PromptBeyondLimit, None),
        };
        Self {
            retry_after,
            ..Self::new(kind, reached.to_string())
        }
    }
}

impl From<LaneError> for ApiError {
    fn from(error: LaneError) -> Self {
        match error {
            LaneError::Busy { retry_after, .. } => Self::busy(error.to_string(), retry_after),
            LaneError::Failed(_) => Self::internal(error.to_string()),
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        if let SessionError::Database(reason) = &error {
            // Hidden from clients, because it names tables and roles.
            tracing::error!(reason, "session database failed");
        }
        let (kind, param) = match &error {
            SessionError::Busy { .. } => (Kind::SessionBusy, Some("session_id")),
            SessionError::TooManyWait { .. } => (Kind::Busy, Some("session_id")),
            SessionError::WaitTimedOut { .. } => (Kind::QueueTimeout, Some("session_id")),
            SessionError::Limit { .. } => (Kind::SessionLimit, Some("session_id")),
            SessionError::NotFound { .. } => (Kind::NotFound, None),
            SessionError::Exists { .. } => (Kind::SessionExists, Some("id")),
            SessionError::BeyondHistory { field, .. } => (Kind::Invalid, Some(*field)),
            SessionError::TakenOver { .. } => (Kind::SessionTakenOver, Some("session_id")),
            SessionError::Unknown { .. } => (Kind::SessionUnknown, Some("session_id")),
            SessionError::Away { .. } => (Kind::SessionsAway, None),
            SessionError::Disk { .. }
            | SessionError::Panicked { .. }
            | SessionError::Directory { .. }
            | SessionError::Database(_) => (Kind::Internal, None),
            SessionError::Engine(error) => return error.clone().into(),
        };
        Self {
            param: param.map(str::to_owned),
            ..Self::new(kind, error.to_string())
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        match error {
            TemplateError::Tokenize(error) => error.into(),
            error => Self::invalid("messages", error.to_string()),
        }
    }
}
