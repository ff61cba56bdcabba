//! Renders a conversation to the prompt that a model continues.
//!
//! A model's chat template is a Jinja program that comes with its tokenizer and formats messages as
//! in the model's training. GPT-2 itself was not trained on conversations. For such a model there
//! is a plain form, which a model that only continues text can follow: a system message is a
//! separate paragraph, and other messages begin with the speaker's name.
//!
//! ```text
//! You tell fairy tales.
//!
//! User: Who was the king?
//!
//! Assistant:
//! ```
//!
//! Such a model does not have a token for the end of its turn: it would continue with the user's
//! next message. So with the plain form a text also ends where another speaker would begin
//! ([`ChatTemplate::stops`]).
//!
//! Special tokens written in a message are plain text; see [`guard`](super::guard). A template is
//! untrusted code: it must run in bounded time and memory, and fail only with a [`TemplateError`].

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};
use serde::Deserialize;
use utoipa::ToSchema;

use super::bounded::Bounded;
use super::guard::{END, Guard, unmarked};
use super::jinja;
use super::tokenizer::{TextError, Tokenizer};

/// The plain form.
const PLAIN: &str = r#"{%- for message in messages -%}
    {%- if message.tool_calls or message.role in ['tool', 'function'] -%}
        {{- raise_exception("this model does not have its own chat template, and the plain form does not support tools: the role of a message must be system, developer, user or assistant") -}}
    {%- elif message.role == 'user' -%}
        {{- (message.name or 'User') ~ ': ' -}}
    {%- elif message.role == 'assistant' -%}
        {{- 'Assistant: ' -}}
    {%- endif -%}
    {{- message.content | trim ~ '\n\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'Assistant:' -}}
{%- endif -%}"#;
/// Name of the template in the environment, and in messages with a line number.
const NAME: &str = "chat template";
/// Maximum number of user names that end an answer in the plain form; the last ones are used.
const MAX_NAMED_STOPS: usize = 8;
/// Maximum bytes of such a name.
const MAX_NAMED_STOP_BYTES: usize = 64;
/// Maximum bytes of a prompt: a constant, plus a multiple of the bytes of the messages.
const MAX_RENDERED: (usize, usize) = (1 << 20, 8);
/// Cost of a message in addition to its texts, in bytes of text.
const MESSAGE_BYTES: usize = 64;

/// Error of rendering a prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid.
    #[error("{origin} is not a valid chat template: {reason}")]
    Syntax {
        /// Source of the template.
        origin: String,
        /// The fault and its place.
        reason: String,
    },
    /// The template refuses the messages.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the chat template failed on these messages: {0}")]
    Failed(String),
    /// The template takes too many steps, or too much memory for values.
    #[error(
        "the chat template takes too many steps for these messages; send fewer or shorter ones"
    )]
    TooLong,
    /// The template's output is too long.
    #[error(
        "the chat template renders more than {limit} bytes for these messages; send fewer or shorter ones"
    )]
    TooLarge {
        /// Maximum bytes of output for these messages.
        limit: usize,
    },
    /// The last message is not shown, so it can't be continued.
    #[error(
        "the chat template does not show the last message, so `continue_final_message` has nothing to continue"
    )]
    NothingToContinue,
    /// The rendered text could not be tokenized.
    #[error(transparent)]
    Tokenize(#[from] TextError),
}

/// A template before parsing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSource {
    /// Source of the template, for messages.
    pub origin: String,
    /// Text of the template.
    pub text: String,
}

/// The model's tokens by their names in templates; empty if the model does not have the token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// `bos_token`.
    pub bos: String,
    /// `eos_token`.
    pub eos: String,
}

/// Author of a message: `system` or `developer` (the same, for most templates), `user` or
/// `assistant`. `tool` and `function` are left to the model's chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = RoleField)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// Newer name of `System`.
    Developer,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// Result of a tool.
    Tool,
    /// Older name of `Tool`.
    Function,
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Author of the message.
    pub role: Role,
    /// Text of the message.
    pub content: String,
    /// Name that tells apart authors with the same role.
    pub name: Option<String>,
    /// Tool calls of an assistant's message.
    pub tool_calls: Option<serde_json::Value>,
    /// Id of the tool call that a tool's message answers.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// Returns the size of a message for limits, in bytes: its texts, and a constant for the
    /// message itself.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let texts = [
            Some(&self.content),
            self.name.as_ref(),
            self.tool_call_id.as_ref(),
        ];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        texts + self.tool_calls.as_ref().map_or(0, json_bytes) + MESSAGE_BYTES
    }
}

