//! `skald generate --interactive`: each line is added to a session's text, and the model continues from there.
//!
//! A line of text is a turn on the session, like a request to the server. Ctrl-C stops the text; the session
//! keeps the part that was shown.

use std::collections::HashMap;

use futures_util::FutureExt;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Generate;
use super::command::{HELP, Line};
use super::lines::{Input, LineReader};
use super::screen::{Screen, remark};
use super::stream::{Generated, generate};
use crate::request::{SessionId, Tenant};
use crate::serving::Serving;
use crate::session::{IfBusy, SessionError, SessionKey};
use crate::text::Tokenizer;

/// Maximum sessions in the list.
const LISTED: usize = 100;
/// Characters at the end of a session's text that are shown when it is opened.
const SHOWN: usize = 400;

/// An interactive session.
pub(super) struct Interactive<'a> {
    options: &'a Generate,
    serving: &'a Serving,
    runtime: &'a Runtime,
    screen: Screen,
    lines: LineReader,
    session: SessionId,
    /// Ctrl-C, which is a signal except while a line is edited. `None` without a terminal: the signal ends the
    /// program.
    interrupts: Option<Signal>,
    /// Seed of every turn; `None` is a random one for each.
    seed: Option<u64>,
    /// Turns on each session since the start, so that the last can be taken back.
    turns: HashMap<SessionId, Vec<PastTurn>>,
}

/// A committed turn.
struct PastTurn {
    line: String,
    /// Tokens that it added.
    tokens: usize,
    /// Tokens of the session after it.
    length: usize,
}

impl<'a> Interactive<'a> {
    /// Starts an interactive session.
    ///
    /// # Errors
    /// If the terminal can't be used.
    pub(super) fn new(
        options: &'a Generate,
        serving: &'a Serving,
        runtime: &'a Runtime,
    ) -> anyhow::Result<Self> {
        let lines = LineReader::new(!options.no_history)?;
        let _context = runtime.enter();
        let interrupts = lines.is_terminal().then(|| signal(SignalKind::interrupt()));
        Ok(Self {
            options,
            serving,
            runtime,
            screen: Screen::new(options.show_probabilities),
            lines,
            interrupts: interrupts.transpose()?,
            session: options.session.clone(),
            seed: options.seed,
            turns: HashMap::new(),
        })
    }

