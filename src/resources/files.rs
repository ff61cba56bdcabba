//! The limit on connections, derived from the limit on open files.
//!
//! Each connection is an open file. A server without free files can neither accept a probe nor open
//! a session's history, so connections get only what the limit leaves after everything else.

/// Files reserved for everything except connections: standard streams, the runtime, the listening
/// socket, weights, session files, connections to database and collector.
const OTHER_FILES: usize = 64;
/// Connections beyond the limit, which answer probes and refuse everything else with a 503.
const RESERVED: usize = 32;
/// Largest default limit, far above the number of clients that one server can handle.
const MOST_CONNECTIONS: usize = 16_384;
/// Smallest default limit, regardless of the number of files.
const FEWEST_CONNECTIONS: usize = 16;

/// Limits on open connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Maximum connections that are served.
    pub limit: usize,
    /// Connections beyond the limit that answer only probes.
    pub reserved: usize,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            limit: MOST_CONNECTIONS,
            reserved: RESERVED,
        }
    }
}

/// A setting for connections that exceeds the limit on open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "`max-connections` is {asked}, but the process may open only {files} files; set it to at most \
     {most}, or raise the limit on open files (ulimit -n, LimitNOFILE, --ulimit nofile)"
)]
pub struct TooManyConnections {
    asked: usize,
    files: usize,
    most: usize,
}

impl Connections {
    /// Returns the setting, or the connections that a limit of open `files` leaves after `turns` on
    /// sessions in a directory, each of which holds a file.
    ///
    /// # Errors
    /// If the setting exceeds the available files.
    pub fn within(
        setting: Option<usize>,
        files: Option<usize>,
        turns: usize,
    ) -> Result<Self, TooManyConnections> {
        let reserved = RESERVED;
        let Some(files) = files else {
            let limit = setting.unwrap_or(MOST_CONNECTIONS);
            return Ok(Self { limit, reserved });
        };
        let left = files.saturating_sub(OTHER_FILES + reserved);
        let limit = match setting {
            Some(asked) if asked > left => {
                let most = left;
                return Err(TooManyConnections { asked, files, most });
            }
            Some(asked) => asked,
            // With few files, connections get at least half: turns can wait, clients can't.
            None => (left - turns.min(left / 2)).clamp(FEWEST_CONNECTIONS, MOST_CONNECTIONS),
        };
        Ok(Self { limit, reserved })
    }
}

/// Raises the process's soft limit on open files to its hard limit, if the system permits it. Returns
/// the resulting limit; `None` if there is none or it is unknown.
#[must_use]
pub fn raise_file_limit() -> Option<usize> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        let current = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit.maximum,
            Err(_) => limit.current,
        };
        current.map(|files| usize::try_from(files).unwrap_or(usize::MAX))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(setting: Option<usize>, files: Option<usize>, turns: usize) -> usize {
        Connections::within(setting, files, turns).unwrap().limit
    }

    #[test]
    fn connections_get_what_the_file_limit_leaves() {
        assert_eq!(limit(None, Some(256), 0), 160);
        assert_eq!(limit(None, Some(1024), 0), 928);
        assert_eq!(limit(None, Some(1024), 320), 608);
        // Connections get half of the files, regardless of the number of turns.
        assert_eq!(limit(None, Some(256), 320), 80);
        assert_eq!(limit(None, Some(1 << 20), 320), MOST_CONNECTIONS);
        assert_eq!(limit(None, None, 320), MOST_CONNECTIONS);
        assert_eq!(limit(None, Some(20), 0), FEWEST_CONNECTIONS);
        assert_eq!(limit(Some(100), Some(256), 320), 100);
    }

    #[test]
    fn a_setting_above_the_file_limit_is_refused_with_the_limit() {
        let refused = Connections::within(Some(200), Some(256), 0).unwrap_err();
        let message = refused.to_string();
        for word in ["max-connections", "200", "256", "160", "ulimit"] {
            assert!(message.contains(word), "{word} in {message}");
        }
    }

    #[test]
    fn the_file_limit_is_not_lowered() {
        let raised = raise_file_limit();
        assert_eq!(raise_file_limit(), raised);
        assert!(raised.is_none_or(|files| files > 0));
    }
}
