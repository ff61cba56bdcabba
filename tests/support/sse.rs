//! Parser of server-sent events.

use serde_json::Value;

/// A complete stream.
#[derive(Debug)]
pub struct Events {
    /// Events with JSON data.
    pub data: Vec<Value>,
    /// Number of comments.
    pub comments: usize,
    /// Whether the last event was `[DONE]`.
    pub done: bool,
}

impl Events {
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut events = Self {
            data: Vec::new(),
            comments: 0,
            done: false,
        };
        for event in text.split_terminator("\n\n") {
            if event.starts_with(':') {
                events.comments += 1;
                continue;
            }
            assert!(!events.done, "an event after [DONE]: {event}");
            let data = event.strip_prefix("data: ").expect("an event is data");
            if data == "[DONE]" {
                events.done = true;
            } else {
                events
                    .data
                    .push(serde_json::from_str(data).expect("data is JSON"));
            }
        }
        assert!(text.is_empty() || text.ends_with("\n\n"), "a cut event");
        events
    }

    /// Returns the text of one choice of a completion.
    pub fn text_of(&self, index: usize) -> String {
        self.choices(index)
            .filter_map(|choice| choice["text"].as_str())
            .collect()
    }

    /// Returns the chunks of one choice.
    pub fn choices(&self, index: usize) -> impl Iterator<Item = &Value> {
        self.data
            .iter()
            .filter_map(|event| event["choices"].as_array())
            .flatten()
            .filter(move |choice| choice["index"] == index)
    }

    /// Returns the finish reasons of one choice; a complete stream has one.
    pub fn finish_reason(&self, index: usize) -> Vec<&str> {
        self.choices(index)
            .filter_map(|choice| choice["finish_reason"].as_str())
            .collect()
    }

    /// Returns the concatenated texts of the tokens of a native stream that are not special.
    pub fn native_text(&self) -> String {
        self.data
            .iter()
            .filter(|event| event["token"]["special"] == false)
            .filter_map(|event| event["token"]["text"].as_str())
            .collect()
    }
}

/// A stream that is being read.
pub struct Live {
    response: reqwest::Response,
    unread: Vec<u8>,
}

impl Live {
    pub fn new(response: reqwest::Response) -> Self {
        Self {
            response,
            unread: Vec::new(),
        }
    }

    /// Returns the next event's data; `None` after the last one, an error if the server disconnects.
    pub async fn next(&mut self) -> reqwest::Result<Option<Value>> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.unread.drain(..end + 2).collect();
                let event = String::from_utf8(event).expect("UTF-8");
                match event.trim_end().strip_prefix("data: ") {
                    Some("[DONE]") => return Ok(None),
                    Some(data) => return Ok(Some(serde_json::from_str(data).expect("JSON"))),
                    None => assert!(event.starts_with(':'), "an event is data: {event}"),
                }
            } else if let Some(bytes) = self.response.chunk().await? {
                self.unread.extend_from_slice(&bytes);
            } else {
                return Ok(None);
            }
        }
    }
}
