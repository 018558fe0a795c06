use super::*;

fn config(json: &str) -> StoreConfig {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

fn access(json: &str) -> StoreAccess {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// Minimal valid configurations, each with a secret if it needs one.
const VALID: [&str; 9] = [
    r#"{"type":"local","path":"/srv"}"#,
    r#"{"type":"s3","endpoint":"h:1","region":"r","bucket":"b","accessKey":"a","secretKey":"planted"}"#,
    r#"{"type":"s3","endpoint":"h:1","region":"r","bucket":"b","useIam":true,"role":{"arn":"arn"}}"#,
    r#"{"type":"azure","account":"a","container":"c","auth":{"kind":"accountKey","key":"planted"}}"#,
    r#"{"type":"azure","account":"a","container":"c","auth":{"kind":"managedIdentity"},"endpoint":"h:1"}"#,
    r#"{"type":"google","project":"p","bucket":"b","jsonKey":"planted"}"#,
    r#"{"type":"swift","container":"c","auth":{"kind":"v1","authUrl":"u","user":"u"},"key":"planted"}"#,
    r#"{"type":"swift","container":"c","auth":{"kind":"v3","authUrl":"u","user":"u","userDomain":"d","project":"p",
        "projectDomain":"d"},"key":"planted"}"#,
    r#"{"type":"swift","container":"c","auth":{"kind":"token","storageUrl":"u"},"token":"planted"}"#,
];

