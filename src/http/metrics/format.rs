//! Choice of the text format by the scraper's `Accept` header.

use axum::http::{HeaderMap, header};
use prometheus_client::encoding::prometheus_text;

/// A format of `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// The Prometheus text format, version 0.0.4: the default.
    Prometheus,
    /// The text format of `OpenMetrics` 1.0.
    OpenMetrics,
}

impl Format {
    /// Returns the format that an `Accept` header prefers: `OpenMetrics` if it is named and its quality
    /// is at least that of plain text, otherwise Prometheus's format. A scraper that accepts neither
    /// also gets the latter, as from Prometheus's own client libraries.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT).iter();
        let ranges: Vec<MediaRange> = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(MediaRange::parse)
            .collect();
        let open_metrics = quality(&ranges, |range| match range.kind.as_str() {
            "application/openmetrics-text" => {
                matches!(range.version, "" | "0.0.1" | "1.0.0").then_some(0)
            }
            _ => None,
        });
        let text = quality(&ranges, |range| {
            match (range.kind.as_str(), range.version) {
                ("text/plain", "" | "0.0.4") => Some(2),
                ("text/*", _) => Some(1),
                ("*/*", _) => Some(0),
                _ => None,
            }
        });
        if open_metrics > 0.0 && open_metrics >= text {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// Returns its `Content-Type`.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// One element of an `Accept` header.
struct MediaRange<'a> {
    /// In lower case: `text/plain`, `text/*`.
    kind: String,
    /// Empty if none is given.
    version: &'a str,
    /// 0 (not acceptable) to 1.
    quality: f32,
}

impl<'a> MediaRange<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self {
            kind: parts.next().unwrap_or_default().to_ascii_lowercase(),
            version: "",
            quality: 1.0,
        };
        for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            let value = value.trim().trim_matches('"');
            if name.trim().eq_ignore_ascii_case("q") {
                let quality = value.parse().ok().filter(|q| (0.0..=1.0).contains(q));
                range.quality = quality.unwrap_or(0.0);
            } else if name.trim().eq_ignore_ascii_case("version") {
                range.version = value;
            }
        }
        range
    }
}

/// Returns the highest quality among the most specific ranges for which `specificity` returns a
/// number; 0 without such a range.
fn quality(ranges: &[MediaRange], specificity: impl Fn(&MediaRange) -> Option<u8>) -> f32 {
    let matching = ranges
        .iter()
        .filter_map(|range| Some((specificity(range)?, range.quality)));
    let best = matching.max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    best.map_or(0.0, |(_, quality)| quality)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn accepted(accept: &str) -> Format {
        let value = HeaderValue::from_str(accept).unwrap();
        Format::accepted(&HeaderMap::from_iter([(header::ACCEPT, value)]))
    }

    #[test]
    fn open_metrics_is_sent_if_requested() {
        for accept in [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8",
            "application/openmetrics-text;version=\"0.0.1\"",
            "text/plain;q=0.5, application/openmetrics-text;q=0.6",
            "application/openmetrics-text, */*",
            "text/plain;q=0, application/openmetrics-text;q=0.1",
            // Prometheus 2.42 and 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        ] {
            assert_eq!(accepted(accept), Format::OpenMetrics, "{accept}");
        }
    }

    #[test]
    fn the_default_is_the_format_of_prometheus() {
        assert_eq!(Format::accepted(&HeaderMap::new()), Format::Prometheus);
        for accept in [
            "",
            "*/*",
            "text/*",
            "text/plain",
            "application/json",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0, */*",
            "application/openmetrics-text;q=0.5, text/plain",
            "application/openmetrics-text;q=0.5, text/*;q=0.6",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=nan",
            "application/openmetrics-text;q=2",
            "text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.8",
        ] {
            assert_eq!(accepted(accept), Format::Prometheus, "{accept}");
        }
    }

    #[test]
    fn several_accept_headers_are_combined() {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*"))]);
        let mut both = headers;
        both.append(
            header::ACCEPT,
            HeaderValue::from_static("application/openmetrics-text"),
        );
        assert_eq!(Format::accepted(&both), Format::OpenMetrics);
    }
}
