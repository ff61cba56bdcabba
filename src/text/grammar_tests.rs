//! Tests of what grammars allow, token by token.

use super::message::MAX_REASON;
use super::*;
use crate::request::Limits;

/// Returns the built-in model's tokenizer.
fn tokenizer() -> Arc<Tokenizer> {
    let json = include_bytes!("../../assets/fairy-tales/tokenizer.json");
    Arc::new(Tokenizer::from_json(json).unwrap())
}

fn grammars() -> Grammars {
    Grammars::new(tokenizer(), 8192, &[8191])
}

fn regex(text: &str) -> GrammarSource {
    GrammarSource::Regex(text.to_owned())
}

fn schema(schema: &Value) -> GrammarSource {
    GrammarSource::JsonSchema(schema.to_string())
}

/// Returns whether a text satisfies a grammar, and whether no token can follow it.
fn follows(grammar: &Grammar, text: &str) -> (bool, bool) {
    let mut matcher = grammar.matcher();
    for id in tokenizer().encode(text, false).unwrap() {
        if matcher.try_consume_tokens(&[id]).unwrap() == 0 {
            return (false, false);
        }
    }
    let complete = matcher.is_stopped();
    (complete || matcher.is_accepting().unwrap(), complete)
}

#[test]
fn every_kind_of_description_is_followed() {
    let grammars = grammars();
    let object = json!({
        "type": "object",
        "properties": {"b": {"type": "integer"}, "a": {"type": "boolean"}},
        "required": ["b", "a"],
        "additionalProperties": false,
    });
    let choice =
        |texts: &[&str]| GrammarSource::Choice(texts.iter().map(ToString::to_string).collect());
    let cases: &[(GrammarSource, &[&str], &[&str])] = &[
        (
            schema(&object),
            &[r#"{"b":12,"a":true}"#],
            &[r#"{"a":true,"b":12}"#, r#"{"b":1.5"#, r#"{ "b""#],
        ),
        (
            GrammarSource::JsonObject,
            &["{}", r#"{"x":[1,{}]}"#],
            &["[]", "3"],
        ),
        (
            regex("[a-c]{2}[0-9]+"),
            &["ab1", "cc123"],
            &["ad1", "ab", "a1"],
        ),
        (regex("^a/b$"), &["a/b"], &["/b", "^a/b"]),
        (regex(r"a\$"), &["a$"], &["a"]),
        (regex("^x|y$"), &["x", "y"], &["xy"]),
        (
            choice(&["yes", "no", "a \"quoted\"\nline\\", "é🐉"]),
            &["yes", "no", "a \"quoted\"\nline\\", "é🐉"],
            &["ye", "yesno", "maybe", "é"],
        ),
        (choice(&["a", "ab"]), &["a", "ab"], &["abc", "b"]),
        (
            GrammarSource::Lark("start: \"(\" start \")\" | \"x\"".to_owned()),
            &["x", "((x))"],
            &["((x)", "()"],
        ),
        (schema(&json!(true)), &["3", r#"{"a":null}"#], &["{]"]),
    ];
    for (source, good, bad) in cases {
        let grammar = grammars
            .compile(source)
            .unwrap_or_else(|e| panic!("{source:?}: {e}"));
        for text in *good {
            assert!(follows(&grammar, text).0, "{source:?} {text}");
        }
        for text in *bad {
            assert!(!follows(&grammar, text).0, "{source:?} {text}");
        }
    }
}

#[test]
fn a_text_that_nothing_can_follow_is_complete() {
    let grammars = grammars();
    let complete =
        |source: &GrammarSource, text: &str| follows(&grammars.compile(source).unwrap(), text);
    let object =
        schema(&json!({"type": "object", "properties": {}, "additionalProperties": false}));
    assert_eq!(complete(&object, "{}"), (true, true));
    assert_eq!(complete(&regex("a+"), "aa"), (true, false));
    assert_eq!(complete(&regex("a{2}"), "aa"), (true, true));
    assert_eq!(
        complete(&schema(&json!({"enum": ["x", "y"]})), "\"x\""),
        (true, true)
    );
}

#[test]
fn whitespace_is_allowed_where_the_schema_says_so() {
    let grammars = grammars();
    let loose = json!({"type": "array", "items": {"type": "integer"}, "x-guidance": {"whitespace_flexible": true}});
    let grammar = grammars.compile(&schema(&loose)).unwrap();
    assert!(follows(&grammar, "[1 ,\n 2]").0);
}

#[test]
fn what_can_not_be_followed_says_why() {
    let grammars = grammars();
    let lark = |text: &str| GrammarSource::Lark(text.to_owned());
    let cases = [
        (regex("a("), "unclosed group"),
        (regex("a(?=b)"), "look-around"),
        (regex("^$"), "only the empty text"),
        (
            GrammarSource::Choice(Vec::new()),
            "list of choices is empty",
        ),
        (GrammarSource::JsonSchema("{".to_owned()), "not JSON"),
        (schema(&json!(3)), "an object, `true` or `false`"),
        (schema(&json!({"type": "strin"})), "strin"),
        (
            schema(&json!({"type": "array", "uniqueItems": true})),
            "uniqueItems",
        ),
        (
            schema(&json!({"type": "string", "minLength": 3, "maxLength": 2})),
            "minLength",
        ),
        (
            schema(&json!({"$ref": "https://example.com/schema.json"})),
            "example.com",
        ),
        (schema(&json!({"$ref": "#/$defs/none"})), "none"),
        (schema(&json!(false)), "false"),
        (
            schema(&json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]})),
            "no text can satisfy it",
        ),
        (lark("start: nothing"), "nothing"),
        (lark("start: <|endoftext|>"), "special token"),
    ];
    for (source, part) in cases {
        let error = grammars.compile(&source).err();
        let error = error
            .unwrap_or_else(|| panic!("{source:?} was compiled"))
            .to_string();
        assert!(error.contains(part), "{source:?}: {error}");
        assert!(
            !error.contains("backtrace") && !error.contains("<state>"),
            "{error}"
        );
        assert!(error.chars().count() <= MAX_REASON, "{error}");
    }
}

#[test]
fn what_the_longest_expressions_cost_is_bounded() {
    let grammars = grammars();
    let object = |name: &str, of: Value| {
        schema(&json!({"type": "object", "properties": {name: of}, "required": [name]}))
    };
    let mut deep = json!({"type": "integer"});
    for _ in 0..40 {
        deep = json!({"anyOf": [{"type": "array", "items": deep}, {"allOf": [deep, deep]}]});
        if deep.to_string().len() > 50_000 {
            break;
        }
    }
    let limits = Limits::for_model(1024, 8192, vec![8191]);
    let longest = limits.max_expression_bytes;
    let words: Vec<String> = (0..100_000u32).map(|n| format!("{:x}", n * 7919)).collect();
    let absurd = [
        object("a", json!({"type": "array", "minItems": 1_000_000_000})),
        object(
            "a",
            json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000_000}),
        ),
        object("a", json!({"type": "string", "minLength": 1_000_000_000})),
        object(
            "a",
            json!({"type": "string", "maxLength": 4_000_000_000u32}),
        ),
        object(
            "a",
            json!({"type": "string", "pattern": "^((a{1000}){1000}){1000}$"}),
        ),
        object(
            "a",
            json!({"type": "string", "pattern": "^(.*a.{30}|.*b.{31})$"}),
        ),
        object("a", json!({"type": "number", "multipleOf": 1e-300})),
        object("a", json!({"type": "integer", "multipleOf": 99_991})),
        object("a", json!({"type": "integer", "multipleOf": 999_983})),
        object("a", json!({"type": "number", "multipleOf": 1234.56})),
        object("a", json!({"type": "object", "minProperties": 1_000_000})),
        regex("(a|b|ab){1,1000000}"),
        regex("(?:(?:(?:x{1000}){1000}){1000}){1000}"),
        regex(&"(".repeat(longest)),
        regex(&format!("{}a{}", "(".repeat(200), ")?".repeat(200))),
        regex(&"a?".repeat(longest / 2)),
        object(
            "a",
            json!({"type": "string", "pattern": format!("^{}$", "a?".repeat(longest / 2))}),
        ),
        GrammarSource::Lark(format!("start: /{}/", "a?".repeat(longest / 2 - 5))),
        GrammarSource::Choice(words),
        schema(&deep),
        GrammarSource::Lark(format!(
            "start: {}\"a\"{}",
            "(".repeat(longest / 2 - 6),
            ")".repeat(longest / 2 - 6)
        )),
        GrammarSource::Lark(chain(900, "r", "start")),
        GrammarSource::Lark(chain(900, "T", "start")),
        GrammarSource::Lark("start: start start | \"a\"?".to_owned()),
    ];
    for source in absurd {
        assert!(source.expression_bytes() <= longest + 2, "{source:?}");
        let begun = std::time::Instant::now();
        let outcome = grammars.compile(&source).map(|grammar| {
            let mut matcher = grammar.matcher();
            for _ in 0..3 {
                let Ok(mask) = matcher.compute_mask_or_eos() else {
                    break;
                };
                let mut tokens = Vec::new();
                mask.iter_set_entries(|id| tokens.push(id as u32));
                if tokens.contains(&8191) || matcher.consume_token(tokens[0]).is_err() {
                    break;
                }
            }
        });
        let name: String = format!("{source:?}").chars().take(90).collect();
        eprintln!(
            "{:>7.1} ms {name} {:?}",
            begun.elapsed().as_secs_f64() * 1e3,
            outcome.map_err(|e| e.to_string())
        );
        assert!(begun.elapsed().as_secs() < 60, "{name}");
    }
}

