//! `tokenizer_config.json`: the chat template and its special tokens.

use serde::Deserialize;

use super::json::{JsonError, from_json};

/// The fields of `tokenizer_config.json` that Skald honours; all others are ignored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
}

/// One template, or several by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Clone, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// A token's text: a string, or an object with flags for the tokenizer.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Added { content: String },
}

impl TokenText {
    fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

impl TokenizerConfig {
    /// Parses the content of the file.
    ///
    /// # Errors
    /// [`JsonError`] if the content is not JSON or a field has the wrong type.
    pub fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        from_json(bytes)
    }

    /// Returns the chat template; if there are several, the one named `default`.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        match self.chat_template.as_ref()? {
            Templates::One(template) => Some(template),
            Templates::Named(templates) => templates
                .iter()
                .find(|named| named.name == "default")
                .map(|named| named.template.as_str()),
        }
    }

    /// Returns the token that begins a text.
    #[must_use]
    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_ref().map(TokenText::as_str)
    }

    /// Returns the token that ends a text.
    #[must_use]
    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_ref().map(TokenText::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_text_or_the_default_of_several() {
        let config = |json: &str| TokenizerConfig::from_json(json.as_bytes()).unwrap();
        let one = config(
            r#"{"chat_template": "a", "bos_token": null, "eos_token": {"content": "<e>", "lstrip": false}, "model_max_length": 1024}"#,
        );
        assert_eq!(one.chat_template(), Some("a"));
        assert_eq!((one.bos_token(), one.eos_token()), (None, Some("<e>")));
        let several = config(
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "bos_token": "<b>"}"#,
        );
        assert_eq!(several.chat_template(), Some("d"));
        assert_eq!(several.bos_token(), Some("<b>"));
        let other = config(r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#);
        assert_eq!(other.chat_template(), None);
        assert_eq!(config("{}").chat_template(), None);
        let wrong = TokenizerConfig::from_json(br#"{"chat_template": 3}"#).unwrap_err();
        assert_eq!(wrong.path().to_string(), "chat_template");
    }
}