#[test]
fn secret_value_is_apart_from_the_stored_configuration() {
    for json in VALID {
        let given = config(json);
        given.check().unwrap();
        assert!(!format!("{given:?}").contains("planted"), "{given:?}");
        let mut stored = given.clone();
        let secret = stored.take_secret_value();
        assert_eq!(secret.is_some(), json.contains("planted"), "{json}");
        let text = serde_json::to_string(&stored).unwrap();
        assert!(!text.contains("planted"), "{text}");
        assert_eq!(config(&text), stored);
        let view = serde_json::to_string(&StoreView::from(&given)).unwrap();
        assert!(!view.contains("planted") && view.contains(&format!(r#""provider":"{}""#, given.kind())));
        assert_eq!(stored.with_secret_value(secret.as_ref().map(Secret::expose)), given);
    }
}

#[test]
fn reference_stays_in_the_stored_configuration() {
    for json in VALID.iter().filter(|json| json.contains("planted")) {
        let mut stored = config(&json.replace(r#""planted""#, r#"{"from":"systemd:key"}"#));
        stored.check().unwrap();
        assert_eq!(stored.take_secret_value(), None);
        let view = StoreView::from(&config(&serde_json::to_string(&stored).unwrap()));
        assert_eq!(view.store_key_from, "systemd:key".parse().ok());
    }
}

#[test]
fn unknown_field_is_refused_by_name() {
    for json in VALID {
        let json = json.replacen('{', r#"{"unknown":1,"#, 1);
        let error = serde_json::from_str::<StoreConfig>(&json).unwrap_err().to_string();
        assert!(error.contains("`unknown`"), "{json}: {error}");
    }
    let error = serde_json::from_str::<StoreConfig>(r#"{"type":"tape"}"#).unwrap_err().to_string();
    assert!(error.contains("tape"), "{error}");
    for location in ["bucket", "endpoint", "path", "provider"] {
        let json = format!(r#"{{"type":"s3","{location}":"b"}}"#);
        let error = serde_json::from_str::<StoreAccess>(&json).unwrap_err().to_string();
        assert!(error.contains(location), "{error}");
    }
}

#[test]
fn missing_or_contradictory_setting_is_refused_by_its_name() {
    for (json, setting) in [
        (r#"{"type":"google","bucket":"b"}"#, "google-json-key"),
        (r#"{"type":"google","bucket":"b","jsonKey":" "}"#, "google-json-key"),
        (r#"{"type":"google","bucket":"b","jsonKey":"planted","useIam":true}"#, "google-json-key"),
        (r#"{"type":"google","bucket":" ","useIam":true}"#, "bucket"),
        (
            r#"{"type":"s3","endpoint":"h","region":"r","bucket":"b","useIam":true,"secretKey":"planted"}"#,
            "use-iam",
        ),
        (r#"{"type":"s3","endpoint":"h","region":"r","bucket":"b","accessKey":"a"}"#, "s3-secret-key"),
        (r#"{"type":"s3","endpoint":"h","region":"r","bucket":"b","secretKey":"planted"}"#, "s3-access-key"),
        (r#"{"type":"azure","account":"a","container":"c","auth":{"kind":"sas"}}"#, "azure-sas-token"),
        (
            r#"{"type":"swift","container":"c","auth":{"kind":"token","storageUrl":"u"},"token":"t","key":"planted"}"#,
            "swift-key",
        ),
    ] {
        let error = config(json).check().unwrap_err();
        assert!(error.settings.contains(&setting) && !error.message.contains("planted"), "{json}: {error:?}");
    }
}

#[test]
fn key_and_machine_identity_replace_each_other() {
    let mut s3 = config(VALID[1]);
    s3.take_secret_value();
    let shown = |config: &StoreConfig| match config {
        StoreConfig::S3(s3) => (s3.access.access_key.clone(), s3.access.use_iam),
        other => panic!("{other:?}"),
    };
    assert_eq!(s3.update(access(r#"{"type":"s3","useIam":true}"#)), Ok(SecretChange::Dropped));
    assert_eq!(shown(&s3), (None, true));
    for half in [r#"{"type":"s3","accessKey":"new"}"#, r#"{"type":"s3","secretKey":"planted"}"#] {
        let message = s3.clone().update(access(half)).unwrap_err().to_string();
        assert!(message.contains("must not be empty") && !message.contains("planted"), "{message}");
    }
    let new = access(r#"{"type":"s3","accessKey":"new","secretKey":"planted"}"#);
    assert_eq!(s3.update(new), Ok(SecretChange::Replaced));
    assert_eq!(s3.take_secret_value().unwrap().expose(), "planted");
    assert_eq!(shown(&s3), (Some("new".to_owned()), false));
    assert_eq!(s3.update(access(r#"{"type":"s3","accessKey":"id"}"#)), Ok(SecretChange::Stays));
    assert_eq!(shown(&s3), (Some("id".to_owned()), false));
    let both = access(r#"{"type":"s3","accessKey":"new","useIam":true}"#);
    assert_eq!(s3.update(both).unwrap_err().settings, ["use-iam", "s3-access-key"]);
}

#[test]
fn empty_setting_is_removed_by_an_update() {
    let mut s3 = config(VALID[2]);
    assert_eq!(s3.update(access(r#"{"type":"s3","storageClass":"COLD"}"#)), Ok(SecretChange::Stays));
    let set = |config: &StoreConfig| match config {
        StoreConfig::S3(s3) => (s3.access.role.is_some(), s3.access.storage_class.is_some()),
        other => panic!("{other:?}"),
    };
    assert_eq!(set(&s3), (true, true));
    s3.update(access(r#"{"type":"s3","storageClass":"","role":{"arn":""}}"#)).unwrap();
    assert_eq!(set(&s3), (false, false));
}

#[test]
fn update_with_settings_of_another_kind_is_refused() {
    for (kept, new, part) in [
        (VALID[0], r#"{"type":"s3","accessKey":"a","secretKey":"planted"}"#, "settings of s3"),
        (VALID[6], r#"{"type":"swift","token":"planted"}"#, "give its key"),
        (VALID[8], r#"{"type":"swift","key":"planted"}"#, "give another token"),
        (VALID[5], r#"{"type":"google"}"#, "a required setting is missing"),
    ] {
        let message = config(kept).update(access(new)).unwrap_err().to_string();
        assert!(message.contains(part) && !message.contains("planted"), "{message}");
    }
    let mut swift = config(VALID[6]);
    assert_eq!(swift.update(access(r#"{"type":"swift","key":"other"}"#)), Ok(SecretChange::Replaced));
}
