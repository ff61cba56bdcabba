//! Parses the text of a key file.
//!
//! A fault names the line, the field, its value and the values it can have. A secret could be anywhere in the
//! file by mistake, so no message repeats what could be part of one: no string except a short word of letters,
//! no number longer than [`LONGEST_NUMBER`], and nothing of an id, a name or a hash.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use toml::value::Datetime;

use super::id::KeyId;
use super::invalid::InvalidKey;
use super::key::{Key, KeyLimits, KeyName, KeyScope};
use super::secret::SecretHash;

/// Fields of a key, for messages.
const FIELDS: &str = "id, name, hash, scopes, created, requests-per-minute, tokens-per-minute, \
     concurrent-requests, may-prioritize";
/// Maximum characters of a number that a message repeats.
const LONGEST_NUMBER: usize = 20;
/// Maximum characters of a word that a message repeats.
const LONGEST_WORD: usize = 24;

/// A fault in the text of a key file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Fault {
    pub(super) line: usize,
    pub(super) reason: String,
}

/// A fault and its offset in the text.
struct FaultAt {
    at: usize,
    reason: String,
}

impl FaultAt {
    fn new(at: Range<usize>, reason: impl Into<String>) -> Self {
        Self {
            at: at.start,
            reason: reason.into(),
        }
    }
}

type Field<'a> = Spanned<DeString<'a>>;
type Value<'a> = Spanned<DeValue<'a>>;

/// Returns the keys in the text of a file, in order.
///
/// # Errors
/// The first fault.
pub(super) fn keys(text: &str) -> Result<Vec<Key>, Fault> {
    document(text).map_err(|FaultAt { at, reason }| {
        let before = text.bytes().take(at);
        let line = 1 + before.filter(|&byte| byte == b'\n').count();
        Fault { line, reason }
    })
}

fn document(text: &str) -> Result<Vec<Key>, FaultAt> {
    let document = DeTable::parse(text).map_err(|error| {
        let reason = match error.message() {
            deep if deep.contains("recurs") => "brackets are nested too deeply".to_owned(),
            syntax => format!("not valid TOML: {syntax}"),
        };
        FaultAt::new(error.span().unwrap_or_default(), reason)
    })?;
    let mut tables = None;
    for (field, value) in in_order(document.get_ref()) {
        if field.get_ref() != "key" {
            let reason = format!(
                "unknown field{}; each key is a table that begins with [[key]]",
                quoted(field.get_ref())
            );
            return Err(FaultAt::new(field.span(), reason));
        }
        tables = Some(value);
    }
    let Some(tables) = tables else {
        return Ok(Vec::new());
    };
    let not_a_key = |value: &Value| {
        let reason = format!(
            "`key` is {}; each key is a table that begins with [[key]]",
            kind(value.get_ref())
        );
        FaultAt::new(value.span(), reason)
    };
    let DeValue::Array(tables) = tables.get_ref() else {
        return Err(not_a_key(tables));
    };
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    let mut keys = Vec::with_capacity(tables.len());
    for table in tables {
        let DeValue::Table(fields) = table.get_ref() else {
            return Err(not_a_key(table));
        };
        let key = key(fields, table.span())?;
        let at = |field| fields.get(field).map_or(table.span(), Spanned::span);
        if !ids.insert(key.id.clone()) {
            return Err(FaultAt::new(at("id"), InvalidKey::SameId.to_string()));
        }
        if !names.insert(key.name.clone()) {
            let same = InvalidKey::SameName(key.name.to_string());
            return Err(FaultAt::new(at("name"), same.to_string()));
        }
        keys.push(key);
    }
    Ok(keys)
}

/// Returns the fields of a table in the order of the file.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Field<'i>, &'a Value<'i>)> {
    let mut fields: Vec<_> = table.iter().collect();
    fields.sort_by_key(|(field, _)| field.span().start);
    fields
}

