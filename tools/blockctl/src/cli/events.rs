//! `blockctl events` and `blockctl support-bundle`

use clap::Args;
use std::path::PathBuf;

pub const EVENTS_HELP: &str = "\
Events are what people should know of: backups that failed, runs of schedules that were missed or left out, damage that a \
verification found, stores that cannot be reached, volumes that take no more requests. blockd remembers the newest 10000.
With --follow and --json, each event is a document on a line of its own.

Examples:
  blockctl events
  blockctl events --max 20 --errors
  blockctl -j events --follow";

pub const BUNDLE_HELP: &str = "\
The file holds what blockd says of itself, its volumes, snapshots, credentials, tasks, schedules, rules, events and metrics, and where \
blockd runs on this host, what the host says: kernel, memory, NBD devices, disk, blockd's configuration and the newest part of its journal; \
as one JSON document. It is made also when blockd does not answer. Secrets are not in it: blockd never tells them, and what looks \
like one is taken out, as is what commands of rules are and say. Names, labels and \
addresses are in it; look through it before you pass it on. A part that cannot be had is in it with the reason.

Examples:
  blockctl support-bundle --output blockd-support.json";

/// `events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on as events happen, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the newest so many
    #[arg(short = 'x', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub max: u32,
    /// Show errors only
    #[arg(short, long)]
    pub errors: bool,
}

/// `support-bundle`
#[derive(Debug, Args)]
pub struct BundleArgs {
    /// The file to be made, which must not be there; - for stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// blockd's configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/blockd/blockd.toml")]
    pub config: PathBuf,
    /// Lines of blockd's log from the journal; 0 for none
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub log_lines: u32,
}
