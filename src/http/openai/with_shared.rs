//! A body with an endpoint's own fields and the shared ones, read in one pass.
//!
//! serde could flatten one struct into another, but then reads every field by way of a buffer: an error would
//! no longer name the field. So [`OwnFields`] hands the endpoint's struct its own fields only, and reads the
//! shared ones as they come by.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::shared::SharedFields;

/// A body: an endpoint's own fields and the shared ones. Described as one object.
pub(in crate::http) struct WithShared<T> {
    /// The endpoint's own fields.
    pub own: T,
    /// The fields of both endpoints.
    pub shared: SharedFields,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for WithShared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Both<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Both<T> {
            type Value = WithShared<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WithShared<T>, A::Error> {
                let mut shared = SharedFields::default();
                let own = T::deserialize(MapAccessDeserializer::new(OwnFields {
                    map,
                    shared: &mut shared,
                    seen: HashSet::new(),
                }))?;
                Ok(WithShared { own, shared })
            }
        }
        deserializer.deserialize_map(Both(PhantomData))
    }
}

/// The fields of `map` that are not shared.
struct OwnFields<'a, A> {
    map: A,
    shared: &'a mut SharedFields,
    /// Names of the shared fields read so far.
    seen: HashSet<&'static str>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for OwnFields<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key::<String>()? {
            if !self.shared.read(&key, &mut self.map, &mut self.seen)? {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

impl<T: ToSchema> PartialSchema for WithShared<T> {
    fn schema() -> RefOr<Schema> {
        match (T::schema(), SharedFields::schema()) {
            (RefOr::T(Schema::Object(mut own)), RefOr::T(Schema::Object(shared))) => {
                own.properties.extend(shared.properties);
                RefOr::T(Schema::Object(own))
            }
            (own, _) => own,
        }
    }
}

impl<T: ToSchema> ToSchema for WithShared<T> {
    fn name() -> Cow<'static, str> {
        T::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
        SharedFields::schemas(schemas);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::parse;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Own {
        prompt: Option<String>,
        echo: Option<bool>,
    }

    fn refused(body: &str) -> String {
        let parsed = parse::<WithShared<Own>>(body.as_bytes());
        parsed
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn own_and_shared_fields_are_read_in_any_order() {
        let body =
            br#"{"model": "m", "prompt": "p", "unknown": {"n": 1}, "user": null, "echo": true}"#;
        let parsed: WithShared<Own> = parse(body).unwrap();
        assert_eq!(parsed.shared.model.as_deref(), Some("m"));
        assert_eq!(parsed.own.prompt.as_deref(), Some("p"));
        assert_eq!(parsed.own.echo, Some(true));
    }

    #[test]
    fn an_error_names_the_field_of_either() {
        for (body, message) in [
            (
                r#"{"prompt": 3}"#,
                "`prompt`: invalid type: integer `3`, expected a string",
            ),
            (
                r#"{"echo": true, "n": "x"}"#,
                r#"`n`: invalid type: string "x", expected an integer"#,
            ),
            (
                r#"{"stream_options": {"include_usage": 1}}"#,
                "`stream_options.include_usage`: invalid type: integer `1`, expected a boolean",
            ),
            (
                r#"{"stream_options": [true]}"#,
                "`stream_options`: invalid type: list, expected a JSON object",
            ),
            (
                r#"{"overflow": "x"}"#,
                "`overflow`: unknown variant `x`, expected one of `stop`, `error`, `slide`",
            ),
        ] {
            assert_eq!(refused(body), message, "{body}");
        }
        for body in [r#"{"n": 1, "n": 1}"#, r#"{"echo": null, "echo": null}"#] {
            let message = refused(body);
            assert!(message.contains("duplicate field `"), "{body}: {message}");
        }
    }
}
