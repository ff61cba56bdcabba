//! What the library says of a grammar that it can't follow, in the words of this server.
//!
//! The library speaks of its own parts: extension biases, fuel, registries, references in a form of its
//! own. Here each of its messages about a schema becomes a sentence that names the keyword as it stands
//! in the schema. What it says of an expression or a grammar in Lark is about the text that was sent,
//! and stays as it is.

/// Characters of a reason that are told.
pub(super) const MAX_REASON: usize = 400;
/// What the library puts before references that are relative to the schema.
const BASE: &str = "json-schema:///";
/// What the library says where no JSON follows a schema.
const NOTHING: &str = "Unsatisfiable schema: ";
/// Before what it says of a schema within a grammar in Lark.
const NESTED: &str = "failed to compile JSON schema: ";

/// Where the library stops because something has become too large.
const TOO_COMPLEX: [&str; 9] = [
    "lexer error: ",
    "parser error: ",
    "too many states",
    "too many expressions constructed",
    "too big (limit for this grammar",
    "fuel exhausted",
    "lexer precomputation failed",
    "consider making your grammar left-recursive",
    "DNF too large",
];

/// Keywords of schemas that the library names without marking them.
const KEYWORDS: [&str; 15] = [
    "anyOf",
    "oneOf",
    "allOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "prefixItems",
];

/// Returns one of the library's messages as it is told to the person who wrote the grammar.
#[must_use]
pub fn reason(message: &str) -> String {
    // What the library says where it fails itself is for its authors.
    if message.contains("panic: ") && message.contains("\n<backtrace>") {
        tracing::warn!(message, "grammar library failed");
        return "the grammar library failed on it".to_owned();
    }
    // It appends its state in tags, and the place of a schema as it calls it.
    let end = [
        "\n<state>",
        "\n<non-verbose/>",
        "\n<backtrace>",
        "\n<grammar>",
        "\n  while processing ",
    ]
    .iter()
    .filter_map(|mark| message.find(mark))
    .min()
    .unwrap_or(message.len());
    let said = message.get(..end).unwrap_or(message);
    let (place, said) = match said.split_once(NESTED) {
        // The lines that follow show where in the grammar it stands.
        Some((place, said)) => (place, said.lines().next().unwrap_or(said)),
        None => ("", said),
    };
    let told = in_our_words(said).unwrap_or_else(|| said.to_owned());
    shortened(&format!("{place}{told}"))
}

fn shortened(told: &str) -> String {
    if told.chars().nth(MAX_REASON).is_none() {
        return told.to_owned();
    }
    let mut shown: String = told.chars().take(MAX_REASON - 1).collect();
    shown.push('…');
    shown
}

fn in_our_words(said: &str) -> Option<String> {
    if said == "NoExtensionBias" {
        let why = "no text can follow it to its end: it refers to itself without end, or parts of it \
                   exclude each other";
        return Some(why.to_owned());
    }
    // What follows is the expression, in the library's own notation.
    if said.contains("Unable to determine if regex is empty") {
        let why =
            "its regular expressions are too complex to tell whether any text matches them all";
        return Some(why.to_owned());
    }
    if TOO_COMPLEX.iter().any(|part| said.contains(part)) {
        let why =
            "it is too complex; use fewer or shorter expressions, alternatives and repetitions";
        return Some(why.to_owned());
    }
    if said.starts_with(NOTHING) {
        let parts: Vec<_> = said.split(NOTHING).filter_map(nothing).collect();
        return Some(format!("no JSON can satisfy it: {}", parts.join(": ")));
    }
    reference(said).or_else(|| keyword(said))
}

/// Part of why no JSON follows a schema.
fn nothing(part: &str) -> Option<String> {
    let part = part.trim_end_matches(": ");
    if part.is_empty() {
        return None;
    }
    if let Some(name) = within(part, "required property '", "' is unsatisfiable") {
        return Some(format!("the required property {name:?} allows nothing"));
    }
    if part.starts_with("Regex is empty") {
        let why = "no string has its `pattern`, `format`, `minLength` and `maxLength` together";
        return Some(why.to_owned());
    }
    if let Some(value) = within(part, "Constant ", " doesn't match length constraints") {
        return Some(format!(
            "the constant {value} does not have the length that `minLength` and `maxLength` ask for"
        ));
    }
    Some(match part {
        "schema is false" => "one of its schemas is `false`".to_owned(),
        "incompatible types" => {
            "schemas that must be followed together (`allOf`, `$ref`, `type`, `enum`, `const`) have no type in common"
                .to_owned()
        }
        "incompatible boolean values" => "a value must be both true and false".to_owned(),
        "required item is unsatisfiable" => {
            "the items that `minItems` asks for allow nothing".to_owned()
        }
        "All options in anyOf are unsatisfiable" => "each schema of `anyOf` allows nothing".to_owned(),
        "No options in anyOf" => "`anyOf` is empty".to_owned(),
        "minProperties > maxProperties" => {
            "`minProperties` is greater than `maxProperties`".to_owned()
        }
        "required > maxProperties" => {
            "`required` has more names than `maxProperties` allows".to_owned()
        }
        part => marked(&part.replace("is unsatisfiable but", "allows nothing, and")),
    })
}

