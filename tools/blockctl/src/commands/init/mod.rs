//! `blockctl init`: a backup location, a schedule, and first backups, verified.

pub mod args;
mod ask;
mod existing;

use crate::{
    commands::{
        credentials::{self, lies_in, settings::PASSPHRASE},
        schedules,
    },
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure},
    output::Context,
    secrets::read_file,
    table::{Width, counted, or_dash},
    wait::{exit_status, follow, tell},
};
use args::InitArgs;
use ask::Questions;
use blockd_api::{
    ApiError, ClientError, CredentialRef, ErrorCode, ObjectName, Secret, VolumeId,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, CloudsnapStatus, ListCloudsnaps, StartVerify, VerifyDepth},
    credentials::Credential,
    format_time, operations,
    schedules::{CreateSchedule, Rule, Run, RunSchedule, RunState, Schedule, Selector},
    tasks::Task,
    volumes::ListVolumes,
};
use blockd_schedule::{Recurrence, Retention, When, Zone};
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// Default time of the schedule.
const DAILY_AT: &str = "02:00";
/// Default number of kept backups.
const KEPT: u32 = 14;

/// Document of `init`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Initialized {
    /// Backup location.
    credential: Credential,
    /// Schedule of all volumes.
    schedule: Schedule,
    /// File of the new recovery key.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key_file: Option<PathBuf>,
    /// First backups of volumes that had none at the location.
    runs: Vec<Run>,
    /// Verifications of these, and of existing backups that were never verified.
    verifications: Vec<Task>,
}

impl InitArgs {
    /// Returns true without an option that decides about encryption.
    fn is_encryption_open(&self) -> bool {
        let settings = &self.settings;
        let has_passphrase = settings.encryption_passphrase.is_some()
            || settings.encryption_passphrase_file.is_some()
            || settings.encryption_passphrase_from.is_some()
            || std::env::var_os(PASSPHRASE).is_some();
        !has_passphrase && self.new_recovery_key.is_none() && !self.no_encryption
    }
}

pub async fn run(context: &Context<'_>, mut args: InitArgs) -> Exit {
    let output = context.output;
    let say = |line: String| if output.is_json() { Ok(EXIT_DONE) } else { output.line(line) };
    rules(&args)?;
    let questions = Questions::new(output.is_json());
    let (credential, recovery_key_file) = match existing(context, &args).await? {
        Some(credential) => {
            existing::check_location(context, &args, &credential).await?;
            let key_file = existing::recovery_key(context, &args, &credential).await?;
            say(format!(
                "Backup location {} exists in {}, and works.",
                credential.name,
                lies_in(&credential)
            ))?;
            (credential, key_file)
        }
        None => {
            questions.complete(&mut args)?;
            let credential = loop {
                match create_location(context, &args).await {
                    Err(error) if questions.encryption_of_backups(&mut args, &error)? => {}
                    created => break created?,
                }
            };
            say(format!(
                "Backup location {} created in {}: written, read and deleted a test object.",
                credential.name,
                lies_in(&credential)
            ))?;
            (credential, args.new_recovery_key.clone())
        }
    };
    if let Some(file) = &recovery_key_file {
        say(format!("Recovery key in {}: copy it to another place now.", file.display()))?;
    } else if !credential.encrypted {
        output.note(format!("warning: backups in {} are stored unencrypted", credential.name));
    }
    let schedule = schedule(context, &mut args, &credential, &questions).await?;
    let next = or_dash(schedule.next_run_at.map(format_time));
    say(format!("Schedule {} backs up all volumes ({}); next run {next}.", args.name, schedule.schedule))?;
    let mut done =
        Initialized { credential, schedule, recovery_key_file, runs: Vec::new(), verifications: Vec::new() };
    let exit = if args.no_backup { EXIT_DONE } else { back_up(context, &mut done).await? };
    if output.is_json() {
        output.document(&done)?;
    }
    Ok(exit)
}

/// Returns the rules of the schedule.
fn rules(args: &InitArgs) -> Result<Vec<Rule>, Failure> {
    let usage = |error: blockd_schedule::ScheduleError| Failure::usage(error.to_string());
    let mut rules = args.times.rules(false).map_err(usage)?;
    if rules.is_empty() {
        let when = Recurrence { when: When::daily(DAILY_AT).map_err(usage)?, zone: args.times.zone() };
        rules.push(Rule { when, retain: None });
    }
    Ok(rules)
}