/// Returns the key that a table describes.
fn key(table: &DeTable, at: Range<usize>) -> Result<Key, FaultAt> {
    let (mut id, mut name, mut hash, mut scopes) = (None, None, None, None);
    let mut limits = KeyLimits::default();
    let (mut may_prioritize, mut created) = (false, None);
    for (field, value) in in_order(table) {
        let invalid = |reason: InvalidKey| FaultAt::new(value.span(), reason.to_string());
        let field_name = field.get_ref().as_ref();
        match field_name {
            "id" => id = Some(KeyId::try_from(string(field_name, value)?).map_err(invalid)?),
            "name" => name = Some(KeyName::try_from(string(field_name, value)?).map_err(invalid)?),
            "hash" => {
                hash = Some(SecretHash::try_from(string(field_name, value)?).map_err(invalid)?);
            }
            "scopes" => scopes = Some(scopes_of(value)?),
            "created" => created = Some(date(value)?),
            "requests-per-minute" => limits.requests_per_minute = Some(limit(field_name, value)?),
            "tokens-per-minute" => limits.tokens_per_minute = Some(limit(field_name, value)?),
            "concurrent-requests" => limits.concurrent_requests = Some(limit(field_name, value)?),
            "may-prioritize" => may_prioritize = switch(value)?,
            unknown => {
                let reason = format!("unknown field{}; a key has {FIELDS}", quoted(unknown));
                return Err(FaultAt::new(field.span(), reason));
            }
        }
    }
    let missing = |field| FaultAt::new(at.clone(), format!("this key has no `{field}`"));
    Ok(Key {
        id: id.ok_or_else(|| missing("id"))?,
        name: name.ok_or_else(|| missing("name"))?,
        hash: hash.ok_or_else(|| missing("hash"))?,
        scopes: scopes.ok_or_else(|| missing("scopes"))?,
        limits,
        may_prioritize,
        created,
    })
}

fn string(field: &str, value: &Value) -> Result<String, FaultAt> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        other => {
            let kind = kind(other);
            let reason = format!("`{field}` is {kind}; it must be a string in quotes");
            Err(FaultAt::new(value.span(), reason))
        }
    }
}

fn scopes_of(value: &Value) -> Result<Vec<KeyScope>, FaultAt> {
    let wrong = |at: &Value, what: String| {
        let all = "a list of generate, metrics, admin, such as [\"generate\"]";
        FaultAt::new(at.span(), format!("`scopes` {what}; it must be {all}"))
    };
    let DeValue::Array(scopes) = value.get_ref() else {
        return Err(wrong(value, format!("is {}", kind(value.get_ref()))));
    };
    if scopes.is_empty() {
        return Err(FaultAt::new(value.span(), InvalidKey::NoScopes.to_string()));
    }
    let scope = |value: &Value| match value.get_ref() {
        DeValue::String(text) => KeyScope::named(text)
            .ok_or_else(|| wrong(value, format!("has an unknown scope{}", quoted(text)))),
        other => Err(wrong(value, format!("has {} in it", kind(other)))),
    };
    scopes.iter().map(scope).collect()
}

fn date(value: &Value) -> Result<Datetime, FaultAt> {
    match value.get_ref() {
        DeValue::Datetime(date) => Ok(*date),
        other => {
            let reason = format!(
                "`created` is {}; it must be a time without quotes, such as 2026-11-27T10:00:00Z",
                shown(other)
            );
            Err(FaultAt::new(value.span(), reason))
        }
    }
}

fn limit(field: &str, value: &Value) -> Result<NonZeroU32, FaultAt> {
    let number = match value.get_ref() {
        DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    };
    number.and_then(NonZeroU32::new).ok_or_else(|| {
        let reason = format!(
            "`{field}` is {}; it must be a whole number from 1 to {}; leave the line out for no limit",
            shown(value.get_ref()),
            u32::MAX
        );
        FaultAt::new(value.span(), reason)
    })
}

fn switch(value: &Value) -> Result<bool, FaultAt> {
    match value.get_ref() {
        DeValue::Boolean(on) => Ok(*on),
        other => {
            let reason = format!(
                "`may-prioritize` is {}; it must be true or false",
                shown(other)
            );
            Err(FaultAt::new(value.span(), reason))
        }
    }
}

