//! Client of the control API.
//!
//! Each request has its own connection: calls are rare, and a restart of the daemon between them does not
//! matter.

use crate::{
    ApiError, CredentialRef, Deleted, Endpoint, ErrorBody, MAX_BODY_BYTES, SnapshotRef, VolumeRef,
    attachments::{AttachVolume, Attachment, DetachVolume, Detached},
    browse::{
        BrowseMount, BrowseMountList, FileList, FileRuns, HandMount, ListFileRuns, ListFiles, MountBrowse,
        ReadFile, UnmountBrowse, Unmounted,
    },
    cloudsnaps::{
        BackupStarted, CloudsnapDetail, CloudsnapList, CloudsnapMark, CollectGarbage, GarbageCollected,
        GroupBackupStarted, InspectCloudsnap, ListCloudsnaps, MarkCloudsnap, RestoreStarted, StartBackup,
        StartDelete, StartGroupBackup, StartRestore, StartVerify,
    },
    credentials::{
        CreateCredential, Credential, CredentialLimits, CredentialList, CredentialRekeyed, RekeyCredential,
    },
    endpoint::Stream,
    fd_passing::Handing,
    lazy::{LazyRestored, StartInPlace, StartLazyRestore},
    operations::{self, Operation, PathParameter},
    paths,
    snapshots::{
        CreateGroupSnapshot, CreateSnapshot, DeleteSnapshot, DiffSnapshots, GroupSnapshot, ListSnapshots,
        MarkSnapshot, RestoreSnapshot, Snapshot, SnapshotDiff, SnapshotList, SnapshotRestored,
    },
    status::Status,
    tasks::{ListTasks, StopTask, Task, TaskLimits, TaskList, TaskStarted, WaitTask},
    tls_diagnosis,
    volumes::{
        CloneVolume, CreateVolume, DeleteVolume, ListVolumes, UpdateVolume, Volume, VolumeCheck, VolumeList,
    },
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{task::JoinHandle, time::timeout};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Timeout of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a call answered by the daemon alone.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of a freeze with its hooks.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(1800);
/// Timeout of a detach, during which the kernel writes dirty pages back.
const DETACH_TIMEOUT: Duration = Duration::from_secs(600);
/// Timeout of a rollback, during which the daemon copies changed extents.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Timeout of a call that sends store requests, with their retries.
pub(crate) const STORE_CALL_TIMEOUT: Duration = Duration::from_secs(900);

/// Failure of a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The socket does not exist.
    #[error("there is no blockd at {}: the socket does not exist", path.display())]
    SocketMissing {
        /// Expected path.
        path: PathBuf,
    },
    /// No daemon listens on the socket.
    #[error("no blockd listens at {}: it is not running", path.display())]
    Refused {
        /// Socket.
        path: PathBuf,
    },
    /// The socket belongs to another user.
    #[error("permission denied at {}: this socket is for the user that runs blockd, its group if it has one, and root", path.display())]
    PermissionDenied {
        /// Socket.
        path: PathBuf,
    },
    /// The connection failed for another reason.
    #[error("cannot connect to blockd at {at}: {source}")]
    Connect {
        /// Socket or address.
        at: String,
        /// Cause.
        source: io::Error,
    },
    /// The daemon did not reply in time.
    #[error("blockd at {at} did not answer {what} within {} s", after.as_secs())]
    Timeout {
        /// Socket or address.
        at: String,
        /// Method and path of the request.
        what: String,
        /// Elapsed timeout.
        after: Duration,
    },
    /// The connection broke.
    #[error("the connection to blockd at {at} broke during {what}: {}", with_sources(source))]
    Broken {
        /// Socket or address.
        at: String,
        /// Method and path of the request.
        what: String,
        /// Cause.
        source: hyper::Error,
    },
    /// The reply violates the API: versions differ, or the server is not blockd.
    #[error("blockd at {at} answered {what} with something unexpected (HTTP {status}): {reason}")]
    BadReply {
        /// Socket or address.
        at: String,
        /// Method and path of the request.
        what: String,
        /// HTTP status of the reply.
        status: u16,
        /// Description of the violation.
        reason: String,
    },
    /// A descriptor cannot be passed over this connection.
    #[error(
        "a descriptor can be handed over through the unix socket of a blockd on this host only, not at {at}"
    )]
    NoSocket {
        /// Address.
        at: String,
    },
    /// The request cannot be serialised; a bug of its type.
    #[error("the request {what} cannot be written: {source}")]
    BadRequest {
        /// Method and path of the request.
        what: String,
        /// Cause.
        source: serde_json::Error,
    },
    /// The daemon refused the request.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl ClientError {
    /// Returns true if no daemon could be reached.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::SocketMissing { .. }
                | Self::Refused { .. }
                | Self::PermissionDenied { .. }
                | Self::Connect { .. }
        )
    }

    /// Returns true if a retry of the same call can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::SocketMissing { .. } | Self::Refused { .. } | Self::Timeout { .. } => true,
            // A restarted daemon refuses the same certificate.
            Self::Connect { source, .. } => tls_diagnosis::advice(source).is_none(),
            Self::Broken { source, .. } => tls_diagnosis::advice(source).is_none(),
            Self::PermissionDenied { .. } | Self::NoSocket { .. } => false,
            Self::BadReply { .. } | Self::BadRequest { .. } => false,
            Self::Api(error) => error.is_retryable(),
        }
    }

    /// Returns the next action, unless the message implies it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::SocketMissing { .. } | Self::Refused { .. } => Some(
                "start it with `blockd --data-dir DIR`, and name its socket DIR/blockd.sock with --socket or BLOCKD_SOCKET",
            ),
            Self::BadReply { .. } => {
                Some("blockctl and blockd should be of the same version, see `blockctl status`")
            }
            Self::Connect { source, .. } => tls_diagnosis::advice(source),
            Self::Broken { source, .. } => tls_diagnosis::advice(source),
            Self::Api(error) => error.hint.as_deref(),
            _ => None,
        }
    }
}

