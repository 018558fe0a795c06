//! Output streams: results to stdout, everything else to stderr.

use crate::{
    cli::ColorChoice,
    failure::{EXIT_FAILED, Failure},
    table::{Facts, Table},
};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Output streams and their format.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    color: bool,
}

impl Output {
    /// Creates an output of JSON or text, with or without colours.
    pub fn new(json: bool, color: ColorChoice) -> Self {
        let color = match color {
            ColorChoice::Always => {
                // An explicit option overrides NO_COLOR, which the table library would follow.
                crossterm::style::force_color_output(true);
                true
            }
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
                !unwanted && !dumb && io::stdout().is_terminal()
            }
        };
        Self { json, color }
    }

    /// Returns true if results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns true if tables have colours.
    pub fn is_colored(&self) -> bool {
        self.color
    }

    /// Writes the one JSON document of a command.
    pub fn document<T: Serialize>(&self, document: &T) -> Result<(), Failure> {
        let mut text =
            serde_json::to_vec_pretty(document).map_err(|error| Failure::Stdout { source: error.into() })?;
        text.push(b'\n');
        self.raw(&text)
    }

    /// Writes the document of a command, or a line.
    pub fn tell<T: Serialize, S: AsRef<str>>(
        &self,
        document: &T,
        line: impl FnOnce() -> S,
    ) -> Result<(), Failure> {
        if self.json { self.document(document) } else { self.line(line()) }
    }

    /// Writes the document of a command, or a table.
    pub fn show<T: Serialize>(&self, document: &T, table: impl FnOnce() -> Table) -> Result<(), Failure> {
        if self.json { self.document(document) } else { self.table(&table()) }
    }

    /// Writes the document of a command, or its properties.
    pub fn describe<T: Serialize>(&self, document: &T, facts: impl FnOnce() -> Facts) -> Result<(), Failure> {
        if self.json { self.document(document) } else { self.raw(facts().render().as_bytes()) }
    }

    /// Writes one line of text.
    pub fn line(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        self.raw(format!("{}\n", printable(text.as_ref())).as_bytes())
    }

    /// Writes a table.
    pub fn table(&self, table: &Table) -> Result<(), Failure> {
        self.raw(table.render(self.color).as_bytes())
    }

    /// Writes bytes as they are.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            // The reader closed the pipe, as `head` does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(source) => Err(Failure::Stdout { source }),
            Ok(()) => Ok(()),
        }
    }

    /// Writes a note to stderr.
    pub fn note(&self, text: impl AsRef<str>) {
        // Errors of a closed stderr are ignored.
        let _ = writeln!(io::stderr().lock(), "{}", printable(text.as_ref()));
    }

    /// Writes a failure, as a document or as text, and returns the exit status.
    pub fn failure(&self, failure: &Failure) -> u8 {
        if self.json {
            if self.document(&failure.document()).is_err() {
                return EXIT_FAILED;
            }
        } else {
            self.error(&failure.to_string(), failure.hint().as_deref());
        }
        failure.exit_status()
    }

    /// Writes an error and its hint to stderr.
    pub fn error(&self, message: &str, hint: Option<&str>) {
        self.note(format!("error: {message}"));
        if let Some(hint) = hint {
            self.note(format!("hint: {hint}"));
        }
    }
}

/// Escapes control characters, so that names from a store cannot control the terminal.
pub fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(hidden) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_not_sent() {
        assert_eq!(printable("plain ä"), "plain ä");
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{202e}"), "a\\u{1b}[2Jb\\u{a}c\\u{202e}");
    }
}
