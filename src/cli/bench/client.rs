//! One request to the server: sent, read as a stream, every event with the moment it came.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, Url};
use serde_json::Value;

use super::dialect::{BodyOptions, Dialect, error_message};
use super::failure::{Failure, FailureKind};
use super::sse::EventParser;
use super::timeline::{Answered, Timeline};
use super::workload::Ask;

/// For what is asked of the server before the load begins.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The server, and how it is spoken to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    client: Client,
    base: String,
    dialect: Dialect,
    timeout: Duration,
}

impl Target {
    /// A client for the server at `url`. A `/v1` at its end is not counted: clients of OpenAI's
    /// dialect are used to it. Proxies of the environment are not used: they would be measured too.
    ///
    /// # Errors
    /// If the key can't be a header.
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

    /// Asks for the models, which also tells whether anyone is there: the name of the first, if
    /// the server has a list.
    ///
    /// # Errors
    /// If nothing answers. Any answer will do: not every server has a list.
    pub async fn first_model(&self) -> Result<Option<String>, Failure> {
        let asked = self
            .client
            .get(format!("{}/v1/models", self.base))
            .timeout(QUERY_TIMEOUT)
            .send();
        let response = asked
            .await
            .map_err(|error| Failure::of_client(FailureKind::Connection, error))?;
        let models = response.json::<Value>().await.unwrap_or_default();
        Ok(models["data"][0]["id"].as_str().map(str::to_owned))
    }

    /// Sends a request and reads its answer to the end. `arrival`: when it should have been sent.
    ///
    /// # Errors
    /// If it is not answered in full.
    pub async fn stream(
        &self,
        ask: &Ask,
        options: &BodyOptions,
        arrival: Option<Instant>,
    ) -> Result<Answered, Failure> {
        let body = self.dialect.body(ask, options).to_string();
        let request = self
            .client
            .post(format!("{}{}", self.base, self.dialect.path()))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream")
            .body(body);
        // The last thing before sending; what comes before is ours, not the server's.
        let timeline = Timeline::new(Instant::now(), arrival);
        let answer = async {
            let response = request
                .send()
                .await
                .map_err(|error| Failure::of_client(FailureKind::Connection, error))?;
            self.read(checked(response).await?, timeline)
                .await?
                .finish(ask)
        };
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(answered) => answered,
            Err(_) => Err(Failure::new(
                FailureKind::TimedOut,
                format!("after {}", humantime::format_duration(self.timeout)),
            )),
        }
    }

    /// To the connection's end, not only the answer's: only then can it be used again.
    async fn read(&self, response: Response, mut timeline: Timeline) -> Result<Timeline, Failure> {
        let mut parser = EventParser::default();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let at = Instant::now();
            let chunk = chunk.map_err(|error| Failure::of_client(FailureKind::BrokenOff, error))?;
            for data in parser.push(&chunk) {
                timeline.note(at, self.dialect.read(&data))?;
            }
        }
        Ok(timeline)
    }
}

/// The response, if it is a stream of events.
async fn checked(response: Response) -> Result<Response, Failure> {
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
    Err(Failure {
        retry_after: retry_after.map(Duration::from_secs),
        ..Failure::new(kind, message.unwrap_or(text))
    })
}
