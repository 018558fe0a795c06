//! The `blockd` binary: loads the configuration and runs the daemon. SIGHUP reloads configuration and TLS
//! certificates, SIGTERM and SIGINT stop the daemon.

use blockd::{
    activation::Passed,
    check::{CheckFormat, check_volumes},
    check_start::{check_files, check_start, price_warnings},
    cli::Cli,
    config::Config,
    daemon::Daemon,
    error::DaemonError,
    logging,
    reload::on_hangup,
    salvage::ExportRequest,
};
use blockd_nbd_kernel::System;
use blockd_quiesce::hold_filesystem;
use blockd_volume::{OpenOptions, Recovery};
use clap::{CommandFactory, Parser};
use std::{process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// Invalid command line or configuration.
const EXIT_USAGE: u8 = 2;
/// The start check found a problem.
const EXIT_WOULD_NOT_START: u8 = 1;
/// The volume check found a problem.
const EXIT_UNSOUND: u8 = 1;
/// A check could not be performed.
const EXIT_CANNOT_CHECK: u8 = 3;
/// Interval between checks for renewed TLS certificates.
const CERTIFICATE_POLL: Duration = Duration::from_secs(60);

fn failed(error: &dyn std::error::Error, status: u8) -> ExitCode {
    let line = error.to_string().replace('\n', " ");
    eprintln!("blockd: {line}");
    ExitCode::from(status)
}

fn main() -> ExitCode {
    // Any file opened earlier could get the number of a passed descriptor.
    let passed = Passed::take();
    let cli = Cli::parse();
    let mut config = match configure(&cli) {
        Ok(config) => config,
        Err(status) => return status,
    };
    // Compared with reloaded configurations.
    let running = config.clone();
    config.log_format = match logging::init(&config.log_level, config.log_format) {
        Ok(format) => format,
        Err(error) => return failed(&error, EXIT_USAGE),
    };
    blockd::daemon::hide_memory(&config);
    blockd::allocator::set_up();
    blockd::daemon::make_io_flusher();
    blockd::daemon::lock_memory();
    blockd::open_files::raise(&config);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error, 1),
    };
    let result = runtime.block_on(serve(passed, config, running, &cli));
    // Does not wait for remaining blocking threads, which are stopping: all data is durable.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref(), 1),
    }
}

/// Loads the configuration, or runs the requested check or output and returns its exit status.
fn configure(cli: &Cli) -> Result<Config, ExitCode> {
    if let Some(mount) = &cli.hold_filesystem {
        let held = hold_filesystem(mount, Duration::from_millis(cli.hold_timeout_ms));
        return Err(held.map_or_else(|error| failed(&error, 1), |()| ExitCode::SUCCESS));
    }
    if let Some(what) = cli.generate {
        let written = what.write(Cli::command(), &mut std::io::stdout().lock());
        return Err(written.map_or_else(|error| failed(&error, 1), |()| ExitCode::SUCCESS));
    }
    let config = Config::load(cli).map_err(|error| failed(&error, EXIT_USAGE))?;
    if cli.check_config {
        return Err(show_config(&config));
    }
    if cli.check_start {
        return Err(report_start(&config));
    }
    match &cli.check_volumes {
        Some(volumes) => Err(report_volumes(cli, &config, volumes)),
        None => Ok(config),
    }
}

/// Prints problems, one line each.
fn print_problems(problems: &[String]) {
    for problem in problems {
        eprintln!("blockd: {}", problem.replace('\n', " "));
    }
}

fn show_config(config: &Config) -> ExitCode {
    if let Err(error) = config.check_host() {
        return failed(&error, EXIT_USAGE);
    }
    print!("{}", config.to_shown_toml());
    for warning in price_warnings(config) {
        eprintln!("blockd: warning: {warning}");
    }
    let problems = check_files(config);
    print_problems(&problems);
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) }
}

fn report_start(config: &Config) -> ExitCode {
    match check_start(config) {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            print_problems(&problems);
            ExitCode::from(EXIT_WOULD_NOT_START)
        }
        Err(what) => {
            print_problems(&[what]);
            ExitCode::from(EXIT_CANNOT_CHECK)
        }
    }
}

fn report_volumes(cli: &Cli, config: &Config, volumes: &[String]) -> ExitCode {
    let format = if cli.json { CheckFormat::Json } else { CheckFormat::Text };
    let recovery = if cli.after_power_loss { Recovery::AfterPowerLoss } else { Recovery::Auto };
    let request = cli.export.as_ref().map(|image| ExportRequest {
        image: image.clone(),
        snapshot: cli.snapshot.clone(),
        options: OpenOptions { recovery, ..OpenOptions::default() },
    });
    match check_volumes(&config.data_dir, volumes, request.as_ref(), format, &mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_UNSOUND),
        Err(error) => failed(&error, EXIT_CANNOT_CHECK),
    }
}

async fn serve(
    passed: Passed,
    config: Config,
    mut running: Config,
    cli: &Cli,
) -> Result<(), Box<dyn std::error::Error>> {
    // Before the start, so that a signal during a long one is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let daemon = Daemon::start_with(System::default(), passed, config, cli.after_power_loss).await?;
    let mut result = Ok(());
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                tracing::info!("stopping on SIGTERM");
                break;
            }
            _ = interrupt.recv() => {
                tracing::info!("stopping on SIGINT");
                break;
            }
            () = daemon.nbd_failed() => {
                tracing::error!("the NBD server failed: stopping");
                result = Err(DaemonError::NbdFailed);
                break;
            }
            _ = hangup.recv() => on_hangup(&daemon, &mut running, Config::load(cli)).await,
            () = tokio::time::sleep(CERTIFICATE_POLL) => daemon.renew_certificates().await,
        }
    }
    daemon.stop().await?;
    Ok(result?)
}
