//! Confirmation of destructive commands on a terminal.

use crate::{failure::Failure, output::Output, table::printable};
use clap::Args;
use std::io::{self, IsTerminal, Write};

/// Confirmation option. Scripts have no terminal and are never asked.
#[derive(Clone, Copy, Debug, Args)]
pub struct YesArg {
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

impl YesArg {
    /// Returns true if the user has to confirm: without the option, on a terminal.
    pub fn must_ask(self) -> bool {
        !self.yes && io::stdin().is_terminal() && io::stderr().is_terminal()
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
        // Errors of a closed stderr are ignored.
        let _ = write!(io::stderr().lock(), "{}\nContinue? [y/N] ", printable(consequence));
        let mut answer = String::new();
        let read = io::stdin().read_line(&mut answer);
        if read.is_ok_and(|len_bytes| len_bytes == 0) {
            output.note("");
        }
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::Declined),
        }
    }
}
