//! Every field of the contract, with every wrong type and every value just out of range. The contract itself
//! is the table, so no field is forgotten. `validation.rs` tests the rules that a contract can't express.

use std::sync::LazyLock;

use crate::support::{Answer, TestServer};
use serde_json::{Value, json};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::start);

static CONTRACT: LazyLock<Value> = LazyLock::new(|| {
    let contract = skald::http::openapi().to_json().expect("a contract");
    serde_json::from_str(&contract).expect("JSON")
});

/// An object of a request: its schema, and how a request with it is sent.
struct Body {
    schema: &'static str,
    path: &'static str,
    status: u16,
    /// The rest of a valid request, with the object's fields inserted.
    around: fn(Value) -> Value,
}

const BODIES: [Body; 6] = [
    Body {
        schema: "CompletionRequest",
        path: "/v1/completions",
        status: 400,
        around: |fields| merged(json!({"prompt": "A", "max_tokens": 2}), fields),
    },
    Body {
        schema: "ChatCompletionRequest",
        path: "/v1/chat/completions",
        status: 400,
        around: |fields| {
            let messages = json!([{"role": "user", "content": "A"}]);
            merged(json!({"messages": messages, "max_tokens": 2}), fields)
        },
    },
    Body {
        schema: "StreamOptions",
        path: "/v1/completions",
        status: 400,
        around: |fields| json!({"prompt": "A", "stream": true, "stream_options": fields}),
    },
    Body {
        schema: "EmbeddingsRequest",
        path: "/v1/embeddings",
        status: 400,
        around: |fields| merged(json!({"input": "A"}), fields),
    },
    Body {
        schema: "GenerateBody",
        path: "/generate",
        status: 422,
        around: |fields| merged(json!({"inputs": "A"}), fields),
    },
    Body {
        schema: "Parameters",
        path: "/generate",
        status: 422,
        around: |fields| json!({"inputs": "A", "parameters": fields}),
    },
];

/// Integers with a 64-bit range, or a range that depends on the model; tested in `validation.rs`.
const WITHOUT_RANGE: [&str; 2] = ["seed", "dimensions"];

fn merged(mut body: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("no object: {more}");
    };
    body.as_object_mut().expect("an object").extend(more);
    body
}

fn fields(schema: &str) -> impl Iterator<Item = (&'static String, &'static Value)> {
    let properties = &CONTRACT["components"]["schemas"][schema]["properties"];
    // Schemas, messages and tools are tested in `structured.rs` and `chat.rs`.
    let fields = properties.as_object().expect("an object").iter();
    fields.filter(|(field, _)| {
        ![
            "grammar",
            "guided_json",
            "messages",
            "tools",
            "functions",
            "tool_choice",
        ]
        .contains(&field.as_str())
    })
}

