//! W3C Trace Context: the caller's span, of which the request is a part.
//!
//! Stricter than the SDK's propagator, which accepts ids that are too short. A malformed header is ignored,
//! as the standard requires, and is never an error.

use std::str::FromStr;

use axum::http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// Length of `00-{trace id}-{span id}-{flags}` in bytes.
const LENGTH: usize = 55;

/// Returns the caller's span from `traceparent` and `tracestate`, if there is exactly one well-formed
/// `traceparent`. A malformed `tracestate` is ignored.
pub(super) fn caller(headers: &HeaderMap) -> Option<SpanContext> {
    let mut parents = headers.get_all("traceparent").iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else {
        return None;
    };
    let (trace_id, span_id, flags) = parse(parent.to_str().ok()?)?;
    let states = headers.get_all("tracestate").iter();
    let states: Vec<&str> = states.filter_map(|state| state.to_str().ok()).collect();
    let state = TraceState::from_str(&states.join(",")).unwrap_or_default();
    Some(SpanContext::new(trace_id, span_id, flags, true, state))
}

fn parse(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let mut fields = text.get(..LENGTH)?.split('-');
    let mut field = |digits| fields.next().filter(|field| is_hex(field, digits));
    let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    // Future versions may add fields at the end.
    let rest = text.get(LENGTH..)?;
    let is_known = match version {
        "00" => rest.is_empty(),
        "ff" => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let trace_id = TraceId::from_hex(trace).ok()?;
    let span_id = SpanId::from_hex(span).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let is_valid = is_known && trace_id != TraceId::INVALID && span_id != SpanId::INVALID;
    is_valid.then_some((trace_id, span_id, flags))
}

/// Returns whether a text consists of this number of lower-case hexadecimal digits.
fn is_hex(text: &str, digits: usize) -> bool {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    text.len() == digits && text.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    fn of(traceparent: &str) -> Option<SpanContext> {
        caller(&headers(&[("traceparent", traceparent)]))
    }

    #[test]
    fn ids_and_flag_are_read() {
        for (flags, sampled) in [("00", false), ("01", true), ("03", true), ("fe", false)] {
            let context = of(&format!("00-{TRACE}-{SPAN}-{flags}")).expect(flags);
            assert_eq!(context.trace_id().to_string(), TRACE);
            assert_eq!(context.span_id().to_string(), SPAN);
            assert_eq!(context.is_sampled(), sampled, "{flags}");
            assert!(context.is_remote());
        }
    }

    #[test]
    fn future_versions_may_add_fields() {
        assert!(of(&format!("cc-{TRACE}-{SPAN}-01")).is_some());
        assert!(of(&format!("cc-{TRACE}-{SPAN}-01-what-else")).is_some());
        assert!(of(&format!("cc-{TRACE}-{SPAN}-01x")).is_none());
    }

    #[test]
    fn malformed_headers_are_ignored() {
        let zeros = "00000000000000000000000000000000";
        for traceparent in [
            String::new(),
            "00".to_owned(),
            "00-1-1-01".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-001"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{}-{SPAN}0-01", &TRACE[1..]),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[16..]),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{TRACE}-{SPAN}é01"),
        ] {
            assert_eq!(of(&traceparent), None, "{traceparent:?}");
        }
    }

    #[test]
    fn two_parents_are_ignored() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let twice = headers(&[("traceparent", &parent), ("traceparent", &parent)]);
        assert_eq!(caller(&twice), None);
    }

    #[test]
    fn states_are_joined_and_a_malformed_one_is_ignored() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let state = |lines: &[&str]| {
            let mut all = vec![("traceparent", parent.as_str())];
            all.extend(lines.iter().map(|line| ("tracestate", *line)));
            let context = caller(&headers(&all)).expect("a parent");
            context.trace_state().header()
        };
        assert_eq!(state(&[]), "");
        assert_eq!(state(&["a=1", "b=2,c=3"]), "a=1,b=2,c=3");
        assert_eq!(state(&["no equals sign"]), "");
    }
}
