//! Simulation of years of schedules with a simulated clock: the scheduler's transactions, a list as the
//! store, and a daemon that is killed between any two steps.

use crate::{
    schedules::{judgement, resumption, selection::Candidate, settle, transactions},
    volumes::registry::Tags,
};
use blockd_api::{
    schedules::{Priority, Rule, RunState, Selector},
    tasks::{TaskOwner, TaskStage},
};
use blockd_catalog::{
    BackupTask, Db, DbError, RunRow, ScheduleRow, ScheduleSpec, SnapshotRow, SnapshotState, TaskRow,
    TaskSpec, VolumeRow,
};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_schedule::{Jitter, Recurrence, Retention};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};
use uuid::Uuid;

const START_S: i64 = 1_760_000_000;
const DAY_S: i64 = 86_400;

struct World {
    db: Option<Arc<Db>>,
    dir: tempfile::TempDir,
    now_s: i64,
    random: u64,
    volumes: Vec<Candidate>,
    credential: Uuid,
    /// Stored backups by volume.
    store: BTreeMap<VolumeId, BTreeSet<String>>,
    deaths: u32,
    /// Resumptions of failed backups.
    resumed: u32,
    /// Local snapshots that the daemon is taking; lost on a crash.
    freezing: HashSet<SnapshotId>,
    /// Manual snapshots.
    by_hand: BTreeSet<SnapshotId>,
}

