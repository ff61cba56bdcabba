//! From a conversation to the prompt a model continues.
//!
//! A model's chat template is a Jinja program that comes with its tokenizer and writes the
//! messages the way the model was trained on them. GPT-2 itself was never trained on any. For such
//! a model there is a plain form, which a model that only continues texts goes on with: what the
//! system says stands as a paragraph of its own, what others say begins with their name.
//!
//! ```text
//! You tell fairy tales.
//!
//! User: Who was the king?
//!
//! Assistant:
//! ```
//!
//! A model like that has no token for the end of its turn: it would go on and write the user's next
//! words too. So with the plain form a text also ends where another one would begin to speak
//! ([`ChatTemplate::stops`]).
//!
//! Special tokens written in a message are plain text; see [`guard`](super::guard). A template is a
//! program from elsewhere: whatever it does, it must fail with a [`TemplateError`], in bounded time
//! and memory.

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
        {{- raise_exception("this model has no chat template of its own, and the plain form has no tools: messages are of system, developer, user and assistant") -}}
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
/// The name of a template inside the environment, and in messages with a line's number.
const NAME: &str = "chat template";
/// Users whose names end an answer in the plain form, at most: the last ones.
const MAX_NAMED_STOPS: usize = 8;
/// Bytes in such a name at most.
const MAX_NAMED_STOP_BYTES: usize = 64;
/// Bytes of a prompt: so many, and so many times those of the messages.
const MAX_RENDERED: (usize, usize) = (1 << 20, 8);
/// What a message costs beside its texts, in bytes of text.
const MESSAGE_BYTES: usize = 64;

/// Why there is no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is not one.
    #[error("{origin} is not a chat template: {reason}")]
    Syntax {
        /// Where it comes from.
        origin: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// The template refuses the messages.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// The template went wrong.
    #[error("the chat template failed on these messages: {0}")]
    Failed(String),
    /// The template takes too many steps, or too much memory for values.
    #[error(
        "the chat template takes too many steps for these messages; send fewer or shorter ones"
    )]
    TooLong,
    /// The template writes too much.
    #[error(
        "the chat template makes more than {limit} bytes of these messages; send fewer or shorter ones"
    )]
    TooLarge {
        /// Bytes that it may make of them.
        limit: usize,
    },
    /// The last message is not where it could be continued.
    #[error(
        "the chat template does not show the last message, so `continue_final_message` has nothing to continue"
    )]
    NothingToContinue,
    /// The rendered text could not be tokenized.
    #[error(transparent)]
    Tokenize(#[from] TextError),
}

/// A template that has not been read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSource {
    /// Where it comes from, for messages.
    pub origin: String,
    /// The program.
    pub text: String,
}

/// What templates call the model's tokens; empty where it has none.
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
    /// The newer name of `System`.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// Result of a tool.
    Tool,
    /// The older name of `Tool`.
    Function,
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Author of the message.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// Who of those with the same role.
    pub name: Option<String>,
    /// What an assistant asked tools for.
    pub tool_calls: Option<serde_json::Value>,
    /// Which of these a tool answers.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// Returns how much there is to render, in bytes: its texts, and something for the message itself.
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

/// Returns about how long a JSON value is as text, in bytes.
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

/// Where the prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With the beginning of an assistant's message.
    Answer,
    /// Within the last message, which goes on.
    Continue,
    /// After the last message.
    Closed,
}

/// Makes prompts of conversations.
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: String,
    /// It tells developers from systems.
    knows_developers: bool,
    is_plain: bool,
    tokens: TemplateTokens,
    guard: Guard,
}

impl ChatTemplate {
    /// What `origin` is of the plain form.
    pub const PLAIN: &'static str = "plain";

    /// Reads a template. It is of no model yet: see [`for_model`](Self::for_model).
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] naming origin and line.
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
    /// Never in practice: it is a template like others.
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

    /// Creates the template for a model of this tokenizer and these tokens.
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
        Ok(Self::tokenize(tokenizer, &self.render(messages, ending)?)?)
    }

    /// Returns the token ids of a prompt's text, as [`render`](Self::render) made it.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the tokenizer fails.
    pub fn tokenize(tokenizer: &Tokenizer, rendered: &str) -> Result<Vec<u32>, TextError> {
        Guard::encode(tokenizer, rendered)
    }

    /// Returns whether it is the plain form, whose cost is known: it grows with the messages.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Returns the texts that end an answer besides those of the request: where another one begins to
    /// speak, in a form that has no token for it.
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
        // Of two that end together the longer one counts, so no empty line is left behind.
        let lines = speakers.into_iter().flat_map(|speaker| {
            let next = format!("\n{speaker}:");
            [format!("\n{next}"), next]
        });
        lines.collect()
    }

    /// Returns the prompt's text, with messages guarded: for [`tokenize`](Self::tokenize).
    ///
    /// # Errors
    /// [`TemplateError`] if the template refuses the messages, fails on them, or makes too much of
    /// them.
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

    /// Returns a message as templates know it.
    fn message(&self, message: &Message, is_continued: bool) -> Value {
        let mut content = self.guard.protect(&message.content);
        if is_continued {
            // What becomes of the blank tells whether the template trims.
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

    /// Returns a message's JSON, all its texts guarded.
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

/// Returns the text up to where the last message ends. White space at its end is kept if the template
/// keeps what it is given, else trimmed as the template would.
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
