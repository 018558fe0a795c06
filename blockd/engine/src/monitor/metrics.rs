//! Collection of all metrics for a scrape.

use crate::{
    error::{ServiceError, blocking},
    events::webhooks::Webhook,
    metrics::{
        exposition::{Exposition, Labels},
        traffic::Operation,
    },
    monitor::Monitor,
    schedules::selection::{self, Candidate},
    schedules::transactions,
    volumes::registry::VolumeEntry,
};
use blockd_api::{
    schedules::RunState,
    status::{DataSpace, WebhookStatus},
};
use blockd_catalog::{
    AnomalyRow, CredentialRow, DbError, DrillRow, KnownDamage, LastProof, NewestBackup, RunRow, ScheduleRow,
    ScrubRow, TaskRow,
};
use blockd_cloud::{CloudSnapshotId, VerifyDepth};
use blockd_extent::VolumeId;
use blockd_nbd::DeviceErrorKind;
use blockd_store::RequestKind;
use blockd_volume::{Volume, VolumeStats};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

/// Values from the database.
pub(super) struct Rows {
    newest: Vec<NewestBackup>,
    credentials: Vec<CredentialRow>,
    /// Last proofs of cloud snapshots, with their credentials.
    proofs: Vec<(Uuid, CloudSnapshotId, LastProof)>,
    damage: Vec<KnownDamage>,
    /// Newest drill of each volume and credential.
    pub(super) drills: Vec<DrillRow>,
    /// Number of tasks by kind and state.
    tasks: BTreeMap<(&'static str, &'static str), u64>,
    runs: Vec<(RunState, usize)>,
    next_runs: Vec<(Uuid, Option<Timestamp>)>,
    schedules: Vec<ScheduleRow>,
    overdue: usize,
    webhooks: Vec<WebhookStatus>,
    scrubs: Vec<ScrubRow>,
    /// Those without an acknowledgement.
    anomalies: Vec<AnomalyRow>,
}

impl Rows {
    fn read(
        tx: &rusqlite::Transaction<'_>,
        cluster: Uuid,
        volumes: &BTreeSet<VolumeId>,
        hooks: &[Arc<Webhook>],
        now: Timestamp,
    ) -> Result<Self, DbError> {
        let credentials = CredentialRow::all(tx)?;
        let (mut next_runs, mut runs) = (Vec::new(), Vec::new());
        let (mut schedules, mut overdue) = (Vec::new(), 0);
        let proofs = LastProof::of_volume(tx, None, now)?;
        let damage = KnownDamage::all(tx, now)?;
        for schedule in ScheduleRow::all(tx)? {
            next_runs.push((schedule.uuid, transactions::next_run(tx, &schedule, now)?));
            overdue += usize::from(transactions::overdue_since(tx, &schedule, now)?.is_some());
            schedules.push(schedule);
        }
        for state in [RunState::Queued, RunState::Active, RunState::Retrying] {
            runs.push((state, RunRow::in_state(tx, state)?.len()));
        }
        let mut tasks = BTreeMap::new();
        for task in TaskRow::all(tx)? {
            *tasks.entry((task.kind().as_str(), task.state.as_str())).or_default() += 1;
        }
        let webhooks = hooks.iter().map(|hook| hook.status(tx)).collect::<Result<_, _>>()?;
        let newest = NewestBackup::all(tx, cluster, volumes)?;
        let drills = DrillRow::last_of_volumes(tx, now)?;
        let scrubs = ScrubRow::all(tx)?;
        let anomalies = AnomalyRow::all(tx, false)?;
        Ok(Self {
            newest,
            credentials,
            proofs,
            damage,
            drills,
            tasks,
            runs,
            next_runs,
            schedules,
            overdue,
            webhooks,
            scrubs,
            anomalies,
        })
    }

    pub(super) fn credential(&self, uuid: Uuid) -> Option<&CredentialRow> {
        self.credentials.iter().find(|row| row.uuid == uuid)
    }
}