/// Returns the location with this name after a test, if there is one.
async fn existing(context: &Context<'_>, args: &InitArgs) -> Result<Option<Credential>, Failure> {
    let name = CredentialRef::Name(args.name.clone());
    match context.client.call_at(operations::VALIDATE_CREDENTIAL, &name, &()).await {
        Ok(credential) => Ok(Some(credential)),
        Err(ClientError::Api(error)) if error.code == ErrorCode::CredentialNotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Creates the location, and the file of a new recovery key before it.
async fn create_location(context: &Context<'_>, args: &InitArgs) -> Result<Credential, Failure> {
    let mut settings = args.settings.clone();
    let file = args.new_recovery_key.as_deref();
    let kept = file.map(kept_key).transpose()?.flatten();
    let key = file.map(|_| kept.clone().unwrap_or_else(random_key));
    if let Some(key) = &key {
        settings.encryption_passphrase = Some(Secret::new(key.clone()));
    }
    let create = credentials::args::CreateArgs { name: args.name.clone(), file: args.file.clone(), settings };
    let request = credentials::create::request(create)?;
    if let (Some(file), Some(key), None) = (file, &key, &kept) {
        write_key(file, key)?;
    }
    let created = context.client.call(operations::CREATE_CREDENTIAL, &request).await;
    match (&created, file) {
        // The daemon refused: it encrypted nothing with the key.
        (Err(ClientError::Api(_)), Some(file)) if kept.is_none() => drop(std::fs::remove_file(file)),
        (Ok(_) | Err(ClientError::Api(_)), _) | (Err(_), None) => {}
        (Err(_), Some(file)) => context.output.note(format!(
            "note: the recovery key stays in {}: the daemon may have created the location; the same command, when it answers again, finds out",
            file.display()
        )),
    }
    created.map_err(|error| refused(error, args))
}

/// Names the option for the key of existing backups, if a new key or none does not open them.
fn refused(error: ClientError, args: &InitArgs) -> Failure {
    let ClientError::Api(api) = &error else { return error.into() };
    let is_closed = matches!(api.code, ErrorCode::WrongPassphrase | ErrorCode::PassphraseRequired);
    let given = match (&args.new_recovery_key, args.no_encryption) {
        _ if !is_closed => return error.into(),
        (Some(_), _) => "--new-recovery-key",
        (None, true) => "--no-encryption",
        (None, false) => return error.into(),
    };
    let message = format!("location of {} has encrypted backups: {}", args.name, api.message);
    let hint = format!(
        "give the recovery key or passphrase of these backups, as --encryption-passphrase-file FILE, in place of {given}"
    );
    ApiError::new(api.code, message).with_hint(hint).into()
}

/// Returns 256 random bits as groups of four hexadecimal digits.
fn random_key() -> String {
    let mut key = String::new();
    // Version and variant take 6 of the 128 bits of each.
    for uuid in [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()] {
        for pair in uuid.as_bytes().chunks(2) {
            let separator = if key.is_empty() { "" } else { "-" };
            let digits = pair.iter().fold(separator.to_owned(), |mut digits, byte| {
                // Writing to a string does not fail.
                let _ = write!(digits, "{byte:02x}");
                digits
            });
            key += &digits;
        }
    }
    key
}

/// Returns true for a text of the form of [`random_key`].
fn is_key(text: &str) -> bool {
    let is_group = |group: &str| group.len() == 4 && group.bytes().all(|digit| digit.is_ascii_hexdigit());
    text.split('-').count() == 24 && text.split('-').all(is_group)
}

/// Returns the recovery key that an interrupted `init` left in a file; `None` if there is none.
///
/// # Errors
/// The file exists and has another content: it may be the only key of a location that this daemon does not
/// know yet.
fn kept_key(path: &Path) -> Result<Option<String>, Failure> {
    match path.metadata() {
        Err(_) => return Ok(None),
        // The command was killed before it wrote the key.
        Ok(found) if found.is_file() && found.len() == 0 => {
            std::fs::remove_file(path).map_err(|source| Failure::write(path, source))?;
            return Ok(None);
        }
        Ok(_) => {}
    }
    let text = read_file("recovery key", path)?;
    match text.expose().trim() {
        key if is_key(key) => Ok(Some(key.to_owned())),
        _ => {
            let path = path.display();
            let message = format!("{path} exists, and is kept: it is no new recovery key");
            Err(Failure::usage(message).with_hint(format!(
                "if it is the recovery key of this location, give --encryption-passphrase-file {path}; otherwise name another file"
            )))
        }
    }
}

/// Writes a recovery key to a new file that only its owner can read.
fn write_key(path: &Path, key: &str) -> Result<(), Failure> {
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = open.and_then(|mut file| writeln!(file, "{key}").and_then(|()| file.sync_all()));
    written.map_err(|source| Failure::write(path, source))
}

/// Returns the schedule with this name, created if it is missing.
async fn schedule(
    context: &Context<'_>,
    args: &mut InitArgs,
    credential: &Credential,
    questions: &Questions,
) -> Result<Schedule, Failure> {
    let name: ObjectName =
        args.name.as_str().parse().map_err(|error| Failure::usage(format!("name {}: {error}", args.name)))?;
    let schedules = context.client.call(operations::LIST_SCHEDULES, &()).await?.list.items;
    if let Some(found) = schedules.into_iter().find(|one| one.name.as_ref() == Some(&name)) {
        existing::check_schedule(args, credential, &found)?;
        return Ok(found);
    }
    questions.schedule(args)?;
    let rules = rules(args)?;
    let zone: Zone = args.times.zone();
    let default = Retention { keep_last: KEPT, zone: zone.clone(), ..Retention::default() };
    let request = CreateSchedule {
        name: Some(name),
        selector: Selector { all: true, ..Selector::default() },
        credentials: vec![CredentialRef::Name(credential.name.clone())],
        rules,
        retain: args.retain.retention(&zone).unwrap_or(default),
        ..CreateSchedule::default()
    };
    Ok(context.client.call(operations::CREATE_SCHEDULE, &request).await?)
}

/// Returns the restorable backups of this host at the location by volume, oldest first.
async fn restorable(
    context: &Context<'_>,
    location: &Credential,
) -> Result<BTreeMap<VolumeId, Vec<Cloudsnap>>, Failure> {
    let here = context.client.call(operations::GET_STATUS, &()).await?.cluster_id;
    let query = ListCloudsnaps {
        credential: Some(CredentialRef::Id(location.credential_id)),
        cluster_id: Some(here),
        status: Some(CloudsnapStatus::Done),
        ..ListCloudsnaps::default()
    };
    let mut found: BTreeMap<VolumeId, Vec<Cloudsnap>> = BTreeMap::new();
    for one in context.client.call(operations::LIST_CLOUDSNAPS, &query).await?.list.items {
        found.entry(one.volume_id).or_default().push(one);
    }
    Ok(found)
}

/// Verifies a backup, and returns the exit status.
async fn verify(
    context: &Context<'_>,
    done: &mut Initialized,
    snap: CloudSnapshotId,
    credential: Option<Uuid>,
) -> Exit {
    let request = StartVerify {
        cloud_snapshot_id: Some(snap),
        depth: VerifyDepth::Full,
        credential: credential.map(CredentialRef::Id),
    };
    let started = context.client.call(operations::START_VERIFY, &request).await?;
    let task = follow(&context.client, started.task_id, context.output).await?;
    if !context.output.is_json() {
        tell(context, &task, Width::Narrow)?;
    }
    let exit = exit_status(&task);
    done.verifications.push(task);
    Ok(exit)
}

/// Backs up the volumes without a restorable backup at the location, and verifies one backup of each volume.
/// A repeated `init` makes no further backups: they would expire older ones.
async fn back_up(context: &Context<'_>, done: &mut Initialized) -> Exit {
    let output = context.output;
    let mut volumes = context.client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await?.items;
    volumes.retain(|volume| !volume.labels.is_excluded());
    if volumes.is_empty() {
        output.note("There are no volumes yet; new ones are backed up by the schedule.");
        return Ok(EXIT_DONE);
    }
    let found = restorable(context, &done.credential).await?;
    let mut exit = EXIT_DONE;
    let mut volume_ids = Vec::new();
    for volume in &volumes {
        let Some((newest, older)) = found.get(&volume.volume_id).and_then(|all| all.split_last()) else {
            volume_ids.push(volume.volume_id);
            continue;
        };
        if !output.is_json() {
            let created = format_time(newest.created_at);
            output.line(format!("Volume {} has a backup of {created}.", volume.name))?;
        }
        let is_verified = |one: &Cloudsnap| one.last_proof.as_ref().is_some_and(|last| last.sound);
        if !is_verified(newest) && !older.iter().any(is_verified) {
            let credential = Some(newest.credential_id);
            exit = exit.max(verify(context, done, newest.cloud_snapshot_id, credential).await?);
        }
    }
    if !volume_ids.is_empty() {
        exit = exit.max(first_backups(context, done, volume_ids).await?);
    }
    if exit == EXIT_DONE && !output.is_json() {
        output.line(format!(
            "{} protected and verified. `blockctl doctor` checks this set-up at any time.",
            counted(volumes.len() as u64, "volume")
        ))?;
    }
    Ok(exit)
}

/// Backs up these volumes by the schedule, and verifies the backups.
async fn first_backups(context: &Context<'_>, done: &mut Initialized, volume_ids: Vec<VolumeId>) -> Exit {
    let output = context.output;
    let mut exit = EXIT_DONE;
    let (schedule, request) = (done.schedule.schedule_id, RunSchedule { volume_ids: Some(volume_ids) });
    for run in context.client.call_at(operations::RUN_SCHEDULE, &schedule, &request).await?.items {
        let run = schedules::ended(context, run).await?;
        let volume = or_dash(run.volume_name.as_ref());
        match (run.state, &run.cloud_snapshot_id) {
            (RunState::Done, Some(snap)) => {
                if !output.is_json() {
                    output.line(format!("Volume {volume} backed up: {snap}"))?;
                }
                // An existing schedule may have further locations.
                exit = exit.max(verify(context, done, *snap, run.credential_id).await?);
            }
            _ => {
                let reason = run.reason.as_deref().unwrap_or("see `blockctl cloudsnap history`");
                output.error(&format!("volume {volume} was not backed up: {reason}"), None);
                exit = EXIT_FAILED;
            }
        }
        done.runs.push(run);
    }
    Ok(exit)
}