/// Messages about references and addresses.
fn reference(said: &str) -> Option<String> {
    const FAILED: &str = "' is not present in a registry and retrieving it failed";
    const INSIDE: &str = "refer to a part of the schema, such as \"#/$defs/name\"";
    let own = |uri: &str| uri.strip_prefix(BASE).unwrap_or(uri).to_owned();
    if let Some(uri) = within(said, "Resource '", FAILED) {
        return Some(format!(
            "`$ref` (or `$schema`) is {:?}, which is not in the schema, and nothing is fetched; {INSIDE}",
            own(uri)
        ));
    }
    if let Some(uri) =
        said.strip_prefix("circular references with sibling keys are not supported: ")
    {
        return Some(format!(
            "`$ref` is {:?} and leads back to itself beside other keywords; put these into the schema that it refers to",
            own(uri)
        ));
    }
    if let Some(pointer) = within(said, "Pointer '", "' does not exist") {
        let pointer = format!("#{pointer}");
        return Some(format!(
            "`$ref` is {pointer:?}, which leads to nothing in the schema; {INSIDE}"
        ));
    }
    for (begin, end) in [
        ("Invalid percent encoding in pointer '", "'"),
        ("Failed to parse array index '", "'"),
        ("Definition not found: ", ""),
    ] {
        if let Some(part) = within(said, begin, end) {
            return Some(format!(
                "`$ref` has {:?}, which leads to nothing in the schema; {INSIDE}",
                own(part)
            ));
        }
    }
    if let Some(anchor) = within(said, "Anchor '", "' ") {
        return Some(format!(
            "`$ref` is {:?}, but no `$anchor` of this name is in the schema",
            format!("#{anchor}")
        ));
    }
    for begin in [
        "Invalid URI reference '",
        "Invalid URI '",
        "Failed to resolve '",
    ] {
        if let Some(uri) = within(said, begin, "'") {
            return Some(format!("{uri:?} (`$ref` or `$id`) is not a valid URI"));
        }
    }
    let unknown = within(said, "Unknown meta-schema: '", "'");
    let unknown = unknown.or(said.strip_prefix("Unknown specification: "));
    unknown.map(|schema| {
        format!(
            "`$schema` is {schema:?}, which is not a known version of JSON Schema; leave it out"
        )
    })
}

/// Messages about one keyword.
fn keyword(said: &str) -> Option<String> {
    if let Some(listed) = said.strip_prefix("Unimplemented keys: ") {
        let keys: Vec<String> = serde_json::from_str(listed).ok()?;
        let keys: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
        let verb = if keys.len() == 1 { "is" } else { "are" };
        return Some(format!("{} {verb} not supported", keys.join(", ")));
    }
    if let Some(format) = said.strip_prefix("Unknown format: ") {
        return Some(format!(
            "`format` {format:?} is not known; leave it out, or use `pattern`"
        ));
    }
    if let Some(name) = said.strip_prefix("Invalid type: ") {
        return Some(format!(
            "`type` must be \"null\", \"boolean\", \"integer\", \"number\", \"string\", \"array\" or \"object\", got {name:?}"
        ));
    }
    if let Some((kind, rest)) = said
        .strip_prefix("Expected ")
        .and_then(|rest| rest.split_once(" for '"))
    {
        let (name, got) = rest.split_once('\'')?;
        let got = got.split_once("got ").map_or("", |(_, got)| got);
        let each = if rest.contains("' item, got") {
            "each name in "
        } else {
            ""
        };
        let kind = match kind {
            "f64" => "a number",
            "positive integer" => "an integer, 0 or more",
            "array" => "a list",
            "object" => "an object",
            "string" => "a string",
            kind => kind,
        };
        return Some(format!("{each}`{name}` must be {kind}, got {got}"));
    }
    if let Some(got) = said.strip_prefix("$ref must be a string, got ") {
        return Some(format!("`$ref` must be a string, got {got}"));
    }
    if let Some(escape) = said.strip_prefix("invalid escape character in allowed_escapes: ") {
        return Some(format!(
            "`x-guidance.json_allowed_escapes` can have the characters nrbtf\"u\\ only, got {escape:?}"
        ));
    }
    if let Some(rest) = said.strip_prefix("patternProperty regexes ") {
        return Some(format!(
            "two expressions of `patternProperties` can match the same name: {}",
            rest.trim_end_matches(" are not disjoint")
        ));
    }
    if let Some(rest) = said.strip_prefix("can't determine if patternProperty regexes ") {
        return Some(format!(
            "the expressions of `patternProperties` are too complex to tell whether two of them match the same name: {}",
            rest.trim_end_matches(" are disjoint")
        ));
    }
    Some(match said {
        "schema must be an object or boolean" => {
            "a schema must be an object, `true` or `false`".to_owned()
        }
        "schema too large" => "the schema is too large".to_owned(),
        "Schema intersection stack level exceeded" => {
            "its schemas are nested too deeply where they are put together (`allOf`, `$ref`)".to_owned()
        }
        "type must be a string" | "type must be a string or array of strings" => {
            "`type` must be a string or a list of strings".to_owned()
        }
        "properties must be an object" => "`properties` must be an object".to_owned(),
        "prefixItems must be an array"
        | "enum must be an array"
        | "allOf must be an array"
        | "anyOf must be an array"
        | "oneOf must be an array" => {
            let name = said.split(' ').next().unwrap_or_default();
            format!("`{name}` must be a list")
        }
        said if said.starts_with("oneOf constraints are not supported") => {
            "`oneOf` can be followed only if its schemas exclude each other by their types or by constants; use `anyOf`"
                .to_owned()
        }
        said if said.starts_with("min/maxProperties only supported when") => {
            "`minProperties` and `maxProperties` can be followed only if all of `properties` are `required`"
                .to_owned()
        }
        _ => return None,
    })
}

/// Returns the text between two others, the first of which begins it.
fn within<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(begin)?;
    if end.is_empty() {
        return Some(rest);
    }
    rest.find(end).and_then(|at| rest.get(..at))
}

/// Marks keywords as they are marked in all messages.
fn marked(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let name = word.split('[').next().unwrap_or(word);
        if KEYWORDS.contains(&name) {
            format!("`{word}`")
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
