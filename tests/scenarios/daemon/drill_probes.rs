//! Probes of restore drills, with the socket of a clone: they need root, but no driver of the kernel.

use super::{
    drills::{drill_of, failed_at},
    resume::DISCARD,
    *,
};
use blockd::config::{ProbeAccess, ProbeConfig};
use blockd_api::{
    drills::{DrillOptions, DrillOutcome, DrillStage, StartDrill},
    schedules::{CreateSchedule, RunState},
};
use std::os::unix::fs::PermissionsExt;

pub(super) fn probe(command: &str) -> ProbeConfig {
    ProbeConfig {
        command: command.into(),
        user: "nobody".into(),
        access: ProbeAccess::Socket,
        timeout_s: 100,
        memory_limit_bytes: 4 << 30,
    }
}

fn with_probe(snap: &str, name: &str) -> StartDrill {
    StartDrill { probe: Some(name.parse().unwrap()), ..drill_of(snap) }
}

impl Host {
    /// Restarts the daemon with probes; returns false where it cannot run them.
    pub(super) async fn restart_with_probes(&mut self, probes: &[(&str, ProbeConfig)]) -> bool {
        self.stop().await;
        self.start_with_probes(probes).await;
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            eprintln!("=== SKIPPED: probes of restore drills: only root creates namespaces ===");
        }
        is_root
    }

    pub(super) async fn start_with_probes(&mut self, probes: &[(&str, ProbeConfig)]) {
        let named = probes.iter().map(|(name, probe)| (name.parse().unwrap(), probe.clone()));
        let config = Config { drill_probes: named.collect(), ..config(self.dir.path()) };
        self.daemon = Some(Daemon::start(config, false).await.unwrap());
    }

    /// Returns the problems of failed probes.
    async fn failed_probes(&self) -> Vec<String> {
        let problems = self.call(GET_STATUS, &()).await.problems.into_iter();
        problems.filter(|problem| problem.kind == "probe").map(|problem| problem.cause).collect()
    }

    /// Asserts that nothing of a clone is left.
    pub(super) fn assert_no_clone(&self) {
        let names =
            fs::read_dir(self.dir.path().join("data")).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("drill")).collect();
        assert!(left.is_empty(), "{left:?}");
        self.assert_tidy();
    }
}

/// Returns a command that creates a process with a mark, and the mark.
fn sleeper() -> (String, String) {
    let mark = format!("{}.{}", 70_000 + std::process::id(), Uuid::new_v4().as_u128() % 1_000_000);
    (format!("sleep {mark}; true"), mark)
}

/// Returns the number of threads with this name and the policy `SCHED_IDLE`: 5 in field 41 of their `stat`.
pub(super) fn idle_threads(name: &str) -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.join("stat")).ok());
    let named = stats.filter(|stat| stat.contains(&format!("({name}) ")));
    named.filter(|stat| stat.rsplit_once(") ").unwrap().1.split(' ').nth(38) == Some("5")).count()
}

fn runs(mark: &str) -> bool {
    let found = std::process::Command::new("pgrep").args(["-f", &format!("^sleep {mark}")]).output().unwrap();
    !found.stdout.is_empty()
}

