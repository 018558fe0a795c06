//! Start of cloud snapshot deletions, on request or by a retention policy.

use crate::{
    cloud_snapshots::{CloudSnapshots, delete_task::DeleteWork},
    error::ServiceError,
    host::{Admission, Host},
    leases::Leases,
    repositories::{Repositories, locate::Purpose, preflight::check_cancelled},
    schedules::{
        retention_checks::{RetentionChecks, delete_command},
        wake::Scheduler,
    },
    tasks::{Tasks, runner::Runner},
    volumes::registry::Registry,
};
use blockd_api::{
    ApiError, CredentialRef, ErrorCode,
    cloudsnaps::{DeleteStarted, StartDelete},
    tasks::TaskStarted,
};
use blockd_catalog::{CredentialRow, Db, DeleteTask, RetentionOverride, TaskRow, TaskSpec};
use blockd_cloud::{CloudError, CloudSnapshotId};
use std::sync::Arc;
use uuid::Uuid;

/// Deletions of cloud snapshots, their pins and expiries.
pub struct Deletions {
    pub(crate) admission: Arc<Admission>,
    pub(crate) checks: Arc<RetentionChecks>,
    pub(crate) cloud_snapshots: Arc<CloudSnapshots>,
    pub(crate) db: Arc<Db>,
    pub(crate) delete_work: Arc<DeleteWork>,
    pub(crate) host: Arc<Host>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) tasks: Arc<Tasks>,
}

impl Deletions {
    /// Starts the deletion of a cloud snapshot.
    ///
    /// # Errors
    /// There is no such cloud snapshot, or a task or lazy volume uses it. Without `force`, also one that is
    /// pinned, that another host made or leases, or whose manifest is damaged.
    pub async fn start_delete(
        self: &Arc<Self>,
        request: &StartDelete,
    ) -> Result<DeleteStarted, ServiceError> {
        let id = request.cloud_snapshot_id;
        let credential =
            self.repositories.credential_with(&id, request.credential.as_ref(), Purpose::Delete).await?.uuid;
        let warnings = self.overridden_leases(credential, &id, request.force).await?;
        let request = request.clone().under(credential);
        let started = self.start_delete_if(&request, None).await?;
        let not_started = || ServiceError::Internal("an unconditional deletion was not started".into());
        let TaskStarted { task_id } = started.ok_or_else(not_started)?;
        warnings.iter().for_each(|warning| tracing::warn!(cloudsnap = %id, task = %task_id, "{warning}"));
        Ok(DeleteStarted { task_id, warnings })
    }

    /// Returns warnings about the leases of other hosts that a forced deletion overrides; refuses another
    /// one.
    async fn overridden_leases(
        &self,
        credential: Uuid,
        id: &CloudSnapshotId,
        force: bool,
    ) -> Result<Vec<String>, ServiceError> {
        let holders = match self.leases.holders(credential, id).await {
            Err(error) if force => {
                tracing::warn!(cloudsnap = %id, %error, "listing leases failed; the deletion is forced");
                return Ok(Vec::new());
            }
            holders => holders?,
        };
        if force || holders.is_empty() {
            let lost = |holder| {
                format!(
                    "{holder} needs cloud snapshot {id}: its reads of blocks that it has not fetched will fail"
                )
            };
            return Ok(holders.iter().map(lost).collect());
        }
        let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
        let mut refused =
            ServiceError::from(CloudError::Leased { id: *id, holders: holders.join(", ") }).to_api();
        let what = if holders.len() == 1 { "it is" } else { "they are" };
        refused.hint = Some(format!("wait until {what} hydrated or deleted, or `{}`", delete_command(id)));
        Err(ServiceError::Refused(refused))
    }

    /// Starts a deletion. For one by a retention policy, `judged_by` is the retention override that the
    /// decision was based on: if that has changed, nothing is started, and the policy has to be evaluated
    /// again.
    pub async fn start_delete_if(
        self: &Arc<Self>,
        request: &StartDelete,
        judged_by: Option<Option<RetentionOverride>>,
    ) -> Result<Option<TaskStarted>, ServiceError> {
        let id = request.cloud_snapshot_id;
        let credential =
            self.repositories.credential_with(&id, request.credential.as_ref(), Purpose::Delete).await?;
        let damaged = self.has_damaged_manifest(credential.uuid, &id, request.force).await?;
        self.start(request, credential, damaged, judged_by).await
    }

    /// Starts the deletion of a damaged cloud snapshot that a repaired one replaces, also if its manifest is
    /// damaged. Returns the task, or `None` if its retention override has changed.
    ///
    /// # Errors
    /// Another host leases it, or a task or lazy volume of this host uses it.
    pub(crate) async fn start_delete_repaired(
        self: &Arc<Self>,
        credential: Uuid,
        id: &CloudSnapshotId,
        judged_by: Option<RetentionOverride>,
    ) -> Result<Option<TaskStarted>, ServiceError> {
        self.overridden_leases(credential, id, false).await?;
        let damaged = self.has_damaged_manifest(credential, id, true).await?;
        let credential = self.repositories.credential(Some(&CredentialRef::Id(credential))).await?;
        self.start(&StartDelete::of(*id), credential, damaged, Some(judged_by)).await
    }

    async fn start(
        self: &Arc<Self>,
        request: &StartDelete,
        credential: CredentialRow,
        damaged: bool,
        judged_by: Option<Option<RetentionOverride>>,
    ) -> Result<Option<TaskStarted>, ServiceError> {
        let id = request.cloud_snapshot_id;
        let _admission = self.admission.lock().await;
        check_cancelled()?;
        self.tasks.refuse_if_deleting(&id).await?;
        match judged_by {
            Some(mark) if !self.is_judged_by(&id, credential.uuid, mark).await? => return Ok(None),
            None if !request.force => {
                let hint = format!("to delete it anyway, an administrator runs `{}`", delete_command(&id));
                self.refuse_of_other_host(&id, hint)?;
                self.checks.refuse_if_pinned(&id, credential.uuid).await?;
            }
            _ => {}
        }
        self.delete_work.refuse_if_used(&id).await?;
        let spec = DeleteTask { force: request.force, damaged, by_retention: judged_by.is_some() };
        let mut row = TaskRow::new(TaskSpec::Delete(spec), credential.uuid, id, crate::owner::current());
        row.detail.volume_name = self.registry.source_name(&id, self.host.cluster);
        row.detail.credential_name = credential.name.to_string();
        let start = || self.runner.store_and_launch(row.clone(), |_| Ok(()));
        self.delete_work.snapshots.with_space_reserve(start).await.map(Some)
    }

    /// Refuses to delete a cloud snapshot that another host made, and may still need, at once or at a date.
    pub(super) fn refuse_of_other_host(
        &self,
        id: &CloudSnapshotId,
        hint: impl Into<String>,
    ) -> Result<(), ServiceError> {
        if id.cluster == self.host.cluster {
            return Ok(());
        }
        let message = format!("another host, of cluster {}, made cloud snapshot {id}", id.cluster);
        Err(ServiceError::Refused(ApiError::new(ErrorCode::CloudsnapOfOtherHost, message).with_hint(hint)))
    }

    /// Returns true if the manifest is damaged and `force` is set; refuses a damaged one otherwise.
    async fn has_damaged_manifest(
        &self,
        credential: Uuid,
        id: &CloudSnapshotId,
        force: bool,
    ) -> Result<bool, ServiceError> {
        let error = match self.repositories.preflight_manifest(credential, id).await {
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
}
