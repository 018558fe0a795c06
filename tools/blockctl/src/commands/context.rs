//! `blockctl context`: named daemons.

use crate::{
    confirm::YesArg,
    contexts::{ContextEntry, Contexts, Global, contexts_path},
    failure::{Exit, Failure},
    output::Output,
    table::{Table, or_dash},
};
use blockd_api::List;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
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
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List,
    /// Make a context current
    #[command(visible_alias = "use", after_help = SET_HELP)]
    Set(NameArgs),
    /// Use the daemon of this host
    #[command(after_help = SET_HELP)]
    Unset,
    /// Delete a context
    #[command(visible_alias = "d", after_help = DELETE_HELP)]
    Delete(DeleteArgs),
}

/// `context delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Context.
    #[command(flatten)]
    pub context: NameArgs,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
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

/// Entry of `context list`.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedContext {
    name: String,
    current: bool,
    #[serde(flatten)]
    entry: ContextEntry,
}

/// Runs `context` commands; needs no daemon.
pub fn run(global: &Global, output: &Output, command: ContextCommand) -> Exit {
    let path = path()?;
    let mut contexts = Contexts::load(&path)?;
    match command {
        ContextCommand::Create(args) => create(global, &mut contexts, args)?,
        ContextCommand::List => return list(output, contexts),
        ContextCommand::Set(args) => {
            contexts.named(&args.name)?;
            contexts.current = Some(args.name);
        }
        ContextCommand::Unset => contexts.current = None,
        ContextCommand::Delete(args) => delete(output, &mut contexts, &args)?,
    }
    contexts.save(&path)?;
    list(output, contexts)
}

fn delete(output: &Output, contexts: &mut Contexts, args: &DeleteArgs) -> Result<(), Failure> {
    let name = &args.context.name;
    let is_current = contexts.current.as_ref() == Some(name);
    let target = target(contexts.named(name)?).unwrap_or_default();
    let then = if is_current { "; without a current context, the daemon of this host is used" } else { "" };
    args.yes.confirm(output, &format!("Context {name} ({target}) is deleted{then}."))?;
    contexts.contexts.remove(name);
    if is_current {
        contexts.current = None;
    }
    output.note(format!("Context {name} deleted successfully"));
    Ok(())
}

/// Returns the address of a context.
fn target(entry: &ContextEntry) -> Option<String> {
    let socket = || entry.socket.as_ref().map(|path| path.display().to_string());
    entry.endpoint.clone().or_else(socket)
}

fn path() -> Result<PathBuf, Failure> {
    let missing = || Failure::usage("it is not known where to keep contexts: set HOME or XDG_CONFIG_HOME");
    contexts_path(|name| std::env::var_os(name)).ok_or_else(missing)
}

fn create(global: &Global, contexts: &mut Contexts, args: CreateArgs) -> Result<(), Failure> {
    let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if args.name.is_empty() || args.name.len() > 64 || !args.name.chars().all(sound) {
        return Err(Failure::usage("a context's name is 1 to 64 letters, digits, `-`, `_` and `.`"));
    }
    let entry = ContextEntry {
        socket: absolute(global.socket.as_ref()),
        endpoint: global.endpoint.clone(),
        ca: absolute(global.ca.as_ref()),
        cert: absolute(global.cert.as_ref()),
        key: absolute(global.key.as_ref()),
    };
    if entry.socket.is_none() && entry.endpoint.is_none() {
        return Err(Failure::usage(
            "the address is missing: give --socket, or --endpoint with --ca, --cert and --key",
        ));
    }
    entry.check()?;
    if contexts.contexts.contains_key(&args.name) && !args.replace {
        return Err(Failure::usage(format!(
            "there is a context {} already: replace it with --replace",
            args.name
        )));
    }
    if args.current {
        contexts.current = Some(args.name.clone());
    }
    contexts.contexts.insert(args.name, entry);
    Ok(())
}

fn list(output: &Output, contexts: Contexts) -> Exit {
    let Contexts { current, contexts } = contexts;
    let listed: Vec<_> = contexts
        .into_iter()
        .map(|(name, entry)| ListedContext { current: current.as_ref() == Some(&name), name, entry })
        .collect();
    let list = List::from(listed);
    output.list(&list, "contexts", || {
        let row = |ListedContext { name, current, entry }: &ListedContext| {
            [name.clone(), or_dash(current.then_some("yes")), or_dash(target(entry))]
        };
        Table::of("NAME|CURRENT|REACHED BY", list.items.iter().map(row)).fit("NAME").with_text()
    })
}
