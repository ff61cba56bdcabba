//! The Jinja environment that chat templates of Hugging Face models expect: that of transformers,
//! without Python.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, Output, State, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::bounded::Bounded;

/// Fuel of one rendering: about this many instructions, or 64 times as many bytes (64 MB). This is
/// enough for thousands of messages; a template with an endless loop, or one that doubles a string
/// repeatedly, fails quickly.
const FUEL: u64 = 1_000_000;
/// Maximum bytes of a list or map as text. The library charges fuel only after it has written the
/// text, and a short list with shared elements can have a long text.
const MAX_VALUE_BYTES: usize = 4 << 20;
/// Maximum bytes of a message of `raise_exception`.
const MAX_RAISED_BYTES: usize = 64 << 10;
/// Fuel per 64 bytes of JSON, the same as for the library's own serializer.
const FUEL_PER_JSON: u64 = 16;
/// Maximum bytes of a time format.
const MAX_TIME_FORMAT: usize = 256;

/// The message of a template's `raise_exception`, as the source of the error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Returns an environment without templates.
///
/// # Errors
/// Never in practice, since the delimiters are valid.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(python_method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.set_formatter(write_value);
    environment.set_fuel(Some(FUEL));
    Ok(environment)
}

/// Calls a method that a value has in Python.
fn python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(format) = value.as_str().filter(|_| method == "format") {
        // The library charges fuel only when a text is written, but a width in a format can make it
        // arbitrarily long.
        state.consume_fuel(numbers(format) / 64)?;
    }
    unknown_method_callback(state, value, method, args)
}

/// Returns the sum of all numbers in a format: the maximum number of characters it adds to its
/// arguments.
fn numbers(format: &str) -> u64 {
    let runs = format.split(|character: char| !character.is_ascii_digit());
    let numbers = runs.filter(|run| !run.is_empty());
    let numbers = numbers.map(|run| run.parse().unwrap_or(u64::MAX));
    numbers.fold(0, u64::saturating_add)
}

/// Writes a value like the library, but lists and maps only up to a limit.
fn write_value(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    if value.as_object().is_none() {
        return escape_formatter(out, state, value);
    }
    Ok(out.write_str(&bounded_text(value, MAX_VALUE_BYTES)?)?)
}

/// Returns a value as text, unless it exceeds a limit in bytes.
fn bounded_text(value: &Value, limit: usize) -> Result<String, Error> {
    let mut text = Bounded::new(limit);
    write!(text, "{value}").map_err(|_| Error::from(ErrorKind::OutOfFuel))?;
    Ok(text.into_text())
}

/// Returns the message of `raise_exception`, if the error comes from it.
pub(super) fn raised(error: &Error) -> Option<&str> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message);
        }
        source = error.source();
    }
    None
}

/// Replaces `{% generation %}` and `{% endgeneration %}`, which mark answers for training, with
/// blocks that have no effect.
pub(super) fn without_generation_tags(template: &str) -> String {
    let mut changed = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, from)) = rest.split_once("{%") {
        let Some((tag, after)) = from.split_once("%}") else {
            break;
        };
        let word = tag.trim_matches(['-', '+']).trim();
        let tag = match word {
            "generation" => tag.replacen(word, "if true", 1),
            "endgeneration" => tag.replacen(word, "endif", 1),
            _ => tag.to_owned(),
        };
        changed.extend([before, "{%", &tag, "%}"]);
        rest = after;
    }
    changed.push_str(rest);
    changed
}

#[expect(clippy::needless_pass_by_value, reason = "the form functions have")]
fn raise_exception(message: Value) -> Result<Value, Error> {
    let message = bounded_text(&message, MAX_RAISED_BYTES)?;
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

/// Returns the local time in the format of C's `strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    if format.len() > MAX_TIME_FORMAT {
        let message = format!("strftime_now: a format can be at most {MAX_TIME_FORMAT} bytes long");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        let message = format!("strftime_now: {format:?} is not a valid time format");
        Error::new(ErrorKind::InvalidOperation, message)
    })?;
    Ok(text)
}

