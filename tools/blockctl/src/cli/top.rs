//! `blockctl top`

use clap::{Args, ValueEnum};
use std::time::Duration;

pub const TOP_HELP: &str = "\
Rates are those between two looks, and latencies the means of the requests that ended in between, as the volume took for them. WAITING \
are requests under way at the moment, DIRTY is what the next backup would carry. ETA goes by all that was seen of a task.
On a terminal it goes on until Ctrl-C; elsewhere it prints one picture after the other, with --json each as a document on a line of its own. \
With --once it looks twice, prints what happened in between, and ends.

Examples:
  blockctl top
  blockctl top --sort latency --interval 0.5
  blockctl -j top --once";

/// `top`
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print one picture and end
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    pub interval: Duration,
    /// What the volumes are sorted by: the most first, or by name
    #[arg(short, long, value_name = "KEY", value_enum, default_value_t = SortKey::Iops)]
    pub sort: SortKey,
}

/// What volumes are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortKey {
    // Reads, writes, flushes and discards in a second.
    Iops,
    // Bytes read and written in a second.
    Throughput,
    // The longer one of reads and writes.
    Latency,
    // What the next backup would carry.
    Dirty,
    // From a to z.
    Name,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number of seconds".to_owned())?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("it must be 0.1 to 3600 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_bounded() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "1e9", "2s", ""] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
