//! Restore drills of consistency groups, and their common probe.

use super::{
    drill_probes::probe,
    drills::{damage_frames, failed_at},
    *,
};
use blockd::config::ProbeConfig;
use blockd_api::{
    drills::{Drill, DrillOptions, DrillOutcome, DrillStage, GroupDrillStarted, StartGroupDrill},
    schedules::{CreateSchedule, RunState},
};
use blockd_catalog::DrillRow;

/// Names of the volumes of the group.
const NAMES: [&str; 3] = ["a", "b", "c"];

fn group_drill(probe: Option<&str>) -> StartGroupDrill {
    StartGroupDrill {
        group: "shop".parse().unwrap(),
        credential: None,
        files: None,
        seed: Some(7),
        timeout_seconds: None,
        probe: probe.map(|name| name.parse().unwrap()),
        accept_layout: false,
    }
}

impl Host {
    /// Backs up a group of volumes, each filled with its name, and restarts with probes. Returns false where
    /// the daemon cannot run them.
    async fn group_with_probes(&mut self, probes: &[(&str, ProbeConfig)]) -> bool {
        self.create_credential().await;
        self.grouped_volumes().await;
        for name in NAMES {
            let volume = self.volume(name);
            volume.write(0, name.repeat(64 << 10).as_bytes(), false).unwrap();
            volume.write(1 << 20, &pattern(name.as_bytes()[0].into(), 1 << 20), false).unwrap();
        }
        self.all_done(&self.backup_group(&["nas"]).await).await;
        self.restart_with_probes(probes).await
    }

    /// Runs a drill of the group; returns the states of its tasks and its drills by volume.
    async fn drilled(&self, probe: &str) -> (Vec<Task>, Vec<Drill>) {
        let started = self.call(START_GROUP_DRILL, &group_drill(Some(probe))).await;
        self.drilled_members(&started).await
    }

    async fn drilled_members(&self, started: &GroupDrillStarted) -> (Vec<Task>, Vec<Drill>) {
        let mut tasks = Vec::new();
        for member in &started.list.items {
            tasks.push(self.wait(member.task_id).await);
        }
        let mut drills = self.drills().await;
        drills.retain(|drill| tasks.iter().any(|task| task.task_id == drill.drill_id));
        drills.sort_by(|a, b| a.volume_name.cmp(&b.volume_name));
        self.assert_no_clone();
        (tasks, drills)
    }
}

