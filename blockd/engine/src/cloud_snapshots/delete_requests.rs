//! Start of cloud snapshot deletions, on request or by a retention policy.

use crate::{
    cloud_snapshots::CloudSnapshots,
    error::ServiceError,
    host::{Admission, Host},
    repositories::{Repositories, locate::Purpose, preflight::check_cancelled},
    restore::lazy::LazyVolumes,
    schedules::{
        retention_checks::{RetentionChecks, delete_command},
        wake::Scheduler,
    },
    tasks::{Tasks, runner::Runner},
};
use blockd_api::{
    ErrorCode,
    cloudsnaps::StartDelete,
    tasks::{TaskKind, TaskStarted},
};
use blockd_catalog::{Chain, Db, DeleteTask, RetentionOverride, TaskRow, TaskSpec};
use blockd_cloud::{CloudError, CloudSnapshotId};
use std::sync::Arc;
use uuid::Uuid;

/// Deletions of cloud snapshots, their pins and expiries.
pub struct Deletions {
    pub(crate) admission: Arc<Admission>,
    pub(crate) checks: Arc<RetentionChecks>,
    pub(crate) cloud_snapshots: Arc<CloudSnapshots>,
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) tasks: Arc<Tasks>,
}

impl Deletions {
    /// Starts the deletion of a cloud snapshot.
    ///
    /// # Errors
    /// There is no such cloud snapshot, or a task uses it.
    pub async fn start_delete(self: &Arc<Self>, request: &StartDelete) -> Result<TaskStarted, ServiceError> {
        let started = self.start_delete_if(request, None).await?;
        started.ok_or_else(|| ServiceError::Internal("an unconditional deletion was not started".into()))
    }

    /// Starts a deletion. For one by a retention policy, `judged_by` is the retention override that the
    /// decision was based on: if that has changed, nothing is started, and the policy has to be evaluated
    /// again.
    pub async fn start_delete_if(
        self: &Arc<Self>,
        request: &StartDelete,
        judged_by: Option<Option<RetentionOverride>>,
    ) -> Result<Option<TaskStarted>, ServiceError> {
        let id = request.snap;
        let credential =
            self.repositories.credential_with(&id, request.cred_id.as_ref(), Purpose::Delete).await?;
        let damaged = self.has_damaged_manifest(credential.uuid, &id, request.force).await?;
        let _admission = self.admission.lock().await;
        check_cancelled()?;
        self.tasks.refuse_if_deleting(&id).await?;
        self.lazy.refuse_if_needed(&id).await?;
        match judged_by {
            Some(mark) if !self.is_judged_by(&id, credential.uuid, mark).await? => return Ok(None),
            None if !request.force => self.checks.refuse_if_pinned(&id, credential.uuid).await?,
            _ => {}
        }
        self.refuse_if_used(&id).await?;
        let spec = DeleteTask { force: request.force, damaged, by_retention: judged_by.is_some() };
        let mut row = TaskRow::new(TaskSpec::Delete(spec), credential.uuid, id, crate::owner::current());
        row.detail.credential_name = credential.name.to_string();
        self.runner.store_and_launch(row, |_| Ok(())).await.map(Some)
    }

    /// Returns true if the manifest is damaged and `force` is set; refuses a damaged one otherwise.
    async fn has_damaged_manifest(
        &self,
        credential: Uuid,
        id: &CloudSnapshotId,
        force: bool,
    ) -> Result<bool, ServiceError> {
        let error = match self.repositories.ask_manifest(credential, id).await {
            Ok(_) => return Ok(false),
            Err(error) => error,
        };
        match &error {
            ServiceError::Cloud(cause) if matches!(**cause, CloudError::Damaged { .. }) => {}
            _ => return Err(error),
        }
        if force {
            return Ok(true);
        }
        let mut refused = error.to_api();
        refused.hint = Some(format!("to delete it anyway, an administrator runs `{}`", delete_command(id)));
        Err(ServiceError::Refused(refused))
    }

    /// Refuses to delete a cloud snapshot that a running or resumable task needs. Requires the admission
    /// lock.
    async fn refuse_if_used(&self, id: &CloudSnapshotId) -> Result<(), ServiceError> {
        let chains = self.db.run(|tx| Chain::all(tx, None)).await?;
        let uses = |task: &TaskRow| match task.kind() {
            TaskKind::Restore => task.cloudsnap == *id,
            TaskKind::Delete | TaskKind::Verify => false,
            TaskKind::Backup => {
                // A task without a decision yet may use the tip of its volume's chain as its base; a resumed
                // one looks for it.
                let undecided = !task.state.is_over()
                    && task.detail.backup_type.is_none()
                    && chains.iter().any(|chain| Some(chain.volume) == task.volume && chain.cloudsnap == *id);
                task.base == Some(*id) || undecided || task.cloudsnap.snapshot == id.snapshot
            }
        };
        let tasks =
            self.tasks.unfinished_tasks().await?.into_iter().chain(self.tasks.resumable_tasks().await?);
        let Some(task) = tasks.into_iter().find(uses) else { return Ok(()) };
        let how = match task.state.is_over() {
            true => format!("resume it, or discard it with `blockctl cloudsnap stop {} --discard`", task.id),
            false => "wait for it to end".to_owned(),
        };
        let message = format!("cloud snapshot {id} is used by {} task {}: {how}", task.kind(), task.id);
        Err(ServiceError::refused(ErrorCode::CloudsnapInUse, message))
    }
}