/// Returns the approximate length of a JSON value as text, in bytes.
fn json_bytes(json: &serde_json::Value) -> usize {
    use serde_json::Value as Json;
    let inner: usize = match json {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(json_bytes).sum(),
        Json::Object(fields) => fields
            .iter()
            .map(|(key, value)| key.len() + json_bytes(value))
            .sum(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    };
    inner + 8
}

/// The end of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// At the beginning of an assistant's message.
    Answer,
    /// Within the last message, which the model continues.
    Continue,
    /// After the last message.
    Closed,
}

/// Renders prompts from conversations.
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: String,
    /// Whether the template distinguishes `developer` from `system`.
    knows_developers: bool,
    is_plain: bool,
    tokens: TemplateTokens,
    guard: Guard,
}

impl ChatTemplate {
    /// The [`origin`](Self::origin) of the plain form.
    pub const PLAIN: &'static str = "plain";

    /// Parses a template, which has to be bound to a model with [`for_model`](Self::for_model).
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with origin and line.
    pub fn parse(source: TemplateSource) -> Result<Self, TemplateError> {
        let TemplateSource { origin, text } = source;
        let text = jinja::without_generation_tags(&text);
        let knows_developers = text.contains("developer");
        let environment = jinja::environment().and_then(|mut environment| {
            environment.add_template_owned(NAME, text)?;
            Ok(environment)
        });
        match environment {
            Ok(environment) => Ok(Self {
                environment,
                knows_developers,
                is_plain: false,
                tokens: TemplateTokens::default(),
                guard: Guard::default(),
                origin,
            }),
            Err(error) => Err(TemplateError::Syntax {
                origin,
                reason: error.to_string(),
            }),
        }
    }

    /// Returns the plain form.
    ///
    /// # Errors
    /// Never in practice, since the template is valid.
    pub fn plain() -> Result<Self, TemplateError> {
        let source = TemplateSource {
            origin: Self::PLAIN.to_owned(),
            text: PLAIN.to_owned(),
        };
        Ok(Self {
            is_plain: true,
            ..Self::parse(source)?
        })
    }

    /// Binds the template to a model's tokenizer and tokens.
    #[must_use]
    pub fn for_model(self, tokenizer: &Tokenizer, tokens: TemplateTokens) -> Self {
        Self {
            guard: Guard::new(tokenizer),
            tokens,
            ..self
        }
    }