/// Returns a schema with its reference resolved.
fn resolved(schema: &'static Value) -> &'static Value {
    match schema["$ref"].as_str() {
        Some(reference) => {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            CONTRACT.pointer(pointer).expect("it is there")
        }
        None => schema,
    }
}

/// Returns whether the type of a value fits the schema, regardless of ranges.
fn has_type(schema: &'static Value, value: &Value) -> bool {
    let schema = resolved(schema);
    if let Some(any) = schema["oneOf"].as_array() {
        return any.iter().any(|schema| has_type(schema, value));
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().collect(),
        one => vec![one],
    };
    types.into_iter().any(|name| match (name.as_str(), value) {
        (Some("boolean"), Value::Bool(_))
        | (Some("string"), Value::String(_))
        | (Some("number"), Value::Number(_))
        | (Some("null"), Value::Null) => true,
        (Some("integer"), Value::Number(number)) => !number.is_f64(),
        (Some("array"), Value::Array(items)) => {
            items.iter().all(|item| has_type(&schema["items"], item))
        }
        (Some("object"), Value::Object(object)) => {
            let of = &schema["additionalProperties"];
            of.is_null() || object.values().all(|value| has_type(of, value))
        }
        _ => false,
    })
}

async fn send(body: &Body, field: &str, value: &Value) -> Answer {
    let request = (body.around)(json!({field: value}));
    SERVER.post(body.path, request).await
}

/// Asserts that the error has the dialect's form and names the field.
fn check(body: &Body, field: &str, value: &Value, answer: &Answer) {
    let what = format!("{} {field}: {value}", body.schema);
    assert_eq!(answer.status, body.status, "{what}: {}", answer.body);
    let message = answer.message();
    let named = ['`', '[', '.'].map(|end| format!("{field}{end}"));
    assert!(
        named.iter().any(|name| message.contains(name)),
        "{what}: {message:?} does not name the field"
    );
    if body.status == 400 {
        let error = &answer.body["error"];
        assert_eq!(error["type"], "invalid_request_error", "{what}");
        let param = error["param"].as_str().expect("a field");
        assert!(param.contains(field), "{what}: {param:?} is at fault");
    } else {
        assert_eq!(answer.body["error_type"], "validation", "{what}");
    }
}

#[tokio::test]
async fn every_field_refuses_every_type_it_does_not_have() {
    let candidates = [
        json!(true),
        json!(7),
        json!(7.5),
        json!("word"),
        json!([true]),
        json!({"k": true}),
    ];
    for body in &BODIES {
        for (field, schema) in fields(body.schema) {
            let wrong = candidates.iter().filter(|value| !has_type(schema, value));
            let mut refused = 0;
            for value in wrong {
                let answer = send(body, field, value).await;
                check(body, field, value, &answer);
                let message = answer.message();
                if !value.is_object() && !value.is_array() {
                    assert!(
                        message.contains(&value.to_string()),
                        "{field}: {message:?} does not name {value}"
                    );
                }
                assert!(
                    message.contains("expected"),
                    "{field}: {message:?} does not say what would be right"
                );
                refused += 1;
            }
            assert!(refused >= 2, "{field} takes anything");
        }
    }
}

/// Returns values just out of range, each with the bound it exceeds.
fn outside(schema: &Value) -> Vec<(Value, f64)> {
    let step = if schema["type"].to_string().contains("integer") {
        1.0
    } else {
        0.5
    };
    let beyond = |name: &str, step: f64| {
        let bound = schema[name].as_f64()?;
        let value = bound + step;
        #[expect(clippy::cast_possible_truncation, reason = "bounds are small")]
        let value = if value.fract() == 0.0 {
            json!(value as i64)
        } else {
            json!(value)
        };
        Some((value, bound))
    };
    let all = [
        beyond("minimum", -step),
        beyond("exclusiveMinimum", 0.0),
        beyond("exclusiveMinimum", -step),
        beyond("maximum", step),
        beyond("exclusiveMaximum", 0.0),
    ];
    all.into_iter().flatten().collect()
}

#[tokio::test]
async fn every_number_refuses_values_just_outside_its_range_and_names_the_bound() {
    let mut tried = 0;
    for body in &BODIES {
        for (field, schema) in fields(body.schema) {
            let types = schema["type"].to_string();
            if !["integer", "number"]
                .iter()
                .any(|name| types.contains(name))
            {
                continue;
            }
            let outside = outside(schema);
            assert!(
                !outside.is_empty() || WITHOUT_RANGE.contains(&field.as_str()),
                "{}.{field} has no range",
                body.schema
            );
            for (value, bound) in outside {
                let answer = send(body, field, &value).await;
                check(body, field, &value, &answer);
                let message = answer.message();
                for part in [value.to_string(), bound.to_string()] {
                    assert!(
                        message.contains(&part),
                        "{}.{field} {value}: {message:?} does not name {part}",
                        body.schema
                    );
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 30, "{tried} values tried");
}

#[tokio::test]
async fn every_field_may_be_null_unless_it_is_required_and_unknown_ones_are_ignored() {
    for body in &BODIES {
        let required = &CONTRACT["components"]["schemas"][body.schema]["required"];
        for (field, _) in fields(body.schema) {
            let answer = send(body, field, &Value::Null).await;
            let is_required = required
                .as_array()
                .is_some_and(|names| names.iter().any(|name| name == field));
            let expected = if is_required { body.status } else { 200 };
            assert_eq!(answer.status, expected, "{field}: {}", answer.body);
        }
        let answer = send(body, "no_such_field", &json!({"deep": [1, "a"]})).await;
        assert_eq!(answer.status, 200, "{}: {}", body.schema, answer.body);
    }
}
