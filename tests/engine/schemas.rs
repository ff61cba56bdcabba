//! Random JSON schemas whose texts are all short: every generated text must be valid.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use skald::engine::{EngineConfig, FinishReason};
use skald::request::{Overflow, RequestDraft};
use skald::text::GrammarSource;

use crate::model::{admit, engine, files, finish, prompt, sampled};
use crate::structured::{compile, text_of};

/// Number of schemas.
const SCHEMAS: u64 = 240;
/// Concurrent requests.
const BATCH: usize = 24;
/// More than any of the texts needs.
const MAX_TOKENS: usize = 6000;

/// Generates one schema.
struct Maker {
    random: ChaCha20Rng,
    definitions: BTreeMap<String, Value>,
    /// Parts that can still be added.
    left: usize,
}

impl Maker {
    fn schema(seed: u64) -> Value {
        let mut maker = Self {
            random: ChaCha20Rng::seed_from_u64(seed),
            definitions: BTreeMap::new(),
            left: 12,
        };
        let mut schema = match seed % 4 {
            0 => maker.any(3),
            1 => maker.array(3),
            _ => maker.object(3),
        };
        if !maker.definitions.is_empty() {
            schema["$defs"] = json!(maker.definitions);
        }
        schema
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1).cast_unsigned()).cast_signed()
    }

    fn any(&mut self, depth: usize) -> Value {
        self.left = self.left.saturating_sub(1);
        if depth == 0 || self.left == 0 {
            return self.leaf();
        }
        match self.below(8) {
            0 | 1 => self.object(depth),
            2 => self.array(depth),
            3 => {
                let options: Vec<Value> = (0..2 + self.below(2))
                    .map(|_| self.any(depth - 1))
                    .collect();
                json!({"anyOf": options})
            }
            4 => {
                let name = format!("part{}", self.definitions.len());
                // The name is inserted before the definition has parts, so a definition never refers to
                // itself.
                self.definitions.insert(name.clone(), json!(null));
                let definition = self.any(depth - 1);
                self.definitions.insert(name.clone(), definition);
                json!({"$ref": format!("#/$defs/{name}")})
            }
            _ => self.leaf(),
        }
    }

    fn object(&mut self, depth: usize) -> Value {
        const NAMES: [&str; 7] = ["name", "age", "a b", "über", "\"q\"", "x", "items"];
        let mut properties = Map::new();
        let mut required = Vec::new();
        for name in NAMES {
            if self.below(2) == 0 && properties.len() < 4 {
                properties.insert(name.to_owned(), self.any(depth - 1));
                if self.below(3) > 0 {
                    required.push(name);
                }
            }
        }
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }

    fn array(&mut self, depth: usize) -> Value {
        let least = self.below(3);
        let most = least + self.below(3);
        if self.below(4) == 0 {
            let prefix = [self.any(depth - 1), self.any(depth - 1)];
            return json!({"type": "array", "prefixItems": prefix, "items": false, "minItems": least.min(2)});
        }
        json!({"type": "array", "items": self.any(depth - 1), "minItems": least, "maxItems": most})
    }

    fn leaf(&mut self) -> Value {
        const PATTERNS: [&str; 5] = [
            "^[a-z]{1,8}$",
            "^[A-Z][a-z]{0,5}-[0-9]{2,4}$",
            r"^\d{3}(\.\d{2})?$",
            "^(red|green|blue)( light)?$",
            "^[äöü€🐉\"\\\\/]{0,3}$",
        ];
        match self.below(9) {
            0 => json!({"type": "boolean"}),
            1 => json!({"type": "null"}),
            2 => json!({"enum": ["one", 2, null, true, {"k": [1, "é\n"]}, "1"]}),
            3 => json!({"const": self.between(-1000, 1000)}),
            4 => {
                let low = self.between(-300, 300);
                json!({"type": "integer", "minimum": low, "maximum": low + self.between(0, 5000)})
            }
            5 => {
                let low = self.between(-50, 50);
                json!({"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + self.between(10, 99), "multipleOf": 1 + self.below(5)})
            }
            6 => {
                let pattern = PATTERNS[self.below(PATTERNS.len() as u64) as usize];
                json!({"type": "string", "pattern": pattern})
            }
            7 => {
                let least = self.below(3);
                json!({"type": "string", "minLength": least, "maxLength": least + self.below(10)})
            }
            _ => {
                json!({"type": ["string", "integer", "null"], "maxLength": 4, "minimum": 0, "maximum": 20})
            }
        }
    }
}

#[tokio::test]
async fn every_text_made_by_a_schema_follows_it() {
    let schemas: Vec<Value> = (0..SCHEMAS).map(Maker::schema).collect();
    let engine = engine(EngineConfig::default());
    let tokenizer = files().tokenizer;
    let (mut whole, mut lengths) = (0, Vec::new());
    for (batch, schemas) in schemas.chunks(BATCH).enumerate() {
        let drafts = (0..).zip(schemas).map(|(n, schema)| {
            let seed = (batch * BATCH) as u64 + n;
            RequestDraft {
                grammar: Some(compile(&GrammarSource::JsonSchema(schema.to_string()))),
                ignore_end_of_text: seed.is_multiple_of(5),
                overflow: Overflow::Slide,
                ..sampled(&prompt(6, seed as u32), MAX_TOKENS, seed)
            }
        });
        let outcomes = drafts.map(async |draft| finish(engine.submit(admit(draft)).await?).await);
        for (schema, outcome) in schemas.iter().zip(join_all(outcomes).await) {
            let outcome = outcome.unwrap_or_else(|error| panic!("{schema}: {error}"));
            let text = text_of(&tokenizer, &outcome);
            assert_ne!(outcome.finish, FinishReason::Length, "{schema} {text}");
            let value: Value = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{schema}: {text:?} is not JSON: {error}"));
            let validator = jsonschema::validator_for(schema).expect("a valid schema");
            if let Err(error) = validator.validate(&value) {
                panic!("{schema}: {text}: {error}");
            }
            whole += 1;
            lengths.push(outcome.tokens.len());
        }
    }
    assert_eq!(whole, SCHEMAS);
    lengths.sort_unstable();
    // The texts are not trivial.
    assert!(lengths[lengths.len() / 2] > 5, "{lengths:?}");
}