impl World {
    fn new(seed: u64) -> Self {
        // In memory: each of the many commits would be synced.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let volume = |number: u64| Candidate {
            id: VolumeId::from_u64(number),
            name: format!("v{number}").parse().unwrap(),
            tags: Tags { labels: "app=x".parse().unwrap(), group: None },
        };
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let row = |candidate: &Candidate| VolumeRow::new(candidate.id, candidate.name.clone(), 1 << 20);
        let insert = |tx: &rusqlite::Transaction<'_>| -> Result<(), DbError> {
            [volume(1), volume(2)].iter().try_for_each(|volume| row(volume).insert(tx))
        };
        db.transaction(insert).unwrap();
        Self {
            db: Some(Arc::new(db)),
            dir,
            now_s: START_S,
            random: seed,
            volumes: vec![volume(1), volume(2)],
            credential: Uuid::from_u64_pair(seed, 1),
            store: BTreeMap::new(),
            deaths: 0,
            resumed: 0,
            freezing: HashSet::new(),
            by_hand: BTreeSet::new(),
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.now_s).unwrap()
    }

    fn roll(&mut self, of: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % of
    }

    fn tx<R>(&self, work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<R, DbError>) -> R {
        self.db.as_ref().unwrap().transaction(work).unwrap()
    }

    /// Crashes the daemon with some probability: only the database survives.
    fn dies(&mut self) -> bool {
        if self.roll(25) > 0 {
            return false;
        }
        self.deaths += 1;
        self.freezing.clear();
        self.db = None;
        self.db = Some(Arc::new(Db::open(&self.dir.path().join("blockd.db")).unwrap()));
        true
    }

    fn schedule(&mut self, rules: &[(&str, Option<u32>)], keep: u32, local: Option<u32>) -> ScheduleRow {
        let rules = rules.iter().map(|(when, keep)| Rule {
            when: when.parse().unwrap(),
            retain: keep.map(|keep| Retention::max(keep).unwrap()),
        });
        // Its jitter depends on it.
        let uuid = Uuid::from_u64_pair(self.roll(1 << 30), self.roll(1 << 30));
        let row = ScheduleRow {
            uuid,
            created: self.now(),
            paused: false,
            policy: None,
            spec: ScheduleSpec {
                name: None,
                selector: Selector { label: Some("app=x".parse().unwrap()), ..Selector::default() },
                credentials: vec![self.credential],
                rules: rules.collect(),
                retain: Retention::max(keep).unwrap(),
                full: false,
                reupload: false,
                jitter: Some(Jitter { max_s: 600 }),
                priority: Priority::Normal,
                rule: None,
                labels: Default::default(),
                compression: None,
                local: local.map(|keep| Retention::max(keep).unwrap()),
                retain_at: Default::default(),
                drill: None,
            },
        };
        self.tx(|tx| {
            row.put(tx)?;
            row.spec.rules.iter().try_for_each(|rule| row.set_cursor(tx, &rule.when, self.now()))
        });
        row
    }

    /// Runs one pass of the scheduler, which may crash after each transaction.
    fn pass(&mut self) {
        let (now, volumes) = (self.now(), self.volumes.clone());
        let freezing = self.freezing.clone();
        self.tx(|tx| settle::settle(tx, &freezing, now));
        if self.dies() {
            return;
        }
        self.tx(|tx| transactions::fire(tx, &volumes, now));
        if self.dies() || !self.resume(now) {
            return;
        }
        let ready = self.tx(|tx| transactions::ready(tx, 2));
        let (local, stored): (Vec<_>, Vec<_>) =
            ready.batches.into_iter().partition(|batch| !batch.needs_upload());
        for run in local.into_iter().flat_map(|batch| batch.runs) {
            let snapshot = SnapshotId::from_u64(self.roll(1 << 40) + 1);
            self.freezing.insert(snapshot);
            self.tx(|tx| transactions::record_local_start(tx, &run, snapshot, None));
            if self.dies() {
                return;
            }
            if self.roll(10) == 0 {
                self.tx(|tx| {
                    RunRow { state: RunState::Failed, completed: Some(now), ..run.clone() }.update(tx)
                });
            } else {
                self.freeze(run.volume.unwrap(), snapshot);
            }
            self.freezing.remove(&snapshot);
        }
        for batch in stored.into_iter().take(ready.free_slots) {
            let snapshot = SnapshotId::from_u64(self.roll(1 << 40) + 1);
            let local = batch.runs.iter().find(|run| run.is_local()).cloned();
            let run = batch.runs.into_iter().find(|run| !run.is_local()).unwrap();
            let volume = run.volume.unwrap();
            let spec = BackupTask { schedule: Some(run.schedule), ..BackupTask::default() };
            let spec = TaskSpec::Backup(spec);
            let cloudsnap =
                CloudSnapshotId { cluster: self.credential, volume, snapshot, incremental: false };
            let task = TaskRow {
                volume: Some(volume),
                snapshot: Some(snapshot),
                created: now,
                ..TaskRow::new(spec, self.credential, cloudsnap, TaskOwner::Daemon)
            };
            self.tx(|tx| {
                // As `start_backups` does.
                for mut kept in TaskRow::resumable(tx)? {
                    if kept.volume == task.volume {
                        kept.detail.resumable = false;
                        kept.put(tx)?;
                    }
                }
                transactions::record_start(tx, &run, &task)?;
                if let Some(local) = &local {
                    transactions::record_local_start(tx, local, snapshot, Some(task.id))?;
                }
                task.put(tx)
            });
            if self.dies() {
                return;
            }
        }
        self.retain(now);
    }

    /// Resumes the failed backups that are due; returns false if the daemon died.
    fn resume(&mut self, now: Timestamp) -> bool {
        let (due, _) = self.tx(|tx| resumption::due(tx, now));
        for run in due {
            let mut task = self.tx(|tx| TaskRow::find(tx, run.task.unwrap())).unwrap();
            task.state = TaskStage::Pending;
            self.tx(|tx| RunRow::record_resumption(tx, task.id).and_then(|_| task.put(tx)));
            self.resumed += 1;
            if self.dies() {
                return false;
            }
        }
        true
    }

    /// Applies the retention of the schedules.
    fn retain(&mut self, now: Timestamp) {
        for schedule in self.tx(ScheduleRow::all) {
            for judgement in self.tx(|tx| judgement::judge_local(tx, &schedule, now)) {
                if !judgement.verdict.is_delete() {
                    continue;
                }
                assert_eq!(self.tx(|tx| TaskRow::task_in_need(tx, judgement.snapshot)), None);
                self.tx(|tx| SnapshotRow::remove(tx, judgement.snapshot));
                if self.dies() {
                    return;
                }
                self.tx(|tx| RunRow { state: RunState::Expired, ..judgement.run }.update(tx));
            }
            for judgement in self.tx(|tx| judgement::judge(tx, &schedule, now)) {
                if !judgement.verdict.is_delete() {
                    continue;
                }
                let there = self.store.entry(judgement.cloudsnap.volume).or_default();
                there.remove(&judgement.cloudsnap.to_string());
                // The deletion is a task now, but the run may not know it.
                if self.dies() {
                    return;
                }
                self.tx(|tx| RunRow::expire(tx, judgement.credential, &judgement.cloudsnap, "deleted"));
            }
        }
    }

    /// Asserts that each scheduled time has one run, or a later one that replaces it.
    fn assert_each_run_once(&self, schedule: &ScheduleRow, begin: Timestamp, seed: u64) {
        let runs = self.tx(|tx| RunRow::history(tx, None, None, u32::MAX >> 1));
        let now = self.now();
        for rule in &schedule.spec.rules {
            let delay_s = i64::from(schedule.delay_s(&rule.when));
            let came = Timestamp::from_second(now.as_second() - delay_s).unwrap();
            let named = named(&rule.when, begin, came);
            let both =
                self.volumes.iter().flat_map(|volume| schedule.spec.locations().map(move |at| (volume, at)));
            for (volume, location) in both {
                let is_its = |run: &&RunRow| {
                    run.rule.as_ref() == Some(&rule.when)
                        && (run.volume, run.credential) == (Some(volume.id), Some(location))
                };
                let of: Vec<&RunRow> = runs.iter().rev().filter(is_its).collect();
                let nominal: Vec<Timestamp> = of.iter().map(|run| run.nominal).collect();
                let distinct: BTreeSet<&Timestamp> = nominal.iter().collect();
                assert_eq!(distinct.len(), nominal.len(), "a run was made twice");
                assert!(nominal.iter().all(|at| named.contains(at)), "an unscheduled run");
                // Each scheduled time has a run or a replacement.
                let covered: usize = of.iter().map(|run| 1 + run.missed as usize).sum();
                assert_eq!(covered, named.len(), "seed {seed}, {}", rule.when);
                assert!(of.iter().all(|run| !matches!(
                    run.state,
                    RunState::Queued | RunState::Active | RunState::Retrying
                )));
            }
        }
    }

    /// Asserts that the store and the host have the kept backups, and the database has their rows.
    fn assert_kept(&self, schedule: &ScheduleRow) {
        let kept = self.tx(|tx| RunRow::kept(tx, schedule.uuid));
        for volume in &self.volumes {
            let is_mine = |run: &&RunRow| run.volume == Some(volume.id) && !run.is_local();
            let mine: Vec<&RunRow> = kept.iter().filter(is_mine).collect();
            let known: BTreeSet<String> =
                mine.iter().filter_map(|run| run.cloudsnap.as_ref()).map(ToString::to_string).collect();
            assert_eq!(Some(&known), self.store.get(&volume.id));
            let of = |rule: &Rule| mine.iter().filter(|run| run.rule.as_ref() == Some(&rule.when)).count();
            let counts: Vec<usize> = schedule.spec.rules.iter().map(of).collect();
            assert_eq!(counts, [4, 3]);
            let local = kept.iter().filter(|run| run.volume == Some(volume.id) && run.is_local());
            assert_eq!(local.count(), 5);
        }
        // The host has the snapshots that the retention keeps, and all manual ones.
        let known = kept.iter().filter(|run| run.is_local()).filter_map(|run| run.snapshot);
        let known: BTreeSet<SnapshotId> = known.chain(self.by_hand.iter().copied()).collect();
        assert_eq!(known, self.snapshots());
    }

    /// Takes a local snapshot if a schedule requires it.
    fn freeze(&mut self, volume: VolumeId, id: SnapshotId) {
        let wanted = self.tx(|tx| RunRow::in_state(tx, RunState::Active));
        if wanted.iter().any(|run| run.snapshot == Some(id)) {
            self.snapshot(volume, id);
        }
    }

    fn snapshot(&mut self, volume: VolumeId, id: SnapshotId) {
        let row = SnapshotRow {
            id,
            volume,
            name: format!("s-{id}").parse().unwrap(),
            created: self.now(),
            state: SnapshotState::Ready,
            internal: false,
            epoch: blockd_extent::Epoch(1),
            dirty_bytes: 0,
            freeze_stall_micros: 0,
            taken_with: None,
            quiesce: None,
            pinned: false,
        };
        self.tx(|tx| row.insert(tx));
    }

    fn snapshots(&self) -> BTreeSet<SnapshotId> {
        self.tx(|tx| SnapshotRow::all(tx, None)).iter().map(|row| row.id).collect()
    }

    /// Completes some of the running backups.
    fn work(&mut self) {
        for mut task in self.tx(TaskRow::unfinished) {
            let busy =
                self.tx(TaskRow::unfinished).iter().filter(|other| other.volume == task.volume).count();
            assert_eq!(busy, 1, "two backups of one volume at once");
            match self.roll(10) {
                0 | 1 => continue,
                2 => task.state = TaskStage::Failed,
                // The snapshot exists, and its backup fails.
                3 | 4 => {
                    self.freeze(task.volume.unwrap(), task.snapshot.unwrap());
                    task.detail.frozen = true;
                    task.state = TaskStage::Failed;
                    task.detail.completed = Some(self.now());
                    task.detail.bytes_processed = self.roll(2);
                    let resumes = self.roll(3) > 0;
                    (task.detail.resumable, task.detail.retryable) = (resumes, resumes);
                }
                _ => {
                    self.freeze(task.volume.unwrap(), task.snapshot.unwrap());
                    task.detail.frozen = true;
                    task.state = TaskStage::Done;
                    let there = self.store.entry(task.cloudsnap.volume).or_default();
                    there.insert(task.cloudsnap.to_string());
                }
            }
            self.tx(|tx| task.put(tx).and_then(|()| TaskRow::prune(tx, 100)));
        }
    }
}

