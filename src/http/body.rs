//! Reads JSON bodies.
//!
//! The content type is ignored, because `curl -d` declares a form. Errors in the syntax name line and
//! column; errors in a value name the field, the value and the expected type. Unknown fields are
//! ignored, because clients send fields for many servers.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::iter;
use std::marker::PhantomData;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header;
use bytesize::ByteSize;
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use tokio_util::sync::CancellationToken;

use super::admission::PARSE_INLINE;
use super::app::App;
use super::error::{ApiError, shown, shown_within};
use super::keys::Meter;
use super::room::{Room, RoomEntry};
use crate::request::Tenant;

/// Memory in bytes of a request whose body is arriving, besides the body: its task, and its part of the
/// connection (27 KiB measured).
const OPEN: usize = 32 << 10;
/// Suggested delay before a retry; bodies arrive within `--body-timeout`.
const RETRY: Duration = Duration::from_secs(5);

/// A JSON object from the request body.
pub(super) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<App> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let admission = app.admission(Meter::of(request.extensions()).share());
        let bytes = read(request, app).await?;
        let length = bytes.len();
        let parsing = move || parse(&bytes);
        let parsed = admission.run(length, PARSE_INLINE, parsing).await?;
        parsed.map(Self)
    }
}

/// Reads the bytes of a body.
///
/// # Errors
/// If it is too large, does not arrive in time or completely, or too many other bodies are arriving.
async fn read(request: Request, app: &App) -> Result<Bytes, ApiError> {
    let limit = app.config().max_body;
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit.as_u64()) {
        return Err(ApiError::too_large(limit));
    }
    let body_timeout = app.config().body_timeout;
    let room = (app.receiving(), Meter::of(request.extensions()).share());
    let arriving = collect(request.into_body(), chunked, limit, room);
    tokio::time::timeout(body_timeout, arriving)
        .await
        .unwrap_or_else(|_| Err(ApiError::timeout(body_timeout)))
}

/// Collects the frames of a body. Their bytes count towards the room while more are awaited.
async fn collect(
    body: Body,
    chunked: bool,
    limit: ByteSize,
    (receiving, share): (&Room, Tenant),
) -> Result<Bytes, ApiError> {
    let mut frames = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut waits: Option<(RoomEntry, CancellationToken)> = None;
    let mut counted = 0;
    loop {
        let next = frames.next().now_or_never();
        let frame = if let Some(frame) = next {
            frame
        } else {
            let (held, given_up) = waits.get_or_insert_with(|| {
                let given_up = CancellationToken::new();
                let cancel = given_up.clone();
                (receiving.hold(share, move || cancel.cancel()), given_up)
            });
            let size = OPEN + bytes.len();
            let has_room = held.grow(size - counted);
            counted = size;
            if !has_room {
                return Err(ApiError::busy(
                    "too many other requests are still arriving; retry later",
                    RETRY,
                ));
            }
            tokio::select! {
                biased;
                frame = frames.next() => frame,
                () = given_up.cancelled() => return Err(ApiError::busy(
                    "the request body did not arrive in time while other requests needed the memory; send it again",
                    RETRY,
                )),
            }
        };
        let Some(frame) = frame else {
            return Ok(bytes.into());
        };
        let frame = frame.map_err(|error| {
            if chunked && is_malformed(&error) {
                ApiError::broken_body(
                    "the request body is not in valid chunked encoding: each chunk is its length in \
                     hexadecimal, CRLF, its bytes and CRLF; the last one has the length 0",
                )
            } else {
                ApiError::cut_body()
            }
        })?;
        if (bytes.len() + frame.len()) as u64 > limit.as_u64() {
            return Err(ApiError::too_large(limit));
        }
        bytes.extend_from_slice(&frame);
    }
}

/// Returns whether a body could not be read because its encoding is malformed, rather than because it ended.
fn is_malformed(error: &(dyn Error + 'static)) -> bool {
    let causes = iter::successors(Some(error), |error| (*error).source());
    causes
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| {
            matches!(
                error.kind(),
                ErrorKind::InvalidInput | ErrorKind::InvalidData
            )
        })
}

