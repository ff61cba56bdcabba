//! Open files, of which each connection is one.
//!
//! A server that has used up its files can neither accept a probe nor open a session's history, so
//! connections get what the limit leaves beside everything else.

/// Files that are kept for everything but connections: standard streams, the runtime's own,
/// listening socket, weights, session files, connections to database and collector.
const OTHER_FILES: usize = 64;
/// Connections beyond the limit that are answered if they are probes, and told to come back if not.
const RESERVED: usize = 32;
/// The limit where the system allows more files than any server of this kind has clients.
const MOST_CONNECTIONS: usize = 16_384;
/// The least limit that is chosen, however few files there are.
const FEWEST_CONNECTIONS: usize = 16;

/// How many connections may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Those that are served.
    pub limit: usize,
    /// Those beyond the limit that are served if they are probes.
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

/// A limit of connections that the limit of open files does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "`max-connections` is {asked}, but the process may open {files} files; it must be at most \
     {most}, or the limit must be raised (ulimit -n, LimitNOFILE, --ulimit nofile)"
)]
pub struct TooManyConnections {
    asked: usize,
    files: usize,
    most: usize,
}

impl Connections {
    /// Returns the setting, else what a limit of open `files` leaves beside `turns` on sessions in a
    /// directory, each of which holds a file.
    ///
    /// # Errors
    /// If the setting is more than there are files for.
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
            // With few files, half of them: turns wait for each other, clients can't.
            None => (left - turns.min(left / 2)).clamp(FEWEST_CONNECTIONS, MOST_CONNECTIONS),
        };
        Ok(Self { limit, reserved })
    }
}

/// Raises the process's soft limit of open files to its hard limit, as far as the system lets it.
/// Returns the limit that then holds; `None` where there is none or the system does not tell.
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
        // However many turns there could be, half are connections.
        assert_eq!(limit(None, Some(256), 320), 80);
        assert_eq!(limit(None, Some(1 << 20), 320), MOST_CONNECTIONS);
        assert_eq!(limit(None, None, 320), MOST_CONNECTIONS);
        assert_eq!(limit(None, Some(20), 0), FEWEST_CONNECTIONS);
        assert_eq!(limit(Some(100), Some(256), 320), 100);
    }

    #[test]
    fn a_setting_beyond_the_file_limit_is_refused_with_the_limit() {
        let refused = Connections::within(Some(200), Some(256), 0).unwrap_err();
        let message = refused.to_string();
        for word in ["max-connections", "200", "256", "160", "ulimit"] {
            assert!(message.contains(word), "{word} in {message}");
        }
    }

    #[test]
    fn the_file_limit_is_at_least_what_it_was() {
        let raised = raise_file_limit();
        assert_eq!(raise_file_limit(), raised);
        assert!(raised.is_none_or(|files| files > 0));
    }
}