/// Returns rules that each refer to the next.
fn chain(length: usize, prefix: &str, start: &str) -> String {
    let lines = (0..length).map(|n| format!("{prefix}{n}: \"a\" {prefix}{}?\n", n + 1));
    let last = format!("{prefix}{length}: \"b\"\n");
    format!("{start}: {prefix}0\n{}{last}", lines.collect::<String>())
}

#[test]
fn no_grammar_allows_special_tokens_or_broken_text() {
    let grammars = grammars();
    // `.` is any character but a newline.
    let grammar = grammars.compile(&regex("(.|\n)*")).unwrap();
    let mask = grammar.matcher().compute_mask_or_eos().unwrap();
    for id in 0..8192 {
        let bytes = tokenizer().token_bytes(id).map(<[u8]>::to_vec).unwrap();
        let never = bytes.iter().any(|&byte| byte >= 0xf8);
        if id == 8191 {
            assert!(mask.is_allowed(id), "the text may end");
        } else {
            assert!(!(never && mask.is_allowed(id)), "{bytes:?}");
        }
    }
    assert_eq!(grammar.end_of_text(), [8191]);
    assert_eq!(grammar.special(), [8191]);
}

#[test]
fn a_grammar_asked_for_again_is_still_known() {
    let grammars = grammars();
    let first = grammars.compile(&regex("a")).unwrap();
    for n in 0..CACHED - 1 {
        grammars.compile(&regex(&format!("b{n}"))).unwrap();
    }
    assert!(Arc::ptr_eq(
        &first.0,
        &grammars.compile(&regex("a")).unwrap().0
    ));
    for n in 0..CACHED {
        grammars.compile(&regex(&format!("c{n}"))).unwrap();
    }
    assert!(grammars.known(&regex("a")).is_none());
    assert_eq!(
        first,
        grammars.compile(&regex("a")).unwrap(),
        "equal, though compiled again"
    );
}

#[test]
fn a_panic_of_the_library_is_an_error_of_the_grammar() {
    let failed = with_deep_stack(|| -> () { panic!("injected") });
    let failed = failed.expect_err("it panics").to_string();
    assert!(failed.contains("could not be compiled"), "{failed}");
}
