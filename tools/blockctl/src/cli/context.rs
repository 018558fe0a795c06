//! `blockctl context`: names for daemons.

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

/// What to do with names for daemons.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Keep how a daemon is reached under a name: --socket, or --endpoint with --ca, --cert and --key
    #[command(after_help = CREATE_HELP)]
    Create(CreateArgs),
    /// List the names that are kept
    #[command(visible_alias = "ls", after_help = LIST_HELP)]
    List,
    /// Mean this daemon from now on, unless something else is said
    #[command(visible_alias = "use", after_help = SET_HELP)]
    Set(NameArgs),
    /// Mean this host's daemon again
    #[command(after_help = SET_HELP)]
    Unset,
    /// Forget a name
    #[command(visible_alias = "rm", after_help = DELETE_HELP)]
    Delete(NameArgs),
}

/// What `create` takes; how the daemon is reached stands in the global options.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The name
    pub name: String,
    /// Mean this daemon from now on
    #[arg(long)]
    pub current: bool,
    /// Replace a context of that name
    #[arg(long)]
    pub replace: bool,
}

/// A name.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The name
    pub name: String,
}

/// Where files are: contexts are used from everywhere.
pub fn absolute(path: Option<&PathBuf>) -> Option<PathBuf> {
    path.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
}
