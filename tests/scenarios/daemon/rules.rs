//! Tests of rules around backups: selection, failures, and resume after a crash.

use super::*;
use blockd_api::{
    events::{ListEvents, Severity},
    quiesce::{HookOptions, OnFailure, Quiesce, QuiesceKind},
    rules::{CreateRule, RuleTarget, UpdateRule},
    schedules::{Run, RunState, UpdateSchedule},
    snapshots::CreateGroupSnapshot,
};

impl Host {
    pub(super) fn log_path(&self) -> String {
        self.dir.path().join("log").display().to_string()
    }

    /// Returns the commands' log since the last call.
    pub(super) fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let _ = std::fs::remove_file(self.log_path());
        text.lines().map(str::to_owned).collect()
    }

    /// Commands that note their turn, and end like this.
    pub(super) fn noting(&self, pre: &str, post: &str) -> Quiesce {
        let note =
            format!("echo $BLOCKD_RULE:$BLOCKD_PHASE $BLOCKD_VOLUMES $BLOCKD_TAKEN >> {}", self.log_path());
        Quiesce {
            pre_command: Some(format!("{note}; {pre}")),
            post_command: Some(format!("{note}; {post}")),
            ..Quiesce::default()
        }
    }

    pub(super) async fn rule(&self, name: &str, quiesce: Quiesce) {
        let request = CreateRule { name: name.parse().unwrap(), quiesce };
        self.call(CREATE_RULE, &request).await;
    }

    pub(super) async fn assign(&self, rule: &str, volume: Option<&str>, group: Option<&str>) {
        let volume = volume.map(|name| name.parse().unwrap());
        let target = RuleTarget { volume, group: group.map(|name| name.parse().unwrap()) };
        self.call_at(ASSIGN_RULE, &rule.parse().unwrap(), &target).await;
    }

    pub(super) async fn failures(&self) -> Vec<(Severity, String)> {
        let events = self.call(LIST_EVENTS, &ListEvents::default()).await.events;
        let of_rules = events.into_iter().filter(|event| event.kind == "rule-failed");
        of_rules.map(|event| (event.severity, event.message)).collect()
    }

    pub(super) async fn run_of(&self, rule: Option<&str>) -> Run {
        let schedule = self.schedule(9).await;
        let rule = Some(rule.map(|rule| rule.parse().unwrap()));
        let request = UpdateSchedule { rule, ..UpdateSchedule::default() };
        self.call_at(UPDATE_SCHEDULE, &schedule.uuid, &request).await;
        self.call_at(RUN_SCHEDULE, &schedule.uuid, &()).await;
        self.settled().await.remove(0)
    }
}

pub(super) fn own_user() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}

