//! Changes between two samples of a daemon's activity.

use super::args::SortKey;
use crate::{
    commands::limits::limit_wait_seconds,
    table::{Table, Width, counted, or_dash, short_uuid},
};
use blockd_api::{
    ByteSize, VolumeId,
    activity::{Activity, OperationActivity, VolumeActivity},
    format_duration,
    tasks::Task,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::HashMap;
use uuid::Uuid;

/// Changes between two samples.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActivityRates {
    /// Time between the samples.
    pub interval_seconds: f64,
    /// Volumes, sorted.
    pub volumes: Vec<VolumeLine>,
    /// Active tasks.
    pub tasks: Vec<TaskLine>,
}

/// Line of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeLine {
    pub volume_id: VolumeId,
    pub name: String,
    pub up: bool,
    pub connections: u64,
    pub dirty_bytes: u64,
    pub read_bytes_per_second: f64,
    pub written_bytes_per_second: f64,
    pub read: Rate,
    pub write: Rate,
    pub flush: Rate,
    pub discard: Rate,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    pub per_second: f64,
    /// Mean latency; `None` without requests.
    pub latency_micros: Option<f64>,
    /// Requests that the volume is executing.
    pub in_flight: u64,
}

/// Line of a task.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskLine {
    pub task_id: Uuid,
    pub state: String,
    pub volume_name: Option<String>,
    pub phase: String,
    pub processed_bytes: u64,
    pub total_bytes: u64,
    pub bytes_per_second: Option<f64>,
    pub eta_seconds: Option<f64>,
}

impl VolumeLine {
    fn iops(&self) -> f64 {
        [self.read, self.write, self.flush, self.discard].iter().map(|rate| rate.per_second).sum()
    }

    fn in_flight(&self) -> u64 {
        [self.read, self.write, self.flush, self.discard].iter().map(|rate| rate.in_flight).sum()
    }

    /// Returns the sort key, descending.
    fn key(&self, sort: SortKey) -> f64 {
        match sort {
            SortKey::Iops => self.iops(),
            SortKey::Throughput => self.read_bytes_per_second + self.written_bytes_per_second,
            SortKey::Latency => {
                let of = |rate: Rate| rate.latency_micros.unwrap_or(0.0);
                of(self.read).max(of(self.write))
            }
            SortKey::Dirty => self.dirty_bytes as f64,
            SortKey::Name => 0.0,
        }
    }
}

/// Collected samples.
pub struct Sampler {
    last: Activity,
    /// First sample of each task: time in microseconds, and bytes.
    first: HashMap<Uuid, (u64, u64)>,
}

impl Sampler {
    /// Creates the collection from a first sample.
    pub fn new(activity: Activity) -> Self {
        let first = first_of(&activity, &HashMap::new());
        Self { last: activity, first }
    }

    /// Adds a sample and returns the changes since the previous one.
    pub fn next(&mut self, now: Activity, sort: SortKey) -> ActivityRates {
        // A restarted daemon counts from zero on another clock: this is its first sample.
        let is_same =
            now.daemon_run_id == self.last.daemon_run_id && now.monotonic_micros > self.last.monotonic_micros;
        if !is_same {
            self.first.clear();
        }
        let before: HashMap<VolumeId, &VolumeActivity> = match is_same {
            true => self.last.volumes.iter().map(|volume| (volume.volume_id, volume)).collect(),
            false => HashMap::new(),
        };
        let micros = if is_same { now.monotonic_micros - self.last.monotonic_micros } else { 0 };
        let seconds = micros as f64 / 1e6;
        let mut volumes: Vec<_> = now
            .volumes
            .iter()
            .map(|volume| line(volume, before.get(&volume.volume_id).copied().unwrap_or(volume), seconds))
            .collect();
        volumes.sort_by(|a, b| b.key(sort).total_cmp(&a.key(sort)).then_with(|| a.name.cmp(&b.name)));
        let was: HashMap<Uuid, u64> = match is_same {
            true => self.last.tasks.iter().map(|task| (task.task_id, task.processed_bytes)).collect(),
            false => HashMap::new(),
        };
        self.first = first_of(&now, &self.first);
        let tasks = now.tasks.iter().map(|task| {
            let rate = was.get(&task.task_id).map(|was| per_second(*was, task.processed_bytes, seconds));
            self.task_line(task, rate, now.monotonic_micros)
        });
        let tasks = tasks.collect();
        self.last = now;
        ActivityRates { interval_seconds: seconds, volumes, tasks }
    }