/// Implements Python's `json.dumps`, with its keyword arguments. Jinja's own filter would escape
/// for HTML.
#[expect(clippy::needless_pass_by_value, reason = "the form filters have")]
fn tojson(state: &State<'_, '_>, value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = match indent {
        None => options.get("separators")?,
        Some(_) => None,
    };
    options.assert_all_used()?;
    let limit = json_limit(state);
    let json = if sort_keys == Some(true) {
        let unsorted = dump(&value, None, None, limit)?;
        let mut sorted: serde_json::Value = serde_json::from_str(&unsorted).map_err(no_json)?;
        sorted.sort_all_objects();
        dump(&sorted, indent, separators, limit)?
    } else {
        dump(&value, indent, separators, limit)?
    };
    state.consume_fuel(json.len() as u64 / 64 * FUEL_PER_JSON)?;
    Ok(if ensure_ascii == Some(true) {
        escape_non_ascii(&json)
    } else {
        json
    })
}

/// Returns the maximum bytes of JSON that the remaining fuel allows.
fn json_limit(state: &State<'_, '_>) -> usize {
    let left = state.fuel_levels().map_or(FUEL, |(_, left)| left);
    usize::try_from(left.saturating_mul(64) / FUEL_PER_JSON)
        .map_or(MAX_VALUE_BYTES, |bytes| bytes.min(MAX_VALUE_BYTES))
}

fn no_json(error: serde_json::Error) -> Error {
    if error.is_io() {
        // The buffer is full, which is the only way in which a write to memory fails.
        return ErrorKind::OutOfFuel.into();
    }
    Error::new(ErrorKind::BadSerialization, "tojson").with_source(error)
}

fn dump(
    value: &impl Serialize,
    indent: Option<usize>,
    separators: Option<Vec<String>>,
    limit: usize,
) -> Result<String, Error> {
    let mut json = Bounded::new(limit);
    let written = if let Some(indent) = indent {
        let indent = " ".repeat(indent.min(16));
        let formatter = PrettyFormatter::with_indent(indent.as_bytes());
        value.serialize(&mut Serializer::with_formatter(&mut json, formatter))
    } else {
        let mut separators = separators.unwrap_or_default().into_iter();
        let formatter = OneLine {
            item: separators.next().unwrap_or_else(|| ", ".to_owned()),
            key: separators.next().unwrap_or_else(|| ": ".to_owned()),
        };
        value.serialize(&mut Serializer::with_formatter(&mut json, formatter))
    };
    written.map_err(no_json)?;
    Ok(json.into_text())
}

/// A formatter for JSON on one line, with Python's separators.
struct OneLine {
    /// Separator between elements.
    item: String,
    /// Separator between a key and its value.
    key: String,
}

