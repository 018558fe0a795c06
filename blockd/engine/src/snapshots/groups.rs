//! Snapshots of consistency groups: selection of the members, and the reply.

use crate::{
    error::ServiceError,
    ids::random_id,
    quiesce::rules::QuiesceRequest,
    snapshots::{Snapshots, freeze::FreezeRequest, space_of, to_api},
    volumes::registry::VolumeEntry,
};
use blockd_api::{
    ErrorCode, SnapshotName,
    snapshots::{CreateGroupSnapshot, GroupSnapshot, MAX_GROUP_MEMBERS, SnapshotGroup},
};
use blockd_extent::SnapshotId;
use jiff::Timestamp;
use std::sync::Arc;
use uuid::Uuid;

impl Snapshots {
    /// Takes a snapshot of all selected volumes at one point in time, or of none.
    ///
    /// # Errors
    /// No volumes are selected, or too many; one of them cannot be used or has a snapshot of that name; or
    /// one freeze fails.
    pub async fn create_group_snapshot(
        &self,
        request: CreateGroupSnapshot,
    ) -> Result<GroupSnapshot, ServiceError> {
        let entries = self.members(&request)?;
        let asked = QuiesceRequest { hooks: request.hooks, scheduled: None };
        self.quiescer.check_hooks(&asked).await?;
        let quiesce_rules = self.quiescer.quiesce_for(&asked, &entries).await?;
        let name = request.name.unwrap_or_else(|| SnapshotName::from_time(Timestamp::now()));
        let group = SnapshotGroup {
            group_id: Uuid::new_v4(),
            group: request.group,
            members: entries.len() as u64,
            group_stall_micros: 0,
        };
        let mut members = Vec::with_capacity(entries.len());
        for entry in &entries {
            members.push((Arc::clone(entry), SnapshotId::from_u64(random_id()?)));
        }
        let wanted = FreezeRequest {
            members,
            name: name.clone(),
            internal: false,
            group: Some(group.clone()),
            quiesce_rules,
            schedule: None,
        };
        let rows = self.freeze_together(wanted).await?;
        for entry in &entries {
            self.drop_unneeded_intervals(entry).await;
        }
        // A row per member, and `members` returns at least one.
        let first = &rows[0];
        let (group, created_at) = (first.taken_with.clone().unwrap_or(group), first.created);
        tracing::info!(group = %group.group_id, %name, members = group.members, stall_micros = group.group_stall_micros, "group snapshot taken");
        let mut snapshots = Vec::with_capacity(rows.len());
        for (row, entry) in rows.iter().zip(&entries) {
            let space = space_of(entry).await?;
            snapshots.push(to_api(
                row,
                entry,
                space.iter().find(|space| space.id == row.id),
                &self.host.data_dir.nbd_socket(),
            ));
        }
        Ok(GroupSnapshot { group, name, created_at, list: snapshots.into() })
    }

    /// Returns the selected volumes, sorted by name and without duplicates.
    pub fn members(&self, request: &CreateGroupSnapshot) -> Result<Vec<Arc<VolumeEntry>>, ServiceError> {
        let invalid = |message: String| ServiceError::refused(ErrorCode::InvalidRequest, message);
        let mut members = match (&request.group, &request.label, request.volumes.as_slice()) {
            (Some(group), None, []) => {
                let members = self.select(|entry| entry.tags().group.as_ref() == Some(group));
                if members.is_empty() {
                    let message = format!("no volume is in group {group}");
                    return Err(ServiceError::refused(ErrorCode::VolumeNotFound, message));
                }
                members
            }
            (None, Some(label), []) => {
                if label.labels().is_empty() {
                    return Err(invalid("the labels are empty: name at least one key=value".into()));
                }
                let members = self.select(|entry| entry.tags().labels.matches(label));
                if members.is_empty() {
                    let message = format!("no volume has the labels {label}");
                    return Err(ServiceError::refused(ErrorCode::VolumeNotFound, message));
                }
                members
            }
            (None, None, volumes @ [_, ..]) => {
                volumes.iter().map(|wanted| self.registry.find(wanted)).collect::<Result<_, _>>()?
            }
            _ => {
                let message =
                    "the selection of volumes is ambiguous: give exactly one of group, label and volumes";
                return Err(invalid(message.into()));
            }
        };
        members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(invalid(format!("volume {} is named twice: name each volume once", pair[0].name)));
        }
        if members.len() > MAX_GROUP_MEMBERS {
            let message = format!(
                "{} volumes are too many: freeze at most {MAX_GROUP_MEMBERS} together",
                members.len()
            );
            return Err(invalid(message));
        }
        Ok(members)
    }

    fn select(&self, is_meant: impl Fn(&VolumeEntry) -> bool) -> Vec<Arc<VolumeEntry>> {
        self.registry.all().into_iter().filter(|entry| is_meant(entry)).collect()
    }
}
