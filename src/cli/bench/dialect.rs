//! The two dialects: bodies of requests, and events of responses.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::workload::RequestSpec;

/// The API of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Dialect {
    /// `/v1/completions`, the API of OpenAI, vLLM, llama.cpp and Skald
    Openai,
    /// `/generate_stream`, the API of text-generation-inference and Skald
    Tgi,
}

/// The parameters that all requests share.
#[derive(Debug, Clone)]
pub(super) struct BodyOptions {
    /// Name of the model, if the dialect has one.
    pub model: Option<String>,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Whether to generate past the end-of-text token; not supported by TGI's dialect.
    pub ignore_eos: bool,
}

/// Token counts reported by the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Prompt tokens.
    pub prompt: Option<usize>,
    /// Generated tokens.
    pub output: Option<usize>,
}

/// The relevant content of an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EventMeaning {
    /// Whether the event has new content.
    pub content: bool,
    /// Whether the response is complete.
    pub end: bool,
    /// Token counts.
    pub usage: Usage,
    /// Message of a failed generation.
    pub error: Option<String>,
}

impl Dialect {
    /// Returns the path of requests.
    pub fn path(self) -> &'static str {
        match self {
            Self::Openai => "/v1/completions",
            Self::Tgi => "/generate_stream",
        }
    }

    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Tgi => "tgi",
        }
    }

    /// Returns the body of a request.
    pub fn body(self, spec: &RequestSpec, options: &BodyOptions) -> Value {
        match self {
            Self::Openai => {
                let mut body = json!({
                    "prompt": spec.prompt,
                    "max_tokens": spec.output_tokens,
                    "temperature": options.temperature,
                    "stream": true,
                    "stream_options": {"include_usage": true},
                });
                // Fields that a server may not support are left out if possible.
                if let Some(model) = &options.model {
                    body["model"] = json!(model);
                }
                if options.ignore_eos {
                    body["ignore_eos"] = json!(true);
                }
                body
            }
            Self::Tgi => {
                let mut parameters = json!({
                    "max_new_tokens": spec.output_tokens,
                    "do_sample": options.temperature > 0.0,
                    "details": true,
                });
                // TGI refuses a temperature of 0.
                if options.temperature > 0.0 {
                    parameters["temperature"] = json!(options.temperature);
                }
                json!({"inputs": spec.prompt, "parameters": parameters})
            }
        }
    }

    /// Reads the data of an event. Data that is not JSON or not relevant gives the default.
    pub fn read(self, data: &str) -> EventMeaning {
        if data == "[DONE]" {
            return EventMeaning {
                end: true,
                ..EventMeaning::default()
            };
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else {
            return EventMeaning::default();
        };
        let error = error_message(&event);
        match self {
            Self::Openai => {
                let choice = &event["choices"][0];
                let text = choice["text"].as_str().unwrap_or_default();
                EventMeaning {
                    content: !text.is_empty(),
                    end: choice["finish_reason"].is_string(),
                    usage: Usage {
                        prompt: count(&event["usage"]["prompt_tokens"]),
                        output: count(&event["usage"]["completion_tokens"]),
                    },
                    error,
                }
            }
            Self::Tgi => EventMeaning {
                // A token without text counts: it is the first part of a character.
                content: event["token"].is_object(),
                end: event["generated_text"].is_string(),
                usage: Usage {
                    prompt: count(&event["details"]["input_length"]),
                    output: count(&event["details"]["generated_tokens"]),
                },
                error,
            },
        }
    }
}

/// Returns the message of an error in either dialect: `{"error": {"message"}}` or `{"error"}`.
pub(super) fn error_message(body: &Value) -> Option<String> {
    let error = body.get("error").filter(|error| !error.is_null())?;
    let message = error.as_str().or_else(|| error["message"].as_str());
    Some(message.map_or_else(|| error.to_string(), str::to_owned))
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RequestSpec {
        RequestSpec {
            prompt: "all the".to_owned(),
            prompt_tokens: 2,
            output_tokens: 9,
        }
    }

    fn options(temperature: f64) -> BodyOptions {
        BodyOptions {
            model: Some("m".to_owned()),
            temperature,
            ignore_eos: true,
        }
    }

    #[test]
    fn an_openai_body_requests_a_stream_with_usage() {
        let body = Dialect::Openai.body(&spec(), &options(0.0));
        let expected = json!({
            "model": "m", "prompt": "all the", "max_tokens": 9, "temperature": 0.0,
            "stream": true, "stream_options": {"include_usage": true}, "ignore_eos": true,
        });
        assert_eq!(body, expected);
        let plain = BodyOptions {
            model: None,
            ignore_eos: false,
            ..options(0.0)
        };
        let body = Dialect::Openai.body(&spec(), &plain);
        assert!(body.get("model").is_none() && body.get("ignore_eos").is_none());
    }

    #[test]
    fn a_tgi_body_has_a_temperature_only_for_sampling() {
        let greedy = Dialect::Tgi.body(&spec(), &options(0.0));
        let expected = json!({
            "inputs": "all the",
            "parameters": {"max_new_tokens": 9, "do_sample": false, "details": true},
        });
        assert_eq!(greedy, expected);
        let drawn = Dialect::Tgi.body(&spec(), &options(0.5));
        assert_eq!(drawn["parameters"]["temperature"], 0.5);
        assert_eq!(drawn["parameters"]["do_sample"], true);
    }

    #[test]
    fn openai_events_are_text_then_an_end_then_usage() {
        let read = |data| Dialect::Openai.read(data);
        let text = read(r#"{"choices":[{"text":" a","finish_reason":null}],"usage":null}"#);
        assert!(text.content && !text.end);
        assert_eq!(text.usage, Usage::default());
        let end = read(r#"{"choices":[{"text":"","finish_reason":"length"}],"usage":null}"#);
        assert!(!end.content && end.end);
        let usage = read(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#);
        assert_eq!((usage.usage.prompt, usage.usage.output), (Some(3), Some(5)));
        assert!(!usage.content && !usage.end);
        assert!(read("[DONE]").end);
    }

    #[test]
    fn tgi_events_are_tokens_the_last_with_details() {
        let read = |data| Dialect::Tgi.read(data);
        let token = read(r#"{"token":{"id":1,"text":""},"generated_text":null,"details":null}"#);
        assert!(token.content && !token.end);
        let last = read(
            r#"{"token":{"id":1,"text":"b"},"generated_text":"ab","details":{"generated_tokens":2,"input_length":7}}"#,
        );
        assert!(last.content && last.end);
        assert_eq!((last.usage.prompt, last.usage.output), (Some(7), Some(2)));
    }

    #[test]
    fn errors_are_read_in_any_form() {
        let error = |data| Dialect::Tgi.read(data).error;
        assert_eq!(error(r#"{"error":"no","error_type":"x"}"#).unwrap(), "no");
        assert_eq!(error(r#"{"error":{"message":"no"}}"#).unwrap(), "no");
        assert_eq!(error(r#"{"error":{"code":3}}"#).unwrap(), r#"{"code":3}"#);
        assert_eq!(error(r#"{"error":null,"token":{}}"#), None);
        assert_eq!(error("not JSON"), None);
    }
}