impl OneLine {
    fn separate<W: ?Sized + io::Write>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(self.item.as_bytes())
        }
    }
}

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// Escapes non-ASCII characters in JSON, which occur only within strings.
fn escape_non_ascii(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn render(template: &str) -> Result<String, Error> {
        let value = serde_json::json!({"b": ["<é>", 1, 2.5, null, true], "a": {}});
        let value = minijinja::value::Serde(value);
        let template = without_generation_tags(template);
        environment()?.render_str(&template, context! { value => Value::from(value) })
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        for (filter, expected) in [
            ("tojson", r#"{"b": ["<é>", 1, 2.5, null, true], "a": {}}"#),
            (
                "tojson(ensure_ascii=true, sort_keys=true, separators=[',', ':'])",
                r#"{"a":{},"b":["<\u00e9>",1,2.5,null,true]}"#,
            ),
        ] {
            assert_eq!(
                render(&format!("{{{{ value | {filter} }}}}")).unwrap(),
                expected
            );
        }
        assert_eq!(
            render("{{ value.b[:2] | tojson(indent=2) }}").unwrap(),
            "[\n  \"<é>\",\n  1\n]"
        );
        let error = render("{{ value | tojson(colour=1) }}").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooManyArguments, "{error}");
        assert!(error.to_string().contains("'colour'"), "{error}");
    }

    #[test]
    fn python_methods_loop_controls_and_trimmed_blocks_are_there() {
        let template = "{% for x in value.b %}\n    {% if loop.index == 3 %}\n        {% break %}\n    {% endif %}\n{{ x }}\n{% endfor %}";
        assert_eq!(render(template).unwrap(), "<é>\n1\n");
        let template = "{{ ' a b '.strip().split(' ')[-1].upper() }}{{ value.get('c', 'none') }}";
        assert_eq!(render(template).unwrap(), "Bnone");
        assert_eq!(render("{{ '{:>4}|{}'.format(1, 'a') }}").unwrap(), "   1|a");
        let template = "{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}";
        assert_eq!(render(template).unwrap(), "2");
    }

    #[test]
    fn blocks_of_generation_do_nothing() {
        let template = "a {%- generation -%} b {% endgeneration %} c";
        assert_eq!(render(template).unwrap(), "ab  c");
    }

    #[test]
    fn a_template_can_refuse_and_tell_the_time() {
        let error = render("{{ raise_exception('no ' ~ 'way') }}").unwrap_err();
        assert_eq!(raised(&error), Some("no way"));
        let in_macro = "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}";
        assert_eq!(raised(&render(in_macro).unwrap_err()), Some("deep"));
        assert_eq!(raised(&render("{{ nothing() }}").unwrap_err()), None);
        let year = render("{{ strftime_now('%Y') }}").unwrap();
        assert!(year.parse::<u32>().unwrap() > 2000);
        let error = render("{{ strftime_now('%Q') }}").unwrap_err();
        let message = "strftime_now: \"%Q\" is not a valid time format";
        assert!(error.to_string().contains(message), "{error}");
    }

    #[test]
    fn a_template_cannot_go_on_for_ever() {
        let doubled = |first: &str, twice: &str, shown: &str| {
            format!(
                "{{% set n = namespace(x={first}) %}}{{% for i in range(40) %}}{{% set n.x = {twice} %}}{{% endfor %}}{shown}"
            )
        };
        for template in [
            "{% for x in range(10000) %}{% for y in range(10000) %}{{ y }}{% endfor %}{% endfor %}"
                .to_owned(),
            doubled("'ab'", "n.x ~ n.x", "{{ n.x }}"),
            doubled("'ab'", "n.x + n.x", ""),
            doubled("'ab'", "n.x.replace('a', 'aaa')", ""),
            // Short lists with long texts.
            doubled("[1]", "[n.x, n.x]", "{{ n.x }}"),
            doubled("[1]", "[n.x, n.x]", "{% set y %}{{ n.x }}{% endset %}"),
            doubled("[1]", "[n.x, n.x]", "{{ n.x | tojson }}"),
            doubled("[1]", "[n.x, n.x]", "{{ n.x | tojson(sort_keys=true) }}"),
            doubled("[1]", "[n.x, n.x]", "{{ raise_exception(n.x) }}"),
            // An empty indent is written once for each level, on each level.
            "{% set n = namespace(x=[1]) %}{% for i in range(3000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x | tojson(indent=0) }}"
                .to_owned(),
            "{{ '{:1000000000}'.format(1) }}".to_owned(),
            "{{ '{:99999999999999999999}'.format(1) }}".to_owned(),
            "{{ ('{:9999}' * 100000).format(1) }}".to_owned(),
        ] {
            let error = render(&template).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfFuel, "{template}: {error}");
        }
        let long = "{{ strftime_now('%Y' * 200) }}";
        assert!(render(long).unwrap_err().to_string().contains("256"));
    }
}
