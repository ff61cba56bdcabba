//! Translates the library's errors about grammars into messages for the user.
//!
//! The library's messages refer to its internals: extension biases, fuel, registries, its own form
//! of references. Each message about a schema is rewritten to name the keyword in the schema.
//! Messages about an expression or a Lark grammar concern the user's text and are unchanged.

/// Maximum characters of a reason.
pub(super) const MAX_REASON: usize = 400;
/// Prefix that the library adds to references relative to the schema.
const BASE: &str = "json-schema:///";
/// Prefix of the library's messages about schemas that no JSON satisfies.
const UNSATISFIABLE: &str = "Unsatisfiable schema: ";
/// Prefix of the library's messages about a schema in a Lark grammar.
const NESTED: &str = "failed to compile JSON schema: ";

/// Parts of the library's messages about exceeded limits.
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

/// Schema keywords that the library does not quote.
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

/// Returns the message for the grammar's author that corresponds to a message of the library.
#[must_use]
pub fn reason(message: &str) -> String {
    // The library's own failures are of no use to the grammar's author.
    if message.contains("panic: ") && message.contains("\n<backtrace>") {
        tracing::warn!(message, "grammar library failed");
        return "the grammar library failed".to_owned();
    }
    // The library appends its state in tags, and its own name of the schema's location.
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
        // The lines that follow show the place in the grammar.
        Some((place, said)) => (place, said.lines().next().unwrap_or(said)),
        None => ("", said),
    };
    let told = translated(said).unwrap_or_else(|| said.to_owned());
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

fn translated(said: &str) -> Option<String> {
    if said == "NoExtensionBias" {
        let why = "no text can satisfy it: it refers to itself without end, or parts of it \
                   exclude each other";
        return Some(why.to_owned());
    }
    // The rest is the expression, in the library's own notation.
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
    if said.starts_with(UNSATISFIABLE) {
        let parts: Vec<_> = said
            .split(UNSATISFIABLE)
            .filter_map(unsatisfiable)
            .collect();
        return Some(format!("no JSON can satisfy it: {}", parts.join(": ")));
    }
    reference(said).or_else(|| keyword(said))
}

/// Returns one step of the reason why no JSON satisfies a schema.
fn unsatisfiable(part: &str) -> Option<String> {
    let part = part.trim_end_matches(": ");
    if part.is_empty() {
        return None;
    }
    if let Some(name) = within(part, "required property '", "' is unsatisfiable") {
        return Some(format!("the required property {name:?} has no valid value"));
    }
    if part.starts_with("Regex is empty") {
        let why = "no string satisfies `pattern`, `format`, `minLength` and `maxLength` together";
        return Some(why.to_owned());
    }
    if let Some(value) = within(part, "Constant ", " doesn't match length constraints") {
        return Some(format!(
            "the constant {value} does not have a length within `minLength` and `maxLength`"
        ));
    }
    Some(match part {
        "schema is false" => "one of its schemas is `false`".to_owned(),
        "incompatible types" => {
            "schemas that must be satisfied together (`allOf`, `$ref`, `type`, `enum`, `const`) have no type in common"
                .to_owned()
        }
        "incompatible boolean values" => "a value must be both true and false".to_owned(),
        "required item is unsatisfiable" => {
            "the items required by `minItems` have no valid value".to_owned()
        }
        "All options in anyOf are unsatisfiable" => "no schema of `anyOf` can be satisfied".to_owned(),
        "No options in anyOf" => "`anyOf` is empty".to_owned(),
        "minProperties > maxProperties" => {
            "`minProperties` is greater than `maxProperties`".to_owned()
        }
        "required > maxProperties" => {
            "`required` has more names than `maxProperties` allows".to_owned()
        }
        part => marked(&part.replace("is unsatisfiable but", "can't be satisfied, and")),
    })
}

/// Rewrites messages about references and addresses.
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
            "`$ref` is {:?}, which refers back to itself and has other keywords beside it; move these into the schema that it refers to",
            own(uri)
        ));
    }
    if let Some(pointer) = within(said, "Pointer '", "' does not exist") {
        let pointer = format!("#{pointer}");
        return Some(format!(
            "`$ref` is {pointer:?}, which does not exist in the schema; {INSIDE}"
        ));
    }
    for (begin, end) in [
        ("Invalid percent encoding in pointer '", "'"),
        ("Failed to parse array index '", "'"),
        ("Definition not found: ", ""),
    ] {
        if let Some(part) = within(said, begin, end) {
            return Some(format!(
                "`$ref` has {:?}, which does not exist in the schema; {INSIDE}",
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

/// Rewrites messages about one keyword.
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
            "two expressions of `patternProperties` match the same name: {}",
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
            "its schemas are nested too deeply when combined (`allOf`, `$ref`)".to_owned()
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
            "`oneOf` is supported only if its schemas exclude each other by type or by constants; use `anyOf`"
                .to_owned()
        }
        said if said.starts_with("min/maxProperties only supported when") => {
            "`minProperties` and `maxProperties` are supported only if all of `properties` are `required`"
                .to_owned()
        }
        _ => return None,
    })
}

/// Returns the text between a prefix and the next occurrence of `end`.
fn within<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(begin)?;
    if end.is_empty() {
        return Some(rest);
    }
    rest.find(end).and_then(|at| rest.get(..at))
}

/// Quotes keywords in backticks, like all messages.
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
