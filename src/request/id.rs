//! Names of requests and sessions.

use std::fmt;
use std::sync::Arc;

use super::InvalidRequest;

/// The name of one request, in logs, headers and the engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Creates the name from a client's, or from [`RequestId::random`].
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }

    /// Creates a unique name.
    #[must_use]
    pub fn random() -> Self {
        Self::new(&uuid::Uuid::new_v4().simple().to_string())
    }

    /// Returns the name of the `n`-th of several generations of one HTTP request.
    #[must_use]
    pub fn child(&self, n: usize) -> Self {
        Self(format!("{}/{n}", self.0).into())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a session: 1 to 128 of the characters `A-Z a-z 0-9 - _ . : @`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Maximum characters of a session's name.
    pub const MAX_LENGTH: usize = 128;

    /// Creates a session's name from text.
    ///
    /// # Errors
    /// If the name is empty, too long, or has a character that is not allowed.
    pub fn parse(name: &str) -> Result<Self, InvalidRequest> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
        if name.is_empty() || name.len() > Self::MAX_LENGTH || !name.chars().all(allowed) {
            let shown: String = name.chars().take(Self::MAX_LENGTH).collect();
            return Err(InvalidRequest::new(
                "session_id",
                format!(
                    "`session_id` must be 1 to {} of the characters A-Z a-z 0-9 - _ . : @, got {shown:?}",
                    Self::MAX_LENGTH
                ),
            ));
        }
        Ok(Self(Arc::from(name)))
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
