//! Detects references of a schema that form a cycle without any items or properties in between.
//!
//! The library accepts them, but then no token is allowed. A cycle through an item or a property is
//! an ordinary recursive schema.

use std::collections::HashSet;

use serde_json::Value;

use super::GrammarError;

/// Keywords whose values are data.
pub(super) const DATA: [&str; 6] = [
    "const",
    "enum",
    "default",
    "examples",
    super::OPTIONS,
    "$comment",
];

/// Checks that each `$ref` in the schema ends in something other than a reference.
///
/// # Errors
/// The first reference that does not.
pub(super) fn check(root: &Value) -> Result<(), GrammarError> {
    let mut found = Vec::new();
    // A part of a schema with its own `$id` resolves the same reference differently.
    if !collect(root, true, &mut found) {
        return Ok(());
    }
    let mut ended = HashSet::new();
    for reference in found {
        let mut way = HashSet::new();
        let mut next = Some(reference);
        while let Some(at) = next {
            if ended.contains(at) {
                break;
            }
            if !way.insert(at) {
                return Err(GrammarError(format!(
                    "`$ref` is {reference:?}, which refers back to itself directly; a schema can refer to itself only within its items or properties"
                )));
            }
            let pointer = at.strip_prefix('#');
            let target = pointer.and_then(|pointer| root.pointer(pointer));
            next = target.and_then(|target| target.get("$ref")?.as_str());
        }
        ended.extend(way);
    }
    Ok(())
}

/// Collects references; returns whether all of them are relative to the whole schema.
fn collect<'a>(schema: &'a Value, is_root: bool, found: &mut Vec<&'a str>) -> bool {
    match schema {
        Value::Array(items) => items.iter().all(|item| collect(item, false, found)),
        Value::Object(keywords) => {
            if !is_root && keywords.contains_key("$id") {
                return false;
            }
            found.extend(keywords.get("$ref").and_then(Value::as_str));
            let mut schemas = keywords
                .iter()
                .filter(|(name, _)| !DATA.contains(&name.as_str()));
            schemas.all(|(_, value)| collect(value, false, found))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reference_that_leads_to_itself_alone_is_refused() {
        for schema in [
            json!({"$ref": "#"}),
            json!({"$ref": "#", "type": "object"}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            json!({"type": "array", "items": {"$ref": "#/items"}}),
        ] {
            let refused = check(&schema).expect_err(&schema.to_string()).to_string();
            assert!(
                refused.contains("refers back to itself") && refused.contains("`$ref` is \"#"),
                "{refused}"
            );
        }
        for schema in [
            json!({"type": "array", "items": {"$ref": "#"}}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}),
            json!({"$ref": "#/$defs/none"}),
            json!({"$ref": "https://example.com/a"}),
            json!({"const": {"$ref": "#"}}),
            json!({"$defs": {"a": {"$id": "https://example.com/a", "$ref": "#"}}}),
        ] {
            assert_eq!(check(&schema), Ok(()), "{schema}");
        }
    }
}