    /// Returns its source.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns the token ids of the prompt.
    ///
    /// # Errors
    /// [`TemplateError`] if the template refuses the messages or fails on them, or the tokenizer fails.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        ending: Ending,
    ) -> Result<Vec<u32>, TemplateError> {
        let mut ids = Self::tokenize(tokenizer, &self.render(messages, ending)?)?;
        // A model's own template writes it.
        if self.is_plain {
            tokenizer.add_bos(&mut ids);
        }
        Ok(ids)
    }

    /// Returns the token ids of a text from [`render`](Self::render).
    ///
    /// # Errors
    /// [`TextError::Encode`] if the tokenizer fails.
    pub fn tokenize(tokenizer: &Tokenizer, rendered: &str) -> Result<Vec<u32>, TextError> {
        Guard::encode(tokenizer, rendered)
    }

    /// Returns whether this is the plain form, whose cost is proportional to the messages.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Returns the stop strings of the plain form, in addition to those of the request: the
    /// beginnings of other speakers' messages.
    #[must_use]
    pub fn stops(&self, messages: &[Message]) -> Vec<String> {
        if !self.is_plain {
            return Vec::new();
        }
        let mut speakers = vec!["User", "Assistant"];
        for name in messages.iter().rev().filter_map(|m| m.name.as_deref()) {
            let full = speakers.len() == 2 + MAX_NAMED_STOPS;
            if full || name.len() > MAX_NAMED_STOP_BYTES || speakers.contains(&name) {
                continue;
            }
            speakers.push(name);
        }
        // Of two that end together the longer one counts, so an empty line does not remain.
        let lines = speakers.into_iter().flat_map(|speaker| {
            let next = format!("\n{speaker}:");
            [format!("\n{next}"), next]
        });
        lines.collect()
    }

    /// Renders the text of a prompt, with guarded messages, for [`tokenize`](Self::tokenize).
    ///
    /// # Errors
    /// [`TemplateError`] if the template refuses the messages, fails on them, or exceeds a limit.
    pub fn render(&self, messages: &[Message], ending: Ending) -> Result<String, TemplateError> {
        let (least, times) = MAX_RENDERED;
        let given: usize = messages.iter().map(Message::bytes).sum();
        let limit = given.saturating_mul(times).saturating_add(least);
        let mut shown: Vec<Value> = Vec::with_capacity(messages.len());
        for (place, message) in messages.iter().enumerate() {
            let is_continued = ending == Ending::Continue && place + 1 == messages.len();
            shown.push(self.message(message, is_continued));
        }
        let template = self.environment.get_template(NAME).map_err(explain)?;
        let mut text = Bounded::new(limit);
        let context = context! {
            messages => shown,
            add_generation_prompt => ending == Ending::Answer,
            continue_final_message => ending == Ending::Continue,
            bos_token => self.tokens.bos.as_str(),
            eos_token => self.tokens.eos.as_str(),
            tools => Value::from(()),
            documents => Value::from(()),
        };
        if let Err(error) = template.render_captured_to(context, &mut text) {
            return Err(match error.kind() {
                ErrorKind::WriteFailure => TemplateError::TooLarge { limit },
                _ => explain(error),
            });
        }
        let rendered = text.into_text();
        match ending {
            Ending::Continue => cut_at_end(&rendered).ok_or(TemplateError::NothingToContinue),
            Ending::Answer | Ending::Closed => Ok(rendered),
        }
    }

    /// Returns a message as a template's value.
    fn message(&self, message: &Message, is_continued: bool) -> Value {
        let mut content = self.guard.protect(&message.content);
        if is_continued {
            // The space shows whether the template trims.
            content.extend([END, ' ']);
        }
        let role = match message.role {
            Role::Developer if self.knows_developers => "developer",
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Function => "function",
        };
        let text = |text: &str| Value::from(self.guard.protect(text));
        let mut fields = vec![
            ("role", Value::from(role)),
            ("content", Value::from(content)),
        ];
        fields.extend(message.name.as_deref().map(|name| ("name", text(name))));
        let calls = message.tool_calls.as_ref();
        fields.extend(calls.map(|calls| ("tool_calls", self.json(calls))));
        let id = message.tool_call_id.as_deref();
        fields.extend(id.map(|id| ("tool_call_id", text(id))));
        Value::from_pairs(fields)
    }

    /// Returns a message's JSON with all texts guarded.
    fn json(&self, json: &serde_json::Value) -> Value {
        use serde_json::Value as Json;
        match json {
            Json::String(text) => Value::from(self.guard.protect(text)),
            Json::Array(items) => items.iter().map(|item| self.json(item)).collect(),
            Json::Object(fields) => Value::from_pairs(
                fields
                    .iter()
                    .map(|(key, value)| (self.guard.protect(key), self.json(value))),
            ),
            Json::Bool(value) => Value::from(*value),
            Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Value::from(integer),
                (None, float) => Value::from(float),
            },
            Json::Null => Value::from(()),
        }
    }
}

/// Returns the text up to the end of the last message. White space at its end is kept or trimmed,
/// as the template does.
fn cut_at_end(rendered: &str) -> Option<String> {
    let (head, tail) = rendered.rsplit_once(END)?;
    let keeps = tail.starts_with(' ');
    let head = if keeps { head } else { head.trim_end() };
    // A template may show a message more than once.
    Some(head.replace(END, ""))
}

#[expect(clippy::needless_pass_by_value, reason = "the form of `map_err`")]
fn explain(error: minijinja::Error) -> TemplateError {
    match jinja::raised(&error) {
        Some(message) => TemplateError::Refused(unmarked(message)),
        None if error.kind() == ErrorKind::OutOfFuel => TemplateError::TooLong,
        None => TemplateError::Failed(unmarked(&error.to_string())),
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
pub(super) mod tests;
