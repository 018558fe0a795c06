//! Schemas of the documents of objects and of support bundles; the transcript checks each document.

use crate::support::{Fake, blockctl};
use serde_json::Value;

const DOCUMENTS: &str = r"
printf 'apiVersion: blockd/v1\nkind: Rule\nmetadata: {name: pg, color: red}\nspec: {preCommand: sync}\n' > rule.yaml
printf -- '---\napiVersion: blockd/v1\nkind: Rule\nmetadata: {name: new}\nspec: {preCommand: sync}\n' >> rule.yaml
blockctl -j diff -f rule.yaml
blockctl -j apply --dry-run -f rule.yaml
blockctl -j apply -f rule.yaml
blockctl -j delete --dry-run -f rule.yaml
blockctl -j get VolumeSnapshot
blockctl -j get all
blockctl -j describe VolumeRestore db
blockctl -j support-bundle --output - --log-lines 0
blockctl -j support-bundle --output bundle --log-lines 5
blockctl -j secrets kvdb login
";

#[test]
fn documents_of_objects_follow_their_schemas() {
    let text = Fake::with_defaults(Vec::new()).transcript(DOCUMENTS);
    for expected in [
        "\"changes\": [",
        "\"warnings\": [",
        "\"VolumeSnapshot\"",
        "\"blockctlVersion\"",
        "\"daemon\": true",
        "\"loginNeeded\": false",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    // Without a daemon, parts are missing.
    let text = Fake::start(Vec::new()).transcript("blockctl -j support-bundle --output - --log-lines 0");
    assert!(text.contains("the test has no answer to GET /v1/status"), "{text}");
}

#[test]
fn schemas_of_objects_have_fields_for_each_kind() {
    let schema = |command: &str| -> Value {
        serde_json::from_slice(&blockctl(&format!("schema {command}")).output().unwrap().stdout).unwrap()
    };
    let get = schema("get");
    let object = &get["$defs"]["ObjectDocument"];
    let kinds = object["oneOf"].as_array().unwrap();
    assert_eq!(kinds.len(), 9, "{object:#}");
    for kind in kinds {
        let content =
            ["location", "policy", "spec"].into_iter().find(|name| kind["properties"].get(name).is_some());
        assert!(content.is_some() && kind["properties"].get("status").is_some(), "{kind:#}");
    }
    let text = schema("get").to_string();
    for field in ["accessKeyID", "intervalMinutes", "preExecRule", "schedulePolicyName", "destinationVolume"]
    {
        assert!(text.contains(&format!("\"{field}\"")), "{field}");
    }
    assert!(schema("support-bundle").to_string().contains("\"host\""));
    assert!(schema("diff").to_string().contains("\"should\""));
}
