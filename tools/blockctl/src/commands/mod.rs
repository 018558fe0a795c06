//! Implementations of the commands.

pub mod arguments;
pub mod browse;
mod bundle;
pub mod cloudsnap;
pub mod completions;
pub mod context;
pub mod credentials;
pub mod doctor;
pub mod events;
mod files;
mod filters;
mod health;
pub mod init;
pub mod limits;
mod list_filter;
pub mod objects;
mod protection;
pub mod rules;
pub mod schedules;
pub mod schema;
pub mod secrets;
pub mod snapshot;
mod space;
pub mod status;
pub mod top;
pub mod volume;

use crate::{
    cli::{Cli, Command},
    contexts,
    failure::{EXIT_DONE, Exit},
    output::{Context, Output},
};
use blockd_api::Client;

/// Runs a command and returns the exit status.
pub async fn run(cli: Cli, output: &Output) -> Exit {
    let command = match cli.command {
        // These commands need no daemon.
        Command::Context(command) => return context::run(&cli.global, output, command),
        Command::Completions(args) => return completions::completions(output, &args),
        Command::Man(args) => return completions::man(output, &args),
        Command::Schema(args) => return schema::run(output, &args),
        Command::Secrets(args) => return secrets::run(output, &args),
        command => command,
    };
    let endpoint = contexts::resolve(&cli.global, |name| std::env::var_os(name))?;
    let context = Context { client: Client::at(endpoint), output };
    match command {
        Command::Volume(command) => volume::run(&context, command).await,
        Command::Snapshot(command) => snapshot::run(&context, command).await,
        Command::Credentials(command) => credentials::run(&context, command).await,
        Command::Cloudsnap(command) => Box::pin(cloudsnap::run(&context, command)).await,
        Command::Browse(command) => Box::pin(browse::run(&context, command)).await,
        Command::Rule(command) => rules::run(&context, command).await,
        Command::SchedPolicy(command) => schedules::policy(&context, command).await,
        Command::Apply(args) => Box::pin(objects::apply(&context, args)).await,
        Command::Get(args) => Box::pin(objects::get(&context, args)).await,
        Command::Describe(args) => Box::pin(objects::describe(&context, args)).await,
        Command::Diff(args) => Box::pin(objects::diff(&context, args)).await,
        Command::Delete(args) => Box::pin(objects::delete(&context, args)).await,
        Command::Init(args) => Box::pin(init::run(&context, *args)).await,
        Command::Doctor => Box::pin(doctor::run(&context)).await,
        Command::Status(args) => status::run(&context, &args).await,
        Command::Top(args) => Box::pin(top::run(&context, args)).await,
        Command::Events(args) => events::run(&context, args).await,
        Command::Logs(args) => events::logs(&context, args).await,
        Command::SupportBundle(args) => Box::pin(bundle::run(&context, args)).await,
        Command::Context(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Schema(_)
        | Command::Secrets(_) => Ok(EXIT_DONE),
    }
}
