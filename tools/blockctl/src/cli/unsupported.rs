//! Options of `pxctl` and clusters without an equivalent on one host: refused with a reason and an
//! alternative.

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// Unsupported words of a command line.
struct Missing {
    /// Command, or empty for all.
    command: &'static str,
    /// Words on the command line.
    words: &'static [&'static str],
    /// Reason and alternative.
    why: &'static str,
}

const MISSING: &[Missing] = &[
    Missing { command: "", words: &["--raw"], why: "what programs read is --json" },
    Missing {
        command: "",
        words: &["--config"],
        why: "blockctl has no configuration file: `blockctl context create` stores addresses and certificates",
    },
    Missing {
        command: "cloudsnap restore",
        words: &["-n", "--node"],
        why: "a daemon has one host, on which it creates the volume (select another daemon with --endpoint or --context)",
    },
    Missing {
        command: "volume create",
        words: &[
            "--repl",
            "--nodes",
            "--aggregation_level",
            "--io_priority",
            "--sticky",
            "--shared",
            "--sharedv4",
        ],
        why: "a volume is stored on its host only: create copies with backups and schedules",
    },
];

/// Returns the reason for refusing a word known from other tools.
pub fn reason(root: &Command, error: &clap::Error, args: &[String]) -> Option<String> {
    let kind = match error.kind() {
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        _ => return None,
    };
    let Some(ContextValue::String(typed)) = error.get(kind) else { return None };
    let typed = typed.split(['=', ' ']).next()?;
    let command = command_of(root, args);
    let is_meant =
        |one: &&Missing| (one.command.is_empty() || one.command == command) && one.words.contains(&typed);
    let found = MISSING.iter().find(is_meant)?;
    let place = if found.command.is_empty() { "blockctl" } else { &command };
    Some(format!("{place} has no {typed}: {}", found.why))
}

/// Returns the full names of the typed command, as far as it is valid.
fn command_of(root: &Command, args: &[String]) -> String {
    let (mut at, mut names) = (root, Vec::new());
    for arg in args {
        if let Some(sub) = at.find_subcommand(arg) {
            names.push(sub.get_name().to_owned());
            at = sub;
        }
    }
    names.join(" ")
}
