//! The headers that report the rest of a key's limits.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::keys::bucket::Level;
use crate::keys::usage::Levels;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
/// OpenAI's headers for a limit, its rest, and the time until it is complete again.
const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Adds the rest of each limit to an answer: in OpenAI's headers, which clients read, and in those of the
/// IETF's draft (draft-ietf-httpapi-ratelimit-headers-10), which include concurrent requests.
pub(super) fn tell(levels: &Levels, headers: &mut HeaderMap) {
    let mut policy = Vec::new();
    let mut left = Vec::new();
    let minute = [
        ("requests", &REQUESTS, levels.requests),
        ("tokens", &TOKENS, levels.tokens),
    ];
    for (name, [limit, remaining, reset], level) in minute {
        let Some(level) = level else { continue };
        headers.insert(limit, level.limit.into());
        headers.insert(remaining, level.remaining.into());
        insert(headers, reset, &until_whole(level.reset));
        let Level { limit, .. } = level;
        policy.push(format!("\"{name}\";q={limit};w=60;qu=\"{name}\""));
        let seconds = level.reset.as_millis().div_ceil(1000);
        left.push(format!("\"{name}\";r={};t={seconds}", level.remaining));
    }
    if let Some((limit, free)) = levels.concurrent {
        const NAME: &str = "concurrent-requests";
        policy.push(format!("\"{NAME}\";q={limit};qu=\"{NAME}\""));
        left.push(format!("\"{NAME}\";r={free}"));
    }
    if !policy.is_empty() {
        insert(headers, &POLICY, &policy.join(", "));
        insert(headers, &LEFT, &left.join(", "));
    }
}

fn insert(headers: &mut HeaderMap, name: &HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Formats a duration like OpenAI: `120ms`, `8.64s`, `6m0s`.
fn until_whole(time: Duration) -> String {
    let milliseconds = time.as_nanos().div_ceil(1_000_000);
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match minutes {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{seconds}s"),
    }
}

/// Returns all headers about limits, which pages may read.
pub(in crate::http) fn headers() -> impl Iterator<Item = HeaderName> {
    [REQUESTS, TOKENS]
        .into_iter()
        .flatten()
        .chain([POLICY, LEFT, header::WWW_AUTHENTICATE])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_format_of_openai() {
        for (milliseconds, text) in [
            (0, "0ms"),
            (120, "120ms"),
            (1000, "1s"),
            (8640, "8.64s"),
            (60_000, "1m0s"),
            (90_500, "1m30.5s"),
            (3_600_000, "60m0s"),
        ] {
            assert_eq!(until_whole(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn only_the_limits_of_a_key_are_reported() {
        let mut headers = HeaderMap::new();
        tell(&Levels::default(), &mut headers);
        assert!(headers.is_empty());
        let level = Level {
            limit: 60,
            remaining: 59,
            reset: Duration::from_millis(1500),
        };
        let levels = Levels {
            requests: Some(level),
            tokens: None,
            concurrent: Some((4, 3)),
        };
        tell(&levels, &mut headers);
        assert_eq!(headers["x-ratelimit-limit-requests"], "60");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "59");
        assert_eq!(headers["x-ratelimit-reset-requests"], "1.5s");
        assert_eq!(
            headers["ratelimit-policy"],
            "\"requests\";q=60;w=60;qu=\"requests\", \"concurrent-requests\";q=4;qu=\"concurrent-requests\""
        );
        assert_eq!(
            headers["ratelimit"],
            "\"requests\";r=59;t=2, \"concurrent-requests\";r=3"
        );
        assert_eq!(headers.len(), 5);
    }
}
