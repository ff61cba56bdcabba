//! Tests of the messages about grammars that can't be followed.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{GrammarSource, Grammars};
use super::*;
use crate::text::Tokenizer;

/// Words for the library's internals, which messages must not contain.
const FOREIGN: [&str; 22] = [
    "NoExtension",
    "retriev",
    "registry",
    "nsatisfiable",
    "Unimplemented",
    "Expected",
    "f64",
    "json-schema:///",
    "while processing",
    "fuel",
    "lexer",
    "lexeme",
    "regex",
    "patternProperty",
    "coerce_one_of",
    "boolean or",
    "999999",
    "000000",
    "intersection",
    "sibling",
    "array of",
    "disjoint",
];

#[test]
fn reasons_are_told_without_the_librarys_own_state() {
    assert_eq!(reason("no such rule\n<state>\nTokens"), "no such rule");
    assert_eq!(reason("two\nlines\n<non-verbose/>"), "two\nlines");
    let nothing = reason("NoExtensionBias");
    assert!(nothing.starts_with("no text can satisfy it"), "{nothing}");
    let undecided = reason("Unable to determine if regex is empty:  (And (And [a] [b]))");
    assert!(!undecided.contains("And"), "{undecided}");
    let long = reason(&"é".repeat(1000));
    assert!(long.ends_with('…') && long.chars().count() == MAX_REASON);
}

/// Returns a schema with a required property.
fn within(of: &Value) -> Value {
    json!({"type": "object", "properties": {"a": of}, "required": ["a"]})
}

/// Returns faulty references and parts of their messages.
fn references() -> Vec<(Value, &'static str)> {
    vec![
        (
            json!({"$ref": "#"}),
            "`$ref` is \"#\", which refers back to itself",
        ),
        (
            json!({"$ref": "http://example.com/a.json"}),
            "`$ref` (or `$schema`) is \"http://example.com/a.json\", which is not in the schema",
        ),
        (
            json!({"$ref": "other.json"}),
            "`$ref` (or `$schema`) is \"other.json\", which is not in the schema",
        ),
        (
            within(&json!({"$ref": "#/$defs/none"})),
            "`$ref` is \"#/$defs/none\", which does not exist",
        ),
        (json!({"$ref": "#none"}), "`$ref` is \"#none\""),
        (json!({"$ref": "#/%ff"}), "does not exist"),
        (json!({"$ref": "http://["}), "not a valid URI"),
        (json!({"$ref": 3}), "`$ref` must be a string, got 3"),
        (
            json!({"$dynamicRef": "#a"}),
            "`$dynamicRef` is not supported",
        ),
        (
            json!({"$schema": "https://example.com/dialect", "type": 4}),
            "`$schema`) is \"https://example.com/dialect\"",
        ),
    ]
}

/// Returns schemas that can't be satisfied.
fn contradictions() -> Vec<(Value, &'static str)> {
    vec![
        (
            json!({"multipleOf": 1e-300}),
            "`multipleOf` is 1e-300, which can't be followed exactly",
        ),
        (
            json!({"type": "number", "minimum": 1e300}),
            "`minimum` is 1e+300",
        ),
        (
            json!({"type": "integer", "minimum": 3, "maximum": 2}),
            "`minimum` (3) is greater than `maximum` (2)",
        ),
        (
            json!({"type": "string", "minLength": 3, "maxLength": 2}),
            "`minLength` (3) is greater than `maxLength` (2)",
        ),
        (
            within(&json!({"type": "array", "minItems": 3, "maxItems": 2})),
            "the required property \"a\" has no valid value",
        ),
        (
            json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
            "have no type in common",
        ),
        (
            json!({"type": "string", "pattern": "^a$", "minLength": 2}),
            "no string satisfies `pattern`",
        ),
        (
            json!({"const": "abc", "type": "string", "maxLength": 2}),
            "does not have a length",
        ),
        (json!(false), "one of its schemas is `false`"),
    ]
}

/// Returns keywords with values that are not valid or not supported.
fn keywords() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"not": {"type": "string"}}), "`not` is not supported"),
        (
            json!({"if": {}, "then": {}, "else": {}}),
            "`else`, `if`, `then` are not supported",
        ),
        (json!({"enum": []}), "`enum` must have at least one value"),
        (json!({"enum": 3}), "`enum` must be a list"),
        (json!({"allOf": {}}), "`allOf` must be a list"),
        (
            json!({"type": "string", "minLength": -1}),
            "`minLength` must be an integer, 0 or more, got -1",
        ),
        (
            json!({"type": "integer", "minimum": "3"}),
            "`minimum` must be a number, got \"3\"",
        ),
        (
            json!({"type": "object", "required": "a"}),
            "`required` must be a list, got \"a\"",
        ),
        (
            json!({"type": "object", "required": [3]}),
            "each name in `required` must be a string, got 3",
        ),
        (json!({"properties": []}), "`properties` must be an object"),
        (
            json!({"items": 3}),
            "a schema must be an object, `true` or `false`",
        ),
        (json!({"type": "strin"}), "`type` must be \"null\""),
        (
            json!({"type": 3}),
            "`type` must be a string or a list of strings",
        ),
        (
            json!({"type": "string", "format": "colour"}),
            "`format` \"colour\" is not known",
        ),
        (
            json!({"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 3}]}),
            "`oneOf` is supported only if",
        ),
        (
            json!({"type": "object", "patternProperties": {"a": {}, "b": {}}}),
            "match the same name: /a/ and /b/",
        ),
        (
            json!({"type": "object", "properties": {"a": {}}, "minProperties": 2}),
            "`minProperties` and `maxProperties` are supported only if",
        ),
        (
            json!({"x-guidance": {"json_allowed_escapes": "x"}, "type": "string", "minLength": 1}),
            "x-guidance",
        ),
    ]
}

#[test]
fn what_is_wrong_with_a_schema_is_told_in_our_words() {
    // The built-in model's tokenizer.
    let json = include_bytes!("../../../assets/fairy-tales/tokenizer.json");
    let tokenizer = Arc::new(Tokenizer::from_json(json).unwrap());
    let grammars = Grammars::new(tokenizer, 8192, &[8191]);
    let mut wrong = Vec::new();
    for (schema, part) in [references(), contradictions(), keywords()].concat() {
        // By itself, and within a Lark grammar.
        let lark = format!("start: \"a\" inner\ninner: %json {schema}");
        for source in [
            GrammarSource::JsonSchema(schema.to_string()),
            GrammarSource::Lark(lark),
        ] {
            let told = grammars
                .compile(&source)
                .err()
                .map(|error| error.to_string());
            let told = told.unwrap_or_else(|| "it was compiled".to_owned());
            eprintln!("{source:?}\n    {told}");
            let foreign = FOREIGN.iter().find(|word| told.contains(**word));
            if !told.contains(part) || foreign.is_some() {
                wrong.push(format!("{source:?}: {told:?}, not {part:?} ({foreign:?})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
