//! The fields by which a request constrains its text, in both dialects.
//!
//! OpenAI's `response_format`, vLLM's `guided_…` and `structured_outputs`, and TGI's `grammar` all
//! become one [`Description`]. It is compiled before the request reaches the engine, so that an invalid
//! one is refused with the name of its field.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::body::object;
use super::error::{ApiError, shown};
use crate::request::{InvalidRequest, Tenant};
use crate::serving::Serving;
use crate::text::grammar::{CompileError, Grammar, GrammarSource};

/// Format of the text: `{"type": "text"}` (anything), `{"type": "json_object"}` (a JSON
/// object), or `{"type": "json_schema", "json_schema": {"name": …, "schema": …}}` (JSON that
/// follows a schema).
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150}}, "required": ["name", "age"], "additionalProperties": false}}}))]
pub(super) struct ResponseFormat {
    /// Type of the format: `text`, `json_object` or `json_schema`.
    pub r#type: String,
    /// The schema; required with `json_schema`.
    #[serde(default, deserialize_with = "object")]
    pub json_schema: Option<JsonSchemaFormat>,
}

/// A schema with a name.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct JsonSchemaFormat {
    /// Accepted, not used.
    #[expect(dead_code, reason = "read to check its type")]
    pub name: Option<String>,
    /// Accepted, not used.
    #[expect(dead_code, reason = "read to check its type")]
    pub description: Option<String>,
    /// The JSON schema.
    #[schema(value_type = Object)]
    pub schema: Option<Value>,
    /// Accepted, not used: schemas are always enforced strictly.
    #[expect(dead_code, reason = "read to check its type")]
    pub strict: Option<bool>,
}

/// vLLM's newer form of the `guided_…` fields; exactly one field may be given.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct StructuredOutputs {
    /// Same as `guided_json`.
    #[schema(value_type = Option<Object>)]
    pub json: Option<Value>,
    /// Same as `guided_regex`.
    pub regex: Option<String>,
    /// Same as `guided_choice`.
    pub choice: Option<Vec<String>>,
    /// Same as `guided_grammar`.
    pub grammar: Option<String>,
    /// Whether the text must be a JSON object.
    pub json_object: Option<bool>,
}

/// Grammar of the text in TGI's format: `{"type": "json", "value": schema}`, `{"type": "regex", "value":
/// "…"}` or `{"type": "json_schema", "value": {"name": …, "schema": …}}`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"type": "regex", "value": "(red|green) [0-9]{1,2}"}))]
pub(super) struct NativeGrammar {
    /// Type of the grammar: `json`, `regex` or `json_schema`.
    pub r#type: String,
    /// A JSON schema (an object, or a string that contains one), a regular expression, or an object
    /// with a `schema`.
    #[schema(value_type = Object)]
    pub value: Option<Value>,
}

/// The grammar fields of a request in OpenAI's dialect.
#[derive(Debug, Default)]
pub(super) struct GrammarFields {
    pub response_format: Option<ResponseFormat>,
    pub guided_json: Option<Value>,
    pub guided_regex: Option<String>,
    pub guided_choice: Option<Vec<String>>,
    pub guided_grammar: Option<String>,
    pub structured_outputs: Option<StructuredOutputs>,
}

/// A constraint on the text, and the field that describes it.
#[derive(Debug, PartialEq)]
pub(super) struct Description {
    field: String,
    source: GrammarSource,
}

impl Description {
    fn new(field: &str, source: GrammarSource) -> Self {
        Self {
            field: field.to_owned(),
            source,
        }
    }

    /// Creates the description of a JSON schema, an object or a string that contains one.
    fn schema(field: &str, schema: Value) -> Result<Self, InvalidRequest> {
        let text = match schema {
            Value::String(text) => text,
            Value::Object(_) => schema.to_string(),
            other => {
                return Err(InvalidRequest::new(
                    field,
                    format!(
                        "`{field}` must be a JSON schema, either an object or a string that contains one, got {}",
                        shown(&other.to_string())
                    ),
                ));
            }
        };
        Ok(Self::new(field, GrammarSource::JsonSchema(text)))
    }

    /// Compiles the grammar.
    ///
    /// # Errors
    /// If it is too large or not valid; the error names the field.
    pub(super) async fn compile(
        self,
        serving: &Serving,
        share: Tenant,
    ) -> Result<Grammar, ApiError> {
        let Self { field, source } = self;
        serving.limits.check_grammar(&field, &source)?;
        let compiled = serving.grammars.compile(source, share).await;
        compiled.map_err(|error| match error {
            CompileError::Grammar(error) => {
                ApiError::invalid(&field, format!("`{field}` can't be compiled: {error}"))
            }
            CompileError::Lane(error) => error.into(),
        })
    }
}