/// Formats an error with its sources: only the source explains a refused TLS handshake.
fn with_sources(error: &hyper::Error) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

/// Client of a daemon.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
}

/// Aborts the connection's task when a call is dropped.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Request of an operation, and the decoder of its reply.
struct PreparedCall<R> {
    /// Method and address, for errors.
    what: String,
    method: &'static str,
    address: String,
    body: Bytes,
    time_limit: Duration,
    decode: fn(&Bytes) -> Result<R, String>,
}

impl<R> PreparedCall<R> {
    fn new<P: PathParameter, I: Serialize + 'static>(
        operation: &Operation<P, I, R>,
        path: &P,
        input: &I,
    ) -> Result<Self, ClientError> {
        let (method, pattern) = (operation.info.method.as_str(), operation.info.path);
        let bad = |source| ClientError::BadRequest { what: format!("{method} {pattern}"), source };
        let (address, body) = operation.request(path, input).map_err(bad)?;
        let wait = (operation.wait_ms)(input).unwrap_or(0).min(crate::MAX_WAIT_MS);
        let time_limit = operation.timeout + Duration::from_millis(wait);
        let what = format!("{method} {address}");
        Ok(Self { what, method, address, body, time_limit, decode: operation.decode })
    }
}

impl Client {
    /// Creates a client of a control socket; does not connect yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::at(Endpoint::unix(socket))
    }

    /// Creates a client of an endpoint; does not connect yet.
    pub fn at(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Returns the endpoint of the daemon.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Calls an operation without a path parameter.
    ///
    /// # Errors
    /// The daemon refuses, cannot be reached, or violates the API.
    pub async fn call<I: Serialize + 'static, R>(
        &self,
        operation: Operation<(), I, R>,
        input: &I,
    ) -> Result<R, ClientError> {
        self.call_at(operation, &(), input).await
    }

    /// Calls an operation on the object in its path.
    ///
    /// # Errors
    /// The daemon refuses, cannot be reached, or violates the API.
    pub async fn call_at<P: PathParameter, I: Serialize + 'static, R>(
        &self,
        operation: Operation<P, I, R>,
        path: &P,
        input: &I,
    ) -> Result<R, ClientError> {
        let call = PreparedCall::new(&operation, path, input)?;
        self.call_through(self.connect().await?, call).await
    }

    async fn call_through<R>(&self, stream: Stream, call: PreparedCall<R>) -> Result<R, ClientError> {
        let PreparedCall { what, method, address, body, time_limit, decode } = call;
        let (status, body) = self.fetch_through(stream, method, &address, body, time_limit).await?;
        decode(&body).map_err(|reason| self.bad_reply(&what, status, reason))
    }

    /// Returns the daemon's status.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get(paths::STATUS, CALL_TIMEOUT).await
    }

    /// Creates a volume.
    pub async fn create_volume(&self, request: &CreateVolume) -> Result<Volume, ClientError> {
        self.post(paths::VOLUMES, request, CALL_TIMEOUT).await
    }

    /// Returns volumes.
    pub async fn list_volumes(&self, query: &ListVolumes) -> Result<VolumeList, ClientError> {
        self.query(paths::VOLUMES, query, CALL_TIMEOUT).await
    }

    /// Returns a volume.
    pub async fn volume(&self, volume: &VolumeRef) -> Result<Volume, ClientError> {
        self.get(&paths::volume(volume), CALL_TIMEOUT).await
    }

    /// Changes a volume.
    pub async fn update_volume(
        &self,
        volume: &VolumeRef,
        request: &UpdateVolume,
    ) -> Result<Volume, ClientError> {
        self.send(Method::PATCH, &paths::volume(volume), request, CALL_TIMEOUT).await
    }

    /// Deletes a volume and its unpinned local snapshots; fails if one is pinned. Cloud snapshots stay.
    pub async fn delete_volume(&self, volume: &VolumeRef) -> Result<Deleted, ClientError> {
        self.delete(&paths::volume(volume)).await
    }

    /// Deletes a volume and its unpinned local snapshots; fails if one is pinned. Cloud snapshots stay.
    pub async fn delete_volume_by_force(&self, volume: &VolumeRef) -> Result<Deleted, ClientError> {
        let bad = |source| ClientError::BadRequest { what: "DELETE of a volume".to_owned(), source };
        let query = DeleteVolume { force: true };
        self.delete(&crate::uri::with_query(&paths::volume(volume), &query).map_err(bad)?).await
    }

    /// Attaches a volume as a kernel device.
    pub async fn attach_volume(
        &self,
        volume: &VolumeRef,
        request: &AttachVolume,
    ) -> Result<Attachment, ClientError> {
        self.post(&paths::volume_attach(volume), request, CALL_TIMEOUT).await
    }

    /// Detaches a volume from its device.
    pub async fn detach_volume(
        &self,
        volume: &VolumeRef,
        request: &DetachVolume,
    ) -> Result<Detached, ClientError> {
        self.post(&paths::volume_detach(volume), request, DETACH_TIMEOUT).await
    }

    /// Freezes a volume.
    pub async fn create_snapshot(
        &self,
        volume: &VolumeRef,
        request: &CreateSnapshot,
    ) -> Result<Snapshot, ClientError> {
        self.post(&paths::volume_snapshots(volume), request, FREEZE_TIMEOUT).await
    }

    /// Takes a snapshot of a consistency group.
    pub async fn create_group_snapshot(
        &self,
        request: &CreateGroupSnapshot,
    ) -> Result<GroupSnapshot, ClientError> {
        self.post(paths::SNAPSHOT_GROUP, request, FREEZE_TIMEOUT).await
    }

    /// Returns a snapshot.
    pub async fn snapshot(&self, snapshot: &SnapshotRef) -> Result<Snapshot, ClientError> {
        self.get(&paths::snapshot(snapshot), CALL_TIMEOUT).await
    }

    /// Returns snapshots.
    pub async fn list_snapshots(&self, query: &ListSnapshots) -> Result<SnapshotList, ClientError> {
        self.query(paths::SNAPSHOTS, query, CALL_TIMEOUT).await
    }

    /// Checks the metadata of a volume.
    pub async fn check_volume(&self, volume: &VolumeRef) -> Result<VolumeCheck, ClientError> {
        let nothing = serde_json::json!({});
        self.post(&paths::volume_check(volume), &nothing, STORE_CALL_TIMEOUT).await
    }

    /// Creates a volume from a snapshot.
    pub async fn clone_volume(
        &self,
        volume: &VolumeRef,
        request: &CloneVolume,
    ) -> Result<Volume, ClientError> {
        self.post(&paths::volume_clone(volume), request, CALL_TIMEOUT).await
    }

    /// Returns the extents that differ between two points of a volume.
    pub async fn diff_snapshots(
        &self,
        volume: &VolumeRef,
        query: &DiffSnapshots,
    ) -> Result<SnapshotDiff, ClientError> {
        self.query(&paths::volume_diff(volume), query, CALL_TIMEOUT).await
    }

    /// Rolls a volume back to a snapshot.
    pub async fn restore_snapshot(
        &self,
        volume: &VolumeRef,
        request: &RestoreSnapshot,
    ) -> Result<SnapshotRestored, ClientError> {
        self.post(&paths::volume_rollback(volume), request, ROLLBACK_TIMEOUT).await
    }

    /// Deletes a snapshot; its layer is merged in the background.
    pub async fn delete_snapshot(&self, snapshot: &SnapshotRef) -> Result<Deleted, ClientError> {
        self.delete(&paths::snapshot(snapshot)).await
    }

    /// Deletes a snapshot, even if it is pinned.
    pub async fn delete_snapshot_by_force(&self, snapshot: &SnapshotRef) -> Result<Deleted, ClientError> {
        let bad = |source| ClientError::BadRequest { what: "DELETE of a snapshot".to_owned(), source };
        let query = DeleteSnapshot { force: true };
        self.delete(&crate::uri::with_query(&paths::snapshot(snapshot), &query).map_err(bad)?).await
    }

    /// Pins or unpins a snapshot.
    pub async fn mark_snapshot(
        &self,
        snapshot: &SnapshotRef,
        request: &MarkSnapshot,
    ) -> Result<Snapshot, ClientError> {
        self.send(Method::PATCH, &paths::snapshot(snapshot), request, CALL_TIMEOUT).await
    }

    /// Verifies access to a store and creates a credential.
    pub async fn create_credential(&self, request: &CreateCredential) -> Result<Credential, ClientError> {
        self.post(paths::CREDENTIALS, request, STORE_CALL_TIMEOUT).await
    }

    /// Returns credentials without secrets.
    pub async fn list_credentials(&self) -> Result<CredentialList, ClientError> {
        self.get(paths::CREDENTIALS, CALL_TIMEOUT).await
    }

    /// Returns a credential without secrets.
    pub async fn credential(&self, credential: &CredentialRef) -> Result<Credential, ClientError> {
        self.get(&paths::credential(credential), CALL_TIMEOUT).await
    }

    /// Verifies access to a store.
    pub async fn validate_credential(&self, credential: &CredentialRef) -> Result<Credential, ClientError> {
        self.receive(Method::POST, &paths::credential_validate(credential), Bytes::new(), STORE_CALL_TIMEOUT)
            .await
    }

    /// Changes the passphrase or the data key of a repository.
    pub async fn rekey_credential(
        &self,
        credential: &CredentialRef,
        request: &RekeyCredential,
    ) -> Result<CredentialRekeyed, ClientError> {
        self.post(&paths::credential_rekey(credential), request, STORE_CALL_TIMEOUT).await
    }

    /// Changes the bandwidth limits of a credential.
    pub async fn limit_credential(
        &self,
        credential: &CredentialRef,
        limits: &CredentialLimits,
    ) -> Result<Credential, ClientError> {
        self.post(&paths::credential_limits(credential), limits, CALL_TIMEOUT).await
    }

    /// Deletes a credential; its backups stay.
    pub async fn delete_credential(&self, credential: &CredentialRef) -> Result<Deleted, ClientError> {
        self.delete(&paths::credential(credential)).await
    }

    /// Starts a backup.
    pub async fn start_backup(&self, request: &StartBackup) -> Result<BackupStarted, ClientError> {
        self.post(paths::CLOUDSNAP_BACKUP, request, STORE_CALL_TIMEOUT).await
    }

    /// Starts backups of a consistency group.
    pub async fn start_group_backup(
        &self,
        request: &StartGroupBackup,
    ) -> Result<GroupBackupStarted, ClientError> {
        self.post(paths::CLOUDSNAP_BACKUP_GROUP, request, STORE_CALL_TIMEOUT).await
    }

    /// Returns cloud snapshots.
    pub async fn list_cloudsnaps(&self, query: &ListCloudsnaps) -> Result<CloudsnapList, ClientError> {
        self.query(paths::CLOUDSNAPS, query, STORE_CALL_TIMEOUT).await
    }

    /// Returns a cloud snapshot in detail.
    pub async fn inspect_cloudsnap(&self, query: &InspectCloudsnap) -> Result<CloudsnapDetail, ClientError> {
        self.query(paths::CLOUDSNAP_INSPECT, query, STORE_CALL_TIMEOUT).await
    }

    /// Starts a restore to a new volume.
    pub async fn start_restore(&self, request: &StartRestore) -> Result<RestoreStarted, ClientError> {
        self.post(paths::CLOUDSNAP_RESTORE, request, STORE_CALL_TIMEOUT).await
    }

    /// Creates a lazy volume.
    pub async fn start_lazy_restore(&self, request: &StartLazyRestore) -> Result<LazyRestored, ClientError> {
        self.post(paths::CLOUDSNAP_RESTORE_LAZY, request, STORE_CALL_TIMEOUT).await
    }

    /// Starts an in-place restore of a volume.
    pub async fn start_in_place(&self, request: &StartInPlace) -> Result<RestoreStarted, ClientError> {
        self.post(paths::CLOUDSNAP_RESTORE_IN_PLACE, request, STORE_CALL_TIMEOUT).await
    }

    /// Starts the deletion of a cloud snapshot.
    pub async fn start_delete(&self, request: &StartDelete) -> Result<TaskStarted, ClientError> {
        self.post(paths::CLOUDSNAP_DELETE, request, STORE_CALL_TIMEOUT).await
    }

    /// Changes pin and expiry date of a cloud snapshot.
    pub async fn mark_cloudsnap(&self, request: &MarkCloudsnap) -> Result<CloudsnapMark, ClientError> {
        self.post(paths::CLOUDSNAP_MARK, request, STORE_CALL_TIMEOUT).await
    }

    /// Starts a verification.
    pub async fn start_verify(&self, request: &StartVerify) -> Result<TaskStarted, ClientError> {
        self.post(paths::CLOUDSNAP_VERIFY, request, STORE_CALL_TIMEOUT).await
    }

    /// Deletes orphaned objects of a store, or lists them.
    pub async fn collect_garbage(&self, request: &CollectGarbage) -> Result<GarbageCollected, ClientError> {
        self.post(paths::CLOUDSNAP_GC, request, STORE_CALL_TIMEOUT).await
    }

    /// Stops a task; returns when it has stopped.
    pub async fn stop_task(&self, task: Uuid, request: &StopTask) -> Result<Task, ClientError> {
        self.post(&paths::task_stop(task), request, STORE_CALL_TIMEOUT).await
    }

    /// Changes the bandwidth limits of a task.
    pub async fn limit_task(&self, task: Uuid, limits: &TaskLimits) -> Result<Task, ClientError> {
        self.post(&paths::task_limit(task), limits, CALL_TIMEOUT).await
    }

    /// Resumes a stopped or failed task.
    pub async fn resume_task(&self, task: Uuid) -> Result<Task, ClientError> {
        self.post(&paths::task_resume(task), &serde_json::json!({}), CALL_TIMEOUT).await
    }

    /// Returns a file of a cloud snapshot and its entries.
    pub async fn list_files(&self, query: &ListFiles) -> Result<FileList, ClientError> {
        self.query(paths::CLOUDSNAP_FILES, query, STORE_CALL_TIMEOUT).await
    }

    /// Reads part of a file of a cloud snapshot: at most 8 MiB, possibly fewer bytes than requested.
    pub async fn read_file(&self, query: &ReadFile) -> Result<Bytes, ClientError> {
        let path = paths::CLOUDSNAP_FILE;
        let bad = |source| ClientError::BadRequest { what: format!("GET {path}"), source };
        let address = crate::uri::with_query(path, query).map_err(bad)?;
        self.fetch(Method::GET, &address, Bytes::new(), STORE_CALL_TIMEOUT).await.map(|(_, body)| body)
    }

    /// Returns data ranges of a file of a cloud snapshot; a long list is truncated.
    pub async fn list_file_runs(&self, query: &ListFileRuns) -> Result<FileRuns, ClientError> {
        self.query(paths::CLOUDSNAP_FILE_RUNS, query, STORE_CALL_TIMEOUT).await
    }

    /// Returns mounts of snapshots.
    pub async fn list_mounts(&self) -> Result<BrowseMountList, ClientError> {
        self.get(paths::BROWSE_MOUNTS, CALL_TIMEOUT).await
    }

    /// Mounts snapshots.
    pub async fn mount(&self, request: &MountBrowse) -> Result<BrowseMount, ClientError> {
        self.post(paths::BROWSE_MOUNTS, request, STORE_CALL_TIMEOUT).await
    }

    /// Passes the `/dev/fuse` descriptor of a mount to the daemon, which serves it.
    pub async fn hand_mount(
        &self,
        request: &HandMount,
        descriptor: OwnedFd,
    ) -> Result<BrowseMount, ClientError> {
        let call = PreparedCall::new(&operations::HAND_MOUNT, &(), request)?;
        let Stream::Unix(stream) = self.connect().await? else {
            return Err(ClientError::NoSocket { at: self.endpoint.to_string() });
        };
        self.call_through(Stream::Handing(Handing::new(stream, descriptor)), call).await
    }

    /// Unmounts snapshots.
    pub async fn unmount(&self, request: &UnmountBrowse) -> Result<Unmounted, ClientError> {
        self.post(paths::BROWSE_UNMOUNT, request, CALL_TIMEOUT).await
    }

    /// Tasks, newest first.
    pub async fn list_tasks(&self, query: &ListTasks) -> Result<TaskList, ClientError> {
        self.query(paths::TASKS, query, CALL_TIMEOUT).await
    }

    /// Returns a task, now or after a change; see [`WaitTask`].
    pub async fn task(&self, task: Uuid, wait: &WaitTask) -> Result<Task, ClientError> {
        let time_limit =
            CALL_TIMEOUT + Duration::from_millis(wait.wait_ms.unwrap_or(0).min(crate::MAX_WAIT_MS));
        self.query(&paths::task(task), wait, time_limit).await
    }

    pub(crate) async fn get<R: DeserializeOwned>(
        &self,
        address: &str,
        time_limit: Duration,
    ) -> Result<R, ClientError> {
        self.receive(Method::GET, address, Bytes::new(), time_limit).await
    }

    pub(crate) async fn delete<R: DeserializeOwned>(&self, address: &str) -> Result<R, ClientError> {
        self.receive(Method::DELETE, address, Bytes::new(), CALL_TIMEOUT).await
    }

    pub(crate) async fn query<Q: Serialize, R: DeserializeOwned>(
        &self,
        path: &str,
        query: &Q,
        time_limit: Duration,
    ) -> Result<R, ClientError> {
        let bad = |source| ClientError::BadRequest { what: format!("GET {path}"), source };
        let address = crate::uri::with_query(path, query).map_err(bad)?;
        self.get(&address, time_limit).await
    }

    pub(crate) async fn post<B: Serialize, R: DeserializeOwned>(
        &self,
        address: &str,
        body: &B,
        time_limit: Duration,
    ) -> Result<R, ClientError> {
        self.send(Method::POST, address, body, time_limit).await
    }

    pub(crate) async fn send<B: Serialize, R: DeserializeOwned>(
        &self,
        method: Method,
        address: &str,
        body: &B,
        time_limit: Duration,
    ) -> Result<R, ClientError> {
        let bad = |source| ClientError::BadRequest { what: format!("{method} {address}"), source };
        // A body can hold secrets: it is wiped after sending, and allocated large enough to avoid copies by
        // reallocation.
        let mut json = Zeroizing::new(Vec::with_capacity(16 << 10));
        serde_json::to_writer(&mut *json, body).map_err(bad)?;
        self.receive(method, address, Bytes::from_owner(json), time_limit).await
    }

    async fn receive<R: DeserializeOwned>(
        &self,
        method: Method,
        address: &str,
        body: Bytes,
        time_limit: Duration,
    ) -> Result<R, ClientError> {
        let what = format!("{method} {address}");
        let (status, body) = self.fetch(method, address, body, time_limit).await?;
        serde_json::from_slice(&body).map_err(|error| self.bad_reply(&what, status, error.to_string()))
    }

    fn bad_reply(&self, what: &str, status: StatusCode, reason: String) -> ClientError {
        ClientError::BadReply {
            at: self.endpoint.to_string(),
            what: what.to_owned(),
            status: status.as_u16(),
            reason,
        }
    }

    /// Returns the body of a successful reply.
    pub(crate) async fn fetch(
        &self,
        method: Method,
        address: &str,
        body: Bytes,
        time_limit: Duration,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = self.connect().await?;
        self.fetch_through(stream, method.as_str(), address, body, time_limit).await
    }

    async fn fetch_through(
        &self,
        stream: Stream,
        method: &str,
        address: &str,
        body: Bytes,
        time_limit: Duration,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let what = format!("{method} {address}");
        match timeout(time_limit, self.exchange(stream, method, address, body, &what)).await {
            Ok(reply) => reply,
            Err(_) => Err(ClientError::Timeout { at: self.endpoint.to_string(), what, after: time_limit }),
        }
    }

    async fn connect(&self) -> Result<Stream, ClientError> {
        let source = match timeout(CONNECT_TIMEOUT, self.endpoint.connect()).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(source)) => source,
            Err(_) => io::Error::from(io::ErrorKind::TimedOut),
        };
        let at = self.endpoint.to_string();
        let Some(path) = self.endpoint.socket().map(Path::to_owned) else {
            return Err(ClientError::Connect { at, source });
        };
        Err(match source.kind() {
            io::ErrorKind::NotFound => ClientError::SocketMissing { path },
            io::ErrorKind::ConnectionRefused => ClientError::Refused { path },
            io::ErrorKind::PermissionDenied => ClientError::PermissionDenied { path },
            _ => ClientError::Connect { at, source },
        })
    }

    async fn exchange(
        &self,
        stream: Stream,
        method: &str,
        address: &str,
        body: Bytes,
        what: &str,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken =
            |source| ClientError::Broken { at: self.endpoint.to_string(), what: what.to_owned(), source };
        let bad_reply = |status: StatusCode, reason: String| self.bad_reply(what, status, reason);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Connection errors are also returned by the request.
        let _connection = Connection(tokio::spawn(async move { drop(connection.await) }));

        let mut request =
            Request::builder().method(method).uri(address).header(header::HOST, self.endpoint.host());
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|error| {
            bad_reply(StatusCode::BAD_REQUEST, format!("no such address can be asked: {error}"))
        })?;
        let reply = sender.send_request(request).await.map_err(broken)?;
        let status = reply.status();
        let body = match Limited::new(reply.into_body(), MAX_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(bad_reply(status, format!("the reply is longer than {MAX_BODY_BYTES} bytes")));
            }
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(source) => return Err(broken(*source)),
                Err(error) => return Err(bad_reply(status, error.to_string())),
            },
        };
        if status.is_success() {
            return Ok((status, body));
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Err(ClientError::Api(body.error)),
            Err(_) => Err(bad_reply(status, "the error is not in the form of this API".to_owned())),
        }
    }
}
