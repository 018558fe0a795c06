//! Tests of this module.

use super::*;
use crate::tasks::BackupType;

/// Serde documents no unknown-field check beside flattened fields; the requests rely on it.
#[test]
fn request_with_flattened_options_refuses_unknown_fields() {
    let request: StartBackup = serde_json::from_str(r#"{"volume":"v","full":true,"noRule":true}"#).unwrap();
    assert!(request.options.full && request.hooks.no_rule);
    assert_eq!(
        serde_json::from_value::<StartBackup>(serde_json::to_value(&request).unwrap()).unwrap(),
        request
    );
    for unknown in [r#"{"volume":"v","ful":true}"#, r#"{"volume":"v","quiesce":{"x":1}}"#] {
        let error = serde_json::from_str::<StartBackup>(unknown).unwrap_err().to_string();
        assert!(error.contains("unknown field"), "{error}");
    }
}

#[test]
fn ids_round_trip() {
    for text in [
        "2e4d4b67-95d7-481e-aec5-14223ac55170/590114184663672482-619248560586769719",
        "2e4d4b67-95d7-481e-aec5-14223ac55170/590114184663672482-951325819047337066-incr",
    ] {
        assert_eq!(text.parse::<CloudSnapshotId>().unwrap().to_string(), text);
    }
    for bad in [
        "",
        "2e4d4b67-95d7-481e-aec5-14223ac55170",
        "2e4d4b67-95d7-481e-aec5-14223ac55170/1",
        "2e4d4b67-95d7-481e-aec5-14223ac55170/1-2-3",
        "2e4d4b67-95d7-481e-aec5-14223ac55170/01-2",
        "2e4d4b6795d7481eaec514223ac55170/1-2",
        "2E4D4B67-95D7-481E-AEC5-14223AC55170/1-2",
        "2e4d4b67-95d7-481e-aec5-14223ac55170/1-2-incr-incr",
        "../1-2",
    ] {
        assert!(bad.parse::<CloudSnapshotId>().is_err(), "{bad:?} was taken");
    }
}

fn entry() -> Cloudsnap {
    let id: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr".parse().unwrap();
    Cloudsnap {
        id,
        src_volume_id: id.volume,
        src_volume_name: "vol".into(),
        timestamp: "2019-10-24T19:02:08Z".parse().unwrap(),
        metadata: CloudsnapMetadata {
            cloudsnap_type: "Manual".into(),
            compression: "lz4".into(),
            size_bytes: 2_152_751_104,
            starttime: "Thu, 24 Oct 2019 19:02:08 UTC".into(),
            status: CloudsnapStatus::Done,
            updatetime: "Thu, 24 Oct 2019 19:06:12 UTC".into(),
            version: "V1.00".into(),
            volume: volume_spec_json(1 << 30, &"a=b".parse().unwrap()),
            volumename: "vol".into(),
            backup_type: BackupType::Incremental,
            credential: Uuid::nil(),
            credential_name: "nas".into(),
            encrypted: true,
            stored_bytes: 7,
            dirty_bytes: 8,
            freeze_stall_micros: 9,
            snapshot_name: None,
            pinned: None,
            expires: None,
            verified: None,
            verify_depth: None,
            verify_result: None,
        },
        status: CloudsnapStatus::Done,
    }
}

#[test]
fn list_entry_has_documented_fields() {
    let json = serde_json::to_value(entry()).unwrap();
    for key in ["ID", "SrcVolumeID", "SrcVolumeName", "Timestamp", "Metadata", "Status"] {
        assert!(json.get(key).is_some(), "{key} is missing in {json}");
    }
    assert_eq!(json["Timestamp"], "2019-10-24T19:02:08Z");
    assert_eq!(json["SrcVolumeID"], "59");
    let metadata = json["Metadata"].as_object().unwrap();
    assert!(metadata.values().all(serde_json::Value::is_string), "{metadata:?}");
    assert_eq!(metadata["sizeBytes"], "2152751104");
    let spec: serde_json::Value = serde_json::from_str(metadata["volume"].as_str().unwrap()).unwrap();
    assert_eq!(spec["DevSpec"]["size"], 1 << 30);
    assert_eq!(spec["DevSpec"]["block_size"], 4096);
    assert_eq!(spec["DevSpec"]["volume_labels"]["a"], "b");
    assert_eq!(serde_json::from_value::<Cloudsnap>(json).unwrap(), entry());
}

#[test]
fn detail_extends_list_entry() {
    let detail = ManifestDetail {
        volume_size_bytes: 1 << 30,
        labels: Labels::default(),
        snapshot_name: "s".into(),
        packs: 1,
        data_blocks: 2,
        zero_blocks: 3,
        chain: vec![entry().id],
        chain_stored_bytes: 4,
    };
    let detail = CloudsnapDetail { entry: entry(), detail };
    let json = serde_json::to_value(&detail).unwrap();
    assert_eq!((&json["Status"], &json["Detail"]["packs"]), (&"Done".into(), &1.into()));
    assert_eq!(serde_json::from_value::<CloudsnapDetail>(json).unwrap(), detail);
}