/// Compiles the grammar of a tenant's request, if it has one.
///
/// # Errors
/// As [`Description::compile`].
pub(super) async fn compile(
    description: Option<Description>,
    serving: &Serving,
    share: Tenant,
) -> Result<Option<Grammar>, ApiError> {
    match description {
        Some(description) => description.compile(serving, share).await.map(Some),
        None => Ok(None),
    }
}

impl GrammarFields {
    /// Returns the description of the constraint; `None` without one.
    ///
    /// # Errors
    /// If a field is not valid, or more than one is given.
    pub(super) fn description(self) -> Result<Option<Description>, InvalidRequest> {
        let guided = StructuredOutputs {
            json: self.guided_json,
            regex: self.guided_regex,
            choice: self.guided_choice,
            grammar: self.guided_grammar,
            json_object: None,
        };
        let mut given = Vec::new();
        given.extend(
            self.response_format
                .map(ResponseFormat::description)
                .transpose()?
                .flatten(),
        );
        guided.descriptions("guided_", &mut given)?;
        if let Some(structured) = self.structured_outputs {
            structured.descriptions("structured_outputs.", &mut given)?;
        }
        let mut given = given.into_iter();
        let first = given.next();
        if let (Some(first), Some(second)) = (&first, given.next()) {
            let (first, second) = (&first.field, &second.field);
            return Err(InvalidRequest::new(
                second,
                format!(
                    "`{second}` can't be combined with `{first}`: a text can have only one constraint"
                ),
            ));
        }
        Ok(first)
    }
}

impl ResponseFormat {
    fn description(self) -> Result<Option<Description>, InvalidRequest> {
        const SCHEMA: &str = "response_format.json_schema.schema";
        match (self.r#type.as_str(), self.json_schema) {
            ("text", _) => Ok(None),
            ("json_object", _) => Ok(Some(Description::new(
                "response_format",
                GrammarSource::JsonObject,
            ))),
            (
                "json_schema",
                Some(JsonSchemaFormat {
                    schema: Some(schema),
                    ..
                }),
            ) => Description::schema(SCHEMA, schema).map(Some),
            ("json_schema", _) => Err(InvalidRequest::new(
                SCHEMA,
                format!("`{SCHEMA}` is required with `response_format.type` \"json_schema\""),
            )),
            (other, _) => Err(wrong_type(
                "response_format.type",
                other,
                "\"text\", \"json_object\" or \"json_schema\"",
            )),
        }
    }
}

impl StructuredOutputs {
    fn descriptions(
        self,
        prefix: &str,
        given: &mut Vec<Description>,
    ) -> Result<(), InvalidRequest> {
        let field = |name: &str| format!("{prefix}{name}");
        if let Some(schema) = self.json {
            given.push(Description::schema(&field("json"), schema)?);
        }
        let others = [
            ("regex", self.regex.map(GrammarSource::Regex)),
            ("choice", self.choice.map(GrammarSource::Choice)),
            ("grammar", self.grammar.map(GrammarSource::Lark)),
            (
                "json_object",
                (self.json_object == Some(true)).then_some(GrammarSource::JsonObject),
            ),
        ];
        let others = others
            .into_iter()
            .filter_map(|(name, source)| Some(Description::new(&field(name), source?)));
        given.extend(others);
        Ok(())
    }
}

impl NativeGrammar {
    /// Returns the description of the constraint.
    ///
    /// # Errors
    /// If a field is not valid.
    pub(super) fn description(self) -> Result<Description, InvalidRequest> {
        const VALUE: &str = "grammar.value";
        match (self.r#type.as_str(), self.value) {
            ("json" | "json_object", Some(schema)) => Description::schema(VALUE, schema),
            ("regex", Some(Value::String(regex))) => {
                Ok(Description::new(VALUE, GrammarSource::Regex(regex)))
            }
            ("json_schema", Some(Value::Object(mut named))) => match named.remove("schema") {
                Some(schema) => Description::schema("grammar.value.schema", schema),
                None => Err(InvalidRequest::new(
                    VALUE,
                    format!("`{VALUE}` must have a `schema` with `grammar.type` \"json_schema\""),
                )),
            },
            (kind @ ("json" | "json_object" | "regex" | "json_schema"), value) => {
                let expected = match kind {
                    "regex" => "a string",
                    "json_schema" => "an object with a `schema`",
                    _ => "a JSON schema",
                };
                let value = value.unwrap_or_default();
                Err(InvalidRequest::new(
                    VALUE,
                    format!(
                        "`{VALUE}` must be {expected} with `grammar.type` {kind:?}, got {}",
                        shown(&value.to_string())
                    ),
                ))
            }
            (other, _) => Err(wrong_type(
                "grammar.type",
                other,
                "\"json\", \"regex\" or \"json_schema\"",
            )),
        }
    }
}

