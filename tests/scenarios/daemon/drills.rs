//! Restore drills: measured results, and planted faults, each noticed by the step that claims it.

use super::{drill_probes::idle_threads, *};
use blockd_api::{
    drills::{Drill, DrillOptions, DrillOutcome, DrillStage, ListDrills, StartDrill},
    schedules::{CreateSchedule, Run, RunState, UpdateSchedule},
    tasks::{StopTask, TaskLimits, TaskOwner},
};
use blockd_schedule::Retention;
use std::{
    future::Future,
    process::{Command, Stdio},
    task::{Context, Waker},
    time::Duration,
};

/// Number and length of the files in the filesystem.
const FILES: usize = 160;
const FILE_BYTES: usize = 256 << 10;

pub(super) fn drill_of(snap: &str) -> StartDrill {
    StartDrill {
        cloud_snapshot_id: snap_id(snap),
        credential: None,
        files: Some(8),
        seed: Some(7),
        timeout_seconds: None,
        probe: None,
        accept_layout: false,
        limits: TaskLimits::NONE,
    }
}

/// Runs a program of e2fsprogs and returns its output.
fn e2fs(name: &str, arguments: &[&str]) -> String {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
    let program = dirs.into_iter().find(|path| path.exists()).expect("e2fsprogs is installed");
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Creates an image of an ext4 filesystem with files that do not compress.
pub(super) fn ext4(dir: &Path) -> PathBuf {
    let (files, image) = (dir.join("files"), dir.join("image"));
    fs::create_dir_all(files.join("dir")).unwrap();
    for number in 0..FILES {
        let content = pattern(number as u64 + 1, FILE_BYTES);
        fs::write(files.join(format!("dir/{number}")), content).unwrap();
    }
    let size = format!("{}k", SIZE_BYTES >> 10);
    let [from, to] = [&files, &image].map(|path| path.to_str().unwrap());
    e2fs("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", "-d", from, to, &size]);
    image
}

impl Host {
    /// Writes the content of an image to a new volume, and backs it up; returns the cloud snapshot.
    async fn backed_up_image(&self, name: &str, image: &Path) -> String {
        let volume = self.create_volume(name).await;
        let content = fs::read(image).unwrap();
        for (index, part) in content.chunks(1 << 20).enumerate() {
            if part.iter().any(|byte| *byte != 0) {
                volume.write((index as u64) << 20, part, false).unwrap();
            }
        }
        drop(volume);
        self.backup(name, true).await.cloud_snapshot_id.unwrap()
    }

    /// Backs up a filesystem.
    pub(super) async fn backed_up_files(&self) -> String {
        self.create_credential().await;
        self.backed_up_image("data", &ext4(self.dir.path())).await
    }

    async fn drill(&self, request: &StartDrill) -> Task {
        self.wait(self.call(START_DRILL, request).await.task_id).await
    }

    pub(super) async fn drills(&self) -> Vec<Drill> {
        self.call(LIST_DRILLS, &ListDrills::default()).await.items
    }

    /// Makes a drill, which fails; returns its error code and its result.
    pub(super) async fn failed_drill(&self, request: &StartDrill) -> (ErrorCode, Option<Drill>) {
        let task = self.drill(request).await;
        assert_eq!(task.state.to_string(), "Drill-Failed", "{task:?}");
        let drill = self.drills().await.into_iter().find(|drill| drill.drill_id == task.task_id);
        assert!(drill.as_ref().is_none_or(|drill| !drill.passed && drill.findings_total > 0));
        (task.error.unwrap().code, drill)
    }

    pub(super) fn drill_proofs(&self) -> usize {
        let proofs = walk(&self.store.path().join("blockd/proofs"));
        proofs.iter().filter(|path| path.contains("-drill-")).count()
    }
}

/// Returns the step that failed.
pub(super) fn failed_at(drill: &Drill) -> DrillStage {
    let failed: Vec<_> = drill.steps.iter().filter(|step| step.outcome == DrillOutcome::Failed).collect();
    assert_eq!(failed.len(), 1, "{drill:?}");
    failed[0].stage
}

