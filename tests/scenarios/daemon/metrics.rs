//! Tests of the metrics of a running daemon.

use super::{
    exposition::{self, Family},
    *,
};
use blockd_api::{
    cloudsnaps::VerifyDepth,
    quiesce::{HookOptions, OnFailure, Quiesce},
};
use blockd_nbd::ExportCatalog;
use blockd_views::exports::Exports;
use std::collections::{BTreeMap, BTreeSet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Families = BTreeMap<String, Family>;

/// Sends an HTTP/1.1 request; returns head and body of the response.
async fn get<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

impl Host {
    async fn get_locally(&self, path: &str) -> (String, String) {
        let socket = self.engine().host.data_dir.control_socket();
        get(tokio::net::UnixStream::connect(socket).await.unwrap(), path).await
    }

    async fn families(&self) -> Families {
        let (head, body) = self.get_locally("/metrics").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        exposition::parse(&body).unwrap_or_else(|error| panic!("{error}\n{body}"))
    }
}

/// Returns the value of the only sample with this name and these labels.
fn value(families: &Families, family: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let matches = |sample: &&exposition::Sample| {
        sample.name == name
            && labels.iter().all(|(key, text)| sample.labels.get(*key).is_some_and(|found| found == text))
    };
    let mut found = families[family].samples.iter().filter(matches);
    let sample = found.next().unwrap_or_else(|| panic!("no {name} {labels:?}"));
    assert!(found.next().is_none(), "several {name} {labels:?}");
    sample.value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_the_requests_served() {
    let mut host = Host::new().await;
    host.families().await;
    host.create_credential().await;
    let volume = host.create_volume("v").await;
    let before = host.families().await;
    assert!(!before.contains_key("blockd_backup_last_point_timestamp_seconds"), "no backup exists");

    let exports = Exports::new(Arc::clone(&host.engine().registry));
    let device = exports.open("v", &blockd_nbd::Client::default()).unwrap();
    device.write(0, &[7; 8192], false).unwrap();
    device.write(1 << 20, &[7; 4096], true).unwrap();
    device.read(0, &mut [0; 4096]).unwrap();
    device.flush().unwrap();
    device.write(1 << 40, &[7; 4096], false).unwrap_err();
    let now = host.families().await;
    let failed = "blockd_volume_request_errors_total";
    for (errno, count) in [("EINVAL", 1.0), ("EIO", 0.0)] {
        let labels = [("volume", "v"), ("operation", "write"), ("errno", errno)];
        assert_eq!(value(&now, failed, failed, &labels), count, "{errno}");
    }
    for (operation, count) in [("read", 1.0), ("write", 3.0), ("flush", 1.0), ("discard", 0.0)] {
        let (family, labels) =
            ("blockd_volume_request_duration_seconds", [("volume", "v"), ("operation", operation)]);
        assert_eq!(value(&now, family, &format!("{family}_count"), &labels), count, "{operation}");
        let took = value(&now, family, &format!("{family}_sum"), &labels);
        assert_eq!(took > 0.0, count > 0.0, "{operation} took {took}");
    }
    let of_volume = |families: &Families, name: &str| value(families, name, name, &[("volume", "v")]);
    assert_eq!(of_volume(&now, "blockd_volume_written_bytes_total"), 12_288.0);
    assert_eq!(of_volume(&now, "blockd_volume_dirty_bytes"), 12_288.0);
    assert_eq!(of_volume(&now, "blockd_volume_connections"), 1.0);
    assert_eq!(of_volume(&now, "blockd_volume_up"), 1.0);
    drop((device, volume));

    host.backup("v", false).await;
    let now = host.families().await;
    assert_eq!(of_volume(&now, "blockd_volume_dirty_bytes"), 0.0);
    let point = "blockd_backup_last_point_timestamp_seconds";
    let age = jiff::Timestamp::now().as_second() as f64
        - value(&now, point, point, &[("volume", "v"), ("credential", "nas")]);
    assert!((0.0..600.0).contains(&age), "the backup is {age} s old");
    let (family, labels) =
        ("blockd_store_request_duration_seconds", [("credential", "nas"), ("request", "put")]);
    assert!(value(&now, family, &format!("{family}_count"), &labels) >= 2.0);
    let sent = "blockd_store_sent_bytes_total";
    assert!(value(&now, sent, sent, &[("credential", "nas")]) > 0.0);
    let tasks = "blockd_tasks";
    assert_eq!(value(&now, tasks, tasks, &[("kind", "backup"), ("state", "done")]), 1.0);
    for path in ["/healthz", "/readyz"] {
        assert!(host.get_locally(path).await.0.starts_with("HTTP/1.1 200"), "{path}");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_failures_are_counted() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    Model::new().write(&host.volume("v"), 0, 1, 4096);
    let away = host.hide_store();
    assert!(host.client.call_at(VALIDATE_CREDENTIAL, &"nas".parse().unwrap(), &()).await.is_err());
    let errors = "blockd_store_request_errors_total";
    let failed =
        |families: &Families| -> f64 { families[errors].samples.iter().map(|sample| sample.value).sum() };
    assert!(failed(&host.families().await) >= 1.0);
    host.show_store(&away);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiesce_failures_are_counted_by_phase() {
    let mut host = Host::new().await;
    host.create_volume("v").await;
    let failures = "blockd_rule_failures_total";
    let count = |now: &Families, phase: &str| value(now, failures, failures, &[("phase", phase)]);
    let before = host.families().await;
    assert_eq!(before[failures].samples.len(), 4);
    assert_eq!(["pre", "freeze", "thaw", "post"].map(|phase| count(&before, phase)), [0.0; 4]);
    let with_hooks = |quiesce| CreateSnapshot {
        hooks: HookOptions { quiesce, ..Default::default() },
        ..CreateSnapshot::default()
    };
    let commands = Quiesce {
        pre_command: Some("exit 3".into()),
        post_command: Some("exit 4".into()),
        on_failure: OnFailure::Continue,
        ..Quiesce::default()
    };
    let volume = "v".parse().unwrap();
    host.call_at(CREATE_SNAPSHOT, &volume, &with_hooks(commands)).await;
    // No filesystem of the volume is mounted.
    let freeze = Quiesce { freeze_fs: true, ..Quiesce::default() };
    assert!(host.client.call_at(CREATE_SNAPSHOT, &volume, &with_hooks(freeze)).await.is_err());
    let now = host.families().await;
    assert_eq!(["pre", "freeze", "thaw", "post"].map(|phase| count(&now, phase)), [1.0, 1.0, 0.0, 1.0]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_listener_serves_metrics_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.metrics.listen = Some("127.0.0.1:0".parse().unwrap());
    let daemon = Daemon::start(config, false).await.unwrap();
    let address = daemon.metrics_address().unwrap();
    for (path, status) in
        [("/metrics", "200"), ("/readyz", "200"), ("/healthz", "200"), ("/v1/status", "404")]
    {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (head, body) = get(stream, path).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {head}");
        assert_eq!(body.contains("blockd_build_info"), path == "/metrics");
    }
    // A connected client does not delay the stop.
    let idle = tokio::net::TcpStream::connect(address).await.unwrap();
    daemon.stop().await.unwrap();
    drop(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_and_dashboard_use_existing_metrics() {
    let mut host = Host::new().await;
    host.stop().await;
    host.webhooks = vec![super::webhooks::hook("http://127.0.0.1:9/")];
    host.start().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let snap = host.backup("v", false).await.cloud_snapshot_id.unwrap();
    assert_eq!(host.verify(&StartVerify::default()).await.state.stage, TaskStage::Done);
    host.done(host.call(START_DRILL, &drills::drill_of(&snap)).await.task_id).await;
    host.schedule(1).await;
    let families = host.families().await;
    let files = [
        include_str!("../../../monitoring/blockd.rules.yml"),
        include_str!("../../../monitoring/grafana-dashboard.json"),
    ];
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut named = BTreeSet::new();
    for word in files.iter().flat_map(|text| text.split(|c| !is_part(c))) {
        if !word.starts_with("blockd_") && !word.starts_with("process_") {
            continue;
        }
        let parts = ["_bucket", "_count", "_sum"].into_iter().filter_map(|part| word.strip_suffix(part));
        let family = parts.chain([word]).find(|name| families.contains_key(*name));
        named.insert(family.unwrap_or_else(|| panic!("unknown metric {word}")));
    }
    assert!(named.len() > 10, "{named:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quick_and_failed_verifications_are_no_proof() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.create_volume("v").await;
    Model::new().write(&volume, 0, 1, 1 << 20);
    host.backup("v", false).await;
    let steps = [
        (VerifyDepth::Quick, TaskStage::Done, false),
        (VerifyDepth::Full, TaskStage::Done, true),
        (VerifyDepth::Quick, TaskStage::Done, true),
        (VerifyDepth::Deep, TaskStage::Failed, false),
    ];
    for (depth, stage, is_proven) in steps {
        if stage == TaskStage::Failed {
            fs::remove_file(host.packs().remove(0)).unwrap();
        }
        assert_eq!(host.verify(&StartVerify { depth, ..StartVerify::default() }).await.state.stage, stage);
        let families = host.families().await;
        let ages = families.get("blockd_last_proof_age_seconds").map(|family| &family.samples[..]);
        let kinds = ages.unwrap_or_default().iter().map(|sample| sample.labels["kind"].as_str());
        assert_eq!(kinds.clone().any(|kind| kind != "quick"), is_proven, "{depth:?}");
        assert_eq!(kinds.count() > 0, stage == TaskStage::Done, "{depth:?}");
        let volumes = host.call(LIST_VOLUMES, &ListVolumes::default()).await.items;
        let last = volumes[0].last_backups.first();
        assert_eq!(last.is_some_and(|last| last.last_proof.is_some()), is_proven, "{depth:?}");
        // A damaged backup protects nothing.
        assert_eq!(last.is_some(), stage == TaskStage::Done, "{depth:?}");
    }
    host.stop().await;
}