fn wrong_type(field: &str, got: &str, expected: &str) -> InvalidRequest {
    let got: String = got.chars().take(40).collect();
    InvalidRequest::new(field, format!("`{field}` must be {expected}, got {got:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn openai(fields: Value) -> Result<Option<Description>, InvalidRequest> {
        #[derive(Deserialize)]
        struct Body {
            response_format: Option<ResponseFormat>,
            guided_json: Option<Value>,
            guided_regex: Option<String>,
            guided_choice: Option<Vec<String>>,
            guided_grammar: Option<String>,
            structured_outputs: Option<StructuredOutputs>,
        }
        let body: Body = serde_json::from_value(fields).unwrap();
        let fields = GrammarFields {
            response_format: body.response_format,
            guided_json: body.guided_json,
            guided_regex: body.guided_regex,
            guided_choice: body.guided_choice,
            guided_grammar: body.guided_grammar,
            structured_outputs: body.structured_outputs,
        };
        fields.description()
    }

    #[track_caller]
    fn becomes(fields: &Value, field: &str, source: GrammarSource) {
        let found = openai(fields.clone()).unwrap_or_else(|e| panic!("{fields}: {e}"));
        assert_eq!(found, Some(Description::new(field, source)), "{fields}");
    }

    #[test]
    fn every_spelling_becomes_a_description() {
        let schema = || GrammarSource::JsonSchema(r#"{"type":"null"}"#.to_owned());
        let of_type = json!({"type": "null"});
        becomes(&json!({"guided_json": of_type}), "guided_json", schema());
        becomes(
            &json!({"guided_json": of_type.to_string()}),
            "guided_json",
            schema(),
        );
        becomes(
            &json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": of_type, "strict": true}}}),
            "response_format.json_schema.schema",
            schema(),
        );
        becomes(
            &json!({"response_format": {"type": "json_object"}}),
            "response_format",
            GrammarSource::JsonObject,
        );
        becomes(
            &json!({"response_format": {"type": "text"}, "guided_regex": "a+"}),
            "guided_regex",
            GrammarSource::Regex("a+".to_owned()),
        );
        becomes(
            &json!({"guided_choice": ["a", "b"]}),
            "guided_choice",
            GrammarSource::Choice(vec!["a".to_owned(), "b".to_owned()]),
        );
        becomes(
            &json!({"structured_outputs": {"grammar": "start: \"a\""}}),
            "structured_outputs.grammar",
            GrammarSource::Lark("start: \"a\"".to_owned()),
        );
        becomes(
            &json!({"structured_outputs": {"json_object": true}}),
            "structured_outputs.json_object",
            GrammarSource::JsonObject,
        );
        assert_eq!(openai(json!({})), Ok(None));
        assert_eq!(
            openai(json!({"response_format": {"type": "text"}})),
            Ok(None)
        );
        assert_eq!(
            openai(json!({"structured_outputs": {"json_object": false}})),
            Ok(None)
        );
    }

    #[test]
    fn two_constraints_are_refused_by_name() {
        for (fields, first, second) in [
            (
                json!({"guided_json": {}, "guided_regex": "a"}),
                "guided_json",
                "guided_regex",
            ),
            (
                json!({"guided_choice": ["a"], "response_format": {"type": "json_object"}}),
                "response_format",
                "guided_choice",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}),
                "structured_outputs.regex",
                "structured_outputs.choice",
            ),
        ] {
            let refused = openai(fields).unwrap_err();
            assert_eq!(refused.field, second);
            assert!(refused.message.contains(&format!("`{first}`")), "{refused}");
        }
    }

    fn native(grammar: Value) -> Result<Description, InvalidRequest> {
        serde_json::from_value::<NativeGrammar>(grammar)
            .unwrap()
            .description()
    }

    #[test]
    fn native_grammars_become_descriptions() {
        let schema = GrammarSource::JsonSchema(r#"{"type":"null"}"#.to_owned());
        let found = native(json!({"type": "json", "value": {"type": "null"}}));
        assert_eq!(found, Ok(Description::new("grammar.value", schema.clone())));
        let found = native(
            json!({"type": "json_schema", "value": {"name": "n", "schema": {"type": "null"}}}),
        );
        assert_eq!(found, Ok(Description::new("grammar.value.schema", schema)));
        let found = native(json!({"type": "regex", "value": "a"}));
        let regex = GrammarSource::Regex("a".to_owned());
        assert_eq!(found, Ok(Description::new("grammar.value", regex)));
        for (grammar, field, part) in [
            (
                json!({"type": "xml", "value": "a"}),
                "grammar.type",
                "\"xml\"",
            ),
            (
                json!({"type": "regex", "value": 3}),
                "grammar.value",
                "a string",
            ),
            (json!({"type": "json"}), "grammar.value", "a JSON schema"),
            (
                json!({"type": "json", "value": 3}),
                "grammar.value",
                "got 3",
            ),
            (
                json!({"type": "json_schema", "value": {"type": "null"}}),
                "grammar.value",
                "`schema`",
            ),
        ] {
            let refused = native(grammar).unwrap_err();
            assert_eq!(refused.field, field);
            assert!(refused.message.contains(part), "{refused}");
        }
    }
}
