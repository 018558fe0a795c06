//! Status and events of the daemon.

use super::{
    replies::Failure,
    routes::{OperationCall, Routes},
};
use axum::{http::header::CONTENT_TYPE, response::IntoResponse};
use blockd_api::{
    anomalies::ListAnomalies,
    operations,
    status::{Counts, DaemonRights, Status},
};
use blockd_catalog::{CredentialRow, DbError, SnapshotRow};
use rustix::thread::CapabilitySet;
use std::{fs::OpenOptions, sync::LazyLock};

static OPENAPI: LazyLock<String> = LazyLock::new(blockd_api::openapi::document_text);

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::GET_STATUS, show)
        .raw(operations::GET_OPENAPI, openapi)
        .on(operations::GET_ACTIVITY, async |call| call.engine.monitor.activity().await)
        .on(operations::LIST_ANOMALIES, async |call| call.engine.anomalies.list_anomalies(call.input).await)
        .on(operations::ACKNOWLEDGE_ANOMALY, async |call| {
            call.engine.anomalies.acknowledge(call.path, call.input).await
        })
        .on(operations::LIST_EVENTS, async |call| call.engine.events.list_events(&call.input).await)
}

/// Returns the OpenAPI document.
async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], OPENAPI.as_str())
}

async fn show(OperationCall { engine, served, .. }: OperationCall<(), ()>) -> Result<Status, Failure> {
    let data_space = engine.free_space.check_free_space().await;
    let hooks = engine.webhook_delivery.webhooks.clone();
    let rows = engine.db.run(move |tx| -> Result<_, DbError> {
        let told = hooks.iter().map(|hook| hook.status(tx)).collect::<Result<Vec<_>, _>>()?;
        Ok((SnapshotRow::all(tx, None)?, CredentialRow::all(tx)?, told))
    });
    let (snapshots, credentials, webhooks) = rows.await?;
    let locations = engine.cloud_snapshots.location_space().await?;
    let anomalies = engine.anomalies.list_anomalies(ListAnomalies::default()).await?.items;
    let damaged_cloudsnaps = engine.cloud_snapshots.known_damage().await?;
    // As the volumes show it, before the first pass of the maintenance.
    engine.scrubs.report_damage();
    let volumes: Vec<_> = engine.registry.all().iter().map(|entry| entry.view()).collect();
    let failed = volumes.iter().filter(|view| view.failure().is_some());
    let mut nbd = vec![blockd_api::nbd_unix_uri("", &engine.host.data_dir.nbd_socket())];
    nbd.extend(served.nbd_tcp.iter().map(|address| blockd_api::nbd_tcp_uri("", &address.to_string())));
    nbd.extend(served.nbd_unix.iter().map(|path| blockd_api::nbd_unix_uri("", path)));
    let counts = Counts {
        volumes: volumes.len() as u64,
        volumes_failed: failed.count() as u64,
        snapshots: snapshots.iter().filter(|row| !row.internal).count() as u64,
        credentials: credentials.len() as u64,
        tasks_active: engine.tasks.running().len() as u64,
        connections: volumes.iter().map(|view| view.connections).sum(),
    };
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        cluster_id: engine.host.cluster,
        node: engine.host.node.clone(),
        data_dir: engine.host.data_dir.to_path_buf(),
        nbd,
        control: served.control_tcp.get().map(ToString::to_string),
        uptime_seconds: engine.host.started.elapsed().as_secs(),
        rights: rights(),
        counts,
        webhooks,
        reload_failure: served.reload_failure.lock().clone(),
        data_space,
        locations,
        damaged_cloudsnaps,
        anomalies,
        verification: engine.maintenance.verification_plan(),
        problems: engine.health.problems(),
    })
}

/// Returns the rights of this process.
fn rights() -> DaemonRights {
    let effective = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    DaemonRights {
        kernel_devices: effective.contains(CapabilitySet::SYS_ADMIN),
        fuse_mounts: OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok(),
        io_priority: effective.contains(CapabilitySet::SYS_RESOURCE),
    }
}