/// Returns the number of tasks that failed.
fn failures(tasks: &[Task]) -> usize {
    tasks.iter().filter(|task| task.state.stage == TaskStage::Failed).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drills_of_a_group_read_one_point_in_time() {
    let host = Host::new().await;
    host.create_credential().await;
    host.grouped_volumes().await;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for point in [&mut first, &mut second] {
        let tasks = host.all_done(&host.backup_group(&["nas"]).await).await;
        point.extend(tasks.into_iter().map(|task| task.cloud_snapshot_id.unwrap()));
    }
    // A backup of one volume is no point of the group.
    host.backup("a", false).await;
    let request = group_drill(None);
    let started = host.call(START_GROUP_DRILL, &request).await;
    let drilled: Vec<_> = started.list.items.iter().map(|one| one.cloud_snapshot_id.to_string()).collect();
    assert_eq!(drilled, second);
    for member in &started.list.items {
        assert_eq!(host.done(member.task_id).await.group_id, Some(started.group_id));
    }
    let by_schedule = CreateSchedule {
        selector: select_group("shop"),
        rules: vec![rule(NEVER)],
        drill: Some(DrillOptions::default()),
        ..CreateSchedule::default()
    };
    let runs = host.run_drills(&by_schedule).await;
    assert!(runs.len() == 3 && runs.iter().all(|run| run.state == RunState::Done), "{runs:?}");
    let mut drilled: Vec<_> =
        host.drills().await.iter().map(|one| one.cloud_snapshot_id.to_string()).collect();
    drilled.truncate(3);
    drilled.sort();
    second.sort();
    assert_eq!(drilled, second);
    // A point that lacks a volume is refused, even if an older one is complete.
    host.delete_cloudsnap(&delete_of(&second[0])).await;
    let error = host.client.call(START_GROUP_DRILL, &request).await.unwrap_err();
    assert!(error.to_string().contains(" lacks "), "{error}");
    host.refused(ErrorCode::CloudsnapNotFound, START_GROUP_DRILL, &request).await;
}

/// Command that reads one clone into another and compares both with their volumes.
const READS_ALL: &str = "set -e
    uri() { echo \"nbd+unix:///$1?socket=$BLOCKD_DRILL_DIR/nbd.sock\"; }
    for name in a b c; do
        nbdcopy \"$(uri $name)\" /tmp/$name; test \"$(head -c 3 /tmp/$name)\" = $name$name$name
    done
    nbdcopy /tmp/b \"$(uri a)\"; nbdcopy \"$(uri a)\" /tmp/again; cmp /tmp/again /tmp/b
    nbdcopy \"$(uri c)\" /tmp/again; cmp /tmp/again /tmp/c
    echo all volumes in $BLOCKD_DRILL_ID";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probe_of_a_group_uses_clones_of_all_volumes() {
    let mut host = Host::new().await;
    if !host.group_with_probes(&[("all", probe(READS_ALL)), ("none", probe("echo no; exit 3"))]).await {
        return;
    }
    let packs = host.packs();
    let started = host.call(START_GROUP_DRILL, &group_drill(Some("all"))).await;
    let (tasks, drills) = host.drilled_members(&started).await;
    assert!(failures(&tasks) == 0 && drills.len() == 3, "{tasks:?} {drills:?}");
    for drill in &drills {
        let last = drill.steps.last().unwrap();
        assert_eq!((last.stage, last.outcome), (DrillStage::Probe, DrillOutcome::Passed), "{drills:?}");
        assert_eq!(last.note, format!("all: all volumes in {}", started.group_id));
        assert!(drill.passed && drill.probed_millis.is_some());
    }
    assert_eq!((host.drill_proofs(), host.packs()), (3, packs), "it writes its proofs only");

    // One failure is that of all volumes.
    let (tasks, drills) = host.drilled("none").await;
    assert_eq!(failures(&tasks), 1);
    for drill in &drills {
        assert_eq!(failed_at(drill), DrillStage::Probe);
        assert_eq!(drill.findings[0], "probe none failed: exit status 3: no");
    }
    assert_eq!((drills.len(), host.drill_proofs(), host.damaged().await.as_str()), (3, 3, "0"));
    // Damage that only the probe reads is that of one cloud snapshot.
    let pack = host.packs().remove(0);
    damage_frames(&pack, fs::metadata(&pack).unwrap().len() as usize / 2);
    let (tasks, drills) = host.drilled("all").await;
    assert_eq!((failures(&tasks), host.damaged().await.as_str()), (1, "1"));
    assert_eq!(host.events_of("damage-found").await.len(), 1);
    for drill in &drills {
        assert_eq!(failed_at(drill), DrillStage::Probe);
        assert!(drill.findings.len() == 1 && drill.findings[0].contains("/pack-"), "{drill:?}");
    }
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.create_credential().await;
    assert!(other.list().await.iter().all(|one| one.last_drill.as_ref().is_some_and(|last| !last.passed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probe_of_a_group_runs_after_all_other_steps() {
    let mut host = Host::new().await;
    let reading = "for name in a b c; do
        nbdcopy \"nbd+unix:///$name?socket=$BLOCKD_DRILL_DIR/nbd.sock\" /tmp/$name || exit; done";
    let probes = [("reading", probe(reading))];
    if !host.group_with_probes(&probes).await {
        return;
    }
    // The daemon dies at a step of the first drill, and then at those of the drill that runs the probe.
    for step in
        ["drill examined", "drill stored", "drill probed", "after: drill examined", "after: drill stored"]
    {
        match step.strip_prefix("after: ") {
            Some(step) => host.act_at("drill probed", move |engine| engine.host.failpoints.die_at(step)),
            None => host.die_at(step),
        }
        let started = host.call(START_GROUP_DRILL, &group_drill(Some("reading"))).await;
        host.crashed().await;
        host.stop().await;
        host.start_with_probes(&probes).await;
        let (tasks, drills) = host.drilled_members(&started).await;
        assert!(failures(&tasks) == 0 && drills.len() == 3, "{step}: {tasks:?}");
        assert!(drills.iter().all(|drill| drill.probed_millis.is_some()), "{step}: {drills:?}");
        assert_eq!(host.drill_proofs(), 3, "{step}");
    }
    // A volume that fails its own steps keeps the others from their probe.
    damage_frames(&host.packs()[0], 0);
    let (tasks, drills) = host.drilled("reading").await;
    assert_eq!(failures(&tasks), 1);
    let skipped = |drill: &&Drill| {
        let last = drill.steps.last().unwrap();
        (last.stage, last.outcome) == (DrillStage::Probe, DrillOutcome::Skipped) && !last.note.is_empty()
    };
    assert_eq!(drills.iter().filter(skipped).count(), 3, "{drills:?}");
    assert_eq!(drills.iter().filter(|drill| drill.passed).count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_member_is_named_by_the_last_drill_of_a_group() {
    let mut host = Host::new().await;
    if !host.group_with_probes(&[("reading", probe("true"))]).await {
        return;
    }
    let root = host.store.path().to_owned();
    for is_deleted in [false, true] {
        let (root, lost) = (root.clone(), Arc::new(std::sync::Mutex::new(None)));
        let found = Arc::clone(&lost);
        let engine = Arc::clone(host.engine());
        let (second, third) = (Arc::clone(&engine), Arc::clone(&engine));
        let lose = move || {
            let drilled = engine.db.transaction(DrillRow::all).unwrap().remove(0).cloudsnap;
            let manifest = root.join(drilled.manifest_key());
            match is_deleted {
                true => fs::remove_file(manifest).unwrap(),
                false => damage(manifest),
            }
            *found.lock().unwrap() = Some(drilled.to_string());
        };
        // The third drill to reach the step is the last one.
        let last = move || third.host.failpoints.once("drill probe", lose);
        host.act_at("drill probe", move |_| second.host.failpoints.once("drill probe", last));
        let (tasks, drills) = host.drilled("reading").await;
        let lost = lost.lock().unwrap().clone().unwrap();
        let last = tasks.iter().max_by_key(|task| task.completed_at).unwrap();
        let last = drills.iter().find(|drill| drill.drill_id == last.task_id).expect("it has a result");
        assert_eq!((drills.len(), last.steps.last().unwrap().stage), (3, DrillStage::Probe), "{last:?}");
        assert!(last.cloud_snapshot_id.to_string() != lost && last.steps.len() > 4);
        if is_deleted {
            assert_eq!(failures(&tasks), 0, "{tasks:?}");
            let note = &last.steps.last().unwrap().note;
            assert!(note.contains(&lost) && note.contains("was deleted during the drill"), "{note}");
            continue;
        }
        assert_eq!((failures(&tasks), host.damaged().await.as_str()), (1, "1"), "{tasks:?}");
        let [event] = &host.events_of("damage-found").await[..] else { panic!() };
        assert_eq!(event.cloud_snapshot_id.as_deref(), Some(&*lost));
        for drill in &drills {
            assert_eq!(failed_at(drill), DrillStage::Probe);
            assert!(drill.findings[0].starts_with(&format!("cloud snapshot {lost} of volume ")), "{drill:?}");
        }
        host.all_done(&host.backup_group(&["nas"]).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_task_history_hides_no_volume_of_a_group() {
    let mut host = Host::new().await;
    if !host.group_with_probes(&[]).await {
        return;
    }
    host.stop().await;
    let reading = "for name in a b c; do
        nbdcopy \"nbd+unix:///$name?socket=$BLOCKD_DRILL_DIR/nbd.sock\" /tmp/$name || exit; done";
    let drill_probes = [("reading".parse().unwrap(), probe(reading))].into();
    let config = Config { task_history: 1, drill_probes, ..config(host.dir.path()) };
    host.daemon = Some(Daemon::start(config, false).await.unwrap());
    host.call(START_GROUP_DRILL, &group_drill(Some("reading"))).await;
    let drills = async || {
        let drills = host.drills().await;
        let is_probed =
            |drill: &Drill| drill.steps.last().is_some_and(|step| step.note.starts_with("reading"));
        let is_over = drills.len() == 3 && drills.iter().all(|drill| is_probed(drill) || !drill.passed);
        if is_over { Ok(drills) } else { Err("the probe of the group") }
    };
    let drills = eventually(drills).await;
    assert!(drills.iter().all(|drill| drill.probed_millis.is_some()), "{drills:?}");
}
