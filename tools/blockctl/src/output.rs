//! Output streams: results to stdout, everything else to stderr.

use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure},
    hanging::hanging,
    table::{Facts, Table, printable},
};
use blockd_api::{Client, Document};
use clap::ValueEnum;
use rustix::termios::tcgetwinsize;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
};

/// Use of colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    // On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    Always,
    Never,
}

impl From<ColorChoice> for clap::ColorChoice {
    fn from(choice: ColorChoice) -> Self {
        match choice {
            ColorChoice::Auto => Self::Auto,
            ColorChoice::Always => Self::Always,
            ColorChoice::Never => Self::Never,
        }
    }
}

/// Context of a command.
pub struct Context<'a> {
    /// API client.
    pub client: Client,
    /// Output streams.
    pub output: &'a Output,
}

/// Output streams and their format.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    color: bool,
    /// Width of the terminal; `None` for files and pipes.
    columns: Option<usize>,
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
        Self { json, color, columns: columns_of(io::stdout()) }
    }

    /// Returns true if results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns true if tables have colours.
    pub fn is_colored(&self) -> bool {
        self.color
    }

    /// Returns the width of the terminal; `None` for files and pipes.
    pub fn columns(&self) -> Option<usize> {
        self.columns
    }

    /// Writes the one JSON document of a command.
    pub fn document<T: Serialize + JsonSchema>(&self, document: &T) -> Exit {
        self.json_text(&Document::new(document))
    }

    /// Writes a JSON document in the form of another tool, without a version.
    pub fn foreign_document<T: Serialize>(&self, document: &T) -> Exit {
        self.json_text(document)
    }

    fn json_text(&self, document: &impl Serialize) -> Exit {
        let mut text = serde_json::to_vec_pretty(document).map_err(Failure::stdout)?;
        text.push(b'\n');
        self.raw(&text)
    }

    /// Writes one of several JSON documents, on a line.
    pub fn document_line<T: Serialize + JsonSchema>(&self, document: &T) -> Exit {
        let text = serde_json::to_string(&Document::new(document)).map_err(Failure::stdout)?;
        self.raw((text + "\n").as_bytes())
    }

    /// Writes the document of a command, or raw text.
    pub fn text<T: Serialize + JsonSchema>(&self, document: &T, text: impl FnOnce() -> String) -> Exit {
        if self.json { self.document(document) } else { self.raw(text().as_bytes()) }
    }

    /// Writes the document of a command, or a line.
    pub fn tell<T: Serialize + JsonSchema, S: AsRef<str>>(
        &self,
        document: &T,
        line: impl FnOnce() -> S,
    ) -> Exit {
        self.text(document, || printable(line().as_ref()) + "\n")
    }

    /// Writes the document of a command, or a table.
    pub fn show<T: Serialize + JsonSchema>(&self, document: &T, table: impl FnOnce() -> Table) -> Exit {
        self.text(document, || self.rendered(&table()))
    }

    /// Writes the document of a list, or its table; a note to stderr if it is empty.
    pub fn list<T: Serialize + JsonSchema>(
        &self,
        document: &T,
        what: &str,
        table: impl FnOnce() -> Table,
    ) -> Exit {
        if self.json {
            return self.document(document);
        }
        let table = table();
        if table.is_empty() {
            self.note(format!("no {what}"));
            return Ok(EXIT_DONE);
        }
        self.table(&table)
    }

    /// Writes the document of a command, or its properties.
    pub fn describe<T: Serialize + JsonSchema>(&self, document: &T, facts: impl FnOnce() -> Facts) -> Exit {
        self.text(document, || facts().render(self.columns))
    }

    /// Writes one line of text.
    pub fn line(&self, text: impl AsRef<str>) -> Exit {
        debug_assert!(!self.json, "text beside a document");
        self.raw((printable(text.as_ref()) + "\n").as_bytes())
    }

    /// Writes a text behind `head`: one line, on a terminal as many as it needs, the others with an indent.
    pub fn hanging(&self, head: &str, text: &str, indent: usize) -> Exit {
        debug_assert!(!self.json, "text beside a document");
        let text = hanging(head, &printable(text), indent, self.columns.unwrap_or(usize::MAX));
        self.raw((text + "\n").as_bytes())
    }

    /// Writes properties.
    pub fn facts(&self, facts: &Facts) -> Exit {
        self.raw(facts.render(self.columns).as_bytes())
    }

    /// Writes a table.
    pub fn table(&self, table: &Table) -> Exit {
        debug_assert!(!self.json, "a table beside a document");
        self.raw(self.rendered(table).as_bytes())
    }

    /// Returns a table as text, as wide as the terminal.
    pub fn rendered(&self, table: &Table) -> String {
        table.render_within(self.color, self.columns.unwrap_or_default())
    }

    /// Writes bytes as they are.
    pub fn raw(&self, bytes: &[u8]) -> Exit {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            // The reader closed the pipe, as `head` does.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::stdout(error)),
            _ => Ok(EXIT_DONE),
        }
    }

    /// Writes a note to stderr.
    pub fn note(&self, text: impl AsRef<str>) {
        // Errors of a closed stderr are ignored.
        let _ = writeln!(io::stderr().lock(), "{}", printable(text.as_ref()));
    }

    /// Writes the warnings of a reply to stderr.
    pub fn warn(&self, warnings: &[String]) {
        warnings.iter().for_each(|warning| self.note(format!("warning: {warning}")));
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

    /// Writes an error and its hint to stderr. On a terminal, the error is broken at words, the hint is not:
    /// users copy its commands.
    pub fn error(&self, message: &str, hint: Option<&str>) {
        let columns = columns_of(io::stderr()).unwrap_or(usize::MAX);
        let text = hanging("error: ", &printable(message), 2, columns);
        // Errors of a closed stderr are ignored.
        let _ = writeln!(io::stderr().lock(), "{text}");
        if let Some(hint) = hint {
            self.note(format!("hint: {hint}"));
        }
    }
}

/// Returns the width of a terminal; `None` for files and pipes.
fn columns_of(stream: impl AsFd) -> Option<usize> {
    let columns = tcgetwinsize(stream).ok().map(|size| usize::from(size.ws_col));
    columns.filter(|columns| *columns > 0)
}
