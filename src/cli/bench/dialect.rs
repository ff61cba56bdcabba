//! The two dialects: what a request looks like, and what an event of the answer says.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::workload::Ask;

/// How the server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Dialect {
    /// `/v1/completions`, as OpenAI, vLLM, llama.cpp and Skald have it
    Openai,
    /// `/generate_stream`, as text-generation-inference and Skald have it
    Tgi,
}

/// What of a request's body is the same for all requests.
#[derive(Debug, Clone)]
pub(super) struct BodyOptions {
    /// The model's name, where the dialect has one.
    pub model: Option<String>,
    /// 0 is greedy.
    pub temperature: f64,
    /// Go on past the end-of-text token; TGI's dialect has no such thing.
    pub ignore_eos: bool,
}

/// Tokens, as the server counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Of the prompt.
    pub prompt: Option<usize>,
    /// Generated.
    pub output: Option<usize>,
}

/// What one event says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct EventMeaning {
    /// There is new content.
    pub content: bool,
    /// The answer is whole.
    pub end: bool,
    /// Token counts.
    pub usage: Usage,
    /// Generation failed.
    pub error: Option<String>,
}

impl Dialect {
    /// Where requests go.
    pub fn path(self) -> &'static str {
        match self {
            Self::Openai => "/v1/completions",
            Self::Tgi => "/generate_stream",
        }
    }

    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Tgi => "tgi",
        }
    }

    /// The body of a request.
    pub fn body(self, ask: &Ask, options: &BodyOptions) -> Value {
        match self {
            Self::Openai => {
                let mut body = json!({
                    "prompt": ask.prompt,
                    "max_tokens": ask.output_tokens,
                    "temperature": options.temperature,
                    "stream": true,
                    "stream_options": {"include_usage": true},
                });
                // What a server may not know is left out where it is not needed.
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
                    "max_new_tokens": ask.output_tokens,
                    "do_sample": options.temperature > 0.0,
                    "details": true,
                });
                // TGI refuses a temperature of 0.
                if options.temperature > 0.0 {
                    parameters["temperature"] = json!(options.temperature);
                }
                json!({"inputs": ask.prompt, "parameters": parameters})
            }
        }
    }

    /// Reads an event's data. What is not JSON, or says nothing of interest, means nothing.
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
                // A token without text is one too: it is the first part of a character.
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

/// The message of an error, in either dialect: `{"error": {"message"}}` or `{"error"}`.
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

    fn ask() -> Ask {
        Ask {
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
    fn an_openai_body_asks_for_a_stream_with_usage() {
        let body = Dialect::Openai.body(&ask(), &options(0.0));
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
        let body = Dialect::Openai.body(&ask(), &plain);
        assert!(body.get("model").is_none() && body.get("ignore_eos").is_none());
    }

    #[test]
    fn a_tgi_body_has_a_temperature_only_to_draw() {
        let greedy = Dialect::Tgi.body(&ask(), &options(0.0));
        let expected = json!({
            "inputs": "all the",
            "parameters": {"max_new_tokens": 9, "do_sample": false, "details": true},
        });
        assert_eq!(greedy, expected);
        let drawn = Dialect::Tgi.body(&ask(), &options(0.5));
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
