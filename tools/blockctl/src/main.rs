//! `blockctl`: command line of the blockd daemon.
//!
//! [`cli`] is the grammar, [`commands`] each command with its arguments, [`output`] the streams: results go
//! to stdout, everything else to stderr, and with `--json` exactly one document to stdout.

mod backup_names;
mod cli;
mod cloudsnap_ref;
mod commands;
mod confirm;
mod contexts;
mod failure;
mod hanging;
mod nbd;
mod objects;
mod output;
mod progress;
mod secrets;
mod short_ids;
mod signals;
mod snapshot_ref;
mod table;
mod times;
mod volume_point;
mod wait;

use blockd_api::Client;
use clap_complete::CompleteEnv;
use cli::{Cli, Command, Prescan};
use commands::{
    anomaly, browse, bundle, cloudsnap, completions, context, credentials, doctor, events, init, rules,
    schedules, schema, snapshot, status, top, volume,
};
use failure::{Exit, Failure};
use output::{Context, Output};
use std::process::ExitCode;

fn main() -> ExitCode {
    CompleteEnv::with_factory(cli::completable).var(completions::VARIABLE).complete();
    let args: Vec<_> = std::env::args_os().collect();
    let early = Prescan::of(args.iter().skip(1));
    let cli = match cli::parse(&args, early.color) {
        Ok(cli) => cli,
        Err(error) => {
            let args: Vec<String> =
                args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
            let known = cli::unsupported::reason(&cli::command(), &error, &args).map(Failure::usage);
            let shown_as_json = || (early.json && error.use_stderr()).then(|| Failure::from_clap(&error));
            if let Some(failure) = known.or_else(shown_as_json) {
                return ExitCode::from(Output::new(early.json, early.color).failure(&failure));
            }
            // Errors of a closed stderr are ignored.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::EXIT_USAGE));
        }
    };
    let output = Output::new(cli.global.json, cli.global.color);
    let done = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let done = runtime.block_on(run(cli, &output));
            // Does not wait for a blocked write to a stalled reader.
            runtime.shutdown_background();
            done
        }
        Err(source) => Err(Failure::runtime(source)),
    };
    ExitCode::from(match done {
        Ok(status) => status,
        Err(failure) => output.failure(&failure),
    })
}

/// Runs a command and returns the exit status.
async fn run(cli: Cli, output: &Output) -> Exit {
    // Only some commands need a daemon.
    let context = || -> Result<Context<'_>, Failure> {
        let endpoint = contexts::resolve(&cli.global, |name| std::env::var_os(name))?;
        Ok(Context { client: Client::at(endpoint), output })
    };
    match cli.command {
        Command::Context(command) => context::run(&cli.global, output, command),
        Command::Completions(args) => completions::completions(output, &args),
        Command::Man(args) => completions::man(output, &args, cli::command()),
        Command::Schema(args) => schema::run(output, &args, &cli::command()),
        Command::Secrets(args) => commands::secrets::run(output, &args),
        Command::Volume(command) => volume::run(&context()?, command).await,
        Command::Snapshot(command) => snapshot::run(&context()?, command).await,
        Command::Credentials(command) => credentials::run(&context()?, command).await,
        Command::Cloudsnap(command) => Box::pin(cloudsnap::run(&context()?, command)).await,
        Command::Browse(command) => Box::pin(browse::run(&context()?, command)).await,
        Command::Anomaly(command) => anomaly::run(&context()?, command).await,
        Command::Rule(command) => rules::run(&context()?, command).await,
        Command::SchedPolicy(command) => schedules::policy(&context()?, command).await,
        Command::Apply(args) => Box::pin(commands::objects::apply(&context()?, args)).await,
        Command::Get(args) => Box::pin(commands::objects::get(&context()?, args)).await,
        Command::Describe(args) => Box::pin(commands::objects::describe(&context()?, args)).await,
        Command::Diff(args) => Box::pin(commands::objects::diff(&context()?, args)).await,
        Command::Delete(args) => Box::pin(commands::objects::delete(&context()?, args)).await,
        Command::Init(args) => Box::pin(init::run(&context()?, *args)).await,
        Command::Doctor => Box::pin(doctor::run(&context()?)).await,
        Command::Status(args) => status::run(&context()?, &args).await,
        Command::Top(args) => Box::pin(top::run(&context()?, args)).await,
        Command::Events(args) => events::run(&context()?, args).await,
        Command::Logs(args) => events::logs(&context()?, args).await,
        Command::SupportBundle(args) => Box::pin(bundle::run(&context()?, args)).await,
    }
}
