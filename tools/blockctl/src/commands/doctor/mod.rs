//! `blockctl doctor`: checks of host, daemon, backup locations, schedules and verifications.

mod check;
mod host;

use crate::{
    commands::{
        health::{self, DAMAGE, HealthProblem, Known},
        protection::{Objective, Protection, last_proof, missed},
        status::reading_time,
    },
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure, hint_of},
    output::{Context, Output},
    table::counted,
};
use blockd_api::{
    ByteSize, ClientError, CredentialRef, List,
    cloudsnaps::{Cloudsnap, ListCloudsnaps},
    credentials::Credential,
    format_time, operations,
    status::{DaemonRights, KnownDamage, Status, VerificationPlan},
    volumes::Volume,
};
use check::{Check, Verdict};
use futures::StreamExt;
use jiff::Timestamp;
use uuid::Uuid;

pub const DOCTOR_HELP: &str = "\
Tests each backup location by writing, reading and deleting a small object. Exits with 1 if a check \
failed; warnings alone exit with 0.

Examples:
  blockctl doctor
  blockctl -j doctor";

/// Free space below which a data directory is a problem, in percent.
const MIN_FREE_PERCENT: u64 = 5;

/// Number of locations that are tested concurrently, so that several silent stores take no longer than one.
const MAX_CONCURRENT_TESTS: usize = 8;

/// Document of `doctor`.
pub type Diagnosis = List<Check>;

/// Ended checks. Each is printed as it ends: the next one may wait for a store.
struct Checks<'a> {
    output: &'a Output,
    ended: Vec<Check>,
}

impl Checks<'_> {
    fn add(&mut self, check: Check) -> Result<(), Failure> {
        if !self.output.is_json() {
            let head = format!("{:<9}{:<12}", check.status.to_string(), check.check);
            self.output.hanging(&head, &check.detail, head.len())?;
            if let Some(action) = &check.action {
                let head = format!("{:<21}-> ", "");
                self.output.hanging(&head, action, head.len())?;
            }
        }
        self.ended.push(check);
        Ok(())
    }

    fn extend(&mut self, checks: impl IntoIterator<Item = Check>) -> Result<(), Failure> {
        checks.into_iter().try_for_each(|check| self.add(check))
    }
}

pub async fn run(context: &Context<'_>) -> Exit {
    let mut checks = Checks { output: context.output, ended: Vec::new() };
    checks.extend(host::checks())?;
    match context.client.call(operations::GET_STATUS, &()).await {
        Ok(status) => {
            checks.extend(daemon(&status))?;
            locations(context, &mut checks).await?;
            // The tests of the locations have ended or shown problems.
            let status = context.client.call(operations::GET_STATUS, &()).await?;
            checks.extend(protection(context, &status).await?)?;
        }
        Err(error) => checks.add(unreachable(&error))?,
    }
    let exit = match checks.ended.iter().any(|check| check.status == Verdict::Failed) {
        true => EXIT_FAILED,
        false => {
            checks.add(Check::ok("health", "no problems"))?;
            EXIT_DONE
        }
    };
    if context.output.is_json() {
        let diagnosis: Diagnosis = checks.ended.into_iter().collect();
        context.output.document(&diagnosis)?;
    }
    Ok(exit)
}

fn unreachable(error: &ClientError) -> Check {
    let action = match error {
        ClientError::PermissionDenied { .. } => {
            "run it as root, as the user of blockd, or as a member of the socket's group"
        }
        error => error.hint().unwrap_or("start it: systemctl start blockd, or blockd --data-dir DIR"),
    };
    Check::failed("daemon", error.to_string(), action)
}

/// Checks version, rights and data directory.
fn daemon(status: &Status) -> Vec<Check> {
    let own = env!("CARGO_PKG_VERSION");
    let version = match status.version == own {
        true => Check::ok("daemon", format!("version {own} on {}", status.node)),
        false => Check::warning(
            "daemon",
            format!("blockd has version {} and blockctl {own}", status.version),
            "install the same version of both",
        ),
    };
    let space = status.data_space.map(|space| {
        let free = format!(
            "{} of {} are free in {}",
            ByteSize::from_bytes(space.free_bytes),
            ByteSize::from_bytes(space.total_bytes),
            status.data_dir.display()
        );
        match space.free_bytes < space.total_bytes / 100 * MIN_FREE_PERCENT {
            true => Check::failed("space", free, "delete volumes or snapshots, or grow the filesystem"),
            false => Check::ok("space", free),
        }
    });
    [version, rights(&status.rights)].into_iter().chain(space).collect()
}

