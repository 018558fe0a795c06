//! Tests of the table of operations against the served ones and their roles.

use super::*;
use blockd::config::ControlSocket;
use blockd_api::{
    cloudsnaps::{BackupOptions, MarkCloudsnap, StartGroupBackup, StartRestore},
    operations::OPERATIONS,
    quiesce::HookOptions,
    roles::Role,
    snapshots::CreateSnapshot,
    tasks::{StopTask, TaskLimits, TaskOwner, TaskStage},
};
use blockd_catalog::TaskRow;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::path::Path;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// The status and the error's code of an answer.
async fn asked(socket: &Path, method: &str, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // The requests are invalid, so that permitted callers change nothing.
    let body = "[]";
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let code = serde_json::from_str::<Value>(body)
        .ok()
        .and_then(|body| Some(body["error"]["code"].as_str()?.to_owned()));
    (status, code.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_are_served_to_permitted_roles_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    let group = nix::unistd::getegid().to_string();
    for role in Role::ALL {
        let path = dir.path().join(format!("{role}.sock"));
        config.control.sockets.push(ControlSocket { path, group: group.clone(), role });
    }
    let daemon = Daemon::start(config, false).await.unwrap();
    for operation in OPERATIONS {
        let method = operation.method.as_str();
        let segments: Vec<_> = operation
            .path
            .split('/')
            .map(|part| if part.starts_with('{') { "nothing" } else { part })
            .collect();
        let path = segments.join("/");
        for role in Role::ALL {
            let (status, code) = asked(&dir.path().join(format!("{role}.sock")), method, &path).await;
            let may = role >= operation.role;
            assert_eq!(code != "forbidden", may, "{method} {path} as {role}: {status} {code}");
            assert!(
                !matches!(code.as_str(), "no_such_address" | "method_not_allowed"),
                "{method} {path}: {code}"
            );
            assert_eq!(status == 403, !may, "{method} {path} as {role}: {status} {code}");
            assert!(status < 500, "{method} {path} as {role}: {status} {code}");
        }
    }
    let (_, code) = asked(&dir.path().join("read-only.sock"), "GET", "/v1/nothing").await;
    assert_eq!(code, "no_such_address");
    let (_, code) = asked(&dir.path().join("read-only.sock"), "PUT", "/v1/volumes").await;
    assert!(matches!(code.as_str(), "method_not_allowed" | "forbidden"), "{code}");
    daemon.stop().await.unwrap();
}

/// Starts a daemon with a volume `data`, a credential, and a control socket for operators.
async fn host_with_operator() -> (Host, Client, tempfile::TempDir) {
    let sockets = tempfile::tempdir().unwrap();
    let path = sockets.path().join("operator.sock");
    let group = nix::unistd::getegid().to_string();
    let socket = ControlSocket { path: path.clone(), group, role: Role::Operator };
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.control.sockets.push(socket);
    let host = Host {
        daemon: Some(Daemon::start(config, false).await.unwrap()),
        client: Client::new(dir.path().join("data/blockd.sock")),
        dir,
        store: Arc::new(tempfile::tempdir().unwrap()),
        webhooks: Vec::new(),
    };
    let operator = Client::new(path);
    host.call(CREATE_CREDENTIAL, &host.credential("nas", None)).await;
    host.create_volume("data").await;
    (host, operator, sockets)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_causes_no_deletion_and_stops_no_other_owners_task() {
    let (mut host, operator, _sockets) = host_with_operator().await;
    let expires = Some(Timestamp::now() + SignedDuration::from_hours(1));
    let expiring = StartBackup {
        options: BackupOptions { expires, ..Default::default() },
        ..StartBackup::of("data".parse().unwrap())
    };
    assert_eq!(api_code(operator.call(START_BACKUP, &expiring).await), ErrorCode::Forbidden);
    let volumes = || vec!["data".parse().unwrap()];
    let group = StartGroupBackup {
        volumes: volumes(),
        options: BackupOptions { expires, ..Default::default() },
        ..StartGroupBackup::default()
    };
    assert_eq!(api_code(operator.call(START_GROUP_BACKUP, &group).await), ErrorCode::Forbidden);
    let unruled = StartBackup {
        hooks: HookOptions { no_rule: true, ..Default::default() },
        ..StartBackup::of("data".parse().unwrap())
    };
    assert_eq!(api_code(operator.call(START_BACKUP, &unruled).await), ErrorCode::Forbidden);
    let unruled = CreateSnapshot {
        hooks: HookOptions { no_rule: true, ..Default::default() },
        ..CreateSnapshot::default()
    };
    let made = operator.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &unruled).await;
    assert_eq!(api_code(made), ErrorCode::Forbidden);

    let of_admin = host.call(START_BACKUP, &StartBackup::of("data".parse().unwrap())).await;
    let done = host.wait(of_admin.task).await;
    assert!(
        matches!(done.owner, TaskOwner::Caller { role: Role::Admin, uid: Some(_), .. }),
        "{:?}",
        done.owner
    );
    for discard in [false, true] {
        let stop = StopTask { discard };
        assert_eq!(api_code(operator.call_at(STOP_TASK, &of_admin.task, &stop).await), ErrorCode::Forbidden);
    }
    let snap = host.list().await[0].id;
    let limits = TaskLimits { limit_upload_bytes_per_s: Some(1 << 10), ..TaskLimits::default() };
    let slow = StartBackup { limits, ..StartBackup::of("data".parse().unwrap()) };
    assert_eq!(api_code(operator.call(START_BACKUP, &slow).await), ErrorCode::Forbidden);
    let slow = StartGroupBackup { volumes: volumes(), limits, ..StartGroupBackup::default() };
    assert_eq!(api_code(operator.call(START_GROUP_BACKUP, &slow).await), ErrorCode::Forbidden);
    let slow = StartRestore { limits, ..StartRestore::of(snap) };
    assert_eq!(api_code(operator.call(START_RESTORE, &slow).await), ErrorCode::Forbidden);
    let mark = MarkCloudsnap { snap, cred_id: None, pinned: None, expires, never_expires: false };
    assert_eq!(api_code(operator.call(MARK_CLOUDSNAP, &mark).await), ErrorCode::Forbidden);

    // A task of its own has ended, which is the only objection.
    let own = operator.call(START_BACKUP, &StartBackup::of("data".parse().unwrap())).await.unwrap();
    let done = host.wait(own.task).await;
    assert!(matches!(done.owner, TaskOwner::Caller { role: Role::Operator, .. }), "{:?}", done.owner);
    assert_eq!(
        api_code(operator.call_at(STOP_TASK, &own.task, &StopTask::default()).await),
        ErrorCode::TaskEnded
    );
    for task in [of_admin.task, own.task] {
        assert_eq!(api_code(operator.call_at(LIMIT_TASK, &task, &limits).await), ErrorCode::Forbidden);
    }

    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_of_an_operator_discards_its_own_kept_tasks_only() {
    let (mut host, operator, _sockets) = host_with_operator().await;
    let backup = StartBackup::of("data".parse().unwrap());
    let of_admin = host.done(host.call(START_BACKUP, &backup).await.task).await;
    let own = operator.call(START_BACKUP, &backup).await.unwrap();
    let done = host.done(own.task).await;
    let other = TaskOwner::Caller { name: "other".to_owned(), role: Role::Operator, uid: None };
    let schedule = TaskOwner::Schedule { id: Uuid::new_v4() };
    let owners = [(of_admin.owner, false), (other, false), (schedule, false), (done.owner, true)];
    let kept = host.engine().tasks.task_row(own.task).await.unwrap();
    for (owner, may) in owners {
        let mut kept = TaskRow { id: Uuid::new_v4(), state: TaskStage::Stopped, owner, ..kept.clone() };
        kept.detail.resumable = true;
        host.engine().db.transaction(|tx| kept.put(tx)).unwrap();
        if !may {
            assert_eq!(
                api_code(operator.call(START_BACKUP, &backup).await),
                ErrorCode::Forbidden,
                "{kept:?}"
            );
            assert!(host.engine().tasks.task_row(kept.id).await.unwrap().detail.resumable);
        }
        let client = if may { &operator } else { &host.client };
        host.done(client.call(START_BACKUP, &backup).await.unwrap().task).await;
        assert!(!host.engine().tasks.task_row(kept.id).await.unwrap().detail.resumable);
    }
    host.stop().await;
}