/// Volume with its current state.
struct VolumeSample {
    entry: Arc<VolumeEntry>,
    up: bool,
    connections: u64,
    stats: Option<VolumeStats>,
}

impl VolumeSample {
    fn of(entry: Arc<VolumeEntry>) -> Self {
        let view = entry.view();
        let stats = entry.known(Volume::stats, |content| content.stats);
        Self { up: view.is_up(), connections: view.connections, stats, entry }
    }

    fn labels(&self) -> Labels<'static> {
        vec![("volume", self.entry.name.to_string())]
    }

    fn labels_of(&self, operation: Operation) -> Labels<'static> {
        let mut labels = self.labels();
        labels.push(("operation", operation.as_str().to_owned()));
        labels
    }
}

impl Monitor {
    /// Returns all metrics in text format.
    ///
    /// # Errors
    /// The database fails.
    pub async fn metrics_text(&self) -> Result<String, ServiceError> {
        let now = Timestamp::now();
        let space = self.free_space.check_free_space().await;
        let hooks = self.webhook_delivery.webhooks.clone();
        let entries = self.registry.all();
        let (cluster, volumes) = (self.host.cluster, entries.iter().map(|entry| entry.id).collect());
        let rows = self.db.run(move |tx| Rows::read(tx, cluster, &volumes, &hooks, now)).await?;
        // Sizes are read from the filesystem.
        let seen = blocking(move || {
            Ok::<_, ServiceError>(entries.into_iter().map(VolumeSample::of).collect::<Vec<_>>())
        });
        let seen = seen.await?;
        let mut text = Exposition::default();
        self.of_the_process(&mut text);
        of_volumes(&mut text, &seen);
        self.of_health(&mut text, space);
        self.of_scrubs(&mut text, &rows.scrubs);
        self.of_stores(&mut text, &rows);
        self.of_backups(&mut text, &rows);
        self.of_proofs(&mut text, &rows, now);
        self.of_drills(&mut text, &rows);
        self.of_tasks(&mut text, &rows);
        self.of_schedules(&mut text, &rows);
        self.of_rules(&mut text);
        self.of_caches(&mut text);
        self.of_webhooks(&mut text, &rows);
        Ok(text.into_text())
    }

    fn of_the_process(&self, text: &mut Exposition) {
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        text.gauge("blockd_build_info", "The version of blockd; always 1.", [(version, 1)]);
        let uptime = self.host.started.elapsed().as_secs_f64();
        text.gauge("blockd_uptime_seconds", "Time since the start of blockd.", [(Vec::new(), uptime)]);
        let memory = resident_bytes().map(|len_bytes| (Vec::new(), len_bytes));
        text.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", memory);
        let files = std::fs::read_dir("/proc/self/fd").ok().map(|files| (Vec::new(), files.count()));
        text.gauge("process_open_fds", "Number of open file descriptors.", files);
    }

    fn of_stores(&self, text: &mut Exposition, rows: &Rows) {
        let meters: Vec<_> = rows
            .credentials
            .iter()
            .filter_map(|row| Some((row.name.to_string(), self.meters.get(row.uuid)?)))
            .collect();
        let credential = |name: &String| vec![("credential", name.clone())];
        let each = |name: &String, kind: RequestKind| {
            vec![("credential", name.clone()), ("request", kind.name().to_ascii_lowercase())]
        };
        let all = || meters.iter().flat_map(|meter| RequestKind::ALL.map(|kind| (meter, kind)));
        text.histogram(
            "blockd_store_request_duration_seconds",
            "Duration of store requests until the end of the response, each attempt counted separately.",
            all().map(|((name, meter), kind)| (each(name, kind), meter.times(kind))),
        );
        text.counter(
            "blockd_store_request_errors_total",
            "Failed attempts of store requests.",
            all().map(|((name, meter), kind)| (each(name, kind), meter.failed(kind))),
        );
        text.counter(
            "blockd_store_sent_bytes_total",
            "Bytes of bodies sent to stores, each attempt counted separately.",
            meters.iter().map(|(name, meter)| (credential(name), meter.counts().bytes_up)),
        );
        text.counter(
            "blockd_store_received_bytes_total",
            "Bytes of bodies received from stores.",
            meters.iter().map(|(name, meter)| (credential(name), meter.counts().bytes_down)),
        );
    }

