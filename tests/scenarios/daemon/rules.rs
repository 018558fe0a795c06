//! Rules around backups: selection, failures, and resume after a crash.

use super::*;
use blockd_api::{
    Labels,
    events::Severity,
    quiesce::{HookOptions, OnFailure, Quiesce, QuiesceKind},
    rules::{CreateRule, RuleTarget, UpdateRule},
    schedules::{Run, RunState, UpdateSchedule},
    snapshots::CreateGroupSnapshot,
};

impl Host {
    pub(super) fn log_path(&self) -> String {
        self.dir.path().join("log").display().to_string()
    }

    /// Returns and clears the log of the commands.
    pub(super) fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let _ = fs::remove_file(self.log_path());
        text.lines().map(str::to_owned).collect()
    }

    /// Returns commands that log their phase, followed by the given ones.
    pub(super) fn logging(&self, pre: &str, post: &str) -> Quiesce {
        let note =
            format!("echo $BLOCKD_RULE:$BLOCKD_PHASE $BLOCKD_VOLUMES $BLOCKD_TAKEN >> {}", self.log_path());
        Quiesce {
            pre_command: Some(format!("{note}; {pre}")),
            post_command: Some(format!("{note}; {post}")),
            ..Quiesce::default()
        }
    }

    pub(super) async fn rule(&self, name: &str, quiesce: Quiesce) {
        let request = CreateRule { name: name.parse().unwrap(), quiesce, labels: Labels::default() };
        self.call(CREATE_RULE, &request).await;
    }

    pub(super) async fn assign(&self, rule: &str, volume: Option<&str>, group: Option<&str>) {
        let volume = volume.map(|name| name.parse().unwrap());
        let target = RuleTarget { volume, group: group.map(|name| name.parse().unwrap()) };
        self.call_at(ASSIGN_RULE, &rule.parse().unwrap(), &target).await;
    }

    /// Runs a new schedule with a rule, and waits for the end.
    async fn run_of(&self, rule: Option<&str>) -> Run {
        let schedule = self.schedule(9).await;
        let rule = Some(rule.map(|rule| rule.parse().unwrap()));
        let request = UpdateSchedule { rule_name: rule, ..UpdateSchedule::default() };
        self.call_at(UPDATE_SCHEDULE, &schedule.schedule_id, &request).await;
        self.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        self.settled().await.remove(0)
    }
}

fn own_user() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}

/// Returns a backup request with a named rule.
pub(super) fn with_rule(volume: &str, rule: &str) -> StartBackup {
    let hooks = HookOptions { rule_name: Some(rule.parse().unwrap()), ..HookOptions::default() };
    StartBackup { hooks, ..backup_of(volume) }
}

