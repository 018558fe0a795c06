//! Confirmation of destructive commands on a terminal.

use crate::{
    failure::{EXIT_FAILED, Failure},
    output::Output,
    table::printable,
};
use clap::Args;
use rustix::fs::OFlags;
use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
};

/// Confirmation option. Scripts have no terminal and are never asked.
#[derive(Clone, Copy, Debug, Args)]
pub struct YesArg {
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

impl YesArg {
    /// Returns true if the user has to confirm: without the option, with a terminal as stdin. Redirected
    /// output makes no script.
    pub fn must_ask(self) -> bool {
        !self.yes && io::stdin().is_terminal()
    }

    /// Returns true with the option.
    pub fn is_given(self) -> bool {
        self.yes
    }

    /// Returns true if the user confirms the command, by the option or an answer.
    pub fn is_deliberate(self) -> bool {
        self.yes || self.must_ask()
    }

    /// Asks for confirmation on a terminal.
    ///
    /// # Errors
    /// The user refuses.
    pub fn confirm(self, output: &Output, consequence: &str) -> Result<(), Failure> {
        if !self.must_ask() {
            return Ok(());
        }
        let question = format!("{}\nContinue? [y/N] ", printable(consequence));
        // Without a reader of the question there is no answer.
        let _ = match terminal() {
            Ok(mut terminal) => terminal.write_all(question.as_bytes()),
            Err(_) => io::stderr().lock().write_all(question.as_bytes()),
        };
        let mut answer = String::new();
        let read = io::stdin().read_line(&mut answer);
        if read.is_ok_and(|len_bytes| len_bytes == 0) {
            output.note("");
        }
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::local("declined", EXIT_FAILED, "cancelled: nothing was changed")),
        }
    }
}

/// Opens the terminal of stdin for writing: stderr may be a file.
fn terminal() -> io::Result<File> {
    let no_control = OFlags::NOCTTY.bits().cast_signed();
    OpenOptions::new().write(true).custom_flags(no_control).open("/proc/self/fd/0")
}