fn named(rule: &Recurrence, from: Timestamp, until: Timestamp) -> Vec<Timestamp> {
    let mut all = Vec::new();
    let mut next = rule.next_after(from);
    while let Some(at) = next.filter(|at| *at <= until) {
        all.push(at);
        next = rule.next_after(at);
    }
    all
}

/// Two years of daily and weekly backups of two volumes, with suspends of minutes to weeks and crashes at any
/// time.
#[test]
fn simulated_years_run_each_schedule_exactly_once() {
    for seed in [1, 2] {
        let mut world = World::new(seed);
        let begin = world.now();
        let schedule = world.schedule(
            &[("daily @02:30 Europe/Berlin", None), ("weekly Sunday@04:00 America/New_York", Some(3))],
            4,
            Some(5),
        );
        let end_s = START_S + 730 * DAY_S;
        while world.now_s < end_s {
            world.now_s += match world.roll(40) {
                0 => DAY_S * (2 + world.roll(12) as i64),
                1..=5 => DAY_S,
                _ => 1_800 + world.roll(20_000) as i64,
            };
            for _ in 0..2 {
                world.pass();
                world.work();
            }
            // Users take snapshots and delete some of the schedule's, early enough for a replacement.
            match world.roll(60) {
                0 => {
                    let id = SnapshotId::from_u64(world.roll(1 << 40) + 1);
                    world.snapshot(VolumeId::from_u64(1), id);
                    world.by_hand.insert(id);
                }
                1 if world.now_s < end_s - 120 * DAY_S => {
                    let of_schedule = world.snapshots().difference(&world.by_hand).next().copied();
                    if let Some(id) = of_schedule
                        && world.tx(|tx| TaskRow::task_in_need(tx, id)).is_none()
                    {
                        world.tx(|tx| SnapshotRow::remove(tx, id));
                    }
                }
                _ => {}
            }
        }
        // Running backups complete.
        for _ in 0..200 {
            world.now_s += 60;
            world.pass();
            world.work();
        }
        assert!(world.deaths > 200 && world.resumed > 100, "{}, {}", world.deaths, world.resumed);
        world.assert_each_run_once(&schedule, begin, seed);
        world.assert_kept(&schedule);
        assert!(world.by_hand.len() > 10, "{}", world.by_hand.len());
    }
}

