//! Tables of the results.

use crate::{
    backups::{self, MIDNIGHT_S, SIMULATED_S, Scenario},
    bucket::{Bucket, Counts, S3_READS_PER_S, S3_WRITES_PER_S, Settings},
    collection,
    costs::{Area, CHAIN, Scripts, Step, count},
    fleet::{
        DAILY_CHANGE_PERCENT, FULL_EVERY, FULL_HOSTS, HOST_BYTES_PER_S, Kind, VOLUME_BYTES, VOLUMES, policies,
    },
    hydration,
    size::Size,
};
use blockd_api::costs::Prices;
use blockd_schedule::Jitter;
use blockd_store::RequestKind;

const KINDS: [RequestKind; 4] = [RequestKind::Put, RequestKind::Get, RequestKind::List, RequestKind::Delete];

fn limits(hosts: u32) -> [u32; 2] {
    Bucket::new(Settings { hosts, partitions: Some(1), outage_s: 0..0 }).limits()
}

/// Prints the fleet.
pub fn fleet(hosts: u32) {
    let [writes, reads] = limits(hosts);
    println!(
        "{hosts} hosts with {VOLUMES} volumes of {} GiB each; {DAILY_CHANGE_PERCENT} % of it change in a day",
        VOLUME_BYTES >> 30
    );
    println!(
        "{} MiB/s for each host, a full backup every {FULL_EVERY} backups, a prefix for each host",
        HOST_BYTES_PER_S >> 20
    );
    println!("limits of a partition: {writes} writes/s, {reads} reads/s");
    if hosts != FULL_HOSTS {
        println!(
            "(a model: those of S3, {S3_WRITES_PER_S} and {S3_READS_PER_S}, are for {FULL_HOSTS} hosts)"
        );
    }
    for policy in policies().into_iter().flatten() {
        let (when, retain) = (policy.when.to_string(), policy.retain.to_string());
        println!(
            "{:3} % of hosts: {:10} {when:14} keep {retain:28} packs: {} full, {} incremental; {} sources of a full one",
            policy.share,
            policy.name,
            policy.packs(Kind::Full),
            policy.packs(Kind::Incremental),
            policy.sources().count()
        );
    }
}

/// Prints the recorded requests.
pub fn requests(scripts: &Scripts) {
    println!(
        "\nrequests, as recorded; P packs, O objects, V pages of the data of a volume, L pages of each listing of all manifests, D of all data"
    );
    println!("                                       PUT  GET  LIST  DELETE");
    let fixed = |script: &[Step], kind| count(script, kind, &|_| 0);
    let row = |name: &str, script: &[Step], less: [u64; 4]| {
        let [put, get, list, delete] = [0, 1, 2, 3].map(|nth| fixed(script, KINDS[nth]) - less[nth]);
        let whole = |area| script.iter().filter(|step| step.whole && step.area == area).count();
        let listings = Area::ALL.iter().map(|area| (whole(*area), area.prefix()));
        let listings: Vec<String> = listings
            .filter(|(times, _)| *times > 0)
            .map(|(times, name)| format!("{times} x {name}"))
            .collect();
        println!("{name:36}  {put:4} {get:4}  {list:4}  {delete:6}  {}", listings.join(", "));
    };
    let objects = |script: &[Step]| {
        script.iter().filter(|step| step.kind == RequestKind::Delete && step.area == Area::Data).count()
            as u64
    };
    row("first backup, and P PUT", &scripts.first, [1, 0, 0, 0]);
    row("full backup, and P PUT", &scripts.full, [1, 0, 0, 0]);
    row("incremental backup, and P PUT", &scripts.incremental, [1, 0, 0, 0]);
    let deltas = |script: &[Step]| {
        script.iter().filter(|step| step.kind == RequestKind::List && step.area == Area::Data).count() as u64
    };
    row("retention check of a volume, and V LIST", &scripts.retention, [0, 0, deltas(&scripts.retention), 0]);
    row("deletion, and O / 1000 DELETE", &scripts.deletion, [0, 0, 0, objects(&scripts.deletion)]);
    row("garbage collection", &scripts.collection, [0; 4]);
    row("exchange, each hour", &scripts.exchange, [0; 4]);
    row(&format!("lazy volume, chain {CHAIN}"), &scripts.lazy, [0; 4]);
    row("hydration of 4 MiB", &scripts.hydration, [0; 4]);
}

