//! The files beside a tokenizer: `tokenizer_config.json` with the chat template and the special tokens,
//! `special_tokens_map.json` and `added_tokens.json` of older models.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::json::{JsonError, from_json};
use crate::text::{AddedToken, TokenizerSettings};

/// The fields of `tokenizer_config.json` that Skald honours; all others are ignored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Named,
    eos_token: Named,
    unk_token: Named,
    sep_token: Named,
    pad_token: Named,
    cls_token: Named,
    mask_token: Named,
    tokenizer_class: Option<String>,
    /// Of a `BertTokenizer`: whether text is in lower case before it is split.
    pub(super) do_lower_case: Option<bool>,
    /// Of a `BertTokenizer`: whether each Chinese character is a word.
    pub(super) tokenize_chinese_chars: Option<bool>,
    /// Of a `BertTokenizer`: whether accents are removed; as lower case by default.
    pub(super) strip_accents: Option<bool>,
    add_bos_token: Option<bool>,
    add_prefix_space: Option<bool>,
    added_tokens_decoder: BTreeMap<u32, AddedToken>,
}

/// A token's field, which may be null: that is not the same as leaving it out.
#[derive(Debug, Clone, Default)]
struct Named(Option<TokenOrNull>);

impl Named {
    fn text(&self) -> Option<&str> {
        let token = self.0.as_ref()?.as_ref()?;
        Some(token.as_str())
    }
}

/// A token, or null.
type TokenOrNull = Option<TokenText>;

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        TokenOrNull::deserialize(deserializer).map(|token| Self(Some(token)))
    }
}

/// The content of `special_tokens_map.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SpecialTokensMap {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    sep_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    cls_token: Option<TokenText>,
    mask_token: Option<TokenText>,
    additional_special_tokens: Option<Vec<TokenText>>,
}

/// The content of `added_tokens.json`: ids by text.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct AddedTokensFile(BTreeMap<String, u32>);

impl SpecialTokensMap {
    /// Parses the content of the file.
    ///
    /// # Errors
    /// [`JsonError`] if the content is not JSON or a field has the wrong type.
    pub fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        from_json(bytes)
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let named = [
            &self.bos_token,
            &self.eos_token,
            &self.unk_token,
            &self.sep_token,
            &self.pad_token,
            &self.cls_token,
            &self.mask_token,
        ];
        let more = self.additional_special_tokens.iter().flatten();
        named
            .into_iter()
            .flatten()
            .chain(more)
            .map(TokenText::as_str)
    }
}

impl AddedTokensFile {
    /// Parses the content of the file.
    ///
    /// # Errors
    /// [`JsonError`] if the content is not a map from texts to ids.
    pub fn from_json(bytes: &[u8]) -> Result<Self, JsonError> {
        from_json(bytes)
    }
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

/// A special token other than those that begin and end a text.
#[derive(Debug, Clone, Copy)]
pub(super) enum SpecialToken {
    Unknown,
    Separator,
    Padding,
    Classification,
    Mask,
}

impl SpecialToken {
    /// Returns the token as it is named in `tokenizer_config.json`, else in `special_tokens_map.json`.
    pub fn text<'a>(
        self,
        config: &'a TokenizerConfig,
        map: &'a SpecialTokensMap,
    ) -> Option<&'a str> {
        let (own, mapped) = match self {
            Self::Unknown => (&config.unk_token, &map.unk_token),
            Self::Separator => (&config.sep_token, &map.sep_token),
            Self::Padding => (&config.pad_token, &map.pad_token),
            Self::Classification => (&config.cls_token, &map.cls_token),
            Self::Mask => (&config.mask_token, &map.mask_token),
        };
        own.text().or(mapped.as_ref().map(TokenText::as_str))
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

    /// Returns the token that begins a text: `Some(None)` if the file says that there is none.
    #[must_use]
    pub fn bos_token(&self) -> Option<Option<&str>> {
        let token = self.bos_token.0.as_ref()?;
        Some(token.as_ref().map(TokenText::as_str))
    }

