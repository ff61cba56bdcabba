//! Sends one request, reads its stream, and records the arrival of every event.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, Url};
use serde_json::Value;

use super::dialect::{BodyOptions, Dialect, error_message};
use super::request_failure::{FailureKind, RequestFailure};
use super::sse::EventParser;
use super::timeline::{Answered, Timeline};
use super::workload::RequestSpec;

/// Timeout of the query for models before the load begins.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The server and its dialect.
#[derive(Debug, Clone)]
pub(super) struct Target {
    client: Client,
    base: String,
    dialect: Dialect,
    timeout: Duration,
}

impl Target {
    /// Creates a client for the server at `url`. A trailing `/v1`, which clients of OpenAI's API
    /// expect, is removed. Proxies in the environment are ignored, because they would be measured too.
    ///
    /// # Errors
    /// If the key is not a valid header value.
    pub fn new(
        url: &Url,
        dialect: Dialect,
        api_key: Option<&str>,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        if let Some(key) = api_key {
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let client = crate::tls::http_client()
            .default_headers(headers)
            .user_agent(concat!("skald-bench/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .build()?;
        let base = url.as_str().trim_end_matches('/');
        Ok(Self {
            client,
            base: base.strip_suffix("/v1").unwrap_or(base).to_owned(),
            dialect,
            timeout,
        })
    }

    /// Requests the list of models, which also tests the connection. Returns the name of the first, if
    /// the server has a list.
    ///
    /// # Errors
    /// If the server does not respond. Any response is accepted, because not every server has a list.
    pub async fn first_model(&self) -> Result<Option<String>, RequestFailure> {
        let asked = self
            .client
            .get(format!("{}/v1/models", self.base))
            .timeout(QUERY_TIMEOUT)
            .send();
        let response = asked
            .await
            .map_err(|error| RequestFailure::of_client(FailureKind::Connection, error))?;
        let models = response.json::<Value>().await.unwrap_or_default();
        Ok(models["data"][0]["id"].as_str().map(str::to_owned))
    }

    /// Sends a request and reads its response to the end. `arrival` is the scheduled time.
    ///
    /// # Errors
    /// If the response is not complete.
    pub async fn stream(
        &self,
        spec: &RequestSpec,
        options: &BodyOptions,
        arrival: Option<Instant>,
    ) -> Result<Answered, RequestFailure> {
        let body = self.dialect.body(spec, options).to_string();
        let request = self
            .client
            .post(format!("{}{}", self.base, self.dialect.path()))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream")
            .body(body);
        // Started last, to exclude the client's own work.
        let timeline = Timeline::new(Instant::now(), arrival);
        let answer = async {
            let response = request
                .send()
                .await
                .map_err(|error| RequestFailure::of_client(FailureKind::Connection, error))?;
            self.read(checked(response).await?, timeline)
                .await?
                .finish(spec)
        };
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(answered) => answered,
            Err(_) => Err(RequestFailure::new(
                FailureKind::TimedOut,
                format!("after {}", humantime::format_duration(self.timeout)),
            )),
        }
    }

    /// Reads the response to its end, beyond the last event: only then can the connection be reused.
    async fn read(
        &self,
        response: Response,
        mut timeline: Timeline,
    ) -> Result<Timeline, RequestFailure> {
        let mut parser = EventParser::default();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let at = Instant::now();
            let chunk =
                chunk.map_err(|error| RequestFailure::of_client(FailureKind::BrokenOff, error))?;
            for data in parser.push(&chunk) {
                timeline.record(at, self.dialect.read(&data))?;
            }
        }
        Ok(timeline)
    }
}

/// Returns the response if it is an event stream.
async fn checked(response: Response) -> Result<Response, RequestFailure> {
    let status = response.status();
    let type_of_content = response.headers().get(CONTENT_TYPE);
    let is_stream =
        type_of_content.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    if status.is_success() && is_stream {
        return Ok(response);
    }
    let kind = if status.is_success() {
        FailureKind::NoStream
    } else {
        FailureKind::Status(status.as_u16())
    };
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let text = response.text().await.unwrap_or_default();
    let message = serde_json::from_str(&text)
        .ok()
        .and_then(|body| error_message(&body));
    Err(RequestFailure {
        retry_after: retry_after.map(Duration::from_secs),
        ..RequestFailure::new(kind, message.unwrap_or(text))
    })
}
