//! Adjusts or refuses parts of a JSON schema before the library compiles it, so that every accepted
//! schema is followed exactly.
//!
//! The library stores bounds as 64-bit floats, and converts those of integers to 64-bit integers. A
//! bound that a float can't represent would change, and one beyond 64 bits would saturate.
//! Therefore such a bound is moved inwards to the next representable one, so that generated values
//! are always within the requested bounds. If no value is left, the bound is refused by name.
//!
//! This module does not compile schemas. Data in a schema (`const`, `enum`, `default`, `examples`)
//! must not be treated as a schema.

mod bounds;

use serde::Deserialize;
use serde_json::{Map, Number, Value};

use self::bounds::{EXACT, INTEGERS, integer_bounds, number_bounds};
use super::GrammarError;
use super::expression::Shape;
use super::reference::{self, DATA};

/// Maximum length of a text, list or object; more than the bytes of any response.
const MAX_LENGTH: u64 = 1 << 27;
/// Maximum digits of a `multipleOf`, which takes one state per remainder.
const MAX_MULTIPLE_DIGITS: usize = 5;

/// Keywords whose values are objects of named schemas.
const NAMED: [&str; 5] = [
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
];
/// Keywords for which the library combines several schemas into one.
const COMBINING: [&str; 5] = ["allOf", "anyOf", "oneOf", "$ref", "patternProperties"];

/// Checks a schema, and moves bounds that can't be represented inwards.
///
/// # Errors
/// The keyword that can't be followed, its value, and the supported values.
pub(super) fn prepare(schema: &mut Value) -> Result<(), GrammarError> {
    options(schema)?;
    reference::check(schema)?;
    let mut whole = Whole::default();
    whole.visit(schema)?;
    whole.check_multiples()
}

/// Returns the bytes of all regular expressions in a schema.
pub(super) fn expression_bytes(schema: &Value) -> usize {
    match schema {
        Value::Array(items) => items.iter().map(expression_bytes).sum(),
        Value::Object(entries) => {
            let own = entries.iter().map(|(key, value)| match (&key[..], value) {
                ("pattern", Value::String(pattern)) => pattern.len(),
                ("patternProperties", Value::Object(by_pattern)) => {
                    by_pattern.keys().map(String::len).sum::<usize>() + expression_bytes(value)
                }
                // Separators and whitespace are regular expressions too.
                (super::OPTIONS, Value::Object(options)) => {
                    let texts = options.values().filter_map(Value::as_str);
                    texts.map(str::len).sum()
                }
                _ => expression_bytes(value),
            });
            own.sum()
        }
        _ => 0,
    }
}

/// Checks the library's own settings, because the library's errors would not name them.
fn options(schema: &Value) -> Result<(), GrammarError> {
    let Some(options) = schema.get(super::OPTIONS) else {
        return Ok(());
    };
    let refuse = |why: &str| GrammarError(format!("`{}`: {why}", super::OPTIONS));
    if !options.is_object() {
        return Err(refuse("it must be an object"));
    }
    let read = llguidance::JsonCompileOptions::deserialize(options);
    read.map(drop).map_err(|error| refuse(&error.to_string()))
}

/// Facts collected over a whole schema.
#[derive(Default)]
struct Whole {
    /// Each `multipleOf`, as its digits and its number of decimal places.
    multiples: Vec<(u64, u32)>,
    combines: bool,
}