    /// Returns the token that ends a text: `Some(None)` if the file says that there is none.
    #[must_use]
    pub fn eos_token(&self) -> Option<Option<&str>> {
        let token = self.eos_token.0.as_ref()?;
        Some(token.as_ref().map(TokenText::as_str))
    }

    /// Returns the class in transformers.
    pub(super) fn tokenizer_class(&self) -> Option<&str> {
        self.tokenizer_class.as_deref()
    }

    /// Returns what the files ask for of a `tokenizer.json`, which has its added tokens itself.
    #[must_use]
    pub fn settings(&self) -> TokenizerSettings {
        TokenizerSettings {
            bos: self.bos_token().flatten().map(str::to_owned),
            eos: self.eos_token().flatten().map(str::to_owned),
            add_bos: self.add_bos_token,
            add_prefix_space: self.add_prefix_space,
            ..TokenizerSettings::default()
        }
    }

    /// Returns what the files ask for of a vocabulary without added tokens.
    #[must_use]
    pub fn settings_with(
        &self,
        map: &SpecialTokensMap,
        added: &AddedTokensFile,
    ) -> TokenizerSettings {
        let mut tokens = self.added_tokens_decoder.clone();
        for (text, &id) in &added.0 {
            tokens.entry(id).or_insert_with(|| AddedToken {
                content: text.clone(),
                ..AddedToken::default()
            });
        }
        let own = [self.bos_token(), self.eos_token()];
        let own = own.into_iter().flatten().flatten();
        let settings = self.settings();
        let mapped =
            |token: &Option<TokenText>| token.as_ref().map(|token| token.as_str().to_owned());
        TokenizerSettings {
            added: tokens.into_iter().collect(),
            special: own.chain(map.texts()).map(str::to_owned).collect(),
            bos: settings.bos.or_else(|| mapped(&map.bos_token)),
            eos: settings.eos.or_else(|| mapped(&map.eos_token)),
            ..settings
        }
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
        assert_eq!(
            (one.bos_token(), one.eos_token()),
            (Some(None), Some(Some("<e>")))
        );
        let several = config(
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "bos_token": "<b>"}"#,
        );
        assert_eq!(several.chat_template(), Some("d"));
        assert_eq!(several.bos_token(), Some(Some("<b>")));
        let other = config(r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#);
        assert_eq!(other.chat_template(), None);
        assert_eq!(config("{}").chat_template(), None);
        assert_eq!(config("{}").bos_token(), None);
        let wrong = TokenizerConfig::from_json(br#"{"chat_template": 3}"#).unwrap_err();
        assert_eq!(wrong.path().to_string(), "chat_template");
    }

    #[test]
    fn added_and_special_tokens_come_from_three_files() {
        let config = TokenizerConfig::from_json(
            br#"{"added_tokens_decoder": {"5": {"content": "<x>", "special": true}}, "add_bos_token": true,
                "bos_token": "<x>", "add_prefix_space": true}"#,
        )
        .unwrap();
        let map = SpecialTokensMap::from_json(
            br#"{"eos_token": {"content": "<e>", "lstrip": false}, "additional_special_tokens": ["<y>"]}"#,
        )
        .unwrap();
        let added = AddedTokensFile::from_json(br#"{"<x>": 5, "<y>": 6}"#).unwrap();
        let settings = config.settings_with(&map, &added);
        let token = |content: &str, special| AddedToken {
            content: content.to_owned(),
            special,
            ..AddedToken::default()
        };
        assert_eq!(
            settings.added,
            [(5, token("<x>", true)), (6, token("<y>", false))]
        );
        assert_eq!(settings.special, ["<x>", "<e>", "<y>"]);
        assert_eq!(settings.bos.as_deref(), Some("<x>"));
        assert_eq!(settings.eos.as_deref(), Some("<e>"));
        assert_eq!(
            (settings.add_bos, settings.add_prefix_space),
            (Some(true), Some(true))
        );
        assert!(config.settings().added.is_empty());
        assert!(AddedTokensFile::from_json(br#"["<x>"]"#).is_err());
    }
}
