//! The `blockd` binary: loads the configuration and runs the daemon. SIGHUP reloads configuration and TLS
//! certificates, SIGTERM and SIGINT stop the daemon.

use blockd::{
    activation::Passed,
    check::{CheckFormat, check_volumes},
    check_start::{check_files, check_start},
    cli::Cli,
    config::Config,
    daemon::{Daemon, DaemonError},
    logging,
    reload::on_hangup,
    salvage::ExportRequest,
};
use blockd_quiesce::hold_filesystem;
use blockd_volume::{OpenOptions, Recovery};
use clap::Parser;
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
    // Before any other file is opened.
    let passed = Passed::take();
    let cli = Cli::parse();
    if let Some(mount) = &cli.hold_filesystem {
        return match hold_filesystem(mount, Duration::from_millis(cli.hold_timeout_ms)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error, 1),
        };
    }
    if let Some(what) = cli.generate {
        return match what.write(&mut std::io::stdout().lock()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error, 1),
        };
    }
    let mut config = match Config::load(&cli) {
        Ok(config) => config,
        Err(error) => return failed(&error, EXIT_USAGE),
    };
    if cli.check_config {
        if let Err(error) = config.check_host() {
            return failed(&error, EXIT_USAGE);
        }
        print!("{}", config.to_shown_toml());
        let problems = check_files(&config);
        for problem in &problems {
            eprintln!("blockd: {}", problem.replace('\n', " "));
        }
        return if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
    }
    if cli.check_start {
        return match check_start(&config) {
            Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
            Ok(problems) => {
                for problem in problems {
                    eprintln!("blockd: {}", problem.replace('\n', " "));
                }
                ExitCode::from(EXIT_WOULD_NOT_START)
            }
            Err(what) => {
                eprintln!("blockd: {}", what.replace('\n', " "));
                ExitCode::from(EXIT_CANNOT_CHECK)
            }
        };
    }
    if let Some(volumes) = &cli.check_volumes {
        let format = if cli.json { CheckFormat::Json } else { CheckFormat::Text };
        let recovery = if cli.after_power_loss { Recovery::AfterPowerLoss } else { Recovery::Auto };
        let request = cli.export.as_ref().map(|image| ExportRequest {
            image: image.clone(),
            snapshot: cli.snapshot.clone(),
            options: OpenOptions { recovery, ..OpenOptions::default() },
        });
        let out = &mut std::io::stdout().lock();
        return match check_volumes(&config.data_dir, volumes, request.as_ref(), format, out) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(EXIT_UNSOUND),
            Err(error) => failed(&error, EXIT_CANNOT_CHECK),
        };
    }
    // Compared with reloaded configurations.
    let running = config.clone();
    config.log_format = match logging::init(&config) {
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
    // Remaining blocking threads have been told to stop and are not waited for: all data is durable.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref(), 1),
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
    let daemon = Daemon::start_with(passed, config, cli.after_power_loss).await?;
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
