//! `blockctl`: command line of the blockd daemon.
//!
//! [`cli`] is the grammar, [`commands`] each command with its arguments, [`output`] the streams: results go
//! to stdout, everything else to stderr, and with `--json` exactly one document to stdout.

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

use clap_complete::CompleteEnv;
use cli::Prescan;
use failure::Failure;
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    CompleteEnv::with_factory(cli::completable).var(cli::completion::VARIABLE).complete();
    let args: Vec<_> = std::env::args_os().collect();
    let early = Prescan::of(args.iter().skip(1));
    let cli = match cli::parse(&args, early.color) {
        Ok(cli) => cli,
        Err(error) => {
            let args: Vec<String> =
                args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
            let known = cli::unsupported::reason(&error, &args).map(Failure::usage);
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
            let done = runtime.block_on(commands::run(cli, &output));
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
