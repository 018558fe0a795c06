//! Commands of rules: users, duration, and visibility to roles.

use super::{
    roles::{forbidden, host_with_operator},
    rules::*,
    *,
};
use blockd_api::{
    Labels,
    cloudsnaps::StartGroupBackup,
    events::{Event, Severity},
    quiesce::Quiesce,
    rules::{CreateRule, RuleTarget, UpdateRule},
    schedules::{CreateSchedule, UpdateSchedule},
};
use std::{io::Write, os::unix::fs::OpenOptionsExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_an_unusable_user_are_refused_and_reported() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let good = host.logging("true", "true");
    let bad = Quiesce { user: Some("no-such-user".into()), ..good.clone() };
    let name: blockd_api::RuleName = "pg".parse().unwrap();
    let create = |quiesce: &Quiesce| CreateRule {
        name: "pg".parse().unwrap(),
        quiesce: quiesce.clone(),
        labels: Labels::default(),
    };
    host.refused(ErrorCode::InvalidRequest, CREATE_RULE, &create(&bad)).await;
    host.call(CREATE_RULE, &create(&good)).await;
    let update = UpdateRule { quiesce: bad.clone(), labels: None };
    host.refused_at(ErrorCode::InvalidRequest, UPDATE_RULE, &name, &update).await;
    let inline = with_commands("v", &bad);
    // The check does not wait for the admission lock.
    let admission = host.engine().admission.lock().await;
    let refused = tokio::time::timeout(TIMEOUT, host.client.call(START_BACKUP, &inline));
    assert_eq!(api_code(refused.await.unwrap()), ErrorCode::InvalidRequest);
    drop(admission);
    assert_eq!(host.call_at(GET_RULE, &name, &()).await.problem, None);

    // The user no longer exists.
    let stored = serde_json::to_string(&bad).unwrap().replace('\'', "''");
    host.sql(&format!("UPDATE rules SET quiesce = '{stored}'"));
    host.restart().await;
    let Event { severity, message, .. } = host.event("rule-failed").await;
    assert_eq!(severity, Severity::Error);
    assert!(
        message.starts_with("the commands of rule pg cannot be run: there is no user no-such-user"),
        "{message}"
    );
    let problem = host.call_at(GET_RULE, &name, &()).await.problem.unwrap();
    assert!(message.ends_with(&problem), "{problem}");

    let target = RuleTarget { volume: Some("v".parse().unwrap()), group: None };
    host.refused_at(ErrorCode::InvalidRequest, ASSIGN_RULE, &name, &target).await;
    let schedule = host.schedule(1).await;
    let with_rule = UpdateSchedule { rule_name: Some(Some(name.clone())), ..UpdateSchedule::default() };
    host.refused_at(ErrorCode::InvalidRequest, UPDATE_SCHEDULE, &schedule.schedule_id, &with_rule).await;
    let scheduled = CreateSchedule {
        selector: select_volume("v"),
        rule_name: Some(name.clone()),
        ..CreateSchedule::default()
    };
    let refused = host.client.call(CREATE_SCHEDULE, &scheduled).await.unwrap_err().to_string();
    assert!(refused.contains("no-such-user"), "{refused}");

    host.call_at(UPDATE_RULE, &name, &UpdateRule { quiesce: good, labels: None }).await;
    assert_eq!(host.call_at(GET_RULE, &name, &()).await.problem, None);
    host.call_at(ASSIGN_RULE, &name, &target).await;
    host.stop().await;
}

/// Backups with the same rule run one after the other; others do not wait for its commands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_command_delays_only_its_own_rule() {
    let mut host = Host::new().await;
    host.create_credential().await;
    for name in ["slow", "free", "same"] {
        host.create_volume(name).await;
    }
    let gate = host.dir.path().join("gate");
    rustix::fs::mkfifoat(rustix::fs::CWD, &gate, 0o600.into()).unwrap();
    host.rule(
        "r",
        host.logging(&format!("test $BLOCKD_VOLUMES != slow || read -r _ < {}", gate.display()), "true"),
    )
    .await;
    host.assign("r", Some("slow"), None).await;
    host.assign("r", Some("same"), None).await;
    let slow = host.start_backup("slow", false).await;
    // Fails until the command has opened the FIFO.
    let mut gate = eventually(async || {
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        fs::File::options().write(true).custom_flags(flags).open(&gate)
    })
    .await;
    let same = host.start_backup("same", false).await;
    host.backup("free", false).await;
    gate.write_all(b"\n").unwrap();
    drop(gate);
    host.done(slow).await;
    host.done(same).await;
    assert_eq!(host.log(), ["r:pre slow", "r:post slow yes", "r:pre same", "r:post same yes"]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_visible_to_admins_only() {
    let (mut host, operator, _sockets) = host_with_operator().await;
    let quiesce = Quiesce { pre_command: Some("echo planted; exit 0".into()), ..Quiesce::default() };
    let rule =
        CreateRule { name: "pg".parse().unwrap(), quiesce: quiesce.clone(), labels: Labels::default() };
    host.call(CREATE_RULE, &rule).await;

    forbidden(&operator, LIST_RULES, &()).await;
    forbidden(&operator, CREATE_RULE, &rule).await;
    forbidden(&operator, START_BACKUP, &with_commands("data", &quiesce)).await;
    let by_rule = with_rule("data", "pg");
    forbidden(&operator, START_BACKUP, &by_rule).await;
    let volumes = vec!["data".parse().unwrap()];
    let group = StartGroupBackup { volumes, hooks: by_rule.hooks, ..StartGroupBackup::default() };
    forbidden(&operator, START_GROUP_BACKUP, &group).await;
    let scheduled = CreateSchedule {
        selector: select_volume("data"),
        rule_name: Some("pg".parse().unwrap()),
        ..CreateSchedule::default()
    };
    forbidden(&operator, CREATE_SCHEDULE, &scheduled).await;

    // A rule assigned by an admin applies to backups of all callers.
    host.assign("pg", Some("data"), None).await;
    let task = operator.call(START_BACKUP, &backup_of("data")).await.unwrap().items[0].task_id;
    let complete = format!("{:?}", host.wait(task).await);
    assert!(complete.contains("planted\\n"), "{complete}");
    let snapshot = operator
        .call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &CreateSnapshot::default())
        .await
        .unwrap();
    for seen in [
        format!("{:?}", operator.call_at(GET_TASK, &task, &WaitTask::default()).await.unwrap()),
        format!("{:?}", operator.call(LIST_TASKS, &ListTasks::default()).await.unwrap()),
        format!("{snapshot:?}"),
        format!("{:?}", operator.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.unwrap()),
    ] {
        assert!(!seen.contains("planted") && seen.contains("(hidden)"), "{seen}");
    }
    host.stop().await;
}