/// Flips a bit in each frame of a pack from a part of its length on.
pub(super) fn damage_frames(pack: &str, from: usize) {
    let mut bytes = fs::read(pack).unwrap();
    let len = bytes.len();
    for at in (from..len).step_by(64 << 10) {
        bytes[at] ^= 1;
    }
    fs::remove_file(pack).unwrap();
    fs::write(pack, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_checks_a_filesystem_and_records_its_cost() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    let request = drill_of(&snap);
    let task = host.done(host.call(START_DRILL, &request).await.task_id).await;
    assert_eq!((task.state.to_string().as_str(), task.cloud_snapshot_id), ("Drill-Done", Some(snap.clone())));
    let found = host.drills().await;
    let [drill] = &found[..] else { panic!("{found:?}") };
    assert!(drill.passed && drill.findings.is_empty(), "{drill:?}");
    assert_eq!((drill.drill_id, drill.volume_name.as_str()), (task.task_id, "data"));
    let outcomes: Vec<_> = drill.steps.iter().map(|step| (step.stage, step.outcome)).collect();
    let passed = |stage| (stage, DrillOutcome::Passed);
    let stages = [
        DrillStage::Open,
        DrillStage::FirstByte,
        DrillStage::Layout,
        DrillStage::Mount,
        DrillStage::Check,
        DrillStage::Files,
    ];
    assert_eq!(outcomes, stages.map(passed));
    assert!(drill.first_byte_millis <= drill.mounted_millis && drill.mounted_millis.is_some());
    assert_eq!(drill.filesystems, ["an ext4 filesystem"]);
    assert_eq!((drill.files, drill.files_bytes), (8, 8 * FILE_BYTES as u64));
    // It reads the frames of the metadata and of the sample only.
    let data = (FILES * FILE_BYTES) as u64;
    assert!(drill.fetched_bytes < data / 5, "{} of {data} bytes", drill.fetched_bytes);
    assert!(drill.requests > 0 && drill.requests < 100, "{}", drill.requests);
    assert_eq!((task.requests.put, task.requests.delete), (1, 0), "it writes its proof only");
    assert_eq!(host.drill_proofs(), 1);
    host.assert_tidy();

    // The same seed reads the same files.
    host.done(host.call(START_DRILL, &request).await.task_id).await;
    let again = host.drills().await;
    assert_eq!(again.len(), 2);
    assert_eq!((again[0].fetched_bytes, again[0].seed), (drill.fetched_bytes, 7));
    assert_eq!(host.drill_proofs(), 1, "the later proof replaces it");
    let last = host.list().await.remove(0);
    assert_eq!(
        last.last_drill.as_ref().map(|one| (one.drill_id, one.passed)),
        Some((again[0].drill_id, true))
    );
    assert!(last.last_proof.is_none(), "a drill reads a part of the content");
    let metrics = host.metrics_text().await;
    for metric in [
        "blockd_drill_passed{volume=\"data\",credential=\"nas\"} 1\n",
        "blockd_drill_step_seconds{volume=\"data\",credential=\"nas\",step=\"mount\"} ",
    ] {
        assert!(metrics.contains(metric), "{metric}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drills_are_known_to_all_hosts_of_the_location() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    host.done(host.call(START_DRILL, &drill_of(&snap)).await.task_id).await;
    let drill = host.drills().await.remove(0);
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.create_credential().await;
    for _ in 0..2 {
        assert!(other.list().await[0].last_drill.as_ref().is_some_and(|last| last.passed));
        let found = other.drills().await;
        let [theirs] = &found[..] else { panic!("{found:?}") };
        assert_eq!((&theirs.steps, &theirs.volume_name), (&drill.steps, &drill.volume_name));
        assert_eq!((theirs.fetched_bytes, theirs.created_at), (drill.fetched_bytes, drill.created_at));
    }
    // Its own drill is not imported again.
    host.list().await;
    assert_eq!(host.drills().await.len(), 1);
    // A deleted credential takes the drills along, which a new one finds.
    host.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await;
    assert_eq!(host.drills().await, []);
    host.create_credential().await;
    host.list().await;
    assert_eq!(host.drills().await.len(), 1);
    // The filesystem that it found is lost in the next backup.
    host.volume("data").write(0, &vec![0; 64 << 10], false).unwrap();
    let lost = drill_of(&host.backup("data", false).await.cloud_snapshot_id.unwrap());
    for host in [&host, &other] {
        let (code, failed) = host.failed_drill(&lost).await;
        let failed = failed.unwrap();
        assert_eq!((code, failed_at(&failed)), (ErrorCode::DrillFailed, DrillStage::Layout));
        let earlier = blockd_api::format_time(drill.ended_at);
        let found = format!("an ext4 filesystem is missing: the drill of {earlier} found it");
        assert!(failed.findings[0].starts_with(&found), "{failed:?}");
    }
    // A change on purpose is the next reference; an older point still has its own.
    let accepted = StartDrill { accept_layout: true, ..lost.clone() };
    for request in [&accepted, &lost, &drill_of(&snap)] {
        host.done(host.call(START_DRILL, request).await.task_id).await;
    }
    host.volume("data").write(0, b"text", false).unwrap();
    let later = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    host.done(host.call(START_DRILL, &drill_of(&later)).await.task_id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_noticed_by_the_step_that_reads_it() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    let mut packs = host.packs();
    packs.sort();
    let intact: Vec<_> = packs.iter().map(|pack| fs::read(pack).unwrap()).collect();
    let restore_packs = || {
        for (pack, content) in packs.iter().zip(&intact) {
            let _ = fs::remove_file(pack);
            fs::write(pack, content).unwrap();
        }
    };
    let listed = async || host.list().await[0].last_proof.clone();
    // The first pack has metadata, then contents of files.
    for (pack, from) in packs.iter().zip([intact[0].len() / 8, 0, 0, 0]) {
        damage_frames(pack, from);
    }
    let (code, drill) = host.failed_drill(&StartDrill { files: Some(64), ..drill_of(&snap) }).await;
    let drill = drill.unwrap();
    assert_eq!((code, failed_at(&drill)), (ErrorCode::CloudsnapDamaged, DrillStage::Files));
    assert!(drill.findings[0].contains("/pack-"), "{drill:?}");
    assert!(!listed().await.unwrap().sound);
    assert_eq!(host.events_of("damage-found").await.len(), 1);

    restore_packs();
    // The first frame has the superblock and compresses well; a read of the first sector needs it.
    flip_bit(&packs[0], 100);
    let (code, drill) = host.failed_drill(&drill_of(&snap)).await;
    assert_eq!((code, failed_at(&drill.unwrap())), (ErrorCode::CloudsnapDamaged, DrillStage::FirstByte));
    fs::remove_file(&packs[0]).unwrap();
    let (code, drill) = host.failed_drill(&drill_of(&snap)).await;
    assert_eq!((code, failed_at(&drill.unwrap())), (ErrorCode::CloudsnapDamaged, DrillStage::FirstByte));
    restore_packs();
    host.done(host.call(START_DRILL, &drill_of(&snap)).await.task_id).await;
    assert!(!listed().await.unwrap().sound, "a drill reads a part of the content");
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn filesystem_with_a_lost_write_fails_its_check() {
    let host = Host::new().await;
    host.create_credential().await;
    let image = ext4(host.dir.path());
    let path = image.to_str().unwrap();
    let block: u64 =
        e2fs("debugfs", &["-R", "blocks /dir", path]).split_whitespace().next().unwrap().parse().unwrap();
    let mut content = fs::read(&image).unwrap();
    content[(block * BLOCK) as usize..][..BLOCK as usize].fill(0);
    fs::write(&image, content).unwrap();
    let snap = host.backed_up_image("data", &image).await;
    let (code, drill) = host.failed_drill(&drill_of(&snap)).await;
    let drill = drill.unwrap();
    assert_eq!((code, failed_at(&drill)), (ErrorCode::DrillFailed, DrillStage::Check));
    assert!(drill.findings[0].starts_with("an ext4 filesystem: "), "{:?}", drill.findings);
    assert_eq!(host.events_of("drill-failed").await.len(), 1);
    // The cloud snapshot has what the volume had.
    assert!(host.list().await.iter().all(|one| one.last_drill.as_ref().is_some_and(|last| !last.passed)));
    assert!(
        host.metrics_text().await.contains("blockd_drill_passed{volume=\"data\",credential=\"nas\"} 0\n")
    );
    assert_eq!(host.damaged().await, "0");
    let mut problems = host.call(GET_STATUS, &()).await.problems.into_iter();
    let problem = problems.find(|one| one.kind == "drill").unwrap().cause;
    assert!(problem.contains(" failed on volume data at nas, step check: an ext4 filesystem: "), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn external_journal_is_not_checked_and_no_damage() {
    let host = Host::new().await;
    host.create_credential().await;
    let image = ext4(host.dir.path());
    // A journal to replay, on device 8:1 instead of in an inode.
    let journal =
        "set_super_value journal_inum 0\nset_super_value journal_dev 2049\nfeature needs_recovery\n";
    let commands = host.dir.path().join("commands");
    fs::write(&commands, journal).unwrap();
    e2fs("debugfs", &["-w", "-f", commands.to_str().unwrap(), image.to_str().unwrap()]);
    let snap = host.backed_up_image("data", &image).await;
    let task = host.drill(&drill_of(&snap)).await;
    let drill = host.drills().await.remove(0);
    assert!(drill.passed, "{task:?} {drill:?}");
    let step = |stage| drill.steps.iter().find(|step| step.stage == stage).unwrap();
    let mount = step(DrillStage::Mount);
    assert_eq!(mount.outcome, DrillOutcome::Skipped);
    assert_eq!(
        mount.note,
        "an ext2, ext3 or ext4 filesystem is not checked: it cannot be used alone, as its journal is on another device"
    );
    assert_eq!(step(DrillStage::Check).outcome, DrillOutcome::Skipped);
}

#[tokio::test(flavor = "multi_thread")]
async fn external_log_of_xfs_is_not_checked_and_no_damage() {
    let host = Host::new().await;
    host.create_credential().await;
    // The superblock has no start of an internal log.
    let xfs = host.dir.path().join("xfs");
    fs::write(&xfs, b"XFSB").unwrap();
    let snap = host.backed_up_image("xfs", &xfs).await;
    let task = host.drill(&drill_of(&snap)).await;
    let drill = host.drills().await.remove(0);
    assert!(drill.passed, "{task:?} {drill:?}");
    let check = drill.steps.iter().find(|step| step.stage == DrillStage::Check).unwrap();
    assert_eq!(check.outcome, DrillOutcome::Skipped);
    assert!(
        check.note.ends_with("it cannot be used alone, as its journal is on another device"),
        "{check:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn source_deleted_during_a_drill_is_no_damage() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    let (manifest, packs) = (host.manifest(&snap), host.packs());
    host.act_at("drill check", move |_| {
        fs::remove_file(manifest).unwrap();
        packs.iter().for_each(|pack| fs::remove_file(pack).unwrap());
    });
    let (code, drill) = host.failed_drill(&drill_of(&snap)).await;
    assert_eq!((code, drill), (ErrorCode::CloudsnapNotFound, None));
    assert_eq!((host.drill_proofs(), host.damaged().await.as_str()), (0, "0"));
    assert_eq!(host.events_of("drill-stopped").await.len(), 1);
    host.refused(ErrorCode::CloudsnapNotFound, START_DRILL, &drill_of(&snap)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_without_the_data_key_is_refused() {
    let host = Host::new().await;
    host.encrypted_backup().await;
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("first"))).await;
    let rekey = blockd_api::credentials::RekeyCredential {
        passphrase: Some(blockd_api::Secret::new("first".into())),
        ..new_data_key()
    };
    other.call_at(REKEY_CREDENTIAL, &"nas".parse().unwrap(), &rekey).await;
    other.create_volume("theirs").await;
    let snap = other.backup("theirs", true).await.cloud_snapshot_id.unwrap();
    host.refused(ErrorCode::WrongPassphrase, START_DRILL, &drill_of(&snap)).await;
    assert_eq!((host.drills().await, host.drill_proofs()), (Vec::new(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_runs_again_after_a_crash_at_any_step() {
    let mut host = Host::new().await;
    let snap = host.backed_up_files().await;
    let steps = [
        "drill opened",
        "drill first byte",
        "drill layout",
        "drill mount",
        "drill check",
        "drill files",
        "drill examined",
        "drill stored",
    ];
    for (before, step) in steps.into_iter().enumerate() {
        host.die_at(step);
        let task = host.call(START_DRILL, &drill_of(&snap)).await.task_id;
        host.die_and_start().await;
        assert_eq!(host.done(task).await.resumed, 1, "{step}");
        assert_eq!(host.drills().await.len(), before + 1, "{step}");
        assert_eq!(host.drill_proofs(), 1, "{step}");
        assert_eq!(idle_threads("store-write"), 0, "the drill opened the store first");
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_beyond_its_timeout_has_no_result() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    let timeout = Duration::from_secs(1);
    host.act_at("drill check", move |_| std::thread::sleep(timeout));
    let (code, drill) = host.failed_drill(&StartDrill { timeout_seconds: Some(1), ..drill_of(&snap) }).await;
    assert_eq!((code, drill, host.drill_proofs()), (ErrorCode::DrillTimeout, None, 0));
    assert_eq!(host.damaged().await, "0");
    let none = StartDrill { files: Some(0), ..drill_of(&snap) };
    host.refused(ErrorCode::InvalidRequest, START_DRILL, &none).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_has_the_bandwidth_limit_of_the_configuration() {
    let mut host = Host::new().await;
    let snap = host.backed_up_files().await;
    host.stop().await;
    let config = Config { drill_limit_bytes_per_s: 64 << 20, ..config(host.dir.path()) };
    host.daemon = Some(Daemon::start(config, false).await.unwrap());
    let task = host.done(host.call(START_DRILL, &drill_of(&snap)).await.task_id).await;
    assert_eq!(task.limits.limit_download_bytes_per_second, Some(64 << 20));
    assert_eq!(task.limits.limit_upload_bytes_per_second, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_has_the_request_limit_of_the_configuration() {
    const PER_S: u32 = 10;
    let mut host = Host::new().await;
    let snap = host.backed_up_files().await;
    host.stop().await;
    let config = Config { drill_limit_requests_per_s: PER_S.into(), ..config(host.dir.path()) };
    host.daemon = Some(Daemon::start(config, false).await.unwrap());
    let started = std::time::Instant::now();
    host.done(host.call(START_DRILL, &drill_of(&snap)).await.task_id).await;
    let requests = u32::try_from(host.drills().await.remove(0).requests).unwrap();
    assert!(requests > 3, "{requests}");
    // The first ones may use unused time.
    assert!(started.elapsed() >= Duration::from_secs(1) * (requests - 2) / PER_S, "{requests}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_drill_has_no_result() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    let (send, receive) = tokio::sync::oneshot::channel();
    host.act_at("drill check", move |engine| {
        let id = engine.tasks.running()[0].id;
        let runner = Arc::clone(&engine.runner);
        let mut stop = Box::pin(async move { runner.stop_task(id, StopTask::default()).await });
        // The first poll requests the stop, which ends after this step.
        assert!(stop.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(send.send(stop).is_ok());
    });
    let task = host.call(START_DRILL, &drill_of(&snap)).await.task_id;
    receive.await.unwrap().await.unwrap();
    assert_eq!(host.wait(task).await.state.to_string(), "Drill-Stopped");
    assert_eq!((host.drills().await, host.drill_proofs()), (Vec::new(), 0));
    assert_eq!(host.events_of("drill-failed").await.len(), 0);
    host.assert_tidy();
}

impl Host {
    /// Runs a schedule of drills, and returns its runs when they have ended.
    pub(super) async fn run_drills(&self, request: &CreateSchedule) -> Vec<Run> {
        let schedule = self.call(CREATE_SCHEDULE, request).await.schedule_id;
        self.call_at(RUN_SCHEDULE, &schedule, &Default::default()).await;
        self.settled().await.into_iter().filter(|run| run.schedule_id == schedule).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduled_drill_reads_the_newest_cloud_snapshot() {
    let host = Host::new().await;
    host.backed_up_files().await;
    let newest = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let request = CreateSchedule {
        selector: select_volume("data"),
        rules: vec![rule(NEVER)],
        drill: Some(DrillOptions { files: Some(3), ..DrillOptions::default() }),
        ..CreateSchedule::default()
    };
    let runs = host.run_drills(&request).await;
    let [run] = &runs[..] else { panic!("{runs:?}") };
    assert_eq!((run.state, run.cloud_snapshot_id), (RunState::Done, None), "{run:?}");
    let drill = host.drills().await.remove(0);
    assert_eq!((Some(drill.drill_id), drill.cloud_snapshot_id.to_string()), (run.task_id, newest));
    assert_eq!(drill.files, 3);
    let owner = TaskOwner::Schedule { schedule_id: run.schedule_id };
    assert_eq!(host.wait(drill.drill_id).await.owner, owner);
    // It protects no volume, and has no retention.
    assert_eq!(host.call(LIST_SCHEDULES, &()).await.list.items, []);
    let schedules = host.call(LIST_DRILL_SCHEDULES, &()).await.list.items;
    assert_eq!(schedules.iter().map(|one| &one.drill).collect::<Vec<_>>(), [&request.drill]);
    assert_eq!(schedules[0].copies[0].kept, 0);
    let kept = CreateSchedule { retain: Retention::max(3).unwrap(), ..request.clone() };
    host.refused(ErrorCode::InvalidRequest, CREATE_SCHEDULE, &kept).await;
    let compression = Some("zstd:3".parse().unwrap());
    let compressed = CreateSchedule { compression, ..request.clone() };
    host.refused(ErrorCode::InvalidRequest, CREATE_SCHEDULE, &compressed).await;
    let compressed = UpdateSchedule { compression: Some(compression), ..UpdateSchedule::default() };
    host.refused_at(ErrorCode::InvalidRequest, UPDATE_SCHEDULE, &run.schedule_id, &compressed).await;
    assert!(!host.metrics_text().await.contains("blockd_backup_wanted_since_timestamp_seconds{"));
    // Without a cloud snapshot, nothing can be restored.
    host.create_volume("new").await;
    let runs = host.run_drills(&CreateSchedule { selector: select_volume("new"), ..request }).await;
    assert_eq!(runs[0].state, RunState::Failed);
    assert_eq!(runs[0].reason.as_deref(), Some("there is no cloud snapshot of new at nas to drill"));
}