/// Checks what the process of the daemon may do.
fn rights(rights: &DaemonRights) -> Check {
    let all = [
        (rights.kernel_devices, "attach kernel devices"),
        (rights.fuse_mounts, "open /dev/fuse"),
        (rights.io_priority, "use memory reserves for writeback"),
    ];
    let texts = |has: bool| -> Vec<&str> {
        all.iter().filter(|(one, _)| *one == has).map(|(_, text)| *text).collect()
    };
    let missing = texts(false);
    match missing.is_empty() {
        true => Check::ok("rights", format!("blockd may {}", texts(true).join(", "))),
        false => Check::warning(
            "rights",
            format!("blockd may not {}", missing.join(", ")),
            "run it as root or with the unit of the package, if that is needed",
        ),
    }
}

/// Tests each location.
async fn locations(context: &Context<'_>, checks: &mut Checks<'_>) -> Result<(), Failure> {
    let client = &context.client;
    let credentials = client.call(operations::LIST_CREDENTIALS, &()).await?.items;
    if credentials.is_empty() {
        let action = "blockctl init, or blockctl credentials create";
        return checks.add(Check::warning("location", "there is no backup location", action));
    }
    let tests = credentials.into_iter().map(|Credential { name, encrypted, .. }| async move {
        let location = CredentialRef::Name(name.clone());
        match client.call_at(operations::VALIDATE_CREDENTIAL, &location, &()).await {
            Ok(_) if encrypted => Check::ok("location", format!("{name}: works, encrypted")),
            Ok(_) => Check::warning(
                "location",
                format!("{name}: works, but backups are stored unencrypted"),
                "create a credential with --encryption-passphrase-file and another prefix or path",
            ),
            Err(error) => Check::failed(
                "location",
                format!("{name}: {error}"),
                hint_of(&error).unwrap_or_else(|| "see the log of blockd".to_owned()),
            ),
        }
    });
    // In the order of the credentials.
    let mut tests = futures::stream::iter(tests).buffered(MAX_CONCURRENT_TESTS);
    while let Some(check) = tests.next().await {
        checks.add(check)?;
    }
    Ok(())
}

/// Checks schedules, failures, and the newest cloud snapshot of each volume.
async fn protection(context: &Context<'_>, status: &Status) -> Result<Vec<Check>, Failure> {
    let known = Known::load(context, status).await?;
    let now = Timestamp::now();
    let protections = Protection::load(context, &known, now).await?;
    let problems = health::problems(&known, now).into_iter().chain(missed(&protections));
    // The tests of the locations show theirs.
    let problems: Vec<HealthProblem> = problems.filter(|problem| problem.kind != "location").collect();
    let mut checks: Vec<Check> = schedules(&known, &protections, &problems).into_iter().collect();
    checks.extend(status.verification.as_ref().map(verification));
    checks.extend(problems.into_iter().map(|problem| {
        let check = if problem.kind == DAMAGE { "proof" } else { "health" };
        Check::failed(check, problem.cause, problem.action)
    }));
    let mut volumes: Vec<&Volume> = known.volumes.iter().collect();
    let listed = context.client.call(operations::LIST_CLOUDSNAPS, &ListCloudsnaps::default()).await;
    let (snapshots, unlisted) = match listed {
        Ok(list) => {
            let failed = list.failed_credentials.into_iter().map(|failed| failed.credential_name);
            (list.list.items, failed.collect::<Vec<_>>())
        }
        // The only location fails.
        Err(ClientError::Api(_)) => (Vec::new(), vec!["the only location".to_owned()]),
        Err(error) => return Err(error.into()),
    };
    if !unlisted.is_empty() {
        // The other volumes may have cloud snapshots there.
        volumes.retain(|volume| snapshots.iter().any(|one| is_of(one, status.cluster_id, volume)));
        checks.push(Check::warning(
            "proof",
            format!("cloud snapshots cannot be listed: {}", unlisted.join(", ")),
            "see the failed location above",
        ));
    }
    checks.extend(proofs(&known, &volumes, status.cluster_id, &snapshots, &protections));
    Ok(checks)
}

