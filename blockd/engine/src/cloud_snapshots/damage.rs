//! Damaged cloud snapshots in the status, and their remedies.

use super::CloudSnapshots;
use crate::{error::ServiceError, proofs};
use blockd_api::{
    CredentialRef, ErrorCode, VolumeName,
    cloudsnaps::Cloudsnap,
    status,
    tasks::{TaskKind, TaskStage},
};
use blockd_catalog::{CredentialRow, DbError, DbManifestCache, KnownDamage, LaterBackup, TaskRow};
use blockd_cloud::CloudSnapshotId;
use jiff::Timestamp;

impl CloudSnapshots {
    /// Returns the damaged cloud snapshots of all locations, by location. No store is asked.
    ///
    /// # Errors
    /// The database fails.
    pub async fn known_damage(&self) -> Result<Vec<status::KnownDamage>, ServiceError> {
        let now = Timestamp::now();
        let rows = self.db.run(move |tx| -> Result<_, DbError> {
            let known = KnownDamage::all(tx, now)?;
            let tasks = if known.is_empty() { Vec::new() } else { TaskRow::all(tx)? };
            Ok((known, CredentialRow::all(tx)?, tasks))
        });
        let (known, credentials, tasks) = rows.await?;
        let own = self.host.cluster;
        let shown = known.into_iter().filter_map(|damage| {
            let credential = credentials.iter().find(|row| row.uuid == damage.credential)?;
            let volume = self.registry.source_name(&damage.cloudsnap, own);
            let id = damage.cloudsnap.to_string();
            let has_failed = |task: &TaskRow| {
                // A repair includes the later ones that need the same blocks.
                let left = task.detail.findings.as_ref().map(|found| &found.damaged_snapshots);
                task.kind() == TaskKind::Repair
                    && task.state == TaskStage::Failed
                    && (task.cloudsnap == damage.cloudsnap || left.is_some_and(|left| left.contains(&id)))
            };
            let is_repairable = damage.cloudsnap.cluster == own && !tasks.iter().any(has_failed);
            let action = match damage.repaired {
                None if is_repairable => {
                    format!("blockctl cloudsnap repair {} --cred-id {}", damage.cloudsnap, credential.name)
                }
                _ => remedy(
                    &damage,
                    damage.cloudsnap.cluster == own,
                    volume.as_ref(),
                    credential.name.as_str(),
                ),
            };
            let proof = proofs::shown(damage.proof, &self.host);
            Some(status::KnownDamage {
                cloud_snapshot_id: damage.cloudsnap,
                volume_name: volume.map(|name| name.to_string()).or(damage.volume_name),
                credential_id: credential.uuid,
                credential_name: credential.name.to_string(),
                found_at: proof.proven_at,
                kind: proof.kind,
                host: proof.host,
                action,
            })
        });
        let mut shown: Vec<_> = shown.collect();
        shown.sort_by(|a, b| {
            (&a.credential_name, a.cloud_snapshot_id).cmp(&(&b.credential_name, b.cloud_snapshot_id))
        });
        Ok(shown)
    }

    /// Returns the next action for a damaged cloud snapshot. The damage is known once for all credentials of
    /// its location.
    ///
    /// # Errors
    /// The database fails.
    pub(super) async fn action_for(&self, entry: &Cloudsnap) -> Result<Option<String>, ServiceError> {
        for damage in self.known_damage().await? {
            if damage.cloud_snapshot_id != entry.cloud_snapshot_id {
                continue;
            }
            let by = CredentialRef::Id(damage.credential_id);
            let is_its = damage.credential_id == entry.credential_id
                || match self.repositories.credential(Some(&by)).await {
                    Ok(row) => self.repositories.location_id(&row).await == Some(entry.location()),
                    Err(_) => false,
                };
            if is_its {
                return Ok(Some(damage.action));
            }
        }
        Ok(None)
    }