/// Returns the kind of a value for messages.
fn kind(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Returns a value if it can't be part of a secret, else its kind.
fn shown(value: &DeValue) -> String {
    let short = |number: String| (number.len() <= LONGEST_NUMBER).then_some(number);
    let shown = match value {
        DeValue::Integer(number) => short(number.to_string()),
        DeValue::Float(number) => short(number.to_string()),
        DeValue::Boolean(on) => Some(on.to_string()),
        DeValue::String(text) if text.is_empty() => Some("an empty string".to_owned()),
        DeValue::String(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    };
    shown.unwrap_or_else(|| kind(value).to_owned())
}

/// Returns a word in quotes, after a space, if it can't be part of a secret (which has digits); else nothing.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphabetic() || "-_".contains(c);
    if word.len() <= LONGEST_WORD && word.chars().all(plain) {
        format!(" `{word}`")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789ab";
    const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn whole() -> String {
        format!(
            "# A comment\n[[key]]\nid = \"{ID}\"\nname = \"ada\"\nhash = \"{SECRET}\"\n\
             scopes = [\"generate\", \"metrics\"]\ncreated = 2026-11-27T10:00:00Z\n\
             requests-per-minute = 60\ntokens-per-minute = 1_000\nmay-prioritize = true\n"
        )
    }

    #[test]
    fn all_fields_are_read() {
        let keys = keys(&whole()).unwrap();
        let [key] = &keys[..] else { panic!("{keys:?}") };
        assert_eq!((key.id.as_str(), key.name.as_str()), (ID, "ada"));
        assert_eq!(key.hash.to_string(), SECRET);
        assert_eq!(key.scopes, [KeyScope::Generate, KeyScope::Metrics]);
        assert_eq!(key.created.unwrap().to_string(), "2026-11-27T10:00:00Z");
        let limits = KeyLimits {
            requests_per_minute: NonZeroU32::new(60),
            tokens_per_minute: NonZeroU32::new(1000),
            concurrent_requests: None,
        };
        assert_eq!(key.limits, limits);
        assert!(key.may_prioritize);
        for none in ["", "\n# Nothing\n", "key = []"] {
            assert!(super::keys(none).unwrap().is_empty(), "{none}");
        }
    }

    /// Asserts that the text has a fault on this line, with these words in its message and without the secret.
    #[track_caller]
    fn assert_fault(text: &str, line: usize, words: &str) {
        let fault = keys(text).unwrap_err();
        assert_eq!(fault.line, line, "{fault} in\n{text}");
        let told = fault.to_string();
        assert!(told.contains(words), "{words} in {told}");
        assert!(!told.contains(&SECRET[..16]), "{told}");
        for rust in ["u32", "nonzero", "variant", "sequence", "integer `"] {
            assert!(!told.contains(rust), "{rust} in {told}");
        }
    }

    #[test]
    fn a_value_that_is_not_valid_is_named_with_its_field_and_the_valid_values() {
        let range = "must be a whole number from 1 to 4294967295";
        let long = "9".repeat(64);
        for (value, shown) in [
            ("0", "0"),
            ("1.5", "1.5"),
            ("-1", "-1"),
            ("6e1", "6e1"),
            ("0x0", "0x0"),
            ("4294967296", "4294967296"),
            ("true", "true"),
            ("\"60\"", "a string"),
            ("\"\"", "an empty string"),
            ("[60]", "a list"),
            ("{a = 1}", "a table"),
            ("10:00:00", "a time"),
            (&long, "a number"),
        ] {
            let text = whole().replace("= 60", &format!("= {value}"));
            let words = format!("`requests-per-minute` is {shown}; it {range}");
            assert_fault(&text, 8, &words);
        }
        for (from, to, line, words) in [
            (
                "\"0123456789ab\"",
                "12",
                3,
                "`id` is a number; it must be a string in quotes",
            ),
            (ID, "x", 3, "`id` must be 12 of the characters 0-9 and a-f"),
            ("\"ada\"", "\"a b\"", 4, "a name must be 1 to 64 of"),
            (
                "\"ada\"",
                "true",
                4,
                "`name` is true or false; it must be a string",
            ),
            (&SECRET[..62], SECRET, 5, "`hash` must be 64 of"),
            (
                ", \"metrics\"",
                ", 1",
                6,
                "`scopes` has a number in it; it must be a list of generate,",
            ),
            (
                "metrics",
                "root",
                6,
                "`scopes` has an unknown scope `root`; it must be",
            ),
            (
                "metrics",
                SECRET,
                6,
                "`scopes` has an unknown scope; it must be",
            ),
            (
                "[\"generate\", \"metrics\"]",
                "\"generate\"",
                6,
                "`scopes` is a string; it must be",
            ),
            ("\"generate\", \"metrics\"", "", 6, "`scopes` is empty"),
            ("10:00:00Z", "10", 7, "not valid TOML"),
            (
                "2026-11-27T10:00:00Z",
                "\"now\"",
                7,
                "`created` is a string; it must be a time",
            ),
            (
                "true",
                "1",
                10,
                "`may-prioritize` is 1; it must be true or false",
            ),
        ] {
            assert_fault(&whole().replace(from, to), line, words);
        }
    }

    #[test]
    fn a_field_that_is_unknown_or_missing_is_named_with_the_known_fields() {
        for (from, to, line, words) in [
            (
                "[[key]]",
                "[[keys]]",
                2,
                "unknown field `keys`; each key is a table that begins with [[key]]",
            ),
            (
                "[[key]]",
                "[key]",
                2,
                "`key` is a table; each key is a table that begins with [[key]]",
            ),
            (
                "id =",
                "identity =",
                3,
                "unknown field `identity`; a key has id, name, hash,",
            ),
            (
                "name = ",
                "key = \"x\"\nname = ",
                4,
                "unknown field `key`; a key has",
            ),
            (
                "name = ",
                &format!("{SECRET} = 1\nname = "),
                4,
                "unknown field; a key has",
            ),
            (
                "# A comment",
                &format!("{SECRET} = 1"),
                1,
                "unknown field; each key is a table",
            ),
            ("name = \"ada\"\n", "", 2, "this key has no `name`"),
            (
                "requests-per-minute",
                "requests_per_minute",
                8,
                "unknown field `requests_per_minute`; a key has",
            ),
        ] {
            assert_fault(&whole().replace(from, to), line, words);
        }
        for (text, words) in [
            ("key = 1", "`key` is a number"),
            ("key = [1]", "`key` is a number"),
        ] {
            assert_fault(text, 1, words);
        }
    }

    #[test]
    fn two_keys_have_neither_the_same_id_nor_the_same_name() {
        let other = whole().replace(ID, "ba9876543210");
        let text = whole() + &whole().replace("\"ada\"", "\"bob\"");
        assert_fault(&text, 13, "another key has the same id");
        let text = whole() + &other;
        assert_fault(&text, 14, "another key has the name \"ada\"");
        let text = whole() + &other.replace("\"ada\"", "\"bob\"");
        assert_eq!(keys(&text).unwrap().len(), 2);
    }

    #[test]
    fn text_that_is_not_toml_is_refused_without_being_repeated() {
        for (from, to, line) in [
            ("hash = \"", "hash = ", 5),
            ("hash = ", "hash ", 5),
            (&format!("{SECRET}\""), SECRET, 5),
            ("scopes = [", "scopes = (", 6),
            (
                "name = ",
                &format!("{SECRET} = 1\n{SECRET} = 2\nname = "),
                5,
            ),
            ("name = ", &format!("hash = \"{SECRET}\"\nname = "), 6),
        ] {
            assert_fault(&whole().replace(from, to), line, "not valid TOML: ");
        }
    }

    #[test]
    fn brackets_may_not_be_nested_deeply() {
        for open in ["[", "{a=", "[{a="] {
            let text = format!("\nkey = {}", open.repeat(100_000));
            assert_fault(&text, 2, "brackets are nested too deeply");
        }
        let text = whole().replace("[\"generate\"", &format!("{}\"generate\"", "[".repeat(40)));
        assert_fault(&text, 7, "not valid TOML: missing comma");
        let text = whole().replace("[\"generate\", \"metrics\"]", "[[[\"generate\"]]]");
        assert_fault(
            &text,
            6,
            "`scopes` has a list in it; it must be a list of generate",
        );
    }
}
