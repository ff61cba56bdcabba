//! Clients of a test server, with and without a key.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::pace::PATIENCE;
use super::{Answer, client, sse};

/// A client of one server.
#[derive(Clone)]
pub struct Caller {
    server: String,
    key: Option<&'static str>,
}

impl Caller {
    /// Creates a client of the server at this address, without a key.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            key: None,
        }
    }

    /// Returns the same client with a key.
    pub fn with_key(&self, key: &'static str) -> Self {
        Self {
            key: Some(key),
            ..self.clone()
        }
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = client().request(method, format!("{}{path}", self.server));
        match self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Posts a request and returns the answer before its body; an error if the server disconnects.
    pub async fn try_send(&self, path: &str, body: &Value) -> reqwest::Result<reqwest::Response> {
        let request = self.request(reqwest::Method::POST, path);
        request.body(body.to_string()).send().await
    }

    /// Posts a request; an error if the server disconnects before the answer has ended.
    pub async fn try_post(&self, path: &str, body: &Value) -> reqwest::Result<Answer> {
        Answer::whole(self.try_send(path, body).await?).await
    }

    /// Gets a path; an error if the server disconnects before the answer has ended.
    pub async fn try_get(&self, path: &str) -> reqwest::Result<Answer> {
        let request = self.request(reqwest::Method::GET, path);
        Answer::whole(request.send().await?).await
    }

    /// Deletes a path; an error if the server disconnects before the answer has ended.
    pub async fn try_delete(&self, path: &str) -> reqwest::Result<Answer> {
        let request = self.request(reqwest::Method::DELETE, path);
        Answer::whole(request.send().await?).await
    }

    pub async fn send(&self, path: &str, body: Value) -> reqwest::Response {
        self.try_send(path, &body).await.expect("an answer")
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.try_post(path, &body).await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.try_get(path).await.expect("an answer")
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.try_delete(path).await.expect("an answer")
    }

    /// Posts and reads a whole stream.
    pub async fn stream(&self, path: &str, body: Value) -> sse::Events {
        let response = self.send(path, body).await;
        assert_eq!(response.status(), 200, "{path}");
        sse::Events::parse(&response.text().await.expect("a whole body"))
    }

    /// Returns the server's description of a session.
    pub async fn session(&self, id: &str) -> Answer {
        self.get(&format!("/v1/sessions/{id}")).await
    }

    /// Returns the history of a session; `None` if it does not exist.
    pub async fn history(&self, id: &str) -> Option<Vec<u32>> {
        let answer = self.session(id).await;
        (answer.status != 404).then(|| token_ids(&answer.ok()["tokens"]))
    }

    pub async fn fork(&self, id: &str, body: Value) -> Answer {
        self.post(&format!("/v1/sessions/{id}/fork"), body).await
    }

    pub async fn rewind(&self, id: &str, body: Value) -> Answer {
        self.post(&format!("/v1/sessions/{id}/rewind"), body).await
    }

    /// Waits until no generation runs on a session, and returns the session.
    pub async fn idle(&self, id: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let session = self.session(id).await.ok();
            if session["busy"] == json!(false) {
                return session;
            }
            assert!(Instant::now() < deadline, "still busy: {session}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Returns a list of token ids.
#[track_caller]
pub fn token_ids(list: &Value) -> Vec<u32> {
    let ids = list.as_array().expect("a list of token ids").iter();
    ids.map(|id| u32::try_from(id.as_u64().expect("an id")).expect("an id"))
        .collect()
}

/// Returns the tokens of a native answer's `details` that are part of its text.
#[track_caller]
pub fn said(answer: &Value) -> Vec<u32> {
    let tokens = answer["details"]["tokens"].as_array().expect("details");
    let ids = tokens.iter().filter(|token| token["special"] == false);
    token_ids(&ids.map(|token| token["id"].clone()).collect())
}
