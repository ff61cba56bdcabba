//! Standard output of the text, in colours if it is a terminal and they are asked for. Remarks go to standard
//! error, so that standard output has the text only.

use std::io::{self, IsTerminal, Write};

use super::colour::{legend, painted, shows_colours, without_controls};
use crate::cli::write_out;
use crate::engine::TokenLogprob;
use crate::text::TextPiece;

/// Standard output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    is_terminal: bool,
    paints: bool,
}

impl Screen {
    /// Creates the screen; `paints` asks for colours.
    pub(super) fn new(paints: bool) -> Self {
        let stdout = io::stdout();
        Self {
            is_terminal: stdout.is_terminal(),
            paints: paints && shows_colours(&stdout),
        }
    }

    /// Writes the next piece of a generated text.
    ///
    /// # Errors
    /// If standard output is closed.
    pub(super) fn piece(self, piece: &TextPiece<TokenLogprob>) -> anyhow::Result<()> {
        if !self.paints {
            return self.text(&piece.text);
        }
        let tokens = piece.tokens.iter();
        let tokens =
            tokens.map(|shown| painted(&without_controls(&shown.text), shown.token.logprob));
        write_out(&tokens.collect::<String>())
    }

    /// Writes text.
    ///
    /// # Errors
    /// If standard output is closed.
    pub(super) fn text(self, text: &str) -> anyhow::Result<()> {
        if self.is_terminal {
            write_out(&without_controls(text))
        } else {
            write_out(text)
        }
    }

    /// Writes the legend, if the text is coloured.
    pub(super) fn legend(self) {
        if self.paints {
            remark(&legend());
        }
    }
}

/// Writes a line to standard error; a failure is ignored.
pub(super) fn remark(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
