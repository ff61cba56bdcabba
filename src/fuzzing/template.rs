//! Chat templates and messages.
//!
//! An input is a template, a zero byte, and the content of the last message.

use super::tiny;
use crate::resources::background::{self, Priority};
use crate::text::ChatTemplate;
use crate::text::template::{Ending, Message, Role, TemplateSource, TemplateTokens};

/// Maximum bytes of a prompt: a constant, plus a multiple of the bytes of the messages.
const LIMIT: (usize, usize) = (1 << 20, 8);
/// Maximum bytes of a template's error message, before it is truncated for the client.
const MESSAGE: usize = 8 << 20;

/// Runs an input on a thread like the ones on which the server renders templates.
pub(super) fn run(bytes: &[u8]) {
    let bytes = bytes.to_vec();
    let done = background::spawn("template", Priority::Normal, move || check(&bytes));
    let done = done.expect("a thread").blocking_recv();
    done.expect("no panic");
}

/// Checks that a template is refused, or renders a prompt or an error of bounded length, and that
/// the plain form never turns content of messages into special tokens.
fn check(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let mut part = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (text, said) = (part(), part());
    let messages = conversation(&said);
    let given: usize = messages.iter().map(Message::bytes).sum();
    let source = TemplateSource {
        origin: "a fuzzer".to_owned(),
        text,
    };
    let tokenizer = tiny::real_tokenizer();
    if let Ok(template) = ChatTemplate::parse(source) {
        let tokens = TemplateTokens {
            bos: "<|endoftext|>".to_owned(),
            eos: "<|endoftext|>".to_owned(),
        };
        let template = template.for_model(&tokenizer, tokens);
        for ending in [Ending::Answer, Ending::Continue] {
            match template.render(&messages, ending) {
                Ok(prompt) => {
                    assert!(
                        prompt.len() <= LIMIT.0 + LIMIT.1 * given,
                        "{}",
                        prompt.len()
                    );
                    ChatTemplate::tokenize(&tokenizer, &prompt).expect("tokens");
                }
                Err(error) => assert!(error.to_string().len() <= MESSAGE),
            }
        }
    }
    let plain = ChatTemplate::plain().expect("the plain form");
    let plain = plain.for_model(&tokenizer, TemplateTokens::default());
    let (last, rest) = messages.split_last().expect("messages");
    let speech = [&rest[..1], std::slice::from_ref(last)].concat();
    let ids = plain
        .encode(&tokenizer, &speech, Ending::Answer)
        .expect("a prompt");
    assert!(!ids.iter().any(|&id| tokenizer.is_special(id)));
    assert!(plain.stops(&speech).len() <= 20);
}

fn conversation(said: &str) -> Vec<Message> {
    let message = |role, content: &str| Message {
        role,
        content: content.to_owned(),
        name: None,
        tool_calls: None,
        tool_call_id: None,
    };
    let call = serde_json::json!([{
        "id": "1", "type": "function",
        "function": {"name": "weather", "arguments": {"city": "<|endoftext|>", "days": [1, 2.5, null]}},
    }]);
    vec![
        message(Role::System, "You tell <|endoftext|> tales.\n"),
        message(Role::User, "Who was the king?"),
        Message {
            tool_calls: Some(call),
            ..message(Role::Assistant, "")
        },
        Message {
            tool_call_id: Some("1".to_owned()),
            ..message(Role::Tool, "rain")
        },
        Message {
            name: Some(said.chars().take(80).collect()),
            ..message(Role::User, said)
        },
    ]
}