    fn of_backups(&self, text: &mut Exposition, rows: &Rows) {
        let target = |backup: &NewestBackup| {
            let entry = self.registry.by_id(backup.volume)?;
            let credential = rows.credential(backup.credential)?;
            Some(vec![("volume", entry.name.to_string()), ("credential", credential.name.to_string())])
        };
        text.gauge(
            "blockd_backup_last_point_timestamp_seconds",
            "The point in time of the newest backup of the volume to the credential; its age is the data loss if this host fails.",
            rows.newest.iter().filter_map(|backup| Some((target(backup)?, backup.created.as_second()))),
        );
    }

    fn of_proofs(&self, text: &mut Exposition, rows: &Rows, now: Timestamp) {
        let mut last: BTreeMap<(Uuid, VolumeId, VerifyDepth), Timestamp> = BTreeMap::new();
        let own = self.host.cluster;
        for (credential, id, proof) in
            rows.proofs.iter().filter(|(_, id, proof)| id.cluster == own && proof.sound)
        {
            let newest = last.entry((*credential, id.volume, proof.kind)).or_insert(proof.proven);
            *newest = proof.proven.max(*newest);
        }
        text.gauge(
            "blockd_last_proof_age_seconds",
            "Age of the last proof that a cloud snapshot of the volume at the credential is sound, of this or another host, by kind; quick reads no content.",
            last.into_iter().filter_map(|((credential, volume, kind), proven)| {
                let labels = vec![
                    ("volume", self.registry.by_id(volume)?.name.to_string()),
                    ("credential", rows.credential(credential)?.name.to_string()),
                    ("kind", kind.to_string()),
                ];
                Some((labels, now.duration_since(proven).as_secs().max(0)))
            }),
        );
        text.gauge(
            "blockd_cloudsnaps_damaged",
            "Cloud snapshots that are known to be damaged, as listed by `blockctl status`, by the credential of the last proof.",
            rows.credentials.iter().map(|row| {
                let damaged = rows.damage.iter().filter(|damage| damage.credential == row.uuid);
                (vec![("credential", row.name.to_string())], damaged.count())
            }),
        );
        text.gauge(
            "blockd_anomalies",
            "Unusual changes of the volume without an acknowledgement, as listed by `blockctl anomaly list`.",
            self.registry.all().iter().map(|entry| {
                let found = rows.anomalies.iter().filter(|row| row.volume == entry.id);
                (vec![("volume", entry.name.to_string())], found.count())
            }),
        );
    }

    fn of_tasks(&self, text: &mut Exposition, rows: &Rows) {
        text.gauge(
            "blockd_tasks",
            "Tasks in the history, by kind and state.",
            rows.tasks.iter().map(|((kind, state), count)| {
                (vec![("kind", (*kind).to_owned()), ("state", (*state).to_owned())], *count)
            }),
        );
        text.counter(
            "blockd_tasks_finished_total",
            "Finished tasks, by kind and final state.",
            self.tasks.ended.counts().map(|(kind, state, count)| {
                (vec![("kind", kind.to_string()), ("state", state.as_str().to_owned())], count)
            }),
        );
    }

