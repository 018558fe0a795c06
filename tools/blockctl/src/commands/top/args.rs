//! `blockctl top`

use crate::commands::arguments::WideArg;
use clap::{Args, ValueEnum};
use std::time::Duration;

pub const TOP_HELP: &str = "\
Rates are averages between two refreshes, latencies the mean of requests that ended in between, \
measured in the volume. --wide adds flushes, WAITING, the number of requests that the volume is \
executing, and DIRTY, the bytes changed since the last freeze or growth. ETA uses the whole history of a task. On a terminal the screen refreshes until \
Ctrl-C; elsewhere snapshots are printed one after the other, with --json as a document per line. \
--once prints one snapshot of one interval.

Examples:
  blockctl top
  blockctl top --sort latency --interval 0.5
  blockctl -j top --once";

/// `top`
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print one snapshot and exit
    #[arg(long)]
    pub once: bool,
    /// Refresh interval in seconds
    #[arg(short, long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    pub interval: Duration,
    /// Sort key of volumes, descending (names ascending)
    #[arg(short, long, value_name = "KEY", value_enum, default_value_t = SortKey::Iops)]
    pub sort: SortKey,
    /// Width option.
    #[command(flatten)]
    pub width: WideArg,
}

/// Sort key of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortKey {
    // Requests per second.
    Iops,
    // Bytes read and written per second.
    Throughput,
    // The higher latency of reads and writes.
    Latency,
    // Bytes changed since the last freeze or growth.
    Dirty,
    // Ascending.
    Name,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number of seconds".to_owned())?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("it must be 0.1 to 3600 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}