impl Whole {
    fn visit(&mut self, schema: &mut Value) -> Result<(), GrammarError> {
        match schema {
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.visit(item)),
            Value::Object(keywords) => self.object(keywords),
            _ => Ok(()),
        }
    }

    fn object(&mut self, keywords: &mut Map<String, Value>) -> Result<(), GrammarError> {
        if is_integer(keywords.get("type")) {
            integer_bounds(keywords)?;
        } else {
            number_bounds(keywords)?;
        }
        lengths(keywords)?;
        expressions(keywords)?;
        self.multiple(keywords)?;
        for (name, of) in [("enum", "value"), ("anyOf", "schema"), ("oneOf", "schema")] {
            if keywords
                .get(name)
                .and_then(Value::as_array)
                .is_some_and(Vec::is_empty)
            {
                return Err(GrammarError(format!(
                    "`{name}` must have at least one {of}"
                )));
            }
        }
        for name in ["const", "enum"] {
            if let Some(data) = keywords.get(name) {
                constant(name, data)?;
            }
        }
        for (name, value) in keywords {
            self.combines |= COMBINING.contains(&&name[..]);
            match (&name[..], value) {
                (name, _) if DATA.contains(&name) => (),
                (name, Value::Object(named)) if NAMED.contains(&name) => {
                    named
                        .values_mut()
                        .try_for_each(|schema| self.visit(schema))?;
                }
                (_, value) => self.visit(value)?,
            }
        }
        Ok(())
    }

    fn multiple(&mut self, keywords: &Map<String, Value>) -> Result<(), GrammarError> {
        let Some(Value::Number(multiple)) = keywords.get("multipleOf") else {
            return Ok(());
        };
        if multiple.as_f64().is_none_or(|value| value <= 0.0) {
            return Err(GrammarError(format!(
                "`multipleOf` must be greater than 0, got {multiple}"
            )));
        }
        let parts = decimal(multiple);
        let digits = parts.map(|(coefficient, _)| significant(coefficient));
        let Some(parts) = parts.filter(|_| digits.is_some_and(|d| d <= MAX_MULTIPLE_DIGITS)) else {
            return Err(GrammarError(format!(
                "`multipleOf` can have at most {MAX_MULTIPLE_DIGITS} digits, got {multiple}"
            )));
        };
        if !is_followed(multiple, parts) {
            return Err(GrammarError(format!(
                "`multipleOf` is {multiple}, which can't be followed exactly; integers can, and fractions such as 0.5, 0.25, 0.1 and 0.01"
            )));
        }
        if !self.multiples.contains(&parts) {
            self.multiples.push(parts);
        }
        Ok(())
    }

    /// Checks that the `multipleOf` of combined schemas can be combined too, in 32 bits.
    fn check_multiples(&self) -> Result<(), GrammarError> {
        if !self.combines || self.multiples.len() < 2 {
            return Ok(());
        }
        let behind = self.multiples.iter().map(|&(_, behind)| behind).max();
        let behind = behind.unwrap_or(0);
        let mut product = Some(1_u32);
        for &(coefficient, own) in &self.multiples {
            let scale = 10_u64.checked_pow(behind - own);
            let scaled = scale.and_then(|scale| coefficient.checked_mul(scale));
            let scaled = scaled.and_then(|scaled| u32::try_from(scaled).ok());
            product = product.zip(scaled).and_then(|(a, b)| a.checked_mul(b));
        }
        match product {
            Some(_) => Ok(()),
            None => Err(GrammarError(format!(
                "its {} different `multipleOf` can't be combined with `allOf`, `anyOf`, `oneOf`, `$ref` or `patternProperties`: they have too many digits together",
                self.multiples.len()
            ))),
        }
    }
}

