//! Commands of rules: their users, their time, and who sees them.

use super::rules::*;
use super::*;
use blockd::config::ControlSocket;
use blockd_api::{
    cloudsnaps::StartGroupBackup,
    events::Severity,
    quiesce::{HookOptions, Quiesce},
    roles::Role,
    rules::{CreateRule, RuleTarget, UpdateRule},
    schedules::{CreateSchedule, Selector, UpdateSchedule},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_an_unusable_user_are_refused_and_reported() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let good = host.noting("true", "true");
    let bad = Quiesce { user: Some("no-such-user".into()), ..good.clone() };
    let name: blockd_api::RuleName = "pg".parse().unwrap();
    let create = |quiesce: &Quiesce| CreateRule { name: "pg".parse().unwrap(), quiesce: quiesce.clone() };
    host.refused(ErrorCode::InvalidRequest, CREATE_RULE, &create(&bad)).await;
    host.call(CREATE_RULE, &create(&good)).await;
    let update = UpdateRule { quiesce: bad.clone() };
    host.refused_at(ErrorCode::InvalidRequest, UPDATE_RULE, &name, &update).await;
    let inline = StartBackup { hooks: HookOptions { quiesce: bad.clone(), ..Default::default() }, ..of("v") };
    // Also while others are admitted, as no operation waits for the test.
    let admission = host.engine().admission.lock().await;
    let refused =
        tokio::time::timeout(std::time::Duration::from_secs(60), host.client.call(START_BACKUP, &inline));
    assert_eq!(api_code(refused.await.unwrap()), ErrorCode::InvalidRequest);
    drop(admission);
    assert_eq!(host.call_at(GET_RULE, &name, &()).await.problem, None);

    // Its user is gone.
    let stored = serde_json::to_string(&bad).unwrap().replace('\'', "''");
    host.sql(&format!("UPDATE rules SET quiesce = '{stored}'"));
    host.stop().await;
    host.start().await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while host.failures().await.is_empty() {
        assert!(std::time::Instant::now() < deadline, "no problem is reported");
        tokio::task::yield_now().await;
    }
    let (severity, message) = host.failures().await.remove(0);
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
    let with_rule = UpdateSchedule { rule: Some(Some(name.clone())), ..UpdateSchedule::default() };
    let refused = host.client.call_at(UPDATE_SCHEDULE, &schedule.uuid, &with_rule).await;
    assert_eq!(api_code(refused), ErrorCode::InvalidRequest);
    let scheduled = CreateSchedule {
        selector: Selector { volume: Some("v".parse().unwrap()), ..Selector::default() },
        rule: Some(name.clone()),
        ..CreateSchedule::default()
    };
    let refused = host.client.call(CREATE_SCHEDULE, &scheduled).await.unwrap_err().to_string();
    assert!(refused.contains("no-such-user"), "{refused}");

    host.call_at(UPDATE_RULE, &name, &UpdateRule { quiesce: good }).await;
    assert_eq!(host.call_at(GET_RULE, &name, &()).await.problem, None);
    host.call_at(ASSIGN_RULE, &name, &target).await;
    host.stop().await;
}

