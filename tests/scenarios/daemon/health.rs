//! Tests of the health report.

use super::*;
use blockd::check_start::check_start;
use blockd_api::{
    CredentialRef,
    credential_update::UpdateCredential,
    drills::DrillOptions,
    events::Severity,
    schedules::{CreateSchedule, Rule, Selector},
    status::Problem,
};
use blockd_schedule::{Jitter, Recurrence, When};

impl Host {
    async fn problems(&self) -> Vec<Problem> {
        let problems = self.call(GET_STATUS, &()).await.problems;
        // The free space of this machine does not concern the tests.
        problems.into_iter().filter(|problem| problem.kind != "data-directory").collect()
    }

    /// Waits for a number of problems.
    async fn problems_when(&self, count: usize) -> Vec<Problem> {
        eventually(async || {
            let problems = self.problems().await;
            if problems.len() == count { Ok(problems) } else { Err(problems) }
        })
        .await
    }

    pub(super) async fn metrics_text(&self) -> String {
        self.engine().monitor.metrics_text().await.unwrap()
    }
}

fn of_label(label: &str, when: &str) -> CreateSchedule {
    CreateSchedule { selector: select_label(label), rules: vec![rule(when)], ..CreateSchedule::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taken_metrics_address_does_not_block_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(dir.path());
    config.metrics.listen = Some(taken.local_addr().unwrap());
    config.control.sockets = vec![blockd::config::ControlSocket {
        path: dir.path().join("ops.sock"),
        group: "no-such-group".to_owned(),
        role: blockd_api::roles::Role::Operator,
    }];
    assert!(config.check_host().unwrap_err().to_string().contains("no-such-group"));
    let daemon = Daemon::start(config, false).await.unwrap();
    let engine = daemon.engine();
    let problems = || engine.health.problems().into_iter().filter(|problem| problem.kind != "data-directory");
    let reported: Vec<String> = problems().map(|problem| problem.cause).collect();
    assert!(reported.len() == 2 && reported[0].contains("group no-such-group"), "{reported:?}");
    assert!(reported[1].contains("metrics are not served"), "{reported:?}");
    let text = engine.monitor.metrics_text().await.unwrap();
    assert!(text.contains("blockd_problems{kind=\"metrics\"} 1\n"), "{text}");
    drop(taken);
    eventually(async || daemon.metrics_address().ok_or("the listener is not retried")).await;
    assert_eq!(problems().count(), 1);
    daemon.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_scheduler_pass_is_reported_until_it_works() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    host.sql(
        "CREATE TRIGGER no_room BEFORE INSERT ON schedule_runs BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    let schedule = host.call(CREATE_SCHEDULE, &of_label("app=mysql", "daily 03:00")).await;
    assert!(schedule.warnings.is_empty() && !schedule.without_volume, "{schedule:?}");
    let long_ago = "UPDATE schedule_cursors SET processed_until = '2020-01-01T00:00:00Z'";
    host.sql(long_ago);
    host.engine().scheduler.wake();
    let problems = host.problems_when(1).await;
    assert!(problems[0].kind == "schedules" && problems[0].cause.contains("disk is full"), "{problems:?}");
    let listed = host.call(LIST_SCHEDULES, &()).await.list.items.remove(0);
    assert!(listed.overdue_at.unwrap().to_string().starts_with("2020-01-01"), "{listed:?}");
    let text = host.metrics_text().await;
    assert!(text.contains("blockd_schedules_overdue 1\n"), "{text}");
    assert!(
        text.contains("blockd_backup_wanted_since_timestamp_seconds{volume=\"v\",credential=\"nas\"}"),
        "{text}"
    );
    host.sql("DROP TRIGGER no_room");
    host.engine().scheduler.wake();
    host.problems_when(0).await;
    let runs = host.settled().await;
    assert!(!runs.is_empty());
    let listed = host.call(LIST_SCHEDULES, &()).await.list.items.remove(0);
    assert_eq!(listed.overdue_at, None);
    // The store records the backup as scheduled.
    let list = host.list().await;
    assert_eq!(list[0].trigger, "Scheduled");
    host.backup("v", false).await;
    assert!(host.list().await.iter().any(|snap| snap.trigger == "Manual"));
    let text = host.metrics_text().await;
    for line in [
        "kind=\"backup\",state=\"done\"} 2",
        "kind=\"backup\",state=\"failed\"} 0",
        "kind=\"verify\",state=\"stopped\"} 0",
    ] {
        assert!(text.contains(&format!("blockd_tasks_finished_total{{{line}\n")), "{line}: {text}");
    }
    assert!(!text.contains("blockd_last_proof_age_seconds{"), "{text}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedule_without_volumes_is_refused_or_reported() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let mut never = of_label("app=mysql", "daily @21:00");
    never.rules =
        vec![Rule { when: Recurrence::utc(When::on_calendar("2020-01-01").unwrap()), retain: None }];
    host.refused(ErrorCode::InvalidRequest, CREATE_SCHEDULE, &never).await;
    let late =
        CreateSchedule { jitter_seconds: Some(Jitter { max_s: 31 }), ..of_label("app=mysql", "periodic 1") };
    host.refused(ErrorCode::InvalidRequest, CREATE_SCHEDULE, &late).await;

    let selector = Selector { all: true, ..Selector::default() };
    let all = CreateSchedule { selector, ..of_label("app=mysql", "daily @21:00") };
    let all = host.call(CREATE_SCHEDULE, &all).await;
    assert!(!all.without_volume && all.warnings[0].contains("no volume now"), "{all:?}");
    host.call_at(DELETE_SCHEDULE, &all.schedule_id, &()).await;

    let early = host.call(CREATE_SCHEDULE, &of_label("app=mysql", "daily @21:00")).await;
    assert!(early.without_volume && early.warnings[0].contains("app=mysql"), "{early:?}");
    let sample =
        |value: u8| format!("blockd_schedule_without_volume{{schedule=\"{}\"}} {value}\n", early.schedule_id);
    let text = host.metrics_text().await;
    assert!(text.contains(&sample(1)), "{text}");
    let drills =
        CreateSchedule { drill: Some(DrillOptions::default()), ..of_label("app=mysql", "daily @21:00") };
    let drills = host.call(CREATE_SCHEDULE, &drills).await;
    host.create_volume("v").await;
    let listed = host.call(LIST_SCHEDULES, &()).await.list.items.remove(0);
    assert!(!listed.without_volume && listed.warnings.is_empty(), "{listed:?}");
    let text = host.metrics_text().await;
    assert!(text.contains(&sample(0)), "{text}");
    let deleted = host.call_at(DELETE_VOLUME, &"v".parse::<VolumeRef>().unwrap(), &Default::default()).await;
    assert_eq!(deleted.warnings.len(), 2, "{deleted:?}");
    for (command, id) in
        [("cloudsnap schedules", early.schedule_id), ("cloudsnap drill schedules", drills.schedule_id)]
    {
        let delete = format!("blockctl {command} delete {id}");
        assert!(deleted.warnings.iter().any(|warning| warning.contains(&delete)), "{deleted:?}");
    }
    assert!(host.call(LIST_SCHEDULES, &()).await.list.items.remove(0).without_volume);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_key_is_reported_at_start_and_fixed_by_an_update() {
    let mut host = Host::new().await;
    for (name, passphrase) in [("nas", None), ("safe", Some("a secret"))] {
        let path = host.store.path().join(name);
        fs::create_dir(&path).unwrap();
        let provider = StoreConfig::Local { path };
        host.call(CREATE_CREDENTIAL, &CreateCredential { provider, ..host.credential(name, passphrase) })
            .await;
    }
    host.create_volume("v").await;
    Model::new().write(&host.volume("v"), 0, 1, 4096);
    host.stop().await;
    assert_eq!(check_start(&config(host.dir.path())).unwrap(), Vec::<String>::new());
    fs::remove_file(host.dir.path().join("data/secret.key")).unwrap();
    let problems = check_start(&config(host.dir.path())).unwrap();
    assert!(problems.len() == 2 && problems[0].contains("credentials update"), "{problems:?}");
    host.start().await;
    let problems = host.problems_when(2).await;
    assert!(problems.iter().all(|problem| problem.kind == "credential"), "{problems:?}");

    let update = |name: &str, request: UpdateCredential| {
        let (client, wanted) = (&host.client, name.parse::<CredentialRef>().unwrap());
        async move { client.call_at(UPDATE_CREDENTIAL, &wanted, &request).await }
    };
    assert!(update("safe", UpdateCredential::default()).await.is_err(), "without the passphrase");
    let secret = |text: &str| Some(blockd_api::Secret::new(text.into()).into());
    let wrong = UpdateCredential { encryption_passphrase: secret("a guess"), ..UpdateCredential::default() };
    assert_eq!(api_code(update("safe", wrong).await), ErrorCode::WrongPassphrase);
    let right = UpdateCredential { encryption_passphrase: secret("a secret"), ..UpdateCredential::default() };
    update("safe", right).await.unwrap();
    assert_eq!(host.problems().await.len(), 1);
    // A repository without encryption needs no passphrase.
    update("nas", UpdateCredential::default()).await.unwrap();
    assert!(host.problems().await.is_empty());
    for name in ["nas", "safe"] {
        host.run_backup(&backup_to("v", &[name])).await;
    }
    host.stop().await;
    assert_eq!(check_start(&config(host.dir.path())).unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_backing_snapshot_is_reported_with_its_volume() {
    let host = Host::new().await;
    let (_, model) = host.fill("data").await;
    host.create_credential().await;
    let id = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.create_credential().await;
    other.restore_lazily(&id, "copy", false).await;
    let files = walk(host.store.path()).into_iter().map(|name| host.store.path().join(name));
    let objects: Vec<_> = files.map(|path| (fs::read(&path).unwrap(), path)).collect();
    host.delete_cloudsnap(&StartDelete { force: true, ..delete_of(&id) }).await;
    let read = async || {
        let copy = other.volume("copy");
        let read = tokio::task::spawn_blocking(move || copy.read(0, &mut [0; BLOCK as usize]));
        read.await.unwrap().unwrap_err();
    };
    other.refuse_events(true).await;
    read().await;
    other.refuse_events(false).await;
    for _ in 0..2 {
        read().await;
    }
    assert_eq!(other.events_of("backing-snapshot-deleted").await.len(), 1);
    let problems = other.problems_when(1).await;
    assert!(problems[0].kind == "backing-snapshot" && problems[0].cause.contains(&id), "{problems:?}");
    let event = other.events_of("backing-snapshot-deleted").await.pop().unwrap();
    assert_eq!((event.volume_name, event.severity), (Some("copy".parse().unwrap()), Severity::Error));
    // An operator brings the objects back.
    for (bytes, path) in objects {
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(other.list().await.len(), 1);
    other.problems_when(0).await;
    model.assert_is(&other.volume("copy"));
    other.delete_volume("copy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_cached_manifest_hides_no_status() {
    let host = Host::new().await;
    let (volume, _) = host.fill("data").await;
    host.create_credential().await;
    host.backup("data", true).await;
    let space = async || {
        let locations = host.engine().cloud_snapshots.location_space().await.unwrap();
        (locations[0].cloud_snapshot_count, locations[0].stored_bytes)
    };
    let before = space().await;
    assert!(before.0 == 1 && before.1 > 0, "{before:?}");
    host.sql("UPDATE catalog SET manifest = '{}'");
    assert_eq!(space().await, before);
    // Forged sizes whose sum is above the largest integer.
    host.sql(r#"UPDATE catalog SET deltas = '{"a": 9000000000000000000, "b": 18446744073709551615}'"#);
    assert_eq!(space().await, (1, 9_000_000_000_000_000_000));
    drop(volume);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_check_of_a_location_is_a_problem_until_it_works() {
    let mut host = Host::new().await;
    host.credential_and_volume().await;
    let nas: CredentialRef = "nas".parse().unwrap();
    for ends_by_backup in [false, true] {
        let away = host.hide_store();
        assert!(host.client.call_at(VALIDATE_CREDENTIAL, &nas, &()).await.is_err());
        let problems = host.problems().await;
        assert!(problems.len() == 1 && problems[0].kind == "location", "{problems:?}");
        assert!(problems[0].action.ends_with("blockctl credentials validate nas"), "{problems:?}");
        host.show_store(&away);
        // A mere reader does not write.
        host.list().await;
        assert_eq!(host.problems().await.len(), 1);
        match ends_by_backup {
            true => drop(host.backup("v", false).await),
            false => drop(host.call_at(VALIDATE_CREDENTIAL, &nas, &()).await),
        }
        assert_eq!(host.problems().await, []);
    }
    host.stop().await;
}
