//! Simulation of scheduled backups and their retention: the times are those of the product's scheduler.

use crate::{
    bucket::{Bucket, Settings},
    costs::{Area, PACK_BYTES, Scripts, Step},
    engine::{Engine, Event, Work},
    fleet::{
        DELETE_MS, HOST_BYTES_PER_S, Kind, Policy, REQUEST_MS, STORED_PERCENT, TASKS, UPLOADS, VOLUMES,
        policies,
    },
    history::{History, settled},
    size::Size,
};
use blockd_benches::histogram::Histogram;
use blockd_schedule::{Jitter, Tick, resume_at, tick};
use blockd_store::{DELETE_MAX_KEYS, RequestKind};
use blockd_testkit::Rng;
use jiff::Timestamp;
use std::{collections::VecDeque, error::Error};

/// Start of the simulated time: 2026-11-29 18:00 UTC, six hours before the daily backups.
const START_S: i64 = 1_795_975_200;
/// Hour of the simulated time at which the daily backups start.
pub const MIDNIGHT_S: i64 = 6 * 3600;
/// Simulated time in seconds: until six hours after the second midnight.
pub const SIMULATED_S: i64 = 36 * 3600;

/// Scenario of scheduled backups.
#[derive(Clone)]
pub struct Scenario {
    pub bucket: Settings,
    /// Maximum jitter in seconds, at most half of the interval as the command line accepts it; `None` for the
    /// default.
    pub jitter_s: Option<u32>,
    pub seed: u64,
}

/// Results of a scenario.
pub struct Outcome {
    pub bucket: Bucket,
    /// Mean size of the repository of a host.
    pub size: Size,
    pub runs: Runs,
}

/// Runs of backups. A run without an end counts as neither; a failed one was not resumed before the next.
#[derive(Default)]
pub struct Runs {
    pub started: u64,
    pub done: u64,
    pub failed: u64,
    /// Resumptions of failed backups.
    pub resumed: u64,
    /// Not started, as the previous one had not ended.
    pub skipped: u64,
    /// Completed after the grace period of `blockctl status --check` (`docs/monitoring.md`).
    pub late: u64,
    /// From the scheduled start, with jitter, to the first request, in milliseconds.
    pub queued_ms: Histogram,
    /// From the end of the outage to the first successful backup of a volume whose last run had failed, in
    /// milliseconds.
    pub recovered_ms: Histogram,
    pub recovered: u64,
    /// Volumes whose last run failed.
    pub unprotected: u64,
}

struct Host {
    policy: usize,
    cursor: Timestamp,
    delay_s: u32,
    /// Volumes with the scheduled times of their runs.
    queue: VecDeque<(u32, i64)>,
    failed: Vec<Failed>,
    running: u32,
    /// Time of the timer of the next scheduled run.
    armed_ms: i64,
}

/// Failed backup that resumes.
struct Failed {
    resume_ms: i64,
    backup: Backup,
}

/// Backup of a volume.
#[derive(Clone, Copy)]
struct Backup {
    volume: u32,
    nominal_s: i64,
    packs: u64,
    kind: Kind,
    resumed: u32,
}

struct VolumeState {
    history: History,
    is_unfinished: bool,
    has_failed: bool,
}

/// Run of a backup, or the deletions after it.
enum Tag {
    Backup(Backup),
    Retention,
}

struct Simulation<'a> {
    scripts: &'a Scripts,
    policies: Vec<Policy>,
    engine: Engine<Tag>,
    hosts: Vec<Host>,
    volumes: Vec<VolumeState>,
    outage_end_s: i64,
    size: Size,
    runs: Runs,
}

/// Returns the time at a number of milliseconds of the simulation.
fn time(ms: i64) -> Timestamp {
    Timestamp::from_second(START_S + ms.div_euclid(1000)).unwrap_or(Timestamp::MAX)
}

/// Returns the work of a script, one request after the other.
pub fn works(script: &[Step], size: &Size) -> Vec<Work> {
    let work = |step: &Step| {
        let times = if step.whole { size.pages(step.area) } else { 1 };
        Work { step: *step, times, lanes: 1, ms: REQUEST_MS }
    };
    script.iter().map(work).collect()
}

/// Returns the work of a backup: the first object below `blockd/data/` is its pack.
fn backup_works(script: &[Step], packs: u64, size: &Size) -> Vec<Work> {
    let is_pack = |work: &Work| work.step.kind == RequestKind::Put && work.step.area == Area::Data;
    let mut works = works(script, size);
    if let Some(pack) = works.iter_mut().find(|work| is_pack(work)) {
        let stored_bytes = PACK_BYTES * STORED_PERCENT / 100;
        let lane_bytes_per_s = HOST_BYTES_PER_S / u64::from(TASKS * UPLOADS);
        pack.ms = (stored_bytes * 1000 / lane_bytes_per_s) as i64;
        (pack.times, pack.lanes) = (packs, UPLOADS);
    }
    works
}

