//! What each command does.

mod browse;
mod care;
mod cloudsnap;
mod copy_files;
mod credentials;
mod extras;
mod files;
mod lazy;
mod schedules;
mod snapshot;
mod status;
mod stores;
mod volume;

use crate::{
    cli::{Cli, Command},
    failure::Failure,
    output::Output,
};
use blockd_api::Client;

/// What a command has to work with.
struct Context<'a> {
    client: Client,
    output: &'a Output,
}

/// Runs a command; the result is the exit status.
pub async fn run(cli: Cli, output: &Output) -> Result<u8, Failure> {
    let context = Context { client: Client::new(cli.global.socket), output };
    match cli.command {
        Command::Volume(command) => volume::run(&context, command).await,
        Command::Snapshot(command) => snapshot::run(&context, command).await,
        Command::Credentials(command) => credentials::run(&context, command).await,
        Command::Cloudsnap(command) => Box::pin(cloudsnap::run(&context, command)).await,
        Command::Browse(command) => Box::pin(browse::run(&context, command)).await,
        Command::SchedPolicy(command) => schedules::policy(&context, command).await,
        Command::Status => status::run(&context).await,
        Command::Completions(args) => extras::completions(&context, &args),
        Command::Man(args) => extras::man(&context, &args),
    }
}

/// The value, or a dash where there is none.
fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The number with its noun: `1 connection`, `2 connections`.
fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
