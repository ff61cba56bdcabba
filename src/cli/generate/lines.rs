//! Input of an interactive session: a line editor with history at a terminal, otherwise plain standard input.

use std::fs;
use std::io::{self, IsTerminal, Lines, StdinLock};
use std::path::PathBuf;

use anyhow::Context;
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

/// Maximum lines in the history.
const HISTORY: usize = 1000;

/// Result of reading a line.
pub(super) enum Input {
    Line(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    End,
}

/// The lines of an interactive session.
pub(super) enum LineReader {
    Editor {
        editor: Box<Editor<(), FileHistory>>,
        /// File of the history; `None` keeps it in memory.
        history: Option<PathBuf>,
    },
    Plain(Lines<StdinLock<'static>>),
}

impl LineReader {
    /// Creates the reader. With `keeps_history`, it loads the history file, and [`Self::save`] appends to it.
    ///
    /// # Errors
    /// If the terminal can't be used.
    pub(super) fn new(keeps_history: bool) -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Plain(io::stdin().lines()));
        }
        let config = Config::builder().max_history_size(HISTORY)?.build();
        let mut editor = Editor::with_config(config).context("the terminal can't be used")?;
        editor.set_auto_add_history(true);
        let history = keeps_history.then(history_file).flatten();
        if let Some(file) = &history {
            // The file does not exist before the first session.
            let _ = editor.load_history(file);
        }
        Ok(Self::Editor {
            editor: Box::new(editor),
            history,
        })
    }

    /// Returns whether the lines come from a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Editor { .. })
    }

    /// Reads the next line.
    ///
    /// # Errors
    /// If it can't be read, or is not UTF-8.
    pub(super) fn next(&mut self, prompt: &str) -> anyhow::Result<Input> {
        match self {
            Self::Editor { editor, .. } => match editor.readline(prompt) {
                Ok(line) => {
                    // Now, because a terminal that is closed ends the program.
                    self.save();
                    Ok(Input::Line(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
                Err(ReadlineError::Eof) => Ok(Input::End),
                Err(error) => Err(error).context("the terminal can't be read"),
            },
            Self::Plain(lines) => match lines.next().transpose() {
                Ok(line) => Ok(line.map_or(Input::End, Input::Line)),
                Err(error) => Err(error).context("standard input is not valid UTF-8 text"),
            },
        }
    }

    /// Stores the new lines of the history. Failures are ignored: a session must not fail for its history.
    fn save(&mut self) {
        if let Self::Editor {
            editor,
            history: Some(file),
        } = self
        {
            if let Some(directory) = file.parent() {
                let _ = fs::create_dir_all(directory);
            }
            let _ = editor.append_history(file);
        }
    }
}

/// Returns the path of the history: `skald/history` in the state directory of the XDG base directories.
fn history_file() -> Option<PathBuf> {
    let directory = |name| std::env::var_os(name).map(PathBuf::from);
    let state = directory("XDG_STATE_HOME").filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(directory("HOME")?.join(".local/state")))?;
    Some(state.join("skald").join("history"))
}