/// Checks that there are schedules; `None` if problems of them are shown, or the volumes need none.
fn schedules(known: &Known, protections: &[Protection], problems: &[HealthProblem]) -> Option<Check> {
    let list = &known.schedules.list.items;
    if problems.iter().any(|one| ["schedule", "schedules", "run", "protection"].contains(&one.kind.as_str()))
    {
        return None;
    }
    if list.is_empty() {
        if !protections.is_empty() && protections.iter().all(|one| one.objective == Objective::Excluded) {
            return None;
        }
        let action = "blockctl cloudsnap schedules create";
        return Some(Check::warning("schedules", "there is no schedule", action));
    }
    let paused = list.iter().filter(|one| one.paused).count();
    let next = list.iter().filter_map(|one| one.next_run_at).min();
    let next = next.map_or_else(String::new, |at| format!(", next run {}", format_time(at)));
    let count = counted(list.len() as u64, "schedule");
    Some(match paused {
        0 => Check::ok("schedules", format!("{count}{next}")),
        _ => Check::warning(
            "schedules",
            format!("{paused} of {count} paused{next}"),
            "blockctl cloudsnap schedules resume",
        ),
    })
}

/// Checks that the background verification reads everything within the maximum age of a proof.
fn verification(plan: &VerificationPlan) -> Check {
    let time = format!("background verification: {}", reading_time(plan));
    let (Some(bytes), Some(requests)) = (plan.needed_bytes_per_day, plan.needed_requests_per_day) else {
        return Check::ok("proof", time);
    };
    Check::warning(
        "proof",
        format!("{time}, but proof_max_age_days is {}", plan.proof_max_age_days),
        format!(
            "set verify_bytes_per_day = {bytes} and verify_requests_per_day = {requests} in the configuration of blockd"
        ),
    )
}

/// Returns true for a cloud snapshot of the volume. Other hosts, and former volumes of this one, have volumes
/// of the same name: only the ids tell them apart.
fn is_of(snapshot: &Cloudsnap, cluster: Uuid, volume: &Volume) -> bool {
    snapshot.cloud_snapshot_id.cluster == cluster && snapshot.volume_id == volume.volume_id
}

/// Checks that each volume that is not excluded has a cloud snapshot, and that one was verified.
fn proofs(
    known: &Known,
    volumes: &[&Volume],
    cluster: Uuid,
    snapshots: &[Cloudsnap],
    protections: &[Protection],
) -> Vec<Check> {
    let check = |volume: &&Volume| {
        let (name, proof) = (&volume.name, last_proof(volume));
        let is_damaged = |one: &KnownDamage| {
            (one.cloud_snapshot_id.cluster, one.cloud_snapshot_id.volume) == (cluster, volume.volume_id)
        };
        // The remedy of the damage leads to a proof.
        if proof.is_none() && known.damaged.iter().any(is_damaged) {
            return None;
        }
        let Some(last) = snapshots.iter().rfind(|one| is_of(one, cluster, volume)) else {
            let mut own = protections.iter().filter(|one| one.volume_name == name.as_str());
            if own.clone().any(|one| one.objective == Objective::Excluded) {
                return None;
            }
            let or_schedule = match own.any(|one| one.credential_id.is_some()) {
                true => "",
                false => ", or a schedule: blockctl cloudsnap schedules create",
            };
            return Some(Check::warning(
                "proof",
                format!("volume {name} has no cloud snapshot"),
                format!("blockctl cloudsnap backup {name}{or_schedule}"),
            ));
        };
        Some(match proof {
            Some(last) => {
                let at = format_time(last.proven_at);
                Check::ok("proof", format!("volume {name}: a backup was verified at {at}"))
            }
            None => Check::warning(
                "proof",
                format!("volume {name}: no cloud snapshot was verified"),
                format!("blockctl cloudsnap verify {}", last.cloud_snapshot_id),
            ),
        })
    };
    volumes.iter().filter_map(check).collect()
}