#[test]
fn running_run_skips_the_next_one_with_a_warning() {
    let mut world = World::new(1);
    world.volumes.truncate(1);
    let schedule = world.schedule(&[("periodic 60", None)], 4, None);
    let volumes = world.volumes.clone();
    for _ in 0..2 {
        world.now_s += 4_500;
        let now = world.now();
        world.tx(|tx| transactions::fire(tx, &volumes, now));
    }
    let runs = world.tx(|tx| RunRow::history(tx, Some(&schedule.uuid.to_string()), None, 10));
    let states: Vec<RunState> = runs.iter().rev().map(|run| run.state).collect();
    assert_eq!(states, [RunState::Queued, RunState::Skipped]);
    let reason = runs[0].reason.clone().unwrap();
    assert!(reason.contains(&format!("run {} has not ended: it is queued", runs[1].id)), "{reason}");
    // A run without volumes is reported as well.
    world.now_s += 4_500;
    let now = world.now();
    world.tx(|tx| transactions::fire(tx, &[], now));
    let runs = world.tx(|tx| RunRow::history(tx, Some(&schedule.uuid.to_string()), None, 1));
    assert_eq!((runs[0].state, runs[0].volume), (RunState::Skipped, None));
}

#[test]
fn urgent_runs_go_first_within_the_limits() {
    let world = World::new(1);
    let now = world.now();
    let run = |volume: u64, priority| RunRow {
        id: 0,
        schedule: Uuid::new_v4(),
        rule: None,
        nominal: now,
        started: now,
        missed: 0,
        priority,
        force_full: false,
        volume: Some(VolumeId::from_u64(volume)),
        volume_name: None,
        credential: Some(world.credential),
        state: RunState::Queued,
        task: None,
        cloudsnap: None,
        completed: None,
        reason: None,
        pool: String::new(),
        retain: None,
        snapshot: None,
        retries: 0,
        retry_at: None,
    };
    let ready = |concurrency| {
        let ready = world.tx(|tx| transactions::ready(tx, concurrency));
        assert_eq!(ready.free_slots, concurrency);
        let runs = ready.batches.iter().flat_map(|batch| &batch.runs);
        runs.map(|run| (run.volume.unwrap().as_u64(), run.priority)).collect::<Vec<_>>()
    };
    world.tx(|tx| {
        for run in [
            run(1, Priority::Low),
            run(2, Priority::Normal),
            run(2, Priority::High),
            run(3, Priority::Normal),
        ] {
            run.insert(tx)?;
        }
        Ok(())
    });
    assert_eq!(ready(9), [(2, Priority::High), (3, Priority::Normal), (1, Priority::Low)]);
    // Including those without a free slot: earlier ones may be refused.
    assert_eq!(ready(2).len(), 3);
}