    fn of_schedules(&self, text: &mut Exposition, rows: &Rows) {
        text.gauge(
            "blockd_schedule_runs_unfinished",
            "Unfinished runs of schedules.",
            rows.runs.iter().map(|(state, count)| (vec![("state", state.to_string())], *count)),
        );
        text.gauge(
            "blockd_schedule_next_run_timestamp_seconds",
            "Start time of the next run of the schedule.",
            rows.next_runs.iter().filter_map(|(uuid, next)| {
                Some((vec![("schedule", uuid.to_string())], next.as_ref()?.as_second()))
            }),
        );
        text.gauge(
            "blockd_schedules_overdue",
            "Schedules whose next run is minutes late.",
            [(Vec::new(), rows.overdue)],
        );
        let volumes = self.schedules.candidates();
        text.gauge(
            "blockd_backup_wanted_since_timestamp_seconds",
            "Time since which an active schedule backs up the volume to the credential, successfully or not.",
            self.wanted_since(rows, &volumes).into_iter().map(|((volume, credential), since)| {
                (vec![("volume", volume), ("credential", credential)], since.as_second())
            }),
        );
        text.gauge(
            "blockd_schedule_without_volume",
            "1 if the schedule selects no volume; 0 for a schedule of all volumes.",
            rows.schedules.iter().map(|schedule| {
                let is_without = selection::protects_nothing(&schedule.spec.selector, &volumes);
                (vec![("schedule", schedule.uuid.to_string())], u64::from(is_without))
            }),
        );
    }

    /// Returns since when each volume is scheduled for backup to each credential, by the names of both.
    fn wanted_since(&self, rows: &Rows, volumes: &[Candidate]) -> BTreeMap<(String, String), Timestamp> {
        let mut wanted: BTreeMap<(String, String), Timestamp> = BTreeMap::new();
        let active = |schedule: &&ScheduleRow| !schedule.paused && schedule.spec.drill.is_none();
        for schedule in rows.schedules.iter().filter(active) {
            let meant =
                volumes.iter().filter(|volume| selection::is_selected(&schedule.spec.selector, volume));
            for volume in meant {
                let created = self.registry.by_id(volume.id).map(|entry| entry.created);
                let since = created.map_or(schedule.created, |created| created.max(schedule.created));
                let targets = schedule.spec.credentials.iter().filter_map(|uuid| rows.credential(*uuid));
                for credential in targets {
                    let of = (volume.name.to_string(), credential.name.to_string());
                    let first = wanted.entry(of).or_insert(since);
                    *first = since.min(*first);
                }
            }
        }
        wanted
    }

    fn of_health(&self, text: &mut Exposition, space: Option<DataSpace>) {
        let value = |value: fn(DataSpace) -> u64| space.map(|space| (Vec::new(), value(space)));
        text.gauge(
            "blockd_data_size_bytes",
            "Size of the filesystem of the data directory.",
            value(|space| space.total_bytes),
        );
        text.gauge(
            "blockd_data_free_bytes",
            "Free space of that filesystem for blockd.",
            value(|space| space.free_bytes),
        );
        text.gauge(
            "blockd_problems",
            "Current problems by kind, as listed by `blockctl status`.",
            self.health.counts().map(|(kind, count)| (vec![("kind", kind.to_owned())], count)),
        );
    }

    fn of_rules(&self, text: &mut Exposition) {
        text.counter(
            "blockd_rule_failures_total",
            "Failed hook commands, filesystem freezes and thaws around snapshots, by phase.",
            self.quiescing.failures.counts().map(|(phase, count)| (vec![("phase", phase.to_owned())], count)),
        );
    }

    fn of_webhooks(&self, text: &mut Exposition, rows: &Rows) {
        let of = |name: &str| vec![("webhook", name.to_owned())];
        text.gauge(
            "blockd_webhook_waiting_events",
            "Events waiting for delivery to the webhook.",
            rows.webhooks.iter().map(|hook| (of(&hook.name), hook.waiting)),
        );
        let states: Vec<_> =
            self.webhook_delivery.webhooks.iter().map(|hook| (hook.name(), hook.state())).collect();
        text.counter(
            "blockd_webhook_delivered_events_total",
            "Events that the webhook accepted.",
            states.iter().map(|(name, state)| (of(name), state.delivered)),
        );
        text.counter(
            "blockd_webhook_failed_attempts_total",
            "Failed attempts to deliver an event to the webhook.",
            states.iter().map(|(name, state)| (of(name), state.failed_attempts)),
        );
        text.counter(
            "blockd_webhook_undelivered_events_total",
            "Events not delivered to the webhook: rejected, or expired before their delivery.",
            states.iter().map(|(name, state)| (of(name), state.undelivered)),
        );
    }