/// Returns the work of a script that repeats its first request of a kind for `blockd/data/`, and omits the
/// others.
fn works_with(script: &[Step], size: &Size, kind: RequestKind, (times, ms): (u64, i64)) -> Vec<Work> {
    let is_one = |work: &Work| work.step.kind == kind && work.step.area == Area::Data;
    let mut works = works(script, size);
    if let Some(first) = works.iter().position(is_one) {
        works[first] = Work { times, ms, ..works[first] };
        let mut seen = 0;
        works.retain(|work| {
            seen += usize::from(is_one(work));
            !is_one(work) || seen == 1
        });
    }
    works
}

impl<'a> Simulation<'a> {
    fn new(scripts: &'a Scripts, scenario: &Scenario) -> Result<Self, Box<dyn Error>> {
        let policies = policies()?;
        let mut random = Rng::fixed(scenario.seed);
        let begin = time(0);
        let settled: Result<Vec<_>, _> = policies.iter().map(|policy| settled(policy, begin)).collect();
        let settled = settled?;
        let mut hosts = Vec::new();
        let mut volumes = Vec::new();
        for _ in 0..scenario.bucket.hosts {
            let share = random.below(100);
            let mut sum = 0;
            let chosen = policies.iter().position(|policy| {
                sum += policy.share;
                share < sum
            });
            let policy = chosen.unwrap_or(0);
            let Policy { when, interval_s, .. } = &policies[policy];
            let jitter = match scenario.jitter_s {
                Some(max_s) => Jitter { max_s: i64::from(max_s).min(interval_s / 2) as u32 },
                None => Jitter::default_of(when),
            };
            let id = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
            let delay_s = jitter.delay_s(id);
            let (queue, failed) = (VecDeque::new(), Vec::new());
            hosts.push(Host { policy, cursor: begin, delay_s, queue, failed, running: 0, armed_ms: -1 });
            for _ in 0..VOLUMES {
                let phases = &settled[policy];
                let history = phases[random.below(phases.len() as u64) as usize].clone();
                volumes.push(VolumeState { history, is_unfinished: false, has_failed: false });
            }
        }
        let mut size = Size::default();
        for volume in &volumes {
            size.snapshots += volume.history.snapshots();
            size.objects += volume.history.objects();
        }
        size.snapshots /= u64::from(scenario.bucket.hosts);
        size.objects /= u64::from(scenario.bucket.hosts);
        let mut engine = Engine::new(Bucket::new(scenario.bucket.clone()), random.next_u64());
        for host in 0..scenario.bucket.hosts {
            engine.timer(0, host);
        }
        let outage_end_s = scenario.bucket.outage_s.end;
        let runs = Runs::default();
        Ok(Self { scripts, policies, engine, hosts, volumes, outage_end_s, size, runs })
    }

    /// Returns the size of the repository of a host.
    fn size(&self, host: u32) -> Size {
        let mut size = Size::default();
        for volume in host * VOLUMES..(host + 1) * VOLUMES {
            let history = &self.volumes[volume as usize].history;
            size.snapshots += history.snapshots();
            size.objects += history.objects();
        }
        size
    }

    /// Runs a pass of the scheduler of a host, as `transactions::fire` and `add_runs` do.
    fn pass(&mut self, host: u32) {
        let now = time(self.engine.now_ms);
        let state = &mut self.hosts[host as usize];
        let policy = &self.policies[state.policy];
        match tick(&policy.when, state.cursor, state.delay_s, now) {
            Tick::Wait { due } => {
                let due_ms = (due.as_second() - START_S) * 1000;
                if std::mem::replace(&mut state.armed_ms, due_ms) != due_ms {
                    self.engine.timer(due_ms, host);
                }
            }
            Tick::Run { nominal, processed_until, .. } => {
                state.cursor = processed_until;
                for volume in host * VOLUMES..(host + 1) * VOLUMES {
                    let unfinished = &mut self.volumes[volume as usize].is_unfinished;
                    self.runs.started += 1;
                    // The new run replaces one whose backup waits.
                    if let Some(waits) = state.failed.iter().position(|failed| failed.backup.volume == volume)
                    {
                        state.failed.swap_remove(waits);
                        self.runs.failed += 1;
                        *unfinished = false;
                    }
                    if std::mem::replace(unfinished, true) {
                        self.runs.skipped += 1;
                    } else {
                        state.queue.push_back((volume, nominal.as_second()));
                    }
                }
                self.engine.timer(self.engine.now_ms, host);
            }
            _ => {}
        }
        self.begin(host);
    }

