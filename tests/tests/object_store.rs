//! The integration tests of the `object_store` library with our stores and real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_store::{
    AzureAccess, AzureOptions, BlobStore, GoogleAccess, GoogleOptions, HttpOptions, RetryPolicy, S3Access,
    S3Options, SwiftAccess, SwiftOptions, task_store,
    testing::{Has, object_store_suite},
};
use blockd_tests::{
    Bed,
    seaweed::{self, Seaweed},
    servers::{self, Server},
};
use std::sync::Arc;

fn run(store: impl BlobStore + 'static, has: Has) {
    // As tasks have it.
    let (store, requests) = task_store(Arc::new(store), RetryPolicy::default());
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
    let options = s3_options(&endpoint, seaweed::BUCKET, seaweed::ACCESS_KEY, seaweed::SECRET_KEY);
    run(options.open().unwrap(), Has { create_if_absent: true, parts: true });
}

fn s3_options(endpoint: &str, bucket: &str, access_key: &str, secret_key: &str) -> S3Options {
    S3Options {
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".into(),
        bucket: bucket.to_owned(),
        access: S3Access::Key {
            access_key: access_key.to_owned().into(),
            secret_key: secret_key.to_owned().into(),
        },
        role: None,
        disable_ssl: endpoint.starts_with("http://"),
        virtual_hosted_style: false,
        storage_class: None,
        http: HttpOptions::default(),
    }
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
    let options = s3_options(endpoint, bucket, access_key, secret_key);
    run(options.open().unwrap(), Has { create_if_absent: server.conditional_put, parts: true });
}

#[test]
fn azure() {
    if servers::is_switched_off("AZURE") {
        return;
    }
    let bed = Bed::new();
    let server = Server::azure(&bed.path("azurite"));
    let options = AzureOptions {
        account: servers::AZURE_ACCOUNT.into(),
        container: servers::BUCKET.into(),
        access: AzureAccess::AccountKey(servers::AZURE_KEY.to_owned().into()),
        endpoint: Some(server.value_of("--azure-endpoint").into()),
        disable_ssl: true,
        http: HttpOptions::default(),
    };
    run(options.open().unwrap(), Has { create_if_absent: server.conditional_put, parts: true });
}

#[test]
fn swift() {
    if servers::is_switched_off("SWIFT") {
        return;
    }
    let bed = Bed::new();
    let server = Server::swift(&bed.path("swift"));
    let options = SwiftOptions {
        container: servers::BUCKET.into(),
        access: SwiftAccess::V1 {
            auth_url: server.value_of("--swift-auth-url").into(),
            user: servers::SWIFT_USER.into(),
            key: servers::SWIFT_KEY.to_owned().into(),
        },
        http: HttpOptions::default(),
    };
    run(options.open().unwrap(), Has { create_if_absent: server.conditional_put, parts: true });
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
    let options = GoogleOptions {
        bucket: servers::BUCKET.into(),
        access: GoogleAccess::ServiceAccountKey(key.into()),
        endpoint: Some(server.value_of("--google-endpoint").into()),
        disable_ssl: true,
        http: HttpOptions::default(),
    };
    run(options.open().unwrap(), Has { create_if_absent: server.conditional_put, parts: false });
}