/// Returns a backup request with inline commands.
pub(super) fn with_commands(volume: &str, quiesce: &Quiesce) -> StartBackup {
    let hooks = HookOptions { quiesce: quiesce.clone(), ..HookOptions::default() };
    StartBackup { hooks, ..backup_of(volume) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn most_specific_rule_is_used() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    for name in ["mine", "scheduled", "named"] {
        host.rule(name, host.logging("true", "true")).await;
    }
    host.assign("mine", Some("v"), None).await;
    assert_eq!(host.inspect_volume("v").await.rule_name.unwrap().as_str(), "mine");
    let task = host.backup("v", false).await;
    assert_eq!(host.log(), ["mine:pre v", "mine:post v yes"]);
    let steps = task.quiesce.unwrap().steps;
    let kinds: Vec<QuiesceKind> = steps.iter().map(|step| step.kind).collect();
    assert_eq!(kinds, [QuiesceKind::PreCommand, QuiesceKind::PostCommand]);
    assert!(steps.iter().all(|step| step.exit_status == Some(0) && step.started_at.is_some()), "{steps:?}");

    assert_eq!(host.run_of(None).await.state, RunState::Done);
    assert_eq!(host.log(), ["mine:pre v", "mine:post v yes"]);
    assert_eq!(host.run_of(Some("scheduled")).await.state, RunState::Done);
    assert_eq!(host.log(), ["scheduled:pre v", "scheduled:post v yes"]);

    host.run_backup(&with_rule("v", "named")).await;
    assert_eq!(host.log(), ["named:pre v", "named:post v yes"]);
    let inline = with_commands("v", &host.logging("true", "true"));
    host.run_backup(&inline).await;
    assert_eq!(host.log(), [":pre v", ":post v yes"]);
    let hooks = HookOptions { no_rule: true, ..HookOptions::default() };
    let task = host.run_backup(&StartBackup { hooks, ..backup_of("v") }).await;
    assert_eq!((host.log().len(), task.quiesce), (0, None));
    // The rule applies to local snapshots as well.
    host.take_snapshot("v", &CreateSnapshot::default()).await;
    assert_eq!(host.log(), ["mine:pre v", "mine:post v yes"]);

    let hooks = HookOptions { rule_name: Some("named".parse().unwrap()), ..inline.hooks.clone() };
    let both = StartBackup { hooks, ..inline };
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &both).await;
    host.refused(ErrorCode::RuleNotFound, START_BACKUP, &with_rule("v", "unknown")).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_survive_a_restart_and_are_not_deleted_in_use() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let name = "pg".parse().unwrap();
    let nothing =
        CreateRule { name: "pg".parse().unwrap(), quiesce: Quiesce::default(), labels: Labels::default() };
    host.refused(ErrorCode::InvalidRequest, CREATE_RULE, &nothing).await;
    let quiesce = Quiesce { user: Some(own_user()), ..host.logging("true", "true") };
    host.rule("pg", quiesce.clone()).await;
    let labels: Labels = "namespace=shop".parse().unwrap();
    let change = UpdateRule { quiesce: quiesce.clone(), labels: Some(labels.clone()) };
    assert_eq!(host.call_at(UPDATE_RULE, &name, &change).await.labels, labels);
    let again = CreateRule { quiesce: quiesce.clone(), ..nothing };
    host.refused(ErrorCode::RuleExists, CREATE_RULE, &again).await;
    host.assign("pg", Some("v"), None).await;
    host.assign("pg", None, Some("shop")).await;
    let schedule = host.schedule(1).await;
    let with_rule =
        UpdateSchedule { rule_name: Some(Some("pg".parse().unwrap())), ..UpdateSchedule::default() };
    host.call_at(UPDATE_SCHEDULE, &schedule.schedule_id, &with_rule).await;
    let unknown = UpdateSchedule { rule_name: Some(Some("x".parse().unwrap())), ..UpdateSchedule::default() };
    host.refused_at(ErrorCode::RuleNotFound, UPDATE_SCHEDULE, &schedule.schedule_id, &unknown).await;
    host.restart().await;
    let rule = host.call(LIST_RULES, &()).await.items.remove(0);
    assert_eq!(
        (&rule.quiesce, rule.groups.len(), rule.schedule_ids.as_slice()),
        (&quiesce, 1, &[schedule.schedule_id][..])
    );
    assert_eq!(rule.volume_names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["v"]);
    let update = UpdateRule { quiesce: Quiesce { freeze_fs: true, ..quiesce }, labels: None };
    let updated = host.call_at(UPDATE_RULE, &name, &update).await;
    assert_eq!((updated.quiesce, updated.labels), (update.quiesce, labels));

    // Volumes, groups and schedules prevent the deletion.
    let volume = RuleTarget { volume: Some("v".parse().unwrap()), group: None };
    let group = RuleTarget { volume: None, group: Some("shop".parse().unwrap()) };
    let used = api_error(host.client.call_at(DELETE_RULE, &name, &()).await);
    let id = schedule.schedule_id;
    let users = format!("rule pg is assigned to volume v, group shop, schedule {}", id);
    assert_eq!((used.code, used.message), (ErrorCode::RuleInUse, users));
    assert_eq!(
        used.hint.unwrap(),
        format!(
            "`blockctl rule unassign pg --volume v`, `blockctl rule unassign pg --group shop`, `blockctl cloudsnap schedules update {id} --no-rule`"
        )
    );
    host.call_at(UNASSIGN_RULE, &name, &group).await;
    host.refused_at(ErrorCode::InvalidRequest, UNASSIGN_RULE, &name, &group).await;
    host.refused_at(ErrorCode::RuleInUse, DELETE_RULE, &name, &()).await;
    host.call_at(UNASSIGN_RULE, &name, &volume).await;
    host.refused_at(ErrorCode::RuleInUse, DELETE_RULE, &name, &()).await;
    // So does an unreadable schedule, such as one with an unknown time zone.
    host.sql("UPDATE schedules SET spec = json_set(spec, '$.rules', 'gone')");
    assert_eq!(host.call(LIST_SCHEDULES, &()).await.unreadable.len(), 1);
    let refused = host.client.call_at(DELETE_RULE, &name, &()).await.unwrap_err().to_string();
    assert!(refused.contains("(which cannot be read, but can be deleted)"), "{refused}");
    assert_eq!(host.call_at(GET_RULE, &name, &()).await.schedule_ids, [schedule.schedule_id]);
    // Its credentials cannot be deleted either.
    let refused =
        host.client.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await.unwrap_err().to_string();
    assert!(refused.contains("(which cannot be read, but can be deleted)"), "{refused}");
    host.sql("UPDATE schedules SET spec = '{\"rule\": \"pg\"'");
    host.refused_at(ErrorCode::RuleInUse, DELETE_RULE, &name, &()).await;
    host.call_at(DELETE_SCHEDULE, &schedule.schedule_id, &()).await;
    host.call_at(DELETE_RULE, &name, &()).await;
    host.refused_at(ErrorCode::RuleNotFound, GET_RULE, &name, &()).await;
    // The deletion of a volume removes its assignment.
    host.rule("other", host.logging("true", "true")).await;
    host.assign("other", Some("v"), None).await;
    host.delete_volume("v").await;
    host.call_at(DELETE_RULE, &"other".parse().unwrap(), &()).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_runs_each_rule_once_around_one_freeze() {
    let (mut host, other) = (Host::new().await, tempfile::tempdir().unwrap());
    host.create_credential().await;
    host.create_credential_at("offsite", other.path()).await;
    host.grouped_volumes().await;
    host.rule("all", host.logging("true", "true")).await;
    host.rule("own", host.logging("true", "true")).await;
    host.assign("all", None, Some("shop")).await;
    host.assign("own", Some("b"), None).await;
    let expected = ["all:pre a b c", "own:pre a b c", "own:post a b c yes", "all:post a b c yes"];
    let started = host.backup_group(&["nas", "offsite"]).await;
    for task in host.all_done(&started).await {
        assert_eq!(task.quiesce.unwrap().steps.len(), 4);
    }
    assert_eq!(host.log(), expected);
    let group =
        CreateGroupSnapshot { group: Some("shop".parse().unwrap()), ..CreateGroupSnapshot::default() };
    host.call(CREATE_GROUP_SNAPSHOT, &group).await;
    assert_eq!(host.log(), expected);
    // A single volume uses its own rule, or that of its group.
    for (volume, rule) in [("a", "all"), ("b", "own")] {
        host.run_backup(&backup_to(volume, &["nas"])).await;
        assert_eq!(host.log(), [format!("{rule}:pre {volume}"), format!("{rule}:post {volume} yes")]);
    }

    // If a pre-command fails, no backup is made and all post-commands run.
    host.call_at(
        UPDATE_RULE,
        &"own".parse().unwrap(),
        &UpdateRule { quiesce: host.logging("echo planted; exit 3", "true"), labels: None },
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
    let failures = host.events_of("rule-failed").await;
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].message.contains("a, b, c: the pre-command of rule own failed"), "{failures:?}");
    // With `on_failure: continue`, the backup is made.
    let tolerant = Quiesce { on_failure: OnFailure::Continue, ..host.logging("exit 3", "true") };
    host.call_at(UPDATE_RULE, &"own".parse().unwrap(), &UpdateRule { quiesce: tolerant, labels: None }).await;
    let started = host.backup_group(&["nas"]).await;
    for task in host.all_done(&started).await {
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
    host.rule("late", host.logging("true", "echo planted >&2; exit 7")).await;
    host.rule("early", host.logging("echo planted >&2; exit 9", "true")).await;
    // After a failed post-command, the backup is kept.
    let run = host.run_of(Some("late")).await;
    let expected = "the post-command of rule late failed (exit status 7)";
    assert_eq!((run.state, run.reason.as_deref()), (RunState::Done, Some(expected)));
    assert_eq!(host.list().await.len(), 1);
    let failures = host.events_of("rule-failed").await;
    assert!(failures.len() == 1 && failures[0].severity == Severity::Error, "{failures:?}");
    assert!(failures[0].message.contains(expected), "{failures:?}");
    // After a failed pre-command, no backup is made.
    let run = host.run_of(Some("early")).await;
    let expected = "the pre-command of rule early failed (exit status 9): no snapshot was taken";
    assert_eq!((run.state, run.reason.as_deref()), (RunState::Failed, Some(expected)));
    assert_eq!(host.list().await.len(), 1);
    assert_eq!(host.log(), ["late:pre v", "late:post v yes", "early:pre v", "early:post v no"]);
    // Command output is not visible to all roles.
    let events = host.events_since(0, 0).await;
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
    host.rule("all", host.logging("true", "sleep 0.3")).await;
    host.assign("all", None, Some("shop")).await;
    host.die_at("group frozen");
    let started = host.backup_group(&["nas"]).await;
    host.die_and_start().await;
    host.all_done(&started).await;
    assert_eq!(
        host.log(),
        ["all:pre a b c", "all:post a b c unknown", "all:pre a b c", "all:post a b c yes"],
        "the second freeze must not start before the post-command of the first one"
    );
    // After the freeze, the commands do not run again.
    for step in ["backup accepted", "backup frozen", "backup planned", "backup stored"] {
        host.die_at(step);
        let started = host.backup_group(&["nas"]).await;
        host.die_and_start().await;
        host.all_done(&started).await;
        assert_eq!(host.log(), ["all:pre a b c", "all:post a b c yes"], "{step}");
    }
    host.assert_tidy();
    host.stop().await;
}

/// Operations that are queued at the stop run no commands either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_cancels_the_pre_command_and_runs_the_post_command() {
    let mut host = Host::new().await;
    host.create_credential().await;
    for name in ["v", "w"] {
        host.create_volume(name).await;
    }
    let (gate, started) = (host.dir.path().join("gate"), host.dir.path().join("started"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &started, 0o600.into()).unwrap();
    let pre = format!("test -e {} || {{ echo >{}; sleep 600; }}", gate.display(), started.display());
    host.rule("r", host.logging(&pre, "true")).await;
    host.assign("r", Some("v"), None).await;
    host.assign("r", Some("w"), None).await;
    let first = host.start_backup("v", false).await;
    // Reading the FIFO waits for the pre-command.
    tokio::fs::read(&started).await.unwrap();
    let (accepted, is_accepted) = tokio::sync::oneshot::channel();
    host.act_at("backup accepted", move |_| accepted.send(()).unwrap());
    let second = host.start_backup("w", false).await;
    is_accepted.await.unwrap();
    host.stop().await;
    assert_eq!(host.log(), ["r:pre v", "r:post v no"]);
    fs::write(&gate, "").unwrap();
    host.start().await;
    host.done(first).await;
    host.done(second).await;
    assert_eq!(host.log().len(), 4);
    host.stop().await;
}