pub(super) fn of(volume: &str) -> StartBackup {
    StartBackup::of(volume.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn most_specific_rule_is_used() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    for name in ["mine", "scheduled", "named"] {
        host.rule(name, host.noting("true", "true")).await;
    }
    host.assign("mine", Some("v"), None).await;
    assert_eq!(host.call_at(GET_VOLUME, &"v".parse().unwrap(), &()).await.rule.unwrap().as_str(), "mine");
    let task = host.backup("v", false).await;
    assert_eq!(host.log(), ["mine:pre v", "mine:post v yes"]);
    let steps = task.quiesce.unwrap().steps;
    let kinds: Vec<QuiesceKind> = steps.iter().map(|step| step.kind).collect();
    assert_eq!(kinds, [QuiesceKind::PreCommand, QuiesceKind::PostCommand]);
    assert!(steps.iter().all(|step| step.exit_status == Some(0) && step.started.is_some()), "{steps:?}");

    assert_eq!(host.run_of(None).await.state, RunState::Done);
    assert_eq!(host.log(), ["mine:pre v", "mine:post v yes"]);
    assert_eq!(host.run_of(Some("scheduled")).await.state, RunState::Done);
    assert_eq!(host.log(), ["scheduled:pre v", "scheduled:post v yes"]);

    let named = StartBackup {
        hooks: HookOptions { rule: Some("named".parse().unwrap()), ..Default::default() },
        ..of("v")
    };
    host.done(host.call(START_BACKUP, &named).await.task).await;
    assert_eq!(host.log(), ["named:pre v", "named:post v yes"]);
    let inline = StartBackup {
        hooks: HookOptions { quiesce: host.noting("true", "true"), ..Default::default() },
        ..of("v")
    };
    host.done(host.call(START_BACKUP, &inline).await.task).await;
    assert_eq!(host.log(), [":pre v", ":post v yes"]);
    let without = StartBackup { hooks: HookOptions { no_rule: true, ..Default::default() }, ..of("v") };
    let task = host.done(host.call(START_BACKUP, &without).await.task).await;
    assert_eq!((host.log().len(), task.quiesce), (0, None));
    // A local snapshot is a freeze as well.
    host.call_at(CREATE_SNAPSHOT, &"v".parse().unwrap(), &CreateSnapshot::default()).await;
    assert_eq!(host.log(), ["mine:pre v", "mine:post v yes"]);

    let hooks = HookOptions { rule: Some("named".parse().unwrap()), ..inline.hooks.clone() };
    let both = StartBackup { hooks, ..inline };
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &both).await;
    let unknown = StartBackup {
        hooks: HookOptions { rule: Some("nobody".parse().unwrap()), ..Default::default() },
        ..of("v")
    };
    host.refused(ErrorCode::RuleNotFound, START_BACKUP, &unknown).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_survive_a_restart_and_are_not_deleted_in_use() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let name = "pg".parse().unwrap();
    let nothing = CreateRule { name: "pg".parse().unwrap(), quiesce: Quiesce::default() };
    host.refused(ErrorCode::InvalidRequest, CREATE_RULE, &nothing).await;
    let quiesce = Quiesce { user: Some(own_user()), ..host.noting("true", "true") };
    host.rule("pg", quiesce.clone()).await;
    let again = CreateRule { quiesce: quiesce.clone(), ..nothing };
    host.refused(ErrorCode::RuleExists, CREATE_RULE, &again).await;
    host.assign("pg", Some("v"), None).await;
    host.assign("pg", None, Some("shop")).await;
    let schedule = host.schedule(1).await;
    let with_rule = UpdateSchedule { rule: Some(Some("pg".parse().unwrap())), ..UpdateSchedule::default() };
    host.call_at(UPDATE_SCHEDULE, &schedule.uuid, &with_rule).await;
    let unknown = UpdateSchedule { rule: Some(Some("x".parse().unwrap())), ..UpdateSchedule::default() };
    host.refused_at(ErrorCode::RuleNotFound, UPDATE_SCHEDULE, &schedule.uuid, &unknown).await;
    host.stop().await;
    host.start().await;
    let rule = host.call(LIST_RULES, &()).await.rules.remove(0);
    assert_eq!(
        (&rule.quiesce, rule.groups.len(), rule.schedules.as_slice()),
        (&quiesce, 1, &[schedule.uuid][..])
    );
    assert_eq!(rule.volumes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["v"]);
    let update = UpdateRule { quiesce: Quiesce { freeze_fs: true, ..quiesce } };
    assert_eq!(host.call_at(UPDATE_RULE, &name, &update).await.quiesce, update.quiesce);

    // Each of the three keeps it.
    let volume = RuleTarget { volume: Some("v".parse().unwrap()), group: None };
    let group = RuleTarget { volume: None, group: Some("shop".parse().unwrap()) };
    host.refused_at(ErrorCode::RuleInUse, DELETE_RULE, &name, &()).await;
    host.call_at(UNASSIGN_RULE, &name, &group).await;
    host.refused_at(ErrorCode::InvalidRequest, UNASSIGN_RULE, &name, &group).await;
    host.refused_at(ErrorCode::RuleInUse, DELETE_RULE, &name, &()).await;
    host.call_at(UNASSIGN_RULE, &name, &volume).await;
    host.refused_at(ErrorCode::RuleInUse, DELETE_RULE, &name, &()).await;
    // So does a schedule that cannot be read, as when its time zone is gone from this host.
    host.sql("UPDATE schedules SET spec = json_set(spec, '$.rules', 'gone')");
    assert_eq!(host.call(LIST_SCHEDULES, &()).await.unreadable.len(), 1);
    let refused = host.client.call_at(DELETE_RULE, &name, &()).await.unwrap_err().to_string();
    assert!(refused.contains("(which cannot be read, but can be deleted)"), "{refused}");
    assert_eq!(host.call_at(GET_RULE, &name, &()).await.schedules, [schedule.uuid]);
    // Its credentials stay as well.
    let refused =
        host.client.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await.unwrap_err().to_string();
    assert!(refused.contains("(which cannot be read, but can be deleted)"), "{refused}");
    host.sql("UPDATE schedules SET spec = '{\"rule\": \"pg\"'");
    host.refused_at(ErrorCode::RuleInUse, DELETE_RULE, &name, &()).await;
    host.call_at(DELETE_SCHEDULE, &schedule.uuid, &()).await;
    host.call_at(DELETE_RULE, &name, &()).await;
    host.refused_at(ErrorCode::RuleNotFound, GET_RULE, &name, &()).await;
    // With its volume goes what was said of it.
    host.rule("other", host.noting("true", "true")).await;
    host.assign("other", Some("v"), None).await;
    host.call_at(DELETE_VOLUME, &"v".parse().unwrap(), &Default::default()).await;
    host.call_at(DELETE_RULE, &"other".parse().unwrap(), &()).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_runs_each_rule_once_around_one_freeze() {
    let (mut host, other) = (Host::new().await, tempfile::tempdir().unwrap());
    host.create_credential().await;
    host.second_credential(&other).await;
    host.grouped_volumes().await;
    host.rule("all", host.noting("true", "true")).await;
    host.rule("own", host.noting("true", "true")).await;
    host.assign("all", None, Some("shop")).await;
    host.assign("own", Some("b"), None).await;
    let expected = ["all:pre a b c", "own:pre a b c", "own:post a b c yes", "all:post a b c yes"];
    let started = host.backup_group(&["nas", "offsite"]).await;
    for task in host.ended(&started).await {
        assert_eq!((task.state.stage, &task.error), (TaskStage::Done, &None));
        assert_eq!(task.quiesce.unwrap().steps.len(), 4);
    }
    assert_eq!(host.log(), expected);
    let group =
        CreateGroupSnapshot { group: Some("shop".parse().unwrap()), ..CreateGroupSnapshot::default() };
    host.call(CREATE_GROUP_SNAPSHOT, &group).await;
    assert_eq!(host.log(), expected);
    // Alone, a volume follows its own, or else that of its group.
    for (volume, rule) in [("a", "all"), ("b", "own")] {
        let backup = StartBackup { cred_id: Some("nas".parse().unwrap()), ..of(volume) };
        host.done(host.call(START_BACKUP, &backup).await.task).await;
        assert_eq!(host.log(), [format!("{rule}:pre {volume}"), format!("{rule}:post {volume} yes")]);
    }

    // One of them fails: no volume is backed up to any location, and everything is resumed.
    host.call_at(
        UPDATE_RULE,
        &"own".parse().unwrap(),
        &UpdateRule { quiesce: host.noting("echo planted; exit 3", "true") },
    )
    .await;
    let before = host.list().await.len();
    let started = host.backup_group(&["nas", "offsite"]).await;
    for task in host.ended(&started).await {
        let error = task.error.unwrap();
        assert_eq!((task.state.stage, error.code), (TaskStage::Failed, ErrorCode::QuiesceFailed));
        assert_eq!(
            error.message,
            "the pre-command of rule own failed (exit status 3): no snapshot was taken"
        );
        assert_eq!(task.quiesce.unwrap().steps[1].output.as_deref(), Some("planted\n"));
    }
    assert_eq!(host.log(), ["all:pre a b c", "own:pre a b c", "own:post a b c no", "all:post a b c no"]);
    assert_eq!(host.list().await.len(), before);
    let failures = host.failures().await;
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].1.contains("a, b, c: the pre-command of rule own failed"), "{failures:?}");
    // What fails may be taken into account.
    let tolerant = Quiesce { on_failure: OnFailure::Continue, ..host.noting("exit 3", "true") };
    host.call_at(UPDATE_RULE, &"own".parse().unwrap(), &UpdateRule { quiesce: tolerant }).await;
    let started = host.backup_group(&["nas"]).await;
    for task in host.ended(&started).await {
        assert_eq!((task.state.stage, &task.error), (TaskStage::Done, &None));
        let failures: Vec<String> = task.quiesce.unwrap().failures().collect();
        assert_eq!(failures, ["the pre-command of rule own failed (exit status 3)"]);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_rule_is_reported_in_all_views() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    host.rule("late", host.noting("true", "echo planted >&2; exit 7")).await;
    host.rule("early", host.noting("echo planted >&2; exit 9", "true")).await;
    // The backup is made: the resume may be pending.
    let run = host.run_of(Some("late")).await;
    let said = "the post-command of rule late failed (exit status 7)";
    assert_eq!((run.state, run.reason.as_deref()), (RunState::Done, Some(said)));
    assert_eq!(host.list().await.len(), 1);
    let failures = host.failures().await;
    assert!(matches!(&failures[..], [(Severity::Error, message)] if message.contains(said)), "{failures:?}");
    // No backup is made.
    let run = host.run_of(Some("early")).await;
    let said = "the pre-command of rule early failed (exit status 9): no snapshot was taken";
    assert_eq!((run.state, run.reason.as_deref()), (RunState::Failed, Some(said)));
    assert_eq!(host.list().await.len(), 1);
    assert_eq!(host.log(), ["late:pre v", "late:post v yes", "early:pre v", "early:post v no"]);
    // Command output is not visible to all roles.
    let events = host.call(LIST_EVENTS, &ListEvents::default()).await;
    let (runs, events) = (format!("{:?}", host.runs().await), format!("{events:?}"));
    assert!(!runs.contains("planted") && !events.contains("planted"), "{runs} {events}");
    host.assert_tidy();
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn next_daemon_resumes_applications_before_the_backup() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.grouped_volumes().await;
    host.rule("all", host.noting("true", "sleep 0.3")).await;
    host.assign("all", None, Some("shop")).await;
    host.die_at("group frozen");
    let started = host.backup_group(&["nas"]).await;
    host.die_and_start().await;
    for task in host.ended(&started).await {
        assert_eq!((task.state.stage, &task.error), (TaskStage::Done, &None));
    }
    assert_eq!(
        host.log(),
        ["all:pre a b c", "all:post a b c unknown", "all:pre a b c", "all:post a b c yes"],
        "the second freeze must not start before the first one is resumed"
    );
    // The point in time is fixed, and what follows it is done once.
    for step in ["backup accepted", "backup frozen", "backup planned", "backup stored"] {
        host.die_at(step);
        let started = host.backup_group(&["nas"]).await;
        host.die_and_start().await;
        for task in host.ended(&started).await {
            assert_eq!((task.state.stage, &task.error), (TaskStage::Done, &None), "{step}");
        }
        assert_eq!(host.log(), ["all:pre a b c", "all:post a b c yes"], "{step}");
    }
    host.assert_tidy();
    host.stop().await;
}

/// Operations queued during the stop do not quiesce either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_cancels_the_pre_command_and_runs_the_post_command() {
    let mut host = Host::new().await;
    host.create_credential().await;
    for name in ["v", "w"] {
        host.create_volume(name).await;
    }
    let gate = host.dir.path().join("gate");
    host.rule("r", host.noting(&format!("test -e {} || sleep 600", gate.display()), "true")).await;
    host.assign("r", Some("v"), None).await;
    host.assign("r", Some("w"), None).await;
    let first = host.start_backup("v", false).await;
    while !std::fs::exists(host.log_path()).unwrap() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let second = host.start_backup("w", false).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    host.stop().await;
    assert_eq!(host.log(), ["r:pre v", "r:post v no"]);
    std::fs::write(&gate, "").unwrap();
    host.start().await;
    host.done(first).await;
    host.done(second).await;
    assert_eq!(host.log().len(), 4);
    host.stop().await;
}
