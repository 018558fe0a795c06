//! What is listed of backups that were given up: it is whole, or it is taken back.
//!
//! A backup that was cut off between its commit and the question for its base is listed, and goes on to ask. One that is given up
//! in place of that asks here, as soon as the store answers. Once more an hour later, because a request that nobody waits for
//! any more may be carried out late: also of one that began anew under another name.

use super::plan::Plan;
use crate::{
    core::Core,
    db::{Catalog, DbError, Doubt, TaskKind, TaskRow},
    error::{ServiceError, blocking},
};
use blockd_cloud::{CloudError, CloudsnapId, Settled, settle};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// After so long no request of a backup that was given up is under way any more: they have time limits of minutes.
const LATE_S: i64 = 3600;
/// How long a credential that is to be deleted waits for what was given up under it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The name under which a backup may be listed, if it was given up now: as far as is known, it may have begun to commit.
pub(super) async fn may_be_listed(core: &Core, row: &TaskRow) -> Option<CloudsnapId> {
    if row.kind != TaskKind::Backup {
        return None;
    }
    // What another run of the daemon did is not known; it may have died before it wrote it down.
    if row.detail.run == Some(core.run) && !row.detail.may_be_committed {
        return None;
    }
    // The row may be older than the plan, without which nothing is stored.
    let (dir, task, volume) =
        (core.task_dir(row.id), row.id, row.base.map(|base| base.volume).or(row.volume)?);
    let plan = blocking(move || Plan::load(&dir, task, volume)).await;
    match plan {
        Ok(Some(plan)) => Some(CloudsnapId { incremental: plan.base.is_some(), ..row.cloudsnap }),
        Ok(None) => row.detail.backup_type.is_some().then_some(row.cloudsnap),
        Err(error) => {
            tracing::warn!(task = %row.id, %error, "the kept plan of a backup that is given up cannot be read");
            Some(row.cloudsnap)
        }
    }
}

/// Whether what is listed under the name may be another daemon's, which makes the same backup.
pub(super) fn is_of_another(error: &ServiceError) -> bool {
    match error {
        ServiceError::Cloud(error) => matches!(**error, CloudError::Conflict { .. }),
        ServiceError::Refused(_) => true,
        _ => false,
    }
}

/// The doubt about a backup that is given up now.
pub(super) fn doubt(credential: Uuid, cloudsnap: CloudsnapId) -> Doubt {
    Doubt { credential, cloudsnap, since: Timestamp::now(), given_up: true, looked_at: false }
}

/// Whether a cloud snapshot is listed, or may be, of which this host does not know that it is whole and stays: nothing is
/// to be built on it.
///
/// # Errors
/// The database fails.
pub(crate) fn is_in_doubt(tx: &rusqlite::Transaction<'_>, id: &CloudsnapId) -> Result<bool, DbError> {
    if Doubt::is_of(tx, id)? {
        return Ok(true);
    }
    let tasks = TaskRow::unfinished(tx)?.into_iter().chain(TaskRow::kept(tx)?);
    Ok(tasks.into_iter().any(|task| {
        let name = (task.cloudsnap.cluster, task.cloudsnap.volume, task.cloudsnap.snapshot);
        task.kind == TaskKind::Backup && name == (id.cluster, id.volume, id.snapshot)
    }))
}

impl Core {
    /// Settles what was given up, as far as stores answer.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn settle_given_up(&self, now: Timestamp) -> Result<(), ServiceError> {
        for doubt in self.db.run(Doubt::given_up).await? {
            self.settle_one(&doubt, now).await?;
        }
        Ok(())
    }

    /// The same at once, without anybody waiting for it: what fails is done later.
    pub(super) fn begin_to_settle(self: &Arc<Self>, cloudsnap: CloudsnapId) {
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let settled = async {
                let doubts = core.db.run(Doubt::given_up).await?;
                match doubts.into_iter().find(|doubt| doubt.cloudsnap == cloudsnap) {
                    Some(doubt) => core.settle_one(&doubt, Timestamp::now()).await,
                    None => Ok::<_, ServiceError>(()),
                }
            };
            let settled = tokio::select! {
                settled = settled => settled,
                () = core.stopping.cancelled() => return,
            };
            if let Err(error) = settled {
                tracing::warn!(%cloudsnap, %error, "it is looked later whether what was given up is whole");
            }
        });
    }

    /// The same for a credential that is about to be forgotten: there is no later.
    pub(crate) async fn settle_before_forgetting(&self, credential: Uuid) {
        let settled = async {
            for doubt in self.db.run(Doubt::given_up).await? {
                if doubt.credential == credential {
                    self.settle_one(&doubt, Timestamp::now()).await?;
                }
            }
            Ok::<_, ServiceError>(())
        };
        match tokio::time::timeout(PATIENCE, settled).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%credential, %error, "what was given up may be listed without being whole")
            }
            Err(_) => {
                tracing::warn!(%credential, "the store does not answer: what was given up may be listed without being whole")
            }
        }
    }

    /// # Errors
    /// The database fails; what the store does is only logged.
    async fn settle_one(&self, doubt: &Doubt, now: Timestamp) -> Result<(), ServiceError> {
        let is_late = now.as_second().saturating_sub(doubt.since.as_second()) >= LATE_S;
        if doubt.looked_at && !is_late {
            return Ok(());
        }
        let (credential, id) = (doubt.credential, doubt.cloudsnap);
        let settled = match self.task_repository(credential).await {
            Ok((repository, _)) => Box::pin(settle(&repository, &id)).await.map_err(ServiceError::from),
            Err(error) => Err(error),
        };
        match settled {
            Ok(Settled::Absent) => {}
            Ok(Settled::Whole) => {
                tracing::info!(cloudsnap = %id, "the backup that was given up is whole in the store, and stays listed");
            }
            Ok(Settled::TakenBack) => {
                tracing::warn!(cloudsnap = %id, "the backup that was given up was listed without being whole: its manifest was deleted");
            }
            Err(error) => {
                tracing::warn!(cloudsnap = %id, %error, "what is listed of a backup that was given up is looked at later");
                return Ok(());
            }
        }
        let is_gone = !matches!(settled, Ok(Settled::Whole));
        let looked_at = Doubt { looked_at: true, ..doubt.clone() };
        let stored = move |tx: &rusqlite::Transaction<'_>| -> Result<(), DbError> {
            if is_gone {
                Catalog::remove(tx, credential, &id.manifest_key())?;
            }
            match is_late {
                true => Doubt::remove(tx, credential, &id),
                false => looked_at.put(tx),
            }
        };
        Ok(self.db.run(stored).await?)
    }
}

/// The name that a backup had before it began anew: what is listed under it was deleted, and is deleted once more if it comes
/// late.
pub(super) fn begun_anew(credential: Uuid, given_up: CloudsnapId) -> Doubt {
    Doubt { looked_at: true, ..doubt(credential, given_up) }
}
