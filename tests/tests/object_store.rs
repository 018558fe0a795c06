//! The integration tests of the `object_store` library with our stores and real servers.

use crate::harness::{
    Bed,
    seaweed::{self, Seaweed},
    servers::{self, Server},
};
use blockd_store::{
    HttpOptions, RetryPolicy, open, task_store,
    testing::{Has, object_store_suite},
};
use serde_json::json;

/// Runs the tests with the store of a configuration.
fn run(config: serde_json::Value, has: Has) {
    let store = open(&serde_json::from_value(config).unwrap(), &HttpOptions::default(), None).unwrap();
    // As tasks have it.
    let (store, requests) = task_store(store, RetryPolicy::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(object_store_suite(store, has));
    eprintln!("{:?}", requests.snapshot());
}

#[test]
fn s3() {
    if seaweed::is_switched_off() {
        return;
    }
    let bed = Bed::new();
    let server = Seaweed::start(&bed.path("weed"));
    let endpoint = format!("http://{}", server.address());
    let config = s3_config(&endpoint, seaweed::BUCKET, seaweed::ACCESS_KEY, seaweed::SECRET_KEY);
    run(config, Has { create_if_absent: true, parts: true });
}

fn s3_config(endpoint: &str, bucket: &str, access_key: &str, secret_key: &str) -> serde_json::Value {
    json!({
        "type": "s3", "endpoint": endpoint, "region": "us-east-1", "bucket": bucket, "accessKey": access_key,
        "secretKey": secret_key, "disableSsl": endpoint.starts_with("http://")
    })
}

/// Optional: where there is a gateway.
#[test]
fn ceph() {
    if !servers::has_ceph() {
        return;
    }
    let bed = Bed::new();
    let server = Server::ceph(&bed.path("ceph"));
    let [endpoint, bucket, access_key, secret_key] =
        ["--s3-endpoint", "--bucket", "--s3-access-key", "--s3-secret-key"].map(|flag| server.value_of(flag));
    let config = s3_config(endpoint, bucket, access_key, secret_key);
    run(config, Has { create_if_absent: server.conditional_put, parts: true });
}

#[test]
fn azure() {
    if servers::is_switched_off("AZURE") {
        return;
    }
    let bed = Bed::new();
    let server = Server::azure(&bed.path("azurite"));
    let config = json!({
        "type": "azure", "account": servers::AZURE_ACCOUNT, "container": servers::BUCKET,
        "auth": { "kind": "accountKey", "key": servers::AZURE_KEY },
        "endpoint": server.value_of("--azure-endpoint"), "disableSsl": true
    });
    run(config, Has { create_if_absent: server.conditional_put, parts: true });
}

#[test]
fn swift() {
    if servers::is_switched_off("SWIFT") {
        return;
    }
    let bed = Bed::new();
    let server = Server::swift(&bed.path("swift"));
    let auth_url = server.value_of("--swift-auth-url");
    let config = json!({
        "type": "swift", "container": servers::BUCKET, "key": servers::SWIFT_KEY,
        "auth": { "kind": "v1", "authUrl": auth_url, "user": servers::SWIFT_USER }
    });
    run(config, Has { create_if_absent: server.conditional_put, parts: true });
}

/// fake-gcs-server behind a shim: an emulator, and not Google Cloud Storage. The shim translates no uploads
/// in parts.
#[test]
fn google_emulator() {
    if servers::is_switched_off("GOOGLE") {
        return;
    }
    let bed = Bed::new();
    let server = Server::google(&bed.path("google"));
    let key = std::fs::read_to_string(server.value_of("--google-json-key-file")).unwrap();
    let config = json!({
        "type": "google", "bucket": servers::BUCKET, "jsonKey": key,
        "endpoint": server.value_of("--google-endpoint"), "disableSsl": true
    });
    run(config, Has { create_if_absent: server.conditional_put, parts: false });
}