/// Backups do not wait for the commands of others, and those by one rule take turns.
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
        host.noting(&format!("test $BLOCKD_VOLUMES != slow || read -r _ < {}", gate.display()), "true"),
    )
    .await;
    host.assign("r", Some("slow"), None).await;
    host.assign("r", Some("same"), None).await;
    let slow = host.start_backup("slow", false).await;
    while !std::fs::exists(host.log_path()).unwrap() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let same = host.start_backup("same", false).await;
    host.backup("free", false).await;
    std::fs::write(&gate, "\n").unwrap();
    host.done(slow).await;
    host.done(same).await;
    assert_eq!(host.log(), ["r:pre slow", "r:post slow yes", "r:pre same", "r:post same yes"]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_visible_to_admins_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    let group = nix::unistd::getegid().to_string();
    let path = dir.path().join("operator.sock");
    config.control.sockets.push(ControlSocket { path: path.clone(), group, role: Role::Operator });
    let daemon = Daemon::start(config, false).await.unwrap();
    let (admin, operator) = (Client::new(dir.path().join("data/blockd.sock")), Client::new(path));
    let labels = Default::default();
    let request = CreateVolume { name: "v".parse().unwrap(), size_bytes: SIZE_BYTES, labels, group: None };
    admin.call(CREATE_VOLUME, &request).await.unwrap();
    let store = tempfile::tempdir().unwrap();
    let request = CreateCredential {
        name: "nas".parse().unwrap(),
        provider: StoreConfig::Local { path: store.path().to_owned() },
        connection: Connection::default(),
        encryption_passphrase: None,
    };
    admin.call(CREATE_CREDENTIAL, &request).await.unwrap();
    let quiesce = Quiesce { pre_command: Some("echo planted; exit 0".into()), ..Quiesce::default() };
    let rule = CreateRule { name: "pg".parse().unwrap(), quiesce: quiesce.clone() };
    admin.call(CREATE_RULE, &rule).await.unwrap();

    assert_eq!(api_code(operator.call(LIST_RULES, &()).await), ErrorCode::Forbidden);
    assert_eq!(api_code(operator.call(CREATE_RULE, &rule).await), ErrorCode::Forbidden);
    let inline =
        StartBackup { hooks: HookOptions { quiesce: quiesce.clone(), ..Default::default() }, ..of("v") };
    assert_eq!(api_code(operator.call(START_BACKUP, &inline).await), ErrorCode::Forbidden);
    let named = StartBackup {
        hooks: HookOptions { rule: Some("pg".parse().unwrap()), ..Default::default() },
        ..of("v")
    };
    assert_eq!(api_code(operator.call(START_BACKUP, &named).await), ErrorCode::Forbidden);
    let group = StartGroupBackup {
        volumes: vec!["v".parse().unwrap()],
        hooks: HookOptions { rule: Some("pg".parse().unwrap()), ..HookOptions::default() },
        ..StartGroupBackup::default()
    };
    assert_eq!(api_code(operator.call(START_GROUP_BACKUP, &group).await), ErrorCode::Forbidden);
    let scheduled = CreateSchedule {
        selector: Selector { volume: Some("v".parse().unwrap()), ..Selector::default() },
        rule: Some("pg".parse().unwrap()),
        ..CreateSchedule::default()
    };
    assert_eq!(api_code(operator.call(CREATE_SCHEDULE, &scheduled).await), ErrorCode::Forbidden);

    // A rule assigned by an admin applies to backups of all callers.
    let target = RuleTarget { volume: Some("v".parse().unwrap()), group: None };
    admin.call_at(ASSIGN_RULE, &"pg".parse().unwrap(), &target).await.unwrap();
    let task = operator.call(START_BACKUP, &of("v")).await.unwrap().task;
    let wait = WaitTask { wait_ms: Some(10_000), since_version: None };
    let is_over = |task: &Task| task.state.stage.is_over();
    while !is_over(&operator.call_at(GET_TASK, &task, &wait).await.unwrap()) {}
    let whole = format!("{:?}", admin.call_at(GET_TASK, &task, &WaitTask::default()).await.unwrap());
    assert!(whole.contains("planted\\n"), "{whole}");
    let snapshot =
        operator.call_at(CREATE_SNAPSHOT, &"v".parse().unwrap(), &CreateSnapshot::default()).await.unwrap();
    for seen in [
        format!("{:?}", operator.call_at(GET_TASK, &task, &WaitTask::default()).await.unwrap()),
        format!("{:?}", operator.call(LIST_TASKS, &ListTasks::default()).await.unwrap()),
        format!("{snapshot:?}"),
        format!("{:?}", operator.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.unwrap()),
    ] {
        assert!(!seen.contains("planted") && seen.contains("(hidden)"), "{seen}");
    }
    daemon.stop().await.unwrap();
}