    fn task_line(&self, task: &Task, bytes_per_second: Option<f64>, at_micros: u64) -> TaskLine {
        // The average over all samples: the current rate is a poor predictor.
        let mean = self.first.get(&task.task_id).map(|(since, bytes)| {
            per_second(*bytes, task.processed_bytes, at_micros.saturating_sub(*since) as f64 / 1e6)
        });
        let left = task.total_bytes.saturating_sub(task.processed_bytes) as f64;
        let eta = mean.filter(|mean| *mean >= 1.0 && task.total_bytes > 0).map(|mean| left / mean);
        // Only the end of the task is left.
        let eta = eta.map(|eta_s| eta_s.max(limit_wait_seconds(task))).filter(|eta_s| *eta_s > 0.0);
        TaskLine {
            task_id: task.task_id,
            state: task.state.to_string(),
            volume_name: task.volume_name.as_ref().map(ToString::to_string),
            phase: task.phase.clone(),
            processed_bytes: task.processed_bytes,
            total_bytes: task.total_bytes,
            bytes_per_second,
            eta_seconds: eta,
        }
    }
}

/// Returns the first sample of each task.
fn first_of(activity: &Activity, known: &HashMap<Uuid, (u64, u64)>) -> HashMap<Uuid, (u64, u64)> {
    let first = |task: &Task| {
        let now = (activity.monotonic_micros, task.processed_bytes);
        // A restarted task starts over.
        let known = known.get(&task.task_id).filter(|(_, bytes)| *bytes <= task.processed_bytes);
        (task.task_id, known.copied().unwrap_or(now))
    };
    activity.tasks.iter().map(first).collect()
}