fn minutes(seconds: u32) -> String {
    match seconds {
        0 => "0".into(),
        s if s % 3600 == 0 => format!("{} h", s / 3600),
        s => format!("{} min", s / 60),
    }
}

fn duration(ms: u64) -> String {
    match ms / 1000 {
        0..120 => format!("{:.1} s", ms as f64 / 1e3),
        s @ 120..7200 => format!("{:.0} min", s as f64 / 60.0),
        s => format!("{:.1} h", s as f64 / 3600.0),
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// Prints the heading of [`backups()`].
pub fn backup_heading() {
    println!(
        "\nscheduled backups and retention, {} h from 18:00 on; rates in requests/s with retries",
        SIMULATED_S / 3600
    );
    println!(
        "host: the busiest prefix of a host; queued: from the scheduled start with jitter to the first request"
    );
    println!(
        "{:7} {:10} {:>8} {:>7} {:>7} {:>7} {:>7} {:>9} {:>9} {:>5} {:>9} {:>9} {:>8} {:>8} {:>8} {:>7}",
        "jitter",
        "partitions",
        "w/s peak",
        "p99",
        "r/s peak",
        "p99",
        "needed",
        "data/",
        "manifests/",
        "host",
        "queue p50",
        "queue max",
        "resumed",
        "failed",
        "late",
        "$/day"
    );
}

/// Prints a scenario.
pub fn backups(scenario: &Scenario, outcome: &backups::Outcome) {
    let (bucket, runs) = (&outcome.bucket, &outcome.runs);
    let [writes, reads] = &bucket.attempts;
    let [write_limit, read_limit] = bucket.limits();
    let needed = writes.peak().div_ceil(write_limit).max(reads.peak().div_ceil(read_limit));
    let seconds = SIMULATED_S as usize;
    println!(
        "{:7} {:10} {:8} {:7} {:8} {:7} {:7} {:9} {:10} {:5} {:>9} {:>9} {:>8} {:>8} {:>8} {:7.0}",
        scenario.jitter_s.map_or_else(|| "default".into(), minutes),
        scenario.bucket.partitions.map_or("any".into(), |count| count.to_string()),
        writes.peak(),
        writes.p99(seconds),
        reads.peak(),
        reads.p99(seconds),
        needed,
        bucket.by_area[Area::Data as usize].peak(),
        bucket.by_area[Area::Manifests as usize].peak(),
        bucket.host_peak,
        duration(runs.queued_ms.at_per_million(500_000)),
        duration(runs.queued_ms.at_per_million(1_000_000)),
        percent(runs.resumed, runs.started),
        percent(runs.failed, runs.started),
        percent(runs.late, runs.started),
        bucket.served.dollars() * 86_400.0 / SIMULATED_S as f64,
    );
}

/// Prints the heading of [`outage()`].
pub fn outage_heading() {
    println!(
        "\noutage of the bucket around midnight; unprotected: last run failed, at the end of the simulation"
    );
    println!(
        "{:6} {:7} {:>8} {:>8} {:>8} {:>8} {:>11} {:>9} {:>12} {:>12}",
        "outage",
        "jitter",
        "w/s peak",
        "resumed",
        "failed",
        "late",
        "unprotected",
        "recovered",
        "catch-up p50",
        "catch-up max"
    );
}

/// Prints an outage.
pub fn outage(scenario: &Scenario, outcome: &backups::Outcome) {
    let runs = &outcome.runs;
    let hours = (scenario.bucket.outage_s.end - scenario.bucket.outage_s.start) / 3600;
    debug_assert!(scenario.bucket.outage_s.contains(&MIDNIGHT_S), "the outage is around midnight");
    println!(
        "{:6} {:7} {:8} {:8} {:>8} {:>8} {:>11} {:9} {:>12} {:>12}",
        format!("{hours} h"),
        scenario.jitter_s.map_or_else(|| "default".into(), minutes),
        outcome.bucket.attempts[0].peak(),
        runs.resumed,
        percent(runs.failed, runs.started),
        percent(runs.late, runs.started),
        percent(runs.unprotected, u64::from(scenario.bucket.hosts * VOLUMES)),
        runs.recovered,
        duration(runs.recovered_ms.at_per_million(500_000)),
        duration(runs.recovered_ms.at_per_million(1_000_000)),
    );
}

/// Returns the requests of scripts for a repository of a size.
fn counts(script: &[Step], size: &Size) -> Counts {
    let mut counts = Counts::default();
    for kind in KINDS {
        counts.add(kind, count(script, kind, &|area| size.pages(area)));
    }
    counts
}

/// Prints the costs of listings for repositories of different numbers of hosts.
pub fn repositories(scripts: &Scripts, size: &Size, hosts: u32) {
    let prices = Prices::s3_standard();
    println!(
        "\nlistings by hosts of a repository: {} snapshots and {} objects of data for each host",
        size.snapshots, size.objects
    );
    println!(
        "a day has a collection and 24 exchanges of each host, and a deletion of each volume; $: PUT and LIST {}, GET {} for 1,000",
        prices.put_per_1000, prices.get_per_1000
    );
    println!(
        "{:>6} {:>12} {:>12} {:>12} {:>12} {:>14} {:>10} {:>12}",
        "hosts", "snapshots", "per deletion", "per exchange", "collection", "LIST/day", "LIST/s", "$/day"
    );
    for shared in [1, 10, 100, 1000, 10_000] {
        if shared > u64::from(hosts) {
            break;
        }
        let of = size.times(shared);
        let [deletion, exchange, collection] =
            [&scripts.deletion, &scripts.exchange, &scripts.collection].map(|script| counts(script, &of));
        let volumes = u64::from(VOLUMES);
        let daily = u64::from(hosts) * (deletion.list * volumes + exchange.list * 24 + collection.list);
        println!(
            "{shared:6} {:12} {:12} {:12} {:12} {daily:14} {:10.1} {:12.0}",
            of.snapshots,
            deletion.list,
            exchange.list,
            collection.list,
            daily as f64 / 86_400.0,
            Counts { list: daily, ..Counts::default() }.dollars(),
        );
    }
}

/// Prints the heading of [`collection()`].
pub fn collection_heading() {
    println!("\nstart of all daemons within a time, one partition: their collections and exchanges");
    println!(
        "{:9} {:7} {:>8} {:>8} {:>10} {:>8} {:>10} {:>9} {:>8} {:>7}",
        "starts in", "jitter", "r/s peak", "w/s peak", "throttled", "failed", "LIST", "GET", "duration", "$"
    );
}

/// Prints the collections after a start.
pub fn collection((spread_s, jitter): (u64, Jitter), outcome: &collection::Outcome) {
    let served = outcome.bucket.served;
    println!(
        "{:9} {:7} {:8} {:8} {:10} {:8} {:10} {:9} {:>8} {:7.2}",
        format!("{spread_s} s"),
        minutes(jitter.max_s),
        outcome.bucket.attempts[1].peak(),
        outcome.bucket.attempts[0].peak(),
        outcome.bucket.throttled,
        outcome.failed,
        served.list,
        served.get,
        duration(outcome.duration_s.unsigned_abs() * 1000),
        served.dollars(),
    );
}

/// Prints the heading of [`hydration()`].
pub fn hydration_heading(hosts: u32) {
    println!("\nlazy restore of all {VOLUMES} volumes of {} hosts at once", hosts / 20);
    println!(
        "{:>10} {:>9} {:>8} {:>7} {:>11} {:>9} {:>9} {:>12} {:>12} {:>7}",
        "partitions",
        "MiB/s",
        "r/s peak",
        "served",
        "throttled",
        "open p50",
        "open max",
        "hydrated p50",
        "hydrated max",
        "$"
    );
}

/// Prints a restore of many hosts.
pub fn hydration(partitions: u32, bytes_per_s: u64, outcome: &hydration::Outcome) {
    let bucket = &outcome.bucket;
    println!(
        "{partitions:10} {:9} {:8} {:7} {:>11} {:>9} {:>9} {:>12} {:>12} {:7.2}",
        bytes_per_s >> 20,
        bucket.attempts[1].peak(),
        bucket.served.total().checked_div(outcome.last_s.unsigned_abs()).unwrap_or(0),
        percent(bucket.throttled, bucket.throttled + bucket.served.total()),
        duration(outcome.opened_ms.at_per_million(500_000)),
        duration(outcome.opened_ms.at_per_million(1_000_000)),
        duration(outcome.hydrated_ms.at_per_million(500_000)),
        duration(outcome.hydrated_ms.at_per_million(1_000_000)),
        bucket.served.dollars(),
    );
}
