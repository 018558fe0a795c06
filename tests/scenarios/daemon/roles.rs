//! Roles: permitted operations, and deletions and tasks of other owners.

use super::*;
use blockd::config::ControlSocket;
use blockd_api::{
    cloudsnaps::{MarkCloudsnap, StartGroupBackup},
    drills::StartDrill,
    operations::OPERATIONS,
    quiesce::HookOptions,
    roles::Role,
    tasks::{StopTask, TaskLimits, TaskOwner},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// Sends a request; returns the status and the error code of the response.
async fn send(socket: &Path, method: &str, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // The requests are invalid, so that permitted callers change nothing.
    let body = "[]";
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    let response = String::from_utf8_lossy(&response);
    let status = response.split(' ').nth(1).unwrap().parse().unwrap();
    let body = response.split_once("\r\n\r\n").unwrap().1;
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
            let (status, code) = send(&dir.path().join(format!("{role}.sock")), method, &path).await;
            let is_permitted = role >= operation.role;
            assert_eq!(code != "forbidden", is_permitted, "{method} {path} as {role}: {status} {code}");
            assert!(
                !matches!(code.as_str(), "no_such_address" | "method_not_allowed"),
                "{method} {path}: {code}"
            );
            assert_eq!(status == 403, !is_permitted, "{method} {path} as {role}: {status} {code}");
            assert!(status < 500, "{method} {path} as {role}: {status} {code}");
        }
    }
    let (_, code) = send(&dir.path().join("read-only.sock"), "GET", "/v1/nothing").await;
    assert_eq!(code, "no_such_address");
    let (_, code) = send(&dir.path().join("read-only.sock"), "PUT", "/v1/volumes").await;
    assert!(matches!(code.as_str(), "method_not_allowed" | "forbidden"), "{code}");
    daemon.stop().await.unwrap();
}

/// Starts a daemon with a volume `data`, a credential, and a control socket for operators.
pub(super) async fn host_with_operator() -> (Host, Client, tempfile::TempDir) {
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
    host.create_credential().await;
    host.create_volume("data").await;
    (host, operator, sockets)
}

/// Asserts that an operation is forbidden.
pub(super) async fn forbidden<I: Serialize + 'static, R: Debug>(
    client: &Client,
    operation: Operation<(), I, R>,
    input: &I,
) {
    forbidden_at(client, operation, &(), input).await;
}

/// Asserts that an operation on an object is forbidden.
pub(super) async fn forbidden_at<P: PathParameter, I: Serialize + 'static, R: Debug>(
    client: &Client,
    operation: Operation<P, I, R>,
    path: &P,
    input: &I,
) {
    assert_eq!(api_code(client.call_at(operation, path, input).await), ErrorCode::Forbidden);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_deletes_nothing_and_stops_only_own_tasks() {
    let (mut host, operator, _sockets) = host_with_operator().await;
    let expires = Some(Timestamp::now() + SignedDuration::from_hours(1));
    let options = BackupOptions { expires_at: expires, ..BackupOptions::default() };
    let group = || StartGroupBackup { volumes: vec!["data".parse().unwrap()], ..StartGroupBackup::default() };
    forbidden(&operator, START_BACKUP, &StartBackup { options: options.clone(), ..backup_of("data") }).await;
    forbidden(&operator, START_GROUP_BACKUP, &StartGroupBackup { options, ..group() }).await;
    let hooks = HookOptions { no_rule: true, ..HookOptions::default() };
    forbidden(&operator, START_BACKUP, &StartBackup { hooks: hooks.clone(), ..backup_of("data") }).await;
    let without_rule = CreateSnapshot { hooks, ..CreateSnapshot::default() };
    forbidden_at(&operator, CREATE_SNAPSHOT, &"data".parse().unwrap(), &without_rule).await;

    let of_admin = host.start_backup("data", false).await;
    let done = host.wait(of_admin).await;
    assert!(
        matches!(done.owner, TaskOwner::Caller { role: Role::Admin, uid: Some(_), .. }),
        "{:?}",
        done.owner
    );
    for discard in [false, true] {
        forbidden_at(&operator, STOP_TASK, &of_admin, &StopTask { discard }).await;
    }
    let snap = host.ids().await.remove(0);
    let limits = TaskLimits { limit_upload_bytes_per_second: Some(1 << 10), ..TaskLimits::default() };
    forbidden(&operator, START_BACKUP, &StartBackup { limits, ..backup_of("data") }).await;
    forbidden(&operator, START_GROUP_BACKUP, &StartGroupBackup { limits, ..group() }).await;
    forbidden(&operator, START_RESTORE, &StartRestore { limits, ..restore_of(&snap) }).await;
    forbidden(&operator, START_DRILL, &StartDrill { limits, ..super::drills::drill_of(&snap) }).await;
    forbidden(&operator, ESTIMATE_RESTORE, &StartRestore { limits, ..restore_of(&snap) }).await;
    forbidden(&operator, ESTIMATE_DRILL, &StartDrill { limits, ..super::drills::drill_of(&snap) }).await;
    forbidden(&operator, ESTIMATE_IN_PLACE, &in_place_restore(&snap, "data")).await;
    forbidden(&operator, MARK_CLOUDSNAP, &MarkCloudsnap { expires_at: expires, ..mark_of(&snap) }).await;

    // An own task may be stopped; this one has ended.
    let own = operator.call(START_BACKUP, &backup_of("data")).await.unwrap();
    let done = host.wait(own.items[0].task_id).await;
    assert!(matches!(done.owner, TaskOwner::Caller { role: Role::Operator, .. }), "{:?}", done.owner);
    assert_eq!(
        api_code(operator.call_at(STOP_TASK, &own.items[0].task_id, &StopTask::default()).await),
        ErrorCode::TaskEnded
    );
    for task in [of_admin, own.items[0].task_id] {
        forbidden_at(&operator, LIMIT_TASK, &task, &limits).await;
    }

    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_of_an_operator_discards_its_own_kept_tasks_only() {
    let (mut host, operator, _sockets) = host_with_operator().await;
    let backup = backup_of("data");
    let of_admin = host.run_backup(&backup).await;
    let own = operator.call(START_BACKUP, &backup).await.unwrap();
    let done = host.done(own.items[0].task_id).await;
    let other = TaskOwner::Caller { name: "other".to_owned(), role: Role::Operator, uid: None };
    let schedule = TaskOwner::Schedule { schedule_id: Uuid::new_v4() };
    let owners = [(of_admin.owner, false), (other, false), (schedule, false), (done.owner, true)];
    let kept = host.engine().tasks.task_row(own.items[0].task_id).await.unwrap();
    for (owner, is_permitted) in owners {
        let mut kept = TaskRow { id: Uuid::new_v4(), state: TaskStage::Stopped, owner, ..kept.clone() };
        kept.detail.resumable = true;
        host.engine().db.transaction(|tx| kept.put(tx)).unwrap();
        if !is_permitted {
            forbidden(&operator, START_BACKUP, &backup).await;
            forbidden(&operator, ESTIMATE_BACKUP, &backup).await;
            assert!(host.engine().tasks.task_row(kept.id).await.unwrap().detail.resumable);
        }
        let client = if is_permitted { &operator } else { &host.client };
        host.done(client.call(START_BACKUP, &backup).await.unwrap().items[0].task_id).await;
        assert!(!host.engine().tasks.task_row(kept.id).await.unwrap().detail.resumable);
    }
    host.stop().await;
}