    fn of_caches(&self, text: &mut Exposition) {
        let counters = [self.readers.cache_counters().unwrap_or_default()];
        let tier = |name: &str| vec![("tier", name.to_owned())];
        text.gauge(
            "blockd_cache_bytes",
            "Bytes of cloud snapshots in the browse cache.",
            counters
                .iter()
                .flat_map(|now| [(tier("disk"), now.disk_bytes), (tier("memory"), now.memory_bytes)]),
        );
        text.counter(
            "blockd_cache_frames_total",
            "Frames loaded into the cache of browsing and `cloud:` exports, by source.",
            counters.iter().flat_map(|now| {
                let source = |name: &str| vec![("source", name.to_owned())];
                [(source("disk"), now.frames_from_disk), (source("store"), now.frames_fetched)]
            }),
        );
        text.counter(
            "blockd_cache_damaged_pieces_total",
            "Damaged entries of the disk cache that were fetched again.",
            counters.iter().map(|now| (Vec::new(), now.damaged_pieces)),
        );
    }
}

fn of_volumes(text: &mut Exposition, seen: &[VolumeSample]) {
    let all = |value: fn(&VolumeSample) -> u64| seen.iter().map(move |seen| (seen.labels(), value(seen)));
    let open = |value: fn(&VolumeStats) -> u64| {
        seen.iter().filter_map(move |seen| Some((seen.labels(), value(seen.stats.as_ref()?))))
    };
    text.gauge(
        "blockd_volume_up",
        "1 if the volume is open and accepts requests.",
        all(|seen| u64::from(seen.up)),
    );
    text.gauge("blockd_volume_size_bytes", "Size of the volume.", all(|seen| seen.entry.size_bytes()));
    text.gauge("blockd_volume_connections", "NBD connections to the volume.", all(|seen| seen.connections));
    text.gauge(
        "blockd_volume_dirty_bytes",
        "Size of the dirty set since the last freeze or growth, in whole blocks.",
        open(|stats| stats.head_dirty_bytes),
    );
    text.gauge(
        "blockd_volume_allocated_bytes",
        "Disk space of the volume that is not shared with other volumes.",
        open(|stats| stats.allocated_bytes),
    );
    text.gauge(
        "blockd_volume_tracking_memory_bytes",
        "Approximate memory of the volume's changed-block tracking.",
        open(|stats| stats.tracking_bytes),
    );
    text.gauge(
        "blockd_volume_layers",
        "Layers of the volume, including the head.",
        open(|stats| stats.layers),
    );
    text.gauge("blockd_volume_snapshots", "Snapshots of the volume.", open(|stats| stats.snapshots));
    text.counter(
        "blockd_volume_read_bytes_total",
        "Bytes read from the volume since it was opened.",
        open(|stats| stats.bytes_read),
    );
    text.counter(
        "blockd_volume_written_bytes_total",
        "Bytes written to the volume since it was opened.",
        open(|stats| stats.bytes_written),
    );
    text.histogram(
        "blockd_volume_request_duration_seconds",
        "Execution time of NBD requests by the volume, without queueing and remote fetches; failed ones included, except for failed fetches.",
        seen.iter().flat_map(|seen| {
            Operation::ALL.map(|operation| (seen.labels_of(operation), seen.entry.traffic.counted(operation)))
        }),
    );
    text.counter(
        "blockd_volume_request_errors_total",
        "Failed NBD requests of the volume by error number; a failed fetch of missing blocks counts as read or write.",
        seen.iter().flat_map(|seen| {
            Operation::ALL.into_iter().flat_map(|operation| {
                DeviceErrorKind::ALL.map(|kind| {
                    let mut labels = seen.labels_of(operation);
                    labels.push(("errno", kind.errno_name().to_owned()));
                    (labels, seen.entry.traffic.failed(operation, kind))
                })
            })
        }),
    );
}

/// Returns the resident memory of this process, in bytes.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
