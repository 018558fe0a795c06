//! `blockctl context`: named daemons.

use clap::{Args, Subcommand};
use std::path::PathBuf;

const CREATE_HELP: &str = "\
Examples:
  blockctl context create vault --endpoint vault.example:9440 --ca ca.pem --cert me.pem --key me.key
  blockctl context create here --socket /run/blockd/operator.sock
  blockctl --context vault cloudsnap list";

const LIST_HELP: &str = "\
Examples:
  blockctl context list
  blockctl -j context list";

const SET_HELP: &str = "\
Examples:
  blockctl context set vault
  blockctl context unset";

const DELETE_HELP: &str = "\
Examples:
  blockctl context delete vault";

/// Subcommands of `context`.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Create a context from --socket, or --endpoint with --ca, --cert and --key
    #[command(after_help = CREATE_HELP)]
    Create(CreateArgs),
    /// List contexts
    #[command(visible_alias = "ls", after_help = LIST_HELP)]
    List,
    /// Make a context current
    #[command(visible_alias = "use", after_help = SET_HELP)]
    Set(NameArgs),
    /// Use the daemon of this host
    #[command(after_help = SET_HELP)]
    Unset,
    /// Delete a context
    #[command(visible_alias = "rm", after_help = DELETE_HELP)]
    Delete(NameArgs),
}

/// Arguments of `context create`; the address comes from the global options.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the context
    pub name: String,
    /// Make it current
    #[arg(long)]
    pub current: bool,
    /// Replace an existing context
    #[arg(long)]
    pub replace: bool,
}

/// Context name argument.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// Name of the context
    pub name: String,
}

/// Returns the absolute path: contexts are used from any directory.
pub fn absolute(path: Option<&PathBuf>) -> Option<PathBuf> {
    path.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
}