/// Returns the rate per second. A counter that decreased was reset.
fn per_second(before: u64, now: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

fn line(now: &VolumeActivity, before: &VolumeActivity, seconds: f64) -> VolumeLine {
    let rate = |now: OperationActivity, before: OperationActivity| {
        let requests = now.requests.saturating_sub(before.requests);
        let took = now.latency_micros.saturating_sub(before.latency_micros);
        Rate {
            per_second: per_second(before.requests, now.requests, seconds),
            latency_micros: (requests > 0).then(|| took as f64 / requests as f64),
            in_flight: now.in_flight,
        }
    };
    VolumeLine {
        volume_id: now.volume_id,
        name: now.name.to_string(),
        up: now.up,
        connections: now.connections,
        dirty_bytes: now.dirty_bytes,
        read_bytes_per_second: per_second(before.read_bytes, now.read_bytes, seconds),
        written_bytes_per_second: per_second(before.written_bytes, now.written_bytes, seconds),
        read: rate(now.read, before.read),
        write: rate(now.write, before.write),
        flush: rate(now.flush, before.flush),
        discard: rate(now.discard, before.discard),
    }
}

/// Formats a rate, with a decimal place for small ones.
fn count(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 10.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

fn mebibytes(bytes_per_second: f64) -> String {
    format!("{:.1}", bytes_per_second / f64::from(1 << 20))
}

fn latency(rate: Rate) -> String {
    match rate.latency_micros {
        None => "-".into(),
        Some(micros) if micros < 999.5 => format!("{micros:.0} µs"),
        Some(micros) if micros < 999_500.0 => format!("{:.1} ms", micros / 1e3),
        Some(micros) => format!("{:.1} s", micros / 1e6),
    }
}

impl ActivityRates {
    /// Returns the summary line.
    pub fn headline(&self) -> String {
        // The sum of no numbers would be -0.
        let sum =
            |value: fn(&VolumeLine) -> f64| self.volumes.iter().map(value).fold(0.0, std::ops::Add::add);
        format!(
            "{}, {}, in {}: {} requests/s, read {}, write {} MiB/s",
            counted(self.volumes.len() as u64, "volume"),
            counted(self.tasks.len() as u64, "task"),
            format_duration((self.interval_seconds * 10.0).round() / 10.0),
            count(sum(VolumeLine::iops)),
            mebibytes(sum(|volume| volume.read_bytes_per_second)),
            mebibytes(sum(|volume| volume.written_bytes_per_second)),
        )
    }

    /// Returns the table of volumes.
    pub fn volume_table(&self, width: Width) -> Table {
        Table::list(&self.volumes, width)
            .both("VOLUME", |volume| &volume.name)
            .both("READ/S", |volume| count(volume.read.per_second))
            .both("WRITE/S", |volume| count(volume.write.per_second + volume.discard.per_second))
            .wide("FLUSH/S", |volume| count(volume.flush.per_second))
            .both("R-MIB/S|READ MIB/S", |volume| mebibytes(volume.read_bytes_per_second))
            .both("W-MIB/S|WRITE MIB/S", |volume| mebibytes(volume.written_bytes_per_second))
            .both("R-LAT|READ LAT", |volume| latency(volume.read))
            .both("W-LAT|WRITE LAT", |volume| latency(volume.write))
            .wide("FLUSH LAT", |volume| latency(volume.flush))
            .wide("WAITING", VolumeLine::in_flight)
            .wide("DIRTY", |volume| ByteSize::from_bytes(volume.dirty_bytes))
            .both("STATE", |volume| if volume.up { "up" } else { "failed" })
            .fit("VOLUME")
    }

    /// Returns the table of tasks.
    pub fn task_table(&self, width: Width) -> Table {
        let size = ByteSize::from_bytes;
        let percent = |task: &TaskLine| match task.total_bytes {
            0 => size(task.processed_bytes).to_string(),
            total => format!("{}%", task.processed_bytes * 100 / total),
        };
        Table::list(&self.tasks, width)
            .both("TASK", |task| short_uuid(task.task_id))
            .both("STATE", |task| &task.state)
            .both("VOLUME", |task| or_dash(task.volume_name.as_ref()))
            .narrow("DONE", percent)
            .wide("PHASE", |task| &task.phase)
            .wide("DONE", |task| size(task.processed_bytes))
            .wide("OF", |task| or_dash((task.total_bytes > 0).then(|| size(task.total_bytes))))
            .both("RATE", |task| or_dash(task.bytes_per_second.map(|rate| mebibytes(rate) + " MiB/s")))
            .both("ETA", |task| or_dash(task.eta_seconds.map(|eta_s| format_duration(eta_s.round()))))
            .fit("VOLUME")
    }

    /// Renders everything as text.
    pub fn render(&self, color: bool, width: Width) -> String {
        let mut text = self.headline() + "\n\n" + &self.volume_table(width).render(color);
        if !self.tasks.is_empty() {
            text += "\n";
            text += &self.task_table(width).render(color);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn operation(requests: u64, took_micros: u64) -> Value {
        json!({ "requests": requests, "latencyMicros": took_micros, "inFlight": 1 })
    }

    fn volume(name: &str, factor: u64) -> Value {
        json!({
            "volumeId": name.len().to_string(), "name": name, "up": true, "connections": 1, "dirtyBytes": factor << 20,
            "readBytes": factor << 20, "writtenBytes": factor << 21, "read": operation(factor * 100, factor * 20_000),
            "write": operation(factor * 10, factor * 50_000), "flush": operation(0, 0), "discard": operation(0, 0),
        })
    }

    fn task(processed: u64) -> Value {
        json!({
            "taskId": "3f4f0a67-e12a-4d35-81ad-985657757352", "type": "backup", "cloudSnapshotId": null, "volumeName": "db",
            "state": "Backup-Active", "node": "h", "owner": {"kind": "daemon"}, "credentialId": "af563a4d-afd7-48df-90f7-8e8f9414ff77",
            "credentialName": "nas", "phase": "uploading", "totalBytes": 100 << 20, "processedBytes": processed << 20,
            "uploadedBytes": 0, "downloadedBytes": 0, "dirtyBytes": 0,
            "requests": {"put": 0, "get": 0, "list": 0, "delete": 0, "head": 0}, "freezeStallMicros": null,
            "startedAt": "2026-11-22T12:00:00Z", "completedAt": null, "elapsedSeconds": 1.0, "backupType": null, "error": null,
            "resumed": 0, "version": 1,
        })
    }

    fn activity(run: u128, at_s: u64, volumes: &[Value], tasks: &[Value]) -> Activity {
        let run = Uuid::from_u128(run);
        let all = json!({ "daemonRunId": run, "monotonicMicros": at_s * 1_000_000, "volumes": volumes, "tasks": tasks });
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn sums_without_volumes_are_zero() {
        let mut looks = Sampler::new(activity(1, 10, &[], &[]));
        let text = looks.next(activity(1, 12, &[], &[]), SortKey::Throughput).headline();
        assert_eq!(text, "0 volumes, 0 tasks, in 2s: 0 requests/s, read 0.0, write 0.0 MiB/s");
    }

    #[test]
    fn rates_and_latencies_cover_the_sampled_interval() {
        let mut looks = Sampler::new(activity(1, 10, &[volume("db", 1), volume("log", 5)], &[task(10)]));
        let picture = looks
            .next(activity(1, 12, &[volume("db", 5), volume("log", 5)], &[task(30)]), SortKey::Throughput);
        let db = &picture.volumes[0];
        assert_eq!((db.name.as_str(), db.read.per_second, db.write.per_second), ("db", 200.0, 20.0));
        assert_eq!((db.read.latency_micros, db.write.latency_micros), (Some(200.0), Some(5000.0)));
        assert_eq!((db.read_bytes_per_second, db.written_bytes_per_second), (2_097_152.0, 4_194_304.0));
        assert_eq!((db.flush.latency_micros, db.in_flight()), (None, 4));
        let log = &picture.volumes[1];
        assert_eq!((log.iops(), log.read.latency_micros, log.dirty_bytes), (0.0, None, 5 << 20));
        let task = &picture.tasks[0];
        // 20 MiB in 2 s, 70 MiB left.
        assert_eq!((task.bytes_per_second, task.eta_seconds), (Some(10_485_760.0), Some(7.0)));
        let expected = "\
2 volumes, 1 task, in 2s: 220 requests/s, read 2.0, write 4.0 MiB/s

VOLUME  READ/S  WRITE/S  R-MIB/S  W-MIB/S  R-LAT   W-LAT   STATE
db      200     20       2.0      4.0      200 µs  5.0 ms  up
log     0       0        0.0      0.0      -       -       up

TASK      STATE          VOLUME  DONE  RATE        ETA
3f4f0a67  Backup-Active  db      30%   10.0 MiB/s  7s
";
        assert_eq!(picture.render(false, Width::Narrow), expected);
        let expected = "\
2 volumes, 1 task, in 2s: 220 requests/s, read 2.0, write 4.0 MiB/s

VOLUME  READ/S  WRITE/S  FLUSH/S  READ MIB/S  WRITE MIB/S  READ LAT  WRITE LAT  FLUSH LAT  WAITING  DIRTY  STATE
db      200     20       0        2.0         4.0          200 µs    5.0 ms     -          4        5 MiB  up
log     0       0        0        0.0         0.0          -         -          -          4        5 MiB  up

TASK      STATE          VOLUME  PHASE      DONE    OF       RATE        ETA
3f4f0a67  Backup-Active  db      uploading  30 MiB  100 MiB  10.0 MiB/s  7s
";
        assert_eq!(picture.render(false, Width::Wide), expected);
    }

    #[test]
    fn restarted_daemon_or_volume_starts_new_samples() {
        let mut looks = Sampler::new(activity(1, 10, &[volume("db", 9)], &[task(90)]));
        let picture = looks.next(activity(2, 1, &[volume("db", 1)], &[task(95)]), SortKey::Iops);
        assert_eq!((picture.volumes[0].iops(), picture.volumes[0].read.latency_micros), (0.0, None));
        assert_eq!((picture.tasks[0].bytes_per_second, picture.tasks[0].eta_seconds), (None, None));
        let picture = looks.next(activity(2, 2, &[volume("db", 2)], &[task(96)]), SortKey::Iops);
        assert_eq!(picture.volumes[0].read.per_second, 100.0);
        assert_eq!(picture.tasks[0].eta_seconds, Some(4.0));
        // The volume was reopened, one task restarted, another is new.
        let picture =
            looks.next(activity(2, 3, &[volume("db", 1), volume("new", 4)], &[task(50)]), SortKey::Iops);
        assert!(picture.volumes.iter().all(|volume| volume.iops() == 0.0), "{picture:?}");
        assert_eq!((picture.tasks[0].bytes_per_second, picture.tasks[0].eta_seconds), (Some(0.0), None));
    }

    #[test]
    fn volumes_are_sorted_by_the_requested_key() {
        let before = [volume("a", 1), volume("bb", 1), volume("ccc", 1)];
        let mut after = [volume("a", 2), volume("bb", 4), volume("ccc", 3)];
        after[0]["dirtyBytes"] = json!(1u64 << 40);
        after[2]["write"]["latencyMicros"] = json!(9_000_000);
        let order = |sort| {
            let mut looks = Sampler::new(activity(1, 1, &before, &[]));
            let picture = looks.next(activity(1, 2, &after, &[]), sort);
            picture.volumes.iter().map(|volume| volume.name.len()).collect::<Vec<_>>()
        };
        assert_eq!(order(SortKey::Name), [1, 2, 3]);
        assert_eq!(order(SortKey::Iops), [2, 3, 1]);
        assert_eq!(order(SortKey::Throughput), [2, 3, 1]);
        assert_eq!(order(SortKey::Latency), [3, 1, 2]);
        assert_eq!(order(SortKey::Dirty), [1, 2, 3]);
    }

    #[test]
    fn numbers_are_short() {
        let of = |micros| latency(Rate { latency_micros: Some(micros), ..Rate::default() });
        assert_eq!([of(0.4), of(999.4), of(999.6), of(999_600.0)], ["0 µs", "999 µs", "1.0 ms", "1.0 s"]);
        assert_eq!([count(0.0), count(0.5), count(12.6)], ["0", "0.5", "13"]);
    }
}
