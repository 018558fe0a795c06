//! Simulation of a region: hosts with one bucket, their schedules, retention, collections, an outage, and
//! lazy restores of a part of them. Simulated time; the same seed gives the same figures.
//!
//! Times and decisions are those of `blockd-schedule`; the requests of each operation are recorded from
//! `blockd-cloud` in front of a store in memory. The constants in `fleet.rs` and `bucket.rs` have their
//! sources.

mod backups;
mod bucket;
mod collection;
mod costs;
mod engine;
mod fleet;
mod history;
mod hydration;
mod report;
mod size;
#[cfg(test)]
mod tests;

use crate::{
    bucket::Settings,
    fleet::{FULL_HOSTS, HOST_BYTES_PER_S},
};
use blockd_schedule::Jitter;
use std::{error::Error, process::ExitCode};

const HELP: &str = "\
tools/bench scale [OPTIONS]

Simulates 10,000 hosts with 100,000 volumes and one bucket, and prints the requests of each operation, the request
rates beside the limits of S3, and the effects of an outage and of a restore of many hosts.

  --hosts N   hosts of the model; limits of the bucket are in proportion to 10,000 [10000]
  --seed N    seed of the random numbers [1]
";

/// Options of the command line.
struct Options {
    hosts: u32,
    seed: u64,
}

fn options() -> Result<Option<Options>, Box<dyn Error>> {
    let mut options = Options { hosts: FULL_HOSTS, seed: 1 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--hosts" => options.hosts = value()?.parse()?,
            "--seed" => options.seed = value()?.parse()?,
            "-h" | "--help" => return Ok(None),
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    if options.hosts < 20 {
        return Err("--hosts must be at least 20".into());
    }
    Ok(Some(options))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let scripts = costs::record()?;
    let hosts = options.hosts;
    let settings = |partitions| Settings { hosts, partitions, outage_s: 0..0 };
    report::fleet(hosts);
    report::requests(&scripts);

    report::backup_heading();
    let mut size = None;
    for partitions in [None, Some(1)] {
        for jitter_s in [Some(0), None, Some(600), Some(3600), Some(6 * 3600)] {
            let scenario = backups::Scenario { bucket: settings(partitions), jitter_s, seed: options.seed };
            let outcome = backups::simulate(&scripts, &scenario)?;
            report::backups(&scenario, &outcome);
            size = size.or(Some(outcome.size));
        }
    }
    let size = size.unwrap_or_default();
    report::outage_heading();
    for hours in [1, 6] {
        for jitter_s in [Some(0), None, Some(6 * 3600)] {
            let begin_s = backups::MIDNIGHT_S - 1800 * hours;
            let bucket = Settings { outage_s: begin_s..begin_s + 3600 * hours, ..settings(None) };
            let scenario = backups::Scenario { bucket, jitter_s, seed: options.seed };
            report::outage(&scenario, &backups::simulate(&scripts, &scenario)?);
        }
    }
    report::repositories(&scripts, &size, hosts);
    report::collection_heading();
    for spread_s in [0, 60, 600, 3600] {
        for max_s in [0, 3600] {
            let times = (spread_s, Jitter { max_s });
            let outcome = collection::simulate(&scripts, &settings(Some(1)), &size, times, options.seed);
            report::collection(times, &outcome);
        }
    }
    report::hydration_heading(hosts);
    for partitions in [1, 16] {
        for share in [1, 4, 16] {
            let (restored, rate) = (hosts / 20, HOST_BYTES_PER_S / share);
            let outcome =
                hydration::simulate(&scripts, &settings(Some(partitions)), restored, rate, options.seed);
            report::hydration(partitions, rate, &outcome);
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let result = match options() {
        Ok(Some(options)) => run(&options),
        Ok(None) => {
            print!("{HELP}");
            Ok(())
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
