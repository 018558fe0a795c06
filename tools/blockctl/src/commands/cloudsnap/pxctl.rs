//! Document of `pxctl -j cloudsnap list --cloudsnap-id ID`, for its scripts.
//!
//! Everything in `Metadata` is text, and times in it are in the form of [`format_time`].

use blockd_api::{
    VolumeId,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, CloudsnapList, CloudsnapStatus, DamagedCloudsnap},
    format_time,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Cloud snapshot in the form of pxctl.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
pub struct PxctlCloudsnap {
    /// Id.
    #[serde(rename = "ID")]
    id: String,
    /// Id of the source volume.
    #[serde(rename = "SrcVolumeID")]
    src_volume_id: String,
    /// Name of the source volume.
    src_volume_name: String,
    /// Point in time; `null` for an unreadable one.
    timestamp: Option<String>,
    /// Further properties.
    metadata: Map<String, Value>,
    /// State.
    status: CloudsnapStatus,
}

/// Returns all entries, damaged ones in the same form.
pub fn entries(list: &CloudsnapList) -> Vec<PxctlCloudsnap> {
    let damaged = list.damaged.iter().map(|damaged| PxctlCloudsnap {
        id: damaged.cloud_snapshot_id.clone(),
        src_volume_id: volume_id(damaged).map(|id| id.to_string()).unwrap_or_default(),
        src_volume_name: String::new(),
        timestamp: None,
        metadata: fields([
            ("status", damaged.status.to_string()),
            ("reason", damaged.reason.clone()),
            ("credential", damaged.credential_id.to_string()),
        ]),
        status: damaged.status,
    });
    list.list.items.iter().map(entry).chain(damaged).collect()
}

/// Returns the volume id of a damaged entry, if its name is complete.
pub fn volume_id(damaged: &DamagedCloudsnap) -> Option<VolumeId> {
    damaged.cloud_snapshot_id.parse::<CloudSnapshotId>().ok().map(|id| id.volume)
}

fn fields<const N: usize>(fields: [(&str, String); N]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

fn entry(one: &Cloudsnap) -> PxctlCloudsnap {
    let mut metadata = fields([
        ("cloudsnapType", one.trigger.clone()),
        ("compression", one.compression.mode.map_or_else(String::new, |mode| mode.to_string())),
        ("sizeBytes", one.size_bytes.to_string()),
        ("starttime", format_time(one.started_at)),
        ("status", one.status.to_string()),
        ("updatetime", format_time(one.completed_at.unwrap_or(one.started_at))),
        ("version", format!("V{}.00", one.format_version)),
        ("volume", volume_spec(one)),
        ("volumename", one.volume_name.clone()),
        ("backupType", one.backup_type.to_string()),
        ("credential", one.credential_id.to_string()),
        ("credentialName", one.credential_name.clone()),
        ("encrypted", one.encrypted.to_string()),
        ("storedBytes", one.stored_bytes.to_string()),
        ("dirtyBytes", one.dirty_bytes.to_string()),
        ("freezeStallMicros", one.freeze_stall_micros.to_string()),
    ]);
    let mut add = |name: &str, value: Option<String>| {
        metadata.extend(value.map(|value| (name.to_owned(), Value::from(value))));
    };
    add("snapshotName", one.name.clone());
    add("pinned", one.pinned.then(|| "true".to_owned()));
    add("expires", one.expires_at.map(format_time));
    if let Some(last) = &one.last_proof {
        add("lastProof", Some(format_time(last.proven_at)));
        add("lastProofKind", Some(last.kind.to_string()));
        add("lastProofResult", Some(if last.sound { "Sound" } else { "Damaged" }.to_owned()));
        add("lastProofHost", Some(last.host.clone()));
    }
    PxctlCloudsnap {
        id: one.cloud_snapshot_id.to_string(),
        src_volume_id: one.volume_id.to_string(),
        src_volume_name: one.volume_name.clone(),
        timestamp: Some(one.created_at.to_string()),
        metadata,
        status: one.status,
    }
}

/// Returns the description of the volume, JSON as text.
fn volume_spec(one: &Cloudsnap) -> String {
    const BLOCK_SIZE_BYTES: u64 = 4096;
    let spec = json!({
        "size": one.volume_size_bytes, "block_size": BLOCK_SIZE_BYTES, "volume_labels": one.labels
    });
    json!({ "DevSpec": spec }).to_string()
}