    /// Names the repaired cloud snapshot that replaced a missing one, as far as manifests are cached.
    pub(super) async fn with_replacement(&self, error: ServiceError, id: CloudSnapshotId) -> ServiceError {
        let mut shown = error.to_api();
        if shown.code != ErrorCode::CloudsnapNotFound {
            return error;
        }
        let found = self.db.run(move |tx| DbManifestCache::repaired(tx, &id)).await;
        let Ok(Some(repaired)) = found else { return error };
        shown.hint = Some(format!(
            "it was damaged, and {repaired} of the same point in time replaced it: `blockctl cloudsnap inspect {repaired}`"
        ));
        ServiceError::Refused(shown)
    }
}

/// Returns the next action for a damaged cloud snapshot, of a volume of this host if it is named. It is
/// deleted only behind a repaired or later one whose content was read: until then it may be the only copy.
/// Each command names the location, as others may have a cloud snapshot of the same id.
fn remedy(damage: &KnownDamage, is_own: bool, volume: Option<&VolumeName>, location: &str) -> String {
    let (id, force) = (damage.cloudsnap, if is_own { "" } else { " --force" });
    let action = match (damage.repaired.or(damage.later), volume) {
        (Some(LaterBackup { is_read: true, .. }), _) => {
            format!("blockctl cloudsnap delete {id} --cred-id {location}{force}")
        }
        (Some(later), _) => format!("blockctl cloudsnap verify {} --cred-id {location}", later.cloudsnap),
        (None, Some(volume)) => format!("blockctl cloudsnap backup {volume} --full --cred-id {location}"),
        (None, None) if is_own => {
            format!("blockctl cloudsnap restore {id} --cred-id {location} --skip-damaged --volume NEW")
        }
        (None, None) => "back up its volume again there, and verify that backup".to_owned(),
    };
    // Its own host has the sources of a repair.
    match is_own || damage.repaired.is_some() {
        true => action,
        false => {
            format!("blockctl cloudsnap repair {id} on its own host ({}); if it cannot: {action}", id.cluster)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_catalog::LastProof;
    use blockd_cloud::VerifyDepth;

    #[test]
    fn remedy_of_damage_keeps_the_only_copy() {
        let snap = |rest: &str| -> CloudSnapshotId {
            format!("2e4d4b67-95d7-481e-aec5-14223ac55170/{rest}").parse().unwrap()
        };
        let (id, later) = (snap("59-61"), snap("59-62"));
        let name: VolumeName = "db".parse().unwrap();
        let action = |later: Option<bool>, is_own, volume| {
            let damage = KnownDamage {
                credential: uuid::Uuid::nil(),
                cloudsnap: id,
                proof: LastProof {
                    proven: Timestamp::UNIX_EPOCH,
                    kind: VerifyDepth::Full,
                    sound: false,
                    host: None,
                    version: String::new(),
                },
                volume_name: None,
                later: later.map(|is_read| LaterBackup { cloudsnap: snap("59-62"), is_read }),
                repaired: None,
            };
            remedy(&damage, is_own, volume, "nas")
        };
        let delete = format!("blockctl cloudsnap delete {id} --cred-id nas");
        let verify = format!("blockctl cloudsnap verify {later} --cred-id nas");
        let restore = format!("blockctl cloudsnap restore {id} --cred-id nas --skip-damaged --volume NEW");
        for (later, volume, expected) in [
            (None, Some(&name), "blockctl cloudsnap backup db --full --cred-id nas"),
            (Some(false), Some(&name), &verify),
            (Some(true), Some(&name), &delete),
            (None, None, &restore),
            (Some(false), None, &verify),
            (Some(true), None, &delete),
        ] {
            assert_eq!(action(later, true, volume), expected, "{later:?} {volume:?}");
        }
        assert!(action(None, false, None).contains("on its own host"));
        let repair = format!("blockctl cloudsnap repair {id} on its own host ({})", id.cluster);
        assert_eq!(action(Some(true), false, None), format!("{repair}; if it cannot: {delete} --force"));
    }
}
