//! Parsers of single values, whose messages say what to write instead.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytesize::ByteSize;
use humantime::format_duration;

/// Maximum number of compute threads.
const MAX_THREADS: usize = 1024;

/// Parses a number of compute threads.
pub(super) fn thread_count(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse().ok();
    let number = number.filter(|number: &NonZeroUsize| number.get() <= MAX_THREADS);
    number.ok_or_else(|| format!("write a number from 1 to {MAX_THREADS}"))
}

/// Returns a parser of numbers in a range that includes its ends.
pub(super) fn count(
    least: usize,
    most: usize,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok();
        let number = number.filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| format!("write a number from {least} to {most}"))
    }
}

/// Parses a duration.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    parsed.map_err(|_| "write a duration such as 30s, 500ms or 1m 30s".to_owned())
}

/// Parses a duration of more than zero.
pub(crate) fn at_least_a_moment(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("write a duration longer than 0s, such as 30s".to_owned()),
        duration => Ok(duration),
    }
}

/// Returns a parser of durations in a range that includes its ends.
pub(super) fn duration_within(
    least: Duration,
    most: Duration,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let duration = duration(text)?;
        if (least..=most).contains(&duration) {
            return Ok(duration);
        }
        Err(format!(
            "write a duration from {} to {}",
            format_duration(least),
            format_duration(most)
        ))
    }
}

/// Parses a size in bytes.
pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    let parsed = text.parse();
    parsed.map_err(|_| "write a size such as 512MiB, 2GB or 4096B".to_owned())
}

/// Returns a parser of sizes in a range that includes its ends.
pub(super) fn size_within(
    least: ByteSize,
    most: ByteSize,
) -> impl Fn(&str) -> Result<ByteSize, String> + Clone + Send + Sync + 'static {
    move |text| {
        let size = size(text)?;
        if (least..=most).contains(&size) {
            return Ok(size);
        }
        let shown = |size: ByteSize| size.to_string().replace(".0 ", " ");
        Err(if most == ByteSize::b(u64::MAX) {
            format!("write a size of at least {}", shown(least))
        } else {
            format!("write a size from {} to {}", shown(least), shown(most))
        })
    }
}

/// Parses an address to listen on.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "write an IP address and a port, such as 127.0.0.1:8080 or 0.0.0.0:8080".to_owned()
    })
}

/// Parses a name.
pub(super) fn name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("write a name of at least one character".to_owned());
    }
    Ok(text.to_owned())
}

/// A URL that can contain a password, so that it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Returns the URL, including the password.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretUrl(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_refused_with_what_to_write() {
        assert_eq!(count(1, 9)("9"), Ok(9));
        for wrong in ["0", "10", "many", "", "-1", "1.5"] {
            let message = count(1, 9)(wrong).unwrap_err();
            assert_eq!(message, "write a number from 1 to 9", "{wrong}");
        }
        let second = Duration::from_secs(1);
        assert_eq!(duration("1m 30s"), Ok(90 * second));
        assert!(duration("30").unwrap_err().contains("30s"));
        assert!(at_least_a_moment("0s").unwrap_err().contains("longer"));
        let lease = duration_within(second, 10 * second);
        assert_eq!(lease("10s"), Ok(10 * second));
        assert_eq!(lease("11s").unwrap_err(), "write a duration from 1s to 10s");
        let body = size_within(ByteSize::kib(1), ByteSize::gib(1));
        assert_eq!(body("1KiB"), Ok(ByteSize::kib(1)));
        assert!(body("2GiB").unwrap_err().ends_with("1 KiB to 1 GiB"));
        assert!(body("large").unwrap_err().contains("512MiB"));
    }
}
