//! Current activity of volumes and tasks.

mod drills;
pub mod metrics;
mod scrubs;

use crate::{
    error::{ServiceError, blocking},
    events::webhooks::WebhookDelivery,
    free_space::FreeSpace,
    health::ComponentHealth,
    host::Host,
    metrics::{Meters, Operation},
    readers::SnapshotReaders,
    repositories::Repositories,
    schedules::requests::Schedules,
    scrub::task::ScrubWork,
    tasks::Tasks,
    volumes::{
        Volumes,
        registry::{Registry, VolumeEntry},
    },
};
use blockd_api::activity::{Activity, OperationActivity, VolumeActivity};
use blockd_catalog::Db;
use blockd_quiesce::Admission as QuiesceAdmission;
use blockd_volume::Volume;
use std::{sync::Arc, time::Duration};

/// Activity and metrics of the daemon.
pub struct Monitor {
    pub(crate) readers: Arc<dyn SnapshotReaders>,
    pub(crate) db: Arc<Db>,
    pub(crate) free_space: Arc<FreeSpace>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) quiescing: Arc<QuiesceAdmission>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) schedules: Arc<Schedules>,
    pub(crate) scrub_work: Arc<ScrubWork>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) webhook_delivery: Arc<WebhookDelivery>,
}

impl Monitor {
    /// Returns activity counters; clients compute rates from two samples.
    ///
    /// # Errors
    /// The daemon is stopping.
    pub async fn activity(&self) -> Result<Activity, ServiceError> {
        let entries = self.registry.all();
        // Taken together with the counters, so that rates are exact for any response delay.
        let (started, run) = (self.host.started, self.host.run);
        let seen = move || {
            let at_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            Ok::<_, ServiceError>((at_micros, entries.iter().map(of_volume).collect::<Vec<_>>()))
        };
        // Sizes are read from the filesystem.
        let (at_micros, mut volumes) = blocking(seen).await?;
        volumes.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        let mut tasks = self.tasks.running();
        tasks.sort_by_key(|task| std::cmp::Reverse((task.created, task.id)));
        Ok(Activity {
            daemon_run_id: run,
            monotonic_micros: at_micros,
            volumes,
            tasks: tasks.iter().map(|row| self.tasks.task_to_api(row)).collect(),
        })
    }
}

fn of_volume(entry: &Arc<VolumeEntry>) -> VolumeActivity {
    let stats = entry.known(Volume::stats, |content| content.stats);
    let view = entry.view();
    let number = |value: fn(&blockd_volume::VolumeStats) -> u64| stats.as_ref().map_or(0, value);
    let requests = |operation| {
        let counted = entry.traffic.counted(operation);
        OperationActivity {
            requests: counted.total(),
            latency_micros: counted.nanos() / 1_000,
            in_flight: entry.traffic.in_flight(operation),
        }
    };
    VolumeActivity {
        volume_id: entry.id,
        name: entry.name.clone(),
        up: view.is_up(),
        connections: view.connections,
        dirty_bytes: number(|stats| stats.head_dirty_bytes),
        read_bytes: number(|stats| stats.bytes_read),
        written_bytes: number(|stats| stats.bytes_written),
        read: requests(Operation::Read),
        write: requests(Operation::Write),
        flush: requests(Operation::Flush),
        discard: requests(Operation::Discard),
    }
}

/// Interval between checks of the free space.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// Runs the periodic checks.
pub async fn run(monitor: Arc<Monitor>) {
    if let Err(error) = monitor.repositories.check_credentials().await {
        tracing::warn!(%error, "checking the secrets of all credentials failed");
    }
    loop {
        monitor.volumes.report_discarded_writes().await;
        monitor.free_space.check_free_space().await;
        monitor.free_space.store_pending_event().await;
        tokio::select! {
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
            () = monitor.registry.found.notified() => {}
        }
    }
}
