use crate::{
    backups::{self, Scenario},
    bucket::{Answer, Bucket, Settings},
    collection,
    costs::{self, Area, Scripts, Step, count},
    fleet::{HOST_BYTES_PER_S, Kind, STORED_PERCENT, Sources, VOLUME_BYTES, VOLUMES, policies},
    history::{History, settled},
    hydration,
    size::Size,
};
use blockd_schedule::Jitter;
use blockd_store::RequestKind::{Delete, Get, List, Put};
use jiff::{SignedDuration, Timestamp};
use std::sync::LazyLock;

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| costs::record().unwrap());
const HOSTS: u32 = 40;

fn settings(partitions: Option<u32>) -> Settings {
    Settings { hosts: HOSTS, partitions, outage_s: 0..0 }
}

fn simulated(bucket: Settings, jitter_s: Option<u32>) -> backups::Outcome {
    backups::simulate(&SCRIPTS, &Scenario { bucket, jitter_s, seed: 7 }).unwrap()
}

#[test]
fn recorded_requests_are_those_of_the_format() {
    let of = |script: &[Step]| [Put, Get, List, Delete].map(|kind| count(script, kind, &|_| 1));
    // The pack, the index and the manifest; the key slot of the first one, the base of an incremental.
    assert_eq!(of(&SCRIPTS.first), [3, 1, 0, 0]);
    let [put, get, list, delete] = of(&SCRIPTS.full);
    assert!((7..=15).contains(&get), "seven indexes and the base: {get} GETs");
    assert_eq!([put, list, delete], [3, 0, 0]);
    assert_eq!(of(&SCRIPTS.incremental), [3, 1, 0, 0]);
    assert_eq!(of(&SCRIPTS.exchange), [0, 0, 3, 0]);
    let [put, get, list, delete] = of(&SCRIPTS.hydration);
    assert!((1..=8).contains(&get) && put + list + delete == 0, "4 MiB that do not compress: {get} GETs");
    let manifests = SCRIPTS.deletion.iter().filter(|step| step.whole && step.area == Area::Manifests);
    assert_eq!(manifests.count(), 4, "two listings before and after the deletion of the manifest");
    let data = SCRIPTS.collection.iter().filter(|step| step.whole && step.area == Area::Data);
    assert_eq!(data.count(), 1);
}

#[test]
fn bucket_throttles_requests_above_its_limit() {
    let mut bucket = Bucket::new(settings(Some(2)));
    let [writes, reads] = bucket.limits();
    assert_eq!((writes, reads), (14, 22));
    let step = Step { area: Area::Data, kind: Put, whole: false };
    for nth in 0..writes + 1 {
        let expected = if nth < writes { Answer::Served } else { Answer::Throttled };
        assert_eq!(bucket.request(5_000, 0, step), expected);
    }
    assert_eq!(bucket.request(5_999, HOSTS - 1, step), Answer::Served, "another partition");
    assert_eq!(bucket.request(5_999, 0, Step { kind: Get, ..step }), Answer::Served, "a read");
    assert_eq!(bucket.request(6_000, 0, step), Answer::Served, "the next second");
    assert_eq!((bucket.throttled, bucket.host_peak, bucket.attempts[0].peak()), (1, 16, 16));
}

#[test]
fn deltas_are_deleted_with_the_last_snapshot_that_needs_them() {
    let at = |hours| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
    let mut history = History::new(Sources { backups: 2, only_full: false });
    let mut freed = Vec::new();
    let retain = "last=2".parse().unwrap();
    for hour in 0..10 {
        history.add(at(hour), if history.next_kind() == Kind::First { 9 } else { 1 });
        freed.push(history.expire(&retain, at(hour)).iter().sum::<u64>());
    }
    // The first one has ten objects, the others two each. That of hour 7 is full and references two deltas.
    assert_eq!(freed, [0, 0, 0, 0, 0, 0, 0, 0, 10 + 4 * 2, 0]);
    assert_eq!((history.snapshots(), history.objects(), history.needed()), (2, 5 * 2, 5));
    // With too many sources, those of full backups only.
    let mut history = History::new(Sources { backups: 14, only_full: true });
    for hour in 0..23 {
        history.add(at(hour), 1);
        history.expire(&retain, at(hour));
    }
    assert_eq!((history.objects(), history.needed()), (4 * 2, 4), "of hours 7, 14, 21 and 22");
}

