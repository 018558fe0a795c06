//! Tests of this module.

use super::*;

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
