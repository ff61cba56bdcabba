//! The commands of an interactive session: lines that begin with `/`.

use crate::request::SessionId;

/// Output of `/help`: an introduction and a line per command.
pub(super) const HELP: &str = "\
A line is added to the text, and the model continues from there. An empty line adds nothing.
  /open NAME          continue a session, or begin it
  /sessions           list the sessions
  /fork NAME [TOKENS] continue in a copy of this session, or of its first TOKENS tokens
  /retry              take the last turn back and generate it again with another seed
  /undo               take the last turn back
  /text               show the whole text
  /delete NAME        delete a session
  /seed [NUMBER]      use this seed for each turn; without a number, a random one
  /quit               end; Ctrl-D does the same
Ctrl-C stops the text. A line that begins with // is text that begins with /.";

/// A line of an interactive session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Text to add.
    Text(String),
    Help,
    Open(SessionId),
    Sessions,
    Fork(SessionId, Option<usize>),
    Retry,
    Undo,
    ShowText,
    Delete(SessionId),
    Seed(Option<u64>),
    Quit,
}

impl Line {
    /// Parses a line.
    ///
    /// # Errors
    /// A message for the user, if a command is unknown or an argument is not valid.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let Some(command) = line.strip_prefix('/') else {
            return Ok(Self::Text(line.to_owned()));
        };
        if command.starts_with('/') {
            return Ok(Self::Text(command.to_owned()));
        }
        let mut words = command.split_whitespace();
        let name = words.next().unwrap_or_default();
        let arguments: Vec<&str> = words.collect();
        match (name, arguments.as_slice()) {
            ("help" | "?", []) => Ok(Self::Help),
            ("open", [name]) => Ok(Self::Open(session(name)?)),
            ("sessions", []) => Ok(Self::Sessions),
            ("fork", [name]) => Ok(Self::Fork(session(name)?, None)),
            ("fork", [name, at]) => Ok(Self::Fork(session(name)?, Some(number(at)?))),
            ("retry", []) => Ok(Self::Retry),
            ("undo", []) => Ok(Self::Undo),
            ("text", []) => Ok(Self::ShowText),
            ("delete", [name]) => Ok(Self::Delete(session(name)?)),
            ("seed", []) => Ok(Self::Seed(None)),
            ("seed", [seed]) => Ok(Self::Seed(Some(number(seed)?))),
            ("quit" | "exit", []) => Ok(Self::Quit),
            _ => Err(match usage(name) {
                Some(usage) => format!("usage: {usage}"),
                None => format!("{line:?} is not a command; /help lists them"),
            }),
        }
    }
}

/// Returns the line of [`HELP`] about a command.
fn usage(name: &str) -> Option<&'static str> {
    let mut lines = HELP.lines().map(str::trim_start);
    lines.find(|line| {
        let command = line.split_whitespace().next();
        command.and_then(|command| command.strip_prefix('/')) == Some(name)
    })
}

/// Parses the name of a session.
pub(super) fn session(name: &str) -> Result<SessionId, String> {
    SessionId::parse(name).map_err(|invalid| invalid.message.replace("`session_id`", "the name"))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    let number = text.parse();
    number.map_err(|_| format!("{text:?} is not a whole number of at least 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_text_unless_they_begin_with_a_slash() {
        let id = |name| SessionId::parse(name).unwrap();
        for (line, expected) in [
            ("", Line::Text(String::new())),
            ("  a /b", Line::Text("  a /b".to_owned())),
            ("//usr", Line::Text("/usr".to_owned())),
            ("/help", Line::Help),
            ("/open tale-1", Line::Open(id("tale-1"))),
            ("/sessions ", Line::Sessions),
            ("/fork b", Line::Fork(id("b"), None)),
            ("/fork  b 12", Line::Fork(id("b"), Some(12))),
            ("/retry", Line::Retry),
            ("/undo", Line::Undo),
            ("/text", Line::ShowText),
            ("/delete b", Line::Delete(id("b"))),
            ("/seed", Line::Seed(None)),
            ("/seed 7", Line::Seed(Some(7))),
            ("/quit", Line::Quit),
        ] {
            assert_eq!(Line::parse(line), Ok(expected), "{line:?}");
        }
        for (line, words) in [
            ("/", "/help"),
            ("/open", "usage: /open NAME "),
            ("/open a b", "usage: /open NAME "),
            ("/nothing", "\"/nothing\""),
            ("/fork b -1", "\"-1\" is not a whole number"),
            ("/seed x", "\"x\" is not a whole number"),
            ("/open a/b", "the name"),
        ] {
            let error = Line::parse(line).unwrap_err();
            assert!(error.contains(words), "{line:?}: {error}");
        }
    }
}