#[test]
fn settled_volumes_keep_their_number_of_snapshots() {
    let now: Timestamp = "2026-11-29T18:00:00Z".parse().unwrap();
    for policy in policies().unwrap() {
        for mut history in settled(&policy, now).unwrap() {
            let before = history.snapshots();
            let next = policy.when.next_after(now).unwrap();
            history.add(next, 1);
            history.expire(&policy.retain, next);
            assert!(history.snapshots().abs_diff(before) <= 2, "{}", policy.name);
        }
    }
}

#[test]
fn jitter_flattens_the_peak_of_schedules() {
    let [at_once, spread] = [Some(0), Some(3600)].map(|jitter_s| simulated(settings(None), jitter_s));
    let peak = |outcome: &backups::Outcome| outcome.bucket.attempts[0].peak();
    assert!(peak(&at_once) > 10 * peak(&spread), "{}, {}", peak(&at_once), peak(&spread));
    assert_eq!((at_once.runs.failed, spread.runs.failed), (0, 0));
    let again = simulated(settings(None), Some(3600));
    assert_eq!(again.bucket.served, spread.bucket.served, "the same seed");
    let throttled = simulated(settings(Some(1)), Some(0));
    assert!(throttled.runs.resumed > throttled.runs.started / 10, "{} resumed", throttled.runs.resumed);
}

#[test]
fn failed_runs_resume_soon_after_an_outage() {
    let begin_s = backups::MIDNIGHT_S - 1800;
    let outcome = simulated(Settings { outage_s: begin_s..begin_s + 3600, ..settings(None) }, Some(0));
    let runs = &outcome.runs;
    assert!(runs.resumed > u64::from(HOSTS), "{} resumed", runs.resumed);
    assert!(runs.recovered > 0 && runs.unprotected == 0, "{} unprotected", runs.unprotected);
    let latest_ms = runs.recovered_ms.at_per_million(1_000_000);
    assert!(latest_ms < 35 * 60_000, "the pause is 30 minutes at most: {latest_ms} ms");
    // Hourly runs of the outage are replaced by the next ones.
    assert!(runs.failed < runs.started / 100, "{} of {} failed", runs.failed, runs.started);
}

#[test]
fn collections_spread_over_an_hour_are_not_throttled() {
    let size = Size { snapshots: 200, objects: 20_000 };
    let of = |max_s| collection::simulate(&SCRIPTS, &settings(Some(1)), &size, (0, Jitter { max_s }), 7);
    let (at_once, spread) = (of(0), of(3600));
    assert!(at_once.bucket.throttled > 0 && at_once.failed > 0);
    assert!(spread.bucket.attempts[1].peak() < at_once.bucket.attempts[1].peak());
    assert!(spread.failed < at_once.failed, "{}, {}", spread.failed, at_once.failed);
    assert_eq!(Size { snapshots: 1001, objects: 0 }.pages(Area::Manifests), 2);
}

#[test]
fn hydration_takes_time_by_its_bandwidth() {
    let hydrated = |bytes_per_s| {
        let outcome = hydration::simulate(&SCRIPTS, &settings(None), 2, bytes_per_s, 7);
        assert_eq!(outcome.bucket.throttled, 0);
        outcome.hydrated_ms.at_per_million(1_000_000) as f64
    };
    let (fast, slow) = (hydrated(HOST_BYTES_PER_S), hydrated(HOST_BYTES_PER_S / 4));
    assert!((3.8..4.2).contains(&(slow / fast)), "{fast}, {slow}");
    let bytes = u64::from(VOLUMES) * VOLUME_BYTES * STORED_PERCENT / 100;
    let expected_ms = (bytes * 1000 / HOST_BYTES_PER_S) as f64;
    assert!((0.95..1.1).contains(&(fast / expected_ms)), "{fast} ms, {expected_ms} ms");
    let throttled = hydration::simulate(&SCRIPTS, &settings(Some(1)), 8, HOST_BYTES_PER_S, 7);
    assert!(throttled.bucket.throttled > 0 && throttled.hydrated_ms.count() == 80, "all are hydrated");
}