    /// Reads and executes lines until the end. A line that fails is reported, and the next one is read.
    ///
    /// # Errors
    /// If lines can't be read, or standard output is closed.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        self.greet()?;
        if let Some(prompt) = self.options.prompt.clone() {
            self.execute(Line::Text(prompt))?;
        }
        loop {
            let prompt = format!("{}> ", self.session);
            // A Ctrl-C that arrived just after the last text ended must not stop the next one.
            while self
                .interrupts
                .as_mut()
                .is_some_and(|interrupts| interrupts.recv().now_or_never().is_some())
            {}
            let line = match self.lines.next(&prompt)? {
                Input::Line(line) => line,
                Input::Interrupted => {
                    remark("Ctrl-D or /quit ends");
                    continue;
                }
                Input::End => break,
            };
            match Line::parse(&line) {
                Ok(Line::Quit) => break,
                Ok(line) => self.execute(line)?,
                Err(message) => remark(&message),
            }
        }
        Ok(())
    }

    fn greet(&mut self) -> anyhow::Result<()> {
        if self.lines.is_terminal() {
            remark("/help lists the commands; Ctrl-C stops the text, Ctrl-D ends");
            self.screen.legend();
            self.show_end()?;
        }
        Ok(())
    }

    /// Executes one line, and reports its failure unless standard output is closed.
    fn execute(&mut self, line: Line) -> anyhow::Result<()> {
        match self.try_execute(line) {
            Err(error) if !error.is::<crate::cli::ReaderGone>() => {
                remark(&match error.downcast_ref() {
                    Some(SessionError::Busy { id }) => {
                        format!("session {id:?} is busy with another request; try again later")
                    }
                    _ => crate::cli::with_causes(&error),
                });
                Ok(())
            }
            executed => executed,
        }
    }

    fn try_execute(&mut self, line: Line) -> anyhow::Result<()> {
        match line {
            Line::Text(text) => self.turn(text, self.seed),
            Line::Help => {
                remark(HELP);
                Ok(())
            }
            Line::Open(id) => {
                self.session = id;
                self.show_end()
            }
            Line::Sessions => self.list(),
            Line::Fork(id, at) => self.fork(id, at),
            Line::Retry => {
                let line = self.take_back()?;
                self.turn(line, None)
            }
            Line::Undo => {
                self.take_back()?;
                self.show_end()
            }
            Line::ShowText => {
                let text = self.text()?;
                self.screen.text(&format!("{text}\n"))
            }
            Line::Delete(id) => {
                self.turns.remove(&id);
                let key = key(id);
                let deleted = self.serving.sessions.delete(&key);
                Ok(self.runtime.block_on(deleted)?)
            }
            Line::Seed(seed) => {
                self.seed = seed;
                Ok(())
            }
            // The loop ends before it executes this line.
            Line::Quit => Ok(()),
        }
    }

    /// Adds a line to the session's text, and generates what follows.
    fn turn(&mut self, line: String, seed: Option<u64>) -> anyhow::Result<()> {
        let mut interrupts = self.interrupts.take();
        let stop = async {
            match &mut interrupts {
                Some(interrupts) => {
                    interrupts.recv().await;
                }
                None => std::future::pending().await,
            }
        };
        let generated = self.runtime.block_on(self.generate(line, seed, stop));
        self.interrupts = interrupts;
        // The prompt comes on a new line, also after a failure.
        let shown = generated
            .as_ref()
            .is_ok_and(|(one, ..)| !one.text.ends_with('\n'));
        if shown {
            self.screen.text("\n")?;
        }
        let (generated, seed, turned) = generated?;
        let turns = self.turns.entry(self.session.clone()).or_default();
        turns.push(turned);
        if self.lines.is_terminal() {
            let (count, ending) = (generated.tokens, generated.ending.name());
            remark(&format!("[{count} tokens, {ending}, seed {seed}]"));
        }
        Ok(())
    }

    /// Runs a turn until it ends or `stop` resolves. Returns the text, its seed, and the turn.
    async fn generate(
        &self,
        line: String,
        seed: Option<u64>,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<(Generated, u64, PastTurn)> {
        let sessions = &self.serving.sessions;
        let mut turn = sessions
            .begin(&key(self.session.clone()), IfBusy::Error)
            .await?;
        let before = turn.history().to_vec();
        let length = before.len();
        let prompt = joined(&self.serving.tokenizer, &before, &line);
        let request = self
            .options
            .request(self.serving, &prompt, Some(before), seed)?;
        let seed = request.sampling.seed;
        turn.prompt(&request.prompt);
        let added = request.prompt.len();
        let show = |piece: &_| self.screen.piece(piece);
        let generated = generate(self.serving, request, Some(&mut turn), stop, show).await?;
        let delivered = generated.delivered.clone();
        let tokens = added + delivered.tokens + delivered.tail.len();
        turn.commit(delivered).await?;
        let turned = PastTurn {
            line,
            tokens,
            length: length + tokens,
        };
        Ok((generated, seed, turned))
    }

    /// Takes the last turn back and returns its line.
    fn take_back(&mut self) -> anyhow::Result<String> {
        let turns = self.turns.entry(self.session.clone()).or_default();
        let Some(last) = turns.last() else {
            anyhow::bail!(
                "no turn to take back; only turns of this session since the program started can be taken back"
            );
        };
        let key = key(self.session.clone());
        let sessions = &self.serving.sessions;
        let begun = sessions.begin(&key, IfBusy::Error);
        let turn = self.runtime.block_on(begun)?;
        if turn.history().len() != last.length {
            // The last tokens are those of a server or program that shares the directory.
            turns.clear();
            anyhow::bail!(
                "the turn can't be taken back: session {:?} has been changed since by another program",
                key.id.as_str()
            );
        }
        let rewound = turn.rewind(last.length - last.tokens);
        self.runtime.block_on(rewound)?;
        let last = turns.pop().map(|last| last.line);
        Ok(last.unwrap_or_default())
    }

    fn fork(&mut self, to: SessionId, at: Option<usize>) -> anyhow::Result<()> {
        let from = key(self.session.clone());
        let forked = self.serving.sessions.fork(&from, to.clone(), at);
        self.runtime.block_on(forked)?;
        self.session = to;
        self.show_end()
    }

    fn list(&self) -> anyhow::Result<()> {
        let listed = self.serving.sessions.list(Tenant::ANONYMOUS, None, LISTED);
        let (sessions, has_more) = self.runtime.block_on(listed)?;
        for session in &sessions {
            let forked = session.forked_from.as_ref();
            let forked = forked.map(|from| format!(", forked from {} at {}", from.id, from.at));
            let (id, tokens) = (&session.id, session.tokens.len());
            let line = format!("{id}: {tokens} tokens{}\n", forked.unwrap_or_default());
            self.screen.text(&line)?;
        }
        if sessions.is_empty() {
            remark("no sessions");
        }
        if has_more {
            remark("… and older ones");
        }
        Ok(())
    }

    /// Returns the session's text; empty for a new one.
    fn text(&self) -> anyhow::Result<String> {
        let key = key(self.session.clone());
        match self.runtime.block_on(self.serving.sessions.get(&key)) {
            Ok(session) => Ok(self.serving.tokenizer.decode(&session.tokens)),
            Err(SessionError::NotFound { .. }) => Ok(String::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Shows the end of the session's text, so that it can be continued.
    fn show_end(&self) -> anyhow::Result<()> {
        let text = self.text()?;
        if text.is_empty() || !self.lines.is_terminal() {
            return Ok(());
        }
        let before = text.chars().count().saturating_sub(SHOWN);
        let end: String = text.chars().skip(before).collect();
        let more = if before > 0 { "…" } else { "" };
        self.screen.text(&format!("{more}{end}\n"))
    }
}

fn key(id: SessionId) -> SessionKey {
    SessionKey {
        tenant: Tenant::ANONYMOUS,
        id,
    }
}

/// Returns a line as it continues a history: with a space before it if a word would otherwise stick to the text.
fn joined(tokenizer: &Tokenizer, history: &[u32], line: &str) -> String {
    // A character has at most 4 bytes, and a token at least one.
    let last = history.get(history.len().saturating_sub(4)..);
    let last = tokenizer.decode(last.unwrap_or_default());
    if needs_space(&last, line) {
        format!(" {line}")
    } else {
        line.to_owned()
    }
}

fn needs_space(before: &str, line: &str) -> bool {
    let ends_open = before
        .chars()
        .next_back()
        .is_none_or(|last| last.is_whitespace() || "([{\u{201c}\u{2018}".contains(last));
    let begins_word = line
        .chars()
        .next()
        .is_some_and(|first| first.is_alphanumeric() || "\"([{\u{201c}\u{2018}".contains(first));
    !ends_open && begins_word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_does_not_stick_to_the_text_before() {
        for (before, line, expected) in [
            ("", "Once", false),
            ("the king", "went", true),
            ("the king.", "\"Who?\"", true),
            ("the king\n", "went", false),
            ("the king", " went", false),
            ("the king", ", who", false),
            ("the king", "'s son", false),
            ("said \u{201c}", "Who", false),
            ("the king", "", false),
        ] {
            assert_eq!(needs_space(before, line), expected, "{before:?} + {line:?}");
        }
    }
}
