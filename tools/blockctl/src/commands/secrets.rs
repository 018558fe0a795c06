//! `blockctl secrets STORE login`, with which scripts for `pxctl` begin.

use crate::{
    failure::{EXIT_DONE, Exit, Failure},
    output::Output,
};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

pub const LOGIN_HELP: &str = "\
Examples:
  blockctl secrets kvdb login";

const REASON: &str = "secrets belong to credentials: they are stored sealed on the host, or read by reference from \
    systemd, a file or a program; see `blockctl credentials create --help`";

/// `secrets`
#[derive(Debug, Args)]
pub struct SecretsArgs {
    /// Secret store, such as kvdb, vault, aws or k8s
    #[arg(value_name = "STORE")]
    pub store: String,
    /// The command and its options
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Document of a login.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoginDocument<'a> {
    store: &'a str,
    login_needed: bool,
    reason: &'static str,
}

/// Succeeds for a login, which a host does not need.
pub fn run(output: &Output, args: &SecretsArgs) -> Exit {
    match args.command.first().map(String::as_str) {
        Some("login") if output.is_json() => {
            output.document(&LoginDocument { store: &args.store, login_needed: false, reason: REASON })
        }
        Some("login") => {
            output.note(format!("No login to {} is needed: {REASON}.", args.store));
            Ok(EXIT_DONE)
        }
        _ => Err(Failure::usage(format!("blockctl has no secrets: {REASON}"))),
    }
}
