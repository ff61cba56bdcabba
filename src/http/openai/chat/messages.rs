//! The messages of a conversation, as they come over the wire.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::http::body::Object;
use crate::http::error::ApiError;
use crate::http::wire::word;
use crate::text::template::{Message, Role};

/// One message.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatMessage)]
pub(in crate::http) struct MessageField {
    /// Author of the message.
    #[serde(deserialize_with = "word")]
    role: Role,
    /// Content of the message. Special tokens written in it are plain text. Only an assistant's message with
    /// `tool_calls` can do without.
    content: Option<Content>,
    /// Name of the author, to tell several with one role apart. In the plain form it replaces `User`.
    name: Option<String>,
    /// Tool calls of an assistant; passed on to the model's chat template.
    #[schema(value_type = Option<Vec<Object>>)]
    tool_calls: Option<Vec<serde_json::Value>>,
    /// Tool call that the message answers; passed on to the model's chat template.
    tool_call_id: Option<String>,
}

/// A text, or parts that are put together with line breaks between them.
#[derive(Debug, ToSchema)]
#[schema(as = ChatContent)]
#[serde(untagged)]
pub(in crate::http) enum Content {
    /// A text.
    Text(String),
    /// Parts of one.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatContentPart)]
pub(in crate::http) struct ContentPart {
    /// Always `text`: the model reads nothing else.
    #[schema(example = "text")]
    r#type: String,
    /// The text.
    text: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts;
        impl<'de> Visitor<'de> for TextOrParts {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of parts")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }
            fn visit_string<E: Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(Object(part)) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(TextOrParts)
    }
}

impl Content {
    /// Returns the whole text; `field` is its path in the body.
    fn into_text(self, field: &str) -> Result<String, ApiError> {
        let parts = match self {
            Self::Text(text) => return Ok(text),
            Self::Parts(parts) => parts,
        };
        if parts.is_empty() {
            return Err(ApiError::invalid(
                field,
                format!("`{field}` must have at least one part, got none"),
            ));
        }
        let mut texts = Vec::with_capacity(parts.len());
        for (place, part) in parts.into_iter().enumerate() {
            texts.push(part.into_text(&format!("{field}[{place}]"))?);
        }
        Ok(texts.join("\n"))
    }
}

impl ContentPart {
    fn into_text(self, field: &str) -> Result<String, ApiError> {
        if self.r#type != "text" {
            let field = format!("{field}.type");
            let shown: String = self.r#type.chars().take(40).collect();
            return Err(ApiError::invalid(
                &field,
                format!("`{field}` must be \"text\", all that this model reads, got {shown:?}"),
            ));
        }
        let field = format!("{field}.text");
        let missing = || ApiError::invalid(&field, format!("`{field}` is missing"));
        self.text.ok_or_else(missing)
    }
}

impl MessageField {
    /// Returns the message, which is the `place`-th of its conversation.
    pub(super) fn into_message(self, place: usize) -> Result<Message, ApiError> {
        let field = format!("messages[{place}].content");
        let content = match self.content {
            Some(content) => content.into_text(&field)?,
            None if matches!(self.role, Role::Assistant) && self.tool_calls.is_some() => {
                String::new()
            }
            None => {
                return Err(ApiError::invalid(
                    &field,
                    format!(
                        "`{field}` is missing; only an assistant's message with `tool_calls` can do without"
                    ),
                ));
            }
        };
        Ok(Message {
            role: self.role,
            content,
            name: self.name,
            tool_calls: self.tool_calls.map(serde_json::Value::Array),
            tool_call_id: self.tool_call_id,
        })
    }
}