    /// Resumes failed backups and starts queued runs in free slots.
    fn begin(&mut self, host: u32) {
        while self.hosts[host as usize].running < TASKS {
            let (now_ms, failed) = (self.engine.now_ms, &mut self.hosts[host as usize].failed);
            if let Some(due) = failed.iter().position(|failed| failed.resume_ms <= now_ms) {
                let Failed { backup, .. } = failed.swap_remove(due);
                self.hosts[host as usize].running += 1;
                self.runs.resumed += 1;
                self.send(host, Backup { resumed: backup.resumed + 1, ..backup });
                continue;
            }
            let Some((volume, nominal_s)) = self.hosts[host as usize].queue.pop_front() else { return };
            let state = &mut self.hosts[host as usize];
            state.running += 1;
            let due_ms = (nominal_s + i64::from(state.delay_s) - START_S) * 1000;
            self.runs.queued_ms.add((self.engine.now_ms - due_ms).max(0).unsigned_abs());
            let kind = self.volumes[volume as usize].history.next_kind();
            let packs = self.policies[state.policy].packs(kind);
            self.send(host, Backup { volume, nominal_s, packs, kind, resumed: 0 });
        }
    }

    /// Sends a backup: a resumed one completely, although the product sends only the remaining packs.
    fn send(&mut self, host: u32, backup: Backup) {
        let script = match backup.kind {
            Kind::First => &self.scripts.first,
            Kind::Full => &self.scripts.full,
            Kind::Incremental => &self.scripts.incremental,
        };
        let works = backup_works(script, backup.packs, &Size::default());
        self.engine.start(host, Tag::Backup(backup), works, false);
    }

    fn backup_ended(&mut self, host: u32, backup: Backup, is_done: bool) {
        let Backup { volume, nominal_s, packs, resumed, .. } = backup;
        let now = time(self.engine.now_ms);
        let state = &mut self.hosts[host as usize];
        state.running -= 1;
        let policy = &self.policies[state.policy];
        let of = &mut self.volumes[volume as usize];
        let grace_s = (policy.interval_s / 2).clamp(300, 6 * 3600) + i64::from(state.delay_s);
        match is_done {
            false => {
                of.has_failed = true;
                let at = resume_at(now, resumed, u128::from(volume) << 64 | nominal_s as u128);
                let resume_ms = (at.as_second() - START_S) * 1000;
                state.failed.push(Failed { resume_ms, backup });
                self.engine.timer(resume_ms, host);
            }
            true => {
                of.is_unfinished = false;
                self.runs.done += 1;
                self.runs.late += u64::from(now.as_second() > nominal_s + grace_s);
                if std::mem::take(&mut of.has_failed) {
                    let since_ms = self.engine.now_ms - self.outage_end_s * 1000;
                    self.runs.recovered_ms.add(since_ms.max(0).unsigned_abs());
                    self.runs.recovered += 1;
                }
                of.history.add(now, packs);
                let surplus = of.history.expire(&policy.retain, now);
                if !surplus.is_empty() {
                    let lists = (of.history.listings(), REQUEST_MS);
                    let size = self.size(host);
                    let mut work = works_with(&self.scripts.retention, &size, RequestKind::List, lists);
                    for objects in surplus {
                        let deletes = (objects.div_ceil(DELETE_MAX_KEYS as u64), DELETE_MS);
                        work.extend(works_with(&self.scripts.deletion, &size, RequestKind::Delete, deletes));
                    }
                    self.engine.start(host, Tag::Retention, work, false);
                }
            }
        }
        self.begin(host);
    }

    fn run(mut self) -> Outcome {
        while let Some(event) = self.engine.next(SIMULATED_S * 1000) {
            match event {
                Event::Timer(host) => self.pass(host),
                Event::Ended(job, is_done) => match job.tag {
                    Tag::Backup(backup) => self.backup_ended(job.host, backup, is_done),
                    // A failed deletion is repeated after the next backup.
                    Tag::Retention => {}
                },
            }
        }
        self.runs.unprotected = self.volumes.iter().filter(|volume| volume.has_failed).count() as u64;
        Outcome { bucket: self.engine.bucket, size: self.size, runs: self.runs }
    }
}

/// Simulates scheduled backups.
///
/// # Errors
/// A schedule is invalid.
pub fn simulate(scripts: &Scripts, scenario: &Scenario) -> Result<Outcome, Box<dyn Error>> {
    Ok(Simulation::new(scripts, scenario)?.run())
}