/// Parses a JSON object.
///
/// # Errors
/// If it is not valid; the error names the place and the reason.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.trim_ascii().is_empty() {
        return Err(ApiError::broken_body(
            "the request body is empty; a JSON object is expected",
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize::<_, Object<T>>(&mut json).map_err(|error| {
        let path = error.path().to_string();
        describe(&path, error.inner())
    })?;
    json.end().map_err(|error| describe(".", &error))?;
    Ok(parsed.0)
}

fn describe(path: &str, error: &serde_json::Error) -> ApiError {
    match error.classify() {
        Category::Data => {
            let message = error.to_string();
            let place = format!(" at line {} column {}", error.line(), error.column());
            let message = message.strip_suffix(&place).unwrap_or(&message);
            let message = plain(&shown_within(&short_float(message)));
            if path == "." {
                let field = missing_field(&message).unwrap_or("body");
                ApiError::invalid(field, format!("the request body is not valid: {message}"))
            } else {
                ApiError::invalid(path, format!("`{}`: {message}", shown(path)))
            }
        }
        Category::Syntax | Category::Eof | Category::Io => {
            ApiError::broken_body(format!("the request body is not valid JSON: {error}"))
        }
    }
}

/// Returns the field that serde reports as missing.
fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

/// Shortens the number in one of serde's messages, which writes hundreds of digits for a small number.
fn short_float(message: &str) -> String {
    let shortened = [
        "invalid type: floating point `",
        "invalid value: floating point `",
    ]
    .into_iter()
    .find_map(|begin| {
        let (digits, rest) = message.strip_prefix(begin)?.split_once('`')?;
        let number: f64 = digits.parse().ok()?;
        Some(format!("{begin}{number:?}`{rest}"))
    });
    shortened.unwrap_or_else(|| message.to_owned())
}

/// Replaces the names of Rust's types in one of serde's messages by those of JSON.
fn plain(message: &str) -> String {
    const NAMES: [(&str, &str); 9] = [
        ("expected f64", "expected a number"),
        ("expected i64", "expected an integer"),
        ("expected u64", "expected an integer, 0 or more"),
        ("expected u32", "expected an integer from 0 to 4294967295"),
        ("expected usize", "expected an integer, 0 or more"),
        ("floating point", "number"),
        ("expected a sequence", "expected a list"),
        ("invalid type: sequence", "invalid type: list"),
        ("invalid type: map", "invalid type: object"),
    ];
    NAMES
        .iter()
        .fold(message.to_owned(), |message, (rust, json)| {
            message.replace(rust, json)
        })
}

/// A value that must be a JSON object; serde alone would also accept a list of the fields' values.
pub(super) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMap<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer
            .deserialize_map(OnlyMap(PhantomData))
            .map(Object)
    }
}

/// Deserializes an optional field that is an object, for `#[serde(deserialize_with)]`.
pub(super) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// Deserializes an optional field that is a list of objects, for `#[serde(deserialize_with)]`.
pub(super) fn objects<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let objects = Option::<Vec<Object<T>>>::deserialize(deserializer)?;
    Ok(objects.map(|objects| objects.into_iter().map(|object| object.0).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        #[expect(dead_code, reason = "only its type matters")]
        n: Option<i64>,
        #[serde(default, deserialize_with = "object")]
        nested: Option<Nested>,
    }

    #[derive(Debug, Deserialize)]
    struct Nested {
        ratio: Option<f64>,
    }

    #[derive(Debug, Deserialize)]
    struct Needy {
        #[expect(dead_code, reason = "only its absence matters")]
        text: String,
    }

    fn message(body: &str) -> String {
        parse::<Sample>(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_type_names_field_value_and_expectation() {
        assert_eq!(
            message(r#"{"n": "three"}"#),
            r#"`n`: invalid type: string "three", expected an integer"#
        );
        assert_eq!(
            message(r#"{"n": 1.5}"#),
            "`n`: invalid type: number `1.5`, expected an integer"
        );
        assert_eq!(
            message(r#"{"n": 1e-300}"#),
            "`n`: invalid type: number `1e-300`, expected an integer"
        );
        assert_eq!(
            message(r#"{"nested": {"ratio": [1]}}"#),
            "`nested.ratio`: invalid type: list, expected a number"
        );
        assert_eq!(
            message(r#"{"nested": [0.5]}"#),
            "`nested`: invalid type: list, expected a JSON object"
        );
        assert_eq!(
            message("[1]"),
            "the request body is not valid: invalid type: list, expected a JSON object"
        );
    }

    #[test]
    fn an_error_names_the_missing_field() {
        let refused = parse::<Needy>(b"{}").unwrap_err();
        assert_eq!(
            serde_json::to_value(refused.openai()).unwrap()["error"],
            serde_json::json!({
                "message": "the request body is not valid: missing field `text`",
                "type": "invalid_request_error", "param": "text", "code": null,
            })
        );
    }

    #[test]
    fn errors_in_json_name_line_and_column() {
        let message = message("{\"n\": 1,\n \"nested\": }");
        assert!(message.contains("line 2 column 12"), "{message}");
        assert!(self::message("{\"n\": 1} x").contains("line 1"));
        assert!(self::message(" \n").contains("empty"));
    }

    #[test]
    fn null_and_unknown_fields_are_accepted() {
        let sample: Sample = parse(br#"{"n": null, "nested": null, "colour": 3}"#).unwrap();
        assert!(sample.nested.is_none());
        let sample: Sample = parse(br#"{"nested": {"ratio": 1}}"#).unwrap();
        assert_eq!(sample.nested.unwrap().ratio, Some(1.0));
    }
}