/// Returns a number as its digits and its number of decimal places; `None` if it has too many
/// digits.
fn decimal(number: &Number) -> Option<(u64, u32)> {
    let text = number.to_string();
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((&text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let mut coefficient: u64 = format!("{whole}{fraction}").parse().ok()?;
    let exponent: i64 = exponent.trim_start_matches('+').parse().ok()?;
    let mut behind = i64::try_from(fraction.len()).ok()? - exponent;
    while behind < 0 {
        coefficient = coefficient.checked_mul(10)?;
        behind += 1;
    }
    Some((coefficient, u32::try_from(behind).ok()?))
}

/// Returns whether the library reads the same digits from a number. It multiplies the float by ten
/// until it has no fraction, which changes some numbers, such as 0.07.
fn is_followed(multiple: &Number, (coefficient, behind): (u64, u32)) -> bool {
    let Some(mut value) = multiple.as_f64() else {
        return false;
    };
    let mut multiplied = 0;
    while value.fract() != 0.0 && multiplied < behind {
        value *= 10.0;
        multiplied += 1;
    }
    multiplied == behind && value == coefficient as f64
}

/// Returns the number of digits without trailing zeros.
fn significant(number: u64) -> usize {
    number.to_string().trim_end_matches('0').len()
}

/// Returns whether a type allows integers but no other numbers.
fn is_integer(of_type: Option<&Value>) -> bool {
    let is = |value: &Value, name: &str| value.as_str() == Some(name);
    match of_type {
        Some(Value::Array(types)) => {
            types.iter().any(|of| is(of, "integer")) && !types.iter().any(|of| is(of, "number"))
        }
        Some(of_type) => is(of_type, "integer"),
        None => false,
    }
}

/// Checks regular expressions.
fn expressions(keywords: &Map<String, Value>) -> Result<(), GrammarError> {
    if let Some(pattern) = keywords.get("pattern").and_then(Value::as_str) {
        Shape::of(pattern).check()?;
    }
    if let Some(Value::Object(by_pattern)) = keywords.get("patternProperties") {
        let mut patterns = by_pattern.keys();
        patterns.try_for_each(|pattern| Shape::of(pattern).check())?;
    }
    if let Some(Value::Object(options)) = keywords.get(super::OPTIONS) {
        let mut options = options.values().filter_map(Value::as_str);
        options.try_for_each(|option| Shape::of(option).check())?;
    }
    Ok(())
}

/// Checks and adjusts lengths: numbers of characters, items or properties.
fn lengths(keywords: &mut Map<String, Value>) -> Result<(), GrammarError> {
    let too_long = |value: &Value| {
        value
            .as_f64()
            .is_some_and(|length| length > MAX_LENGTH as f64)
    };
    for name in ["minLength", "minItems", "minProperties"] {
        if let Some(value) = keywords.get(name).filter(|value| too_long(value)) {
            return Err(GrammarError(format!(
                "`{name}` is {value}; it can be at most {MAX_LENGTH}"
            )));
        }
    }
    for name in ["maxLength", "maxItems", "maxProperties"] {
        if let Some(value) = keywords.get_mut(name).filter(|value| too_long(value)) {
            *value = Value::from(MAX_LENGTH);
        }
    }
    Ok(())
}

/// Checks that the library allows exactly the numbers in data.
fn constant(name: &str, data: &Value) -> Result<(), GrammarError> {
    let exact = |number: &Number| match (number.as_i64(), number.as_u64()) {
        (Some(integer), _) => {
            let integer = i128::from(integer);
            integer >= INTEGERS.0 && (integer as f64) as i128 == integer
        }
        // Beyond signed 64 bits the library treats it as a float, and writes it as one.
        (None, Some(_)) => false,
        (None, None) => true,
    };
    match data {
        Value::Number(number) if !exact(number) => Err(GrammarError(format!(
            "`{name}` has the number {number}, which can't be followed exactly: beyond {EXACT} only some integers can"
        ))),
        Value::Array(items) => items.iter().try_for_each(|item| constant(name, item)),
        Value::Object(fields) => fields.values().try_for_each(|value| constant(name, value)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prepared(mut schema: Value) -> Result<Value, String> {
        prepare(&mut schema).map_err(|error| error.to_string())?;
        Ok(schema)
    }

    #[track_caller]
    fn becomes(from: Value, to: Value) {
        assert_eq!(prepared(from), Ok(to));
    }

    #[track_caller]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "json!() in a call reads better without a reference"
    )]
    fn refused(schema: Value, parts: &[&str]) {
        let message = prepared(schema.clone()).expect_err(&schema.to_string());
        for part in parts {
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    #[test]
    fn bounds_that_can_be_held_stay_as_they_are() {
        for schema in [
            json!({"type": "integer", "minimum": -5, "exclusiveMaximum": 7}),
            json!({"type": "number", "minimum": 0.25, "maximum": 1e9}),
            json!({"minimum": 0, "exclusiveMinimum": true}),
            json!({"properties": {"minimum": {"type": "integer", "maximum": 3}}}),
            json!({"const": {"minimum": 7}, "default": {"minimum": 1e300}}),
            json!({"type": "string", "maxLength": 100}),
        ] {
            becomes(schema.clone(), schema);
        }
    }

    #[test]
    fn bounds_of_integers_are_moved_inwards() {
        let integer = |bounds: Value| {
            let mut schema = json!({"type": "integer"});
            let bounds = bounds.as_object().unwrap().clone();
            schema.as_object_mut().unwrap().extend(bounds);
            schema
        };
        let cases = [
            (
                json!({"minimum": i64::MIN, "maximum": i64::MAX}),
                json!({"minimum": i64::MIN + 1024, "maximum": i64::MAX}),
            ),
            // A float can't represent 2^53 + 1.
            (
                json!({"minimum": 9_007_199_254_740_993_i64, "maximum": 9_007_199_254_740_999_i64}),
                json!({"minimum": 9_007_199_254_740_994_i64, "maximum": 9_007_199_254_740_998_i64}),
            ),
            (
                json!({"exclusiveMinimum": 9_007_199_254_740_992_i64}),
                json!({"minimum": 9_007_199_254_740_994_i64}),
            ),
            (
                json!({"minimum": 0, "maximum": u64::MAX}),
                json!({"minimum": 0, "maximum": i64::MAX}),
            ),
            (
                json!({"minimum": -1e30, "maximum": 1e30}),
                json!({"minimum": i64::MIN + 1024, "maximum": i64::MAX}),
            ),
            (
                json!({"minimum": 5_000_000_000_000_000_000_i64}),
                json!({"minimum": 5_000_000_000_000_000_000_i64, "maximum": i64::MAX}),
            ),
            (
                json!({"maximum": -5_000_000_000_000_000_000_i64}),
                json!({"minimum": i64::MIN + 1024, "maximum": -5_000_000_000_000_000_000_i64}),
            ),
        ];
        for (from, to) in cases {
            becomes(integer(from), integer(to));
        }
        refused(integer(json!({"minimum": 1e19})), &["`minimum` is 1e+19"]);
        refused(integer(json!({"maximum": -1e19})), &["`maximum`"]);
        let between = 9_007_199_254_740_993_i64;
        refused(
            integer(json!({"minimum": between, "maximum": between})),
            &["9007199254740993", "`minimum`", "`maximum`"],
        );
    }

    #[test]
    fn bounds_of_other_numbers_end_where_floats_are_exact() {
        let exact = 1_i64 << 53;
        becomes(
            json!({"type": "number", "minimum": -1e300, "maximum": f64::MAX}),
            json!({"type": "number", "minimum": -exact, "maximum": exact}),
        );
        becomes(
            json!({"type": "number", "minimum": -1e300, "exclusiveMinimum": 0}),
            json!({"type": "number", "exclusiveMinimum": 0}),
        );
        refused(
            json!({"type": "number", "minimum": 1e18}),
            &["`minimum`", "integer"],
        );
        refused(
            json!({"exclusiveMaximum": -1e300}),
            &["`exclusiveMaximum` is -1e+300"],
        );
    }

    #[test]
    fn settings_and_lists_are_refused_by_name() {
        refused(
            json!({"x-guidance": 3}),
            &["`x-guidance`: it must be an object"],
        );
        refused(
            json!({"x-guidance": {"colour": 3}}),
            &["`x-guidance`: unknown field `colour`"],
        );
        refused(
            json!({"items": {"enum": []}}),
            &["`enum` must have at least one value"],
        );
        refused(
            json!({"anyOf": []}),
            &["`anyOf` must have at least one schema"],
        );
    }

    #[test]
    fn numbers_in_data_are_exact_or_refused() {
        for schema in [
            json!({"const": 1_i64 << 60}),
            json!({"enum": [1.5, "9", [1e300]]}),
        ] {
            becomes(schema.clone(), schema);
        }
        refused(
            json!({"const": u64::MAX}),
            &["`const`", "18446744073709551615"],
        );
        refused(json!({"const": i64::MIN}), &["`const`"]);
        let data = json!({"properties": {"a": {"enum": ["x", {"b": 9_007_199_254_740_993_i64}]}}});
        refused(data, &["`enum`", "9007199254740993"]);
    }

    #[test]
    fn lengths_end_where_answers_do() {
        becomes(
            json!({"maxLength": u64::MAX, "maxItems": 1e30}),
            json!({"maxLength": MAX_LENGTH, "maxItems": MAX_LENGTH}),
        );
        refused(
            json!({"minItems": 4_294_967_296_u64}),
            &["`minItems`", "4294967296"],
        );
    }

    #[test]
    fn a_multiple_is_positive_and_not_too_fine() {
        for multiple in [
            json!(3),
            json!(0.01),
            json!(1e5),
            json!(1e-5),
            json!(99_999),
        ] {
            let schema = json!({"multipleOf": multiple});
            becomes(schema.clone(), schema);
        }
        refused(json!({"multipleOf": -1}), &["greater than 0", "-1"]);
        refused(json!({"multipleOf": 0}), &["greater than 0"]);
        refused(
            json!({"items": {"multipleOf": 0.000_123_456}}),
            &["5 digits"],
        );
        for inexact in [json!(1e-300), json!(1e-20), json!(0.07)] {
            let shown = format!("`multipleOf` is {inexact}, which can't be followed exactly");
            refused(json!({"multipleOf": inexact}), &[&shown]);
        }
        // 65537 * 65539 is more than 32 bits.
        let two = json!([{"multipleOf": 65_537}, {"multipleOf": 65_539}]);
        refused(
            json!({"allOf": two}),
            &["2 different `multipleOf`", "allOf"],
        );
        let apart =
            json!({"properties": {"a": {"multipleOf": 65_537}, "b": {"multipleOf": 65_539}}});
        becomes(apart.clone(), apart);
    }
}