async fn wait_for(mark: &str, wanted: bool) {
    let seen = async || if runs(mark) == wanted { Ok(()) } else { Err("the process of the probe") };
    eventually(seen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_uses_a_writable_clone_that_is_thrown_away() {
    let mut host = Host::new().await;
    let snap = host.backed_up_files().await;
    let packs = host.packs();
    let command = "set -e; nbdcopy \"$BLOCKD_DRILL_URI\" /tmp/image; /sbin/e2fsck -fn /tmp/image >/dev/null
        head -c 67108864 /dev/zero | tr '\\0' w >/tmp/written; nbdcopy /tmp/written \"$BLOCKD_DRILL_URI\"
        nbdcopy \"$BLOCKD_DRILL_URI\" /tmp/read; cmp /tmp/read /tmp/written
        echo $BLOCKD_DRILL_VOLUME is sound";
    if !host.restart_with_probes(&[("sound", probe(command))]).await {
        return host.refused(ErrorCode::NotPermitted, START_DRILL, &with_probe(&snap, "sound")).await;
    }
    // The second drill gets the same content.
    for _ in 0..2 {
        let task = host.call(START_DRILL, &with_probe(&snap, "sound")).await.task_id;
        let task = host.wait(task).await;
        let drill = host.drills().await.remove(0);
        assert!(drill.passed, "{task:?} {drill:?}");
        let last = drill.steps.last().unwrap();
        assert_eq!((last.stage, last.outcome), (DrillStage::Probe, DrillOutcome::Passed));
        assert_eq!(last.note, "sound: data is sound");
        assert!(drill.probed_millis.is_some() && drill.probed_millis >= drill.mounted_millis);
        assert_eq!(task.requests.put, 1, "it writes its proof only");
        host.assert_no_clone();
    }
    assert_eq!(host.packs(), packs);
    let metrics = host.metrics_text().await;
    assert!(metrics.contains("step=\"probe\"} "), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_probe_fails_a_consistent_snapshot() {
    let mut host = Host::new().await;
    let snap = host.backed_up_files().await;
    let all: String = (0..50).map(|line| format!("echo line {line}; ")).collect();
    let failing = probe(&format!("{all} echo the database does not start >&2; exit 7"));
    let endless = ProbeConfig { timeout_s: 1, ..probe("sleep 600; true") };
    if !host.restart_with_probes(&[("failing", failing), ("endless", endless.clone())]).await {
        return;
    }
    let (code, drill) = host.failed_drill(&with_probe(&snap, "failing")).await;
    let drill = drill.unwrap();
    assert_eq!((code, failed_at(&drill)), (ErrorCode::DrillFailed, DrillStage::Probe));
    assert_eq!(drill.findings[0], "probe failing failed: exit status 7: the database does not start");
    let last = drill.findings.len() - 1;
    assert_eq!(drill.findings[last - 1..], ["output: line 48", "output: line 49"]);
    assert!(last < 20 && drill.probed_millis.is_none(), "{drill:?}");
    let [event] = &host.events_of("drill-failed").await[..] else { panic!("no event, or several") };
    assert_eq!(event.failed_step, Some(DrillStage::Probe));
    assert_eq!(host.damaged().await, "0");
    // A drill without the probe says nothing about it; one of its schedule ends the problem.
    host.done(host.call(START_DRILL, &drill_of(&snap)).await.task_id).await;
    let [problem] = &host.failed_probes().await[..] else { panic!() };
    assert!(problem.starts_with("the probe failing failed on volume data at the drill of "), "{problem}");
    assert!(problem.ends_with(": exit status 7: the database does not start"), "{problem}");
    let scheduled = |name: &str| CreateSchedule {
        selector: select_volume("data"),
        rules: vec![rule(NEVER)],
        drill: Some(DrillOptions { probe: Some(name.parse().unwrap()), ..DrillOptions::default() }),
        ..CreateSchedule::default()
    };
    host.refused(ErrorCode::InvalidRequest, CREATE_SCHEDULE, &scheduled("unknown")).await;
    assert_eq!(host.run_drills(&scheduled("failing")).await[0].state, RunState::Failed);
    host.stop().await;
    let patient = probe("sleep 600; true");
    host.start_with_probes(&[("failing", probe(":")), ("endless", endless), ("patient", patient)]).await;
    eventually(async || host.failed_probes().await.pop().ok_or("the start does not report it")).await;
    assert_eq!(host.run_drills(&scheduled("failing")).await[0].state, RunState::Done);
    assert!(host.drills().await[0].probed_millis.is_some());
    assert_eq!(host.failed_probes().await, [""; 0]);
    let (_, drill) = host.failed_drill(&with_probe(&snap, "endless")).await;
    let drill = drill.unwrap();
    assert_eq!(failed_at(&drill), DrillStage::Probe);
    assert_eq!(drill.findings[0], "probe endless failed: killed after 1 s");
    // The timeout of the drill ends a probe as well.
    let short = StartDrill { timeout_seconds: Some(2), ..with_probe(&snap, "patient") };
    assert_eq!(host.failed_drill(&short).await, (ErrorCode::DrillTimeout, None));
    host.assert_no_clone();
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_without_space_for_its_writes_has_no_result() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let large = CreateVolume { size_bytes: 9 << 30, ..new_volume("large") };
    host.call(CREATE_VOLUME, &large).await;
    let snap = host.backup("large", true).await.cloud_snapshot_id.unwrap();
    let filling =
        probe("truncate -s 9G /tmp/zeroes; nbdcopy --request-size=1048576 /tmp/zeroes \"$BLOCKD_DRILL_URI\"");
    if !host.restart_with_probes(&[("filling", filling)]).await {
        return;
    }
    assert_eq!(host.failed_drill(&with_probe(&snap, "filling")).await, (ErrorCode::NoSpace, None));
    assert_eq!(host.drill_proofs(), 0);
    host.assert_no_clone();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_only_the_probe_reads_is_damage() {
    let mut host = Host::new().await;
    let snap = host.backed_up_files().await;
    let reading = probe("exec nbdcopy \"$BLOCKD_DRILL_URI\" /tmp/image");
    if !host.restart_with_probes(&[("reading", reading)]).await {
        return;
    }
    let mut packs = host.packs();
    packs.sort();
    let last = packs.last().unwrap();
    let mut bytes = fs::read(last).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::remove_file(last).unwrap();
    fs::write(last, bytes).unwrap();
    let request = StartDrill { files: Some(1), ..with_probe(&snap, "reading") };
    let (code, drill) = host.failed_drill(&request).await;
    let drill = drill.unwrap();
    assert_eq!((code, failed_at(&drill)), (ErrorCode::CloudsnapDamaged, DrillStage::Probe));
    assert!(drill.findings[0].contains("/pack-"), "{drill:?}");
    assert_eq!(host.events_of("damage-found").await.len(), 1);
    host.assert_no_clone();
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_ends_with_its_task_source_or_daemon() {
    let mut host = Host::new().await;
    let snap = host.backed_up_files().await;
    // `/tmp` is private.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let flag = dir.path().join("flag");
    let (sleep, mark) = sleeper();
    let waiting = probe(&format!("test -e {0} || {{ {sleep}; }}", flag.display()));
    let reading = format!("sleep {mark} & until test -e {}; do sleep 0.02; done; kill %1; ", flag.display());
    let reading = probe(&format!("{reading} exec nbdcopy \"$BLOCKD_DRILL_URI\" /tmp/image"));
    let probes = [("waiting", waiting), ("reading", reading)];
    if !host.restart_with_probes(&probes).await {
        return;
    }
    // Its task is stopped.
    let task = host.call(START_DRILL, &with_probe(&snap, "waiting")).await.task_id;
    wait_for(&mark, true).await;
    host.call_at(STOP_TASK, &task, &DISCARD).await;
    assert_eq!(host.wait(task).await.state.to_string(), "Drill-Stopped");
    wait_for(&mark, false).await;
    host.assert_no_clone();
    // The daemon stops; the next one begins again, without what a dead one would have left.
    let task = host.call(START_DRILL, &with_probe(&snap, "waiting")).await.task_id;
    wait_for(&mark, true).await;
    host.stop().await;
    wait_for(&mark, false).await;
    let left = host.dir.path().join("data/drill");
    fs::create_dir_all(left.join("private")).unwrap();
    fs::write(left.join("nbd.sock"), "").unwrap();
    fs::write(&flag, "").unwrap();
    host.start_with_probes(&probes).await;
    let task = host.done(task).await;
    assert_eq!((task.resumed, host.drill_proofs()), (1, 1));
    host.assert_no_clone();
    // It dies before the probe.
    host.die_at("drill probe");
    let task = host.call(START_DRILL, &with_probe(&snap, "waiting")).await.task_id;
    host.crashed().await;
    host.stop().await;
    host.start_with_probes(&probes).await;
    assert_eq!(host.done(task).await.resumed, 1);
    assert_eq!(host.drills().await.len(), 2);
    // The cloud snapshot is deleted.
    fs::remove_file(&flag).unwrap();
    let task = host.call(START_DRILL, &with_probe(&snap, "reading")).await.task_id;
    wait_for(&mark, true).await;
    fs::remove_file(host.manifest(&snap)).unwrap();
    host.packs().iter().for_each(|pack| fs::remove_file(pack).unwrap());
    fs::write(&flag, "").unwrap();
    let task = host.wait(task).await;
    assert_eq!(task.error.unwrap().code, ErrorCode::CloudsnapNotFound);
    assert_eq!((host.drills().await.len(), host.damaged().await.as_str()), (2, "0"));
    host.assert_no_clone();
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_probe_is_refused_with_its_reason() {
    let mut host = Host::new().await;
    let snap = host.backed_up_files().await;
    host.refused(ErrorCode::InvalidRequest, START_DRILL, &with_probe(&snap, "db")).await;
    let stranger = ProbeConfig { user: "no-such-user".into(), ..probe(":") };
    let mounting = ProbeConfig { access: ProbeAccess::Mount, ..probe(":") };
    let probes = [("stranger", stranger), ("mounting", mounting)];
    if !host.restart_with_probes(&probes).await {
        return;
    }
    let refusal = async |name: &str| {
        let refused = host.client.call(START_DRILL, &with_probe(&snap, name)).await;
        let Err(ClientError::Api(error)) = refused else { panic!("{refused:?}") };
        (error.code, error.message, error.hint.unwrap())
    };
    let (code, message, hint) = refusal("db").await;
    assert_eq!(code, ErrorCode::InvalidRequest);
    assert!(message.contains("mounting, stranger") && hint.contains("[drill_probes.db]"), "{message}");
    let (code, message, _) = refusal("stranger").await;
    assert_eq!(code, ErrorCode::InvalidRequest);
    assert!(message.contains("there is no user no-such-user"), "{message}");
    if !Path::new("/sys/module/nbd").exists() {
        let (code, _, hint) = refusal("mounting").await;
        assert_eq!(code, ErrorCode::NbdModuleMissing);
        assert!(hint.contains("modprobe nbd"), "{hint}");
    }
    host.assert_no_clone();
    assert_eq!(host.drills().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_without_a_filesystem_or_probe_is_not_checked() {
    let host = Host::new().await;
    host.create_credential().await;
    let volume = host.create_volume("raw").await;
    volume.write(1 << 20, &pattern(1, 1 << 20), false).unwrap();
    let raw = host.backup("raw", true).await.cloud_snapshot_id.unwrap();
    let task = host.done(host.call(START_DRILL, &drill_of(&raw)).await.task_id).await;
    assert_eq!(task.note.as_deref(), Some("not checked: no known filesystem"));
    let drill = host.drills().await.remove(0);
    assert!(drill.passed && drill.first_byte_millis.is_some() && drill.mounted_millis.is_none());
    assert_eq!(drill.unchecked.as_deref(), Some("no known filesystem"));
    let listed = host.list().await.into_iter().find(|one| one.cloud_snapshot_id == snap_id(&raw)).unwrap();
    assert!(listed.last_drill.unwrap().unchecked);
    let metrics = host.metrics_text().await;
    assert!(metrics.contains("blockd_drill_checked{volume=\"raw\",credential=\"nas\"} 0\n"));
    let skipped = drill.steps.iter().filter(|step| step.outcome == DrillOutcome::Skipped);
    assert!(skipped.clone().all(|step| !step.note.is_empty()) && skipped.count() == 4, "{drill:?}");
}
