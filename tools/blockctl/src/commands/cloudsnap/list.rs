//! `blockctl cloudsnap list`

use super::{
    pxctl,
    snapshots::{compression_in_brief, drill_text, proof_text},
};
use crate::{
    backup_names::MIN_HOST_DIGITS,
    cloudsnap_ref::SnapRef,
    commands::{
        arguments::{CredentialArg, WideArg},
        filters::NamePattern,
        list_filter::{LabelOption, ListFilter, Listed, Sort},
        protection::{proof_age, span},
    },
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure},
    output::Context,
    short_ids::ShortIds,
    table::{Table, Width, or_dash},
};
use blockd_api::{
    ApiError, ByteSize, ErrorCode, Labels, VolumeRef,
    cloudsnaps::{
        CloudSnapshotId, Cloudsnap, CloudsnapList, CloudsnapStatus, DamagedCloudsnap, ListCloudsnaps,
        PinOrigin, VerifyDepth,
    },
    format_time, operations,
    tasks::BackupType,
};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use jiff::Timestamp;
use std::{cmp::Ordering, collections::BTreeSet};
use uuid::Uuid;

pub const LIST_HELP: &str = "\
ID is the shortest form that commands accept. SIZE is the volume data in this backup, LOCATION the \
credential. If other hosts made some, HOST is the cluster (- for this host), as --cluster accepts it. LAST-PROOF is age and kind of the last \
verification or restore drill by any host of the location; damaged; or drill failed, until a drill of it passes. If one has a name, other than those of schedules, \
NAME is shown; STATUS takes the \
place of SIZE unless all are Done. --wide shows complete ids, the columns of pxctl, type, name, labels, \
the last verification and drill, pin and expiry date.

Examples:
  blockctl cloudsnap list
  blockctl cs list --src db --max 3
  blockctl cs list --since 7d --sort size
  blockctl cs list --name 'before-*'
  blockctl cs list -o wide
  blockctl cs list --label app=web
  blockctl -j cs list --cloudsnap-id ID";

/// Failed drill of a cloud snapshot.
const DRILL_FAILED: &str = "drill failed";

/// `cloudsnap list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// List snapshots of all clusters (default)
    #[arg(short, long, conflicts_with = "cluster")]
    pub all: bool,
    /// Same as --src
    #[arg(value_name = "VOLUME", conflicts_with = "src")]
    pub volume: Option<VolumeRef>,
    /// Only snapshots of this volume, by its id, or by its name now or at backup time
    #[arg(short, long, visible_alias = "volume", value_name = "VOLUME")]
    pub src: Option<VolumeRef>,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Only snapshots of this cluster, by its id or a prefix, as HOST shows it
    #[arg(short, long, value_name = "UUID", value_parser = parse_cluster)]
    pub cluster: Option<String>,
    /// Only snapshots in this state [default: Done and Damaged]
    #[arg(short = 't', long, ignore_case = true, value_parser = status_parser())]
    pub status: Option<CloudsnapStatus>,
    /// Filters and order.
    #[command(flatten)]
    pub filter: ListFilter<Cloudsnap>,
    /// Only this snapshot
    #[arg(short = 'i', long, value_name = "ID")]
    pub cloudsnap_id: Option<SnapRef>,
    /// Only the newest N
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
    /// Width option.
    #[command(flatten)]
    pub width: WideArg,
    /// Only migrations between clusters: none, since any host restores the cloud snapshots of the others
    #[arg(short, long, hide = true)]
    pub migration: bool,
}

impl Listed for Cloudsnap {
    const NAME_HELP: &'static str = "Only backups of this name; * matches any characters";
    const LABEL: LabelOption =
        LabelOption::OfQuery("Only snapshots with all these labels, their own or of their volume");
    const SORTS: &'static [Sort] = &[Sort::Created, Sort::Name, Sort::Volume, Sort::Size, Sort::Location];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        pattern.matches(self.name.as_deref().unwrap_or_default())
    }

    fn at(&self) -> Option<Timestamp> {
        Some(self.created_at)
    }

    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        match sort {
            Sort::Name => self.name.cmp(&other.name),
            Sort::Volume => self.volume_name.cmp(&other.volume_name),
            Sort::Size => self.size_bytes.cmp(&other.size_bytes),
            Sort::Location => self.credential_name.cmp(&other.credential_name),
            // The order of the daemon: oldest first.
            _ => Ordering::Equal,
        }
    }
}

/// Keeps the entries of the filters that the daemon does not know, in the requested order.
fn select(args: &ListArgs, list: &mut CloudsnapList) {
    let items = &mut list.list.items;
    if args.filter.is_filtered() {
        items.retain(|one| args.filter.includes(one));
        // Unreadable ones have neither name nor time.
        list.damaged.clear();
        list.total = items.len() as u64;
        let most = args.max.map_or(usize::MAX, |max| max as usize);
        items.drain(..items.len().saturating_sub(most));
    }
    args.filter.order(items);
}

fn status_parser() -> impl TypedValueParser<Value = CloudsnapStatus> {
    const ABORTED: &str = "aborted";
    let values = CloudsnapStatus::ALL.map(|status| {
        let value = PossibleValue::new(status.as_str());
        if status == CloudsnapStatus::Stopped { value.alias(ABORTED) } else { value }
    });
    PossibleValuesParser::new(values).map(|text| {
        if ABORTED.eq_ignore_ascii_case(&text) {
            return CloudsnapStatus::Stopped;
        }
        // The parser has accepted only these values, upper or lower case.
        let same = |status: &CloudsnapStatus| status.as_str().eq_ignore_ascii_case(&text);
        CloudsnapStatus::ALL.into_iter().find(same).unwrap_or_default()
    })
}

/// Reads the digits of the id of a cluster, or of a prefix of it; dashes are optional.
fn parse_cluster(text: &str) -> Result<String, String> {
    let digits = text.replace('-', "").to_ascii_lowercase();
    match digits.bytes().all(|byte| byte.is_ascii_hexdigit()) && digits.len() >= MIN_HOST_DIGITS {
        true => Ok(digits),
        false => Err(format!("expected the id of a cluster, or its first {MIN_HOST_DIGITS} digits or more")),
    }
}

/// Resolves the cluster of the filter: that of this host, or one of the cloud snapshots.
async fn cluster(context: &Context<'_>, args: &ListArgs) -> Result<Option<Uuid>, Failure> {
    let Some(prefix) = &args.cluster else { return Ok(None) };
    if let Ok(whole) = prefix.parse() {
        return Ok(Some(whole));
    }
    let query = ListCloudsnaps { credential: args.credential.cred_id.clone(), ..ListCloudsnaps::default() };
    let list = context.client.call(operations::LIST_CLOUDSNAPS, &query).await?;
    let here = context.client.call(operations::GET_STATUS, &()).await?.cluster_id;
    let others = list.list.items.iter().map(|entry| entry.cloud_snapshot_id.cluster);
    let clusters: BTreeSet<Uuid> = others.chain([here]).collect();
    let mut found = clusters.iter().filter(|cluster| cluster.simple().to_string().starts_with(prefix));
    match (found.next(), found.next()) {
        (Some(cluster), None) => Ok(Some(*cluster)),
        (None, _) => Err(match list.failed_credentials.first() {
            Some(failed) => ApiError::new(
                failed.error.code,
                format!(
                    "search for cluster {prefix} failed at backup location {}: {}",
                    failed.credential_name, failed.error.message
                ),
            )
            .with_hint("give a complete id, or --cred-id with the only location to search"),
            None => ApiError::new(
                ErrorCode::CloudsnapNotFound,
                format!("no cluster with cloud snapshots has an id that begins with {prefix}"),
            )
            .with_hint("`blockctl cloudsnap list -o wide` shows them as HOST"),
        }
        .into()),
        (Some(first), Some(second)) => Err(Failure::usage(format!(
            "several clusters have an id that begins with {prefix}: {first}, {second}"
        ))
        .with_hint("give a longer prefix")),
    }
}

pub async fn list(context: &Context<'_>, mut args: ListArgs) -> Exit {
    args.src = args.src.or(args.volume.take());
    if args.migration {
        context.output.note("There are no migrations: any host with the bucket and the passphrase lists and restores the cloud snapshots of others.");
        return context.output.list(&CloudsnapList::default(), "migrations", || Table::new([]));
    }
    let cloudsnap_id = match &args.cloudsnap_id {
        Some(id) => Some(id.resolve(context, args.credential.cred_id.as_ref()).await?),
        None => None,
    };
    let query = ListCloudsnaps {
        credential: args.credential.cred_id.clone(),
        volume: args.src.clone(),
        cluster_id: cluster(context, &args).await?,
        all: args.all,
        status: args.status,
        label: args.filter.label.clone(),
        name: args.filter.name.as_ref().and_then(NamePattern::exact),
        cloud_snapshot_id: cloudsnap_id,
        max: args.max.filter(|_| !args.filter.is_filtered()),
    };
    let mut list = context.client.call(operations::LIST_CLOUDSNAPS, &query).await?;
    let is_whole = list.failed_credentials.is_empty();
    if let (Some(id), true) =
        (&query.cloud_snapshot_id, is_whole && list.list.items.is_empty() && list.damaged.is_empty())
    {
        return Err(unknown(id, &query));
    }
    let is_empty = is_whole && list.list.items.is_empty() && list.damaged.is_empty();
    if let (true, Some(volume)) = (is_empty, &query.volume) {
        context.client.call_at(operations::GET_VOLUME, volume, &()).await?;
    }
    select(&args, &mut list);
    let output = context.output;
    if output.is_json() {
        match query.cloud_snapshot_id {
            Some(_) => output.foreign_document(&pxctl::entries(&list))?,
            None => output.document(&list)?,
        };
    } else {
        let width = args.width.width();
        let has_entries = !(list.list.items.is_empty() && list.damaged.is_empty());
        let here = match has_entries {
            true => Some(context.client.call(operations::GET_STATUS, &()).await?.cluster_id),
            false => None,
        };
        output.list(&(), "cloud snapshots", || table(&list, width, here, Timestamp::now()))?;
        tell_volumes(context, &args, &list);
    }
    list.damaged.iter().for_each(|one| warn_of(context, one));
    for failed in &list.failed_credentials {
        output.note(format!(
            "warning: the list lacks the snapshots of credentials {}: {}",
            failed.credential_name, failed.error
        ));
    }
    let shown = list.list.items.len() as u64;
    if shown < list.total && !output.is_json() {
        output.note(format!("The newest {shown} of {} are shown.", list.total));
    }
    // The list is correct but incomplete.
    Ok(if is_whole { EXIT_DONE } else { EXIT_FAILED })
}

/// Warns of a cloud snapshot whose manifest cannot be read.
fn warn_of(context: &Context<'_>, damaged: &DamagedCloudsnap) {
    let what = match damaged.status {
        CloudsnapStatus::Unreadable => "cannot be read by this host",
        _ => "is damaged and cannot be restored",
    };
    context.output.note(format!("warning: {} {what}: {}", damaged.cloud_snapshot_id, damaged.reason));
    if let Some(hint) = &damaged.hint {
        context.output.note(format!("hint: {hint}"));
    }
}

/// Tells that a list by name has the backups of several volumes.
fn tell_volumes(context: &Context<'_>, args: &ListArgs, list: &CloudsnapList) {
    let volumes: BTreeSet<_> =
        list.list.items.iter().map(|one| (one.cloud_snapshot_id.cluster, one.volume_id)).collect();
    if let (Some(VolumeRef::Name(name)), count @ 2..) = (&args.src, volumes.len()) {
        context.output.note(format!(
            "note: {count} volumes have or had the name {name}: --wide shows their ids, --src ID lists one of them"
        ));
    }
}

/// A named snapshot that does not exist is an error, not an empty list.
fn unknown(id: &CloudSnapshotId, query: &ListCloudsnaps) -> Failure {
    let status = query.status.map(|status| format!(" that is {status}")).unwrap_or_default();
    let place = query.credential.as_ref().map(|place| format!(" at {place}")).unwrap_or_default();
    let message = format!("there is no cloud snapshot {id}{status}{place}");
    ApiError::new(ErrorCode::CloudsnapNotFound, message).into()
}

/// Origin of the backups of schedules.
pub const SCHEDULED: &str = "Scheduled";

/// Returns the table of a list; `here` is the cluster of this host.
fn table(list: &CloudsnapList, width: Width, here: Option<Uuid>, now: Timestamp) -> Table {
    let items = &list.list.items;
    let id_of = |one: &DamagedCloudsnap| one.cloud_snapshot_id.parse::<CloudSnapshotId>().ok();
    let ids = items.iter().map(|entry| entry.cloud_snapshot_id);
    let short = ShortIds::new(ids.chain(list.damaged.iter().filter_map(id_of)));
    let ids = items.iter().map(|entry| entry.cloud_snapshot_id);
    let clusters: BTreeSet<String> =
        ids.chain(list.damaged.iter().filter_map(id_of)).map(|id| id.cluster.to_string()).collect();
    let short_host = |cluster: Uuid| short_host(cluster, &clusters);
    let host =
        |entry: &Cloudsnap| Some(entry.cloud_snapshot_id.cluster).filter(|cluster| Some(*cluster) != here);
    let size = |entry: &Cloudsnap| ByteSize::from_bytes(entry.size_bytes);
    let own_name =
        |entry: &Cloudsnap| given_name(entry).filter(|_| entry.trigger != SCHEDULED).map(str::to_owned);
    let host_of_damaged =
        |one: &DamagedCloudsnap| id_of(one).map(|id| id.cluster).filter(|cluster| Some(*cluster) != here);
    let has_others = items.iter().any(|entry| host(entry).is_some())
        || list.damaged.iter().any(|one| host_of_damaged(one).is_some());
    let has_names = items.iter().any(|entry| own_name(entry).is_some());
    let is_all_done = list.damaged.is_empty() && items.iter().all(|one| one.status == CloudsnapStatus::Done);
    let columns = Table::list(items, width)
        .both("VOLUME|SOURCEVOLUME", |entry| &entry.volume_name)
        .narrow("ID", |entry| short.of(&entry.cloud_snapshot_id))
        .wide("SOURCEVOLUMEID", |entry| entry.volume_id)
        .wide("CLOUD-SNAP-ID", |entry| entry.cloud_snapshot_id)
        .both("CREATED|CREATED-TIME", |entry| width.time(entry.created_at))
        // The first columns of a wide list are those of `pxctl`.
        .wide("TYPE", |entry| &entry.trigger)
        .wide("STATUS", |entry| entry.status)
        .wide("BACKUP", |entry| kind(entry.backup_type))
        // A narrow list has room for one of size and status.
        .narrow_if(is_all_done, "SIZE", size)
        .wide("SIZE", size)
        .wide("STORED", |entry| ByteSize::from_bytes(entry.stored_bytes))
        .wide("REFERENCED", |entry| ByteSize::from_bytes(entry.referenced_bytes))
        .wide("COMPRESSION", |entry| or_dash(compression_in_brief(&entry.compression)))
        .both("LOCATION", |entry| &entry.credential_name)
        // A narrow list has no room for a column of dashes.
        .narrow_if(has_others, "HOST", |entry| or_dash(host(entry).map(short_host)))
        .narrow("LAST-PROOF", |entry| proof_in_brief(entry, now))
        .wide("HOST", |entry| or_dash(host(entry)))
        .wide("NAME", |entry| or_dash(entry.name.as_ref()))
        .wide("LABELS", |entry| or_dash(labels_of(entry)))
        .wide("LAST-VERIFICATION", proof_text)
        .wide("LAST-DRILL", drill_text)
        .wide("PINNED", |entry| match entry.pinned_by {
            Some(PinOrigin::Lease) => "lease",
            Some(PinOrigin::Anomaly) => "anomaly",
            _ if entry.pinned => "yes",
            _ => "-",
        })
        .wide("EXPIRES", |entry| or_dash(entry.expires_at.map(format_time)))
        .narrow_if(!is_all_done, "STATUS", |entry| entry.status)
        .narrow_if(has_names, "NAME", |entry| or_dash(own_name(entry)));
    let host_name = |cluster: Uuid| match width {
        Width::Narrow => short_host(cluster),
        Width::Wide => cluster.to_string(),
    };
    let mut table = columns.fit("VOLUME|LOCATION|NAME");
    for one in &list.damaged {
        table.partial_row(&[
            ("ID", id_of(one).map_or_else(|| one.cloud_snapshot_id.clone(), |id| short.of(&id))),
            ("SOURCEVOLUMEID", or_dash(pxctl::volume_id(one))),
            ("CLOUD-SNAP-ID", one.cloud_snapshot_id.clone()),
            ("LOCATION", one.credential_name.clone()),
            ("HOST", or_dash(host_of_damaged(one).map(host_name))),
            ("STATUS", one.status.to_string()),
        ]);
    }
    table
}

/// Returns the name of a backup, unless the daemon generated it.
pub fn given_name(one: &Cloudsnap) -> Option<&str> {
    let is_generated =
        |name: &str| name.strip_prefix("backup-").is_some_and(|rest| Uuid::try_parse(rest).is_ok());
    one.name.as_deref().filter(|name| !name.is_empty() && !is_generated(name))
}

/// Returns age and kind of the last proof, or `damaged`. A drill that passed is shown if no verification read
/// all of the content, as it reads a part; one that failed stays, as a verification restores nothing.
fn proof_in_brief(entry: &Cloudsnap, now: Timestamp) -> String {
    let drill = entry.last_drill.as_ref();
    match (&entry.last_proof, drill) {
        (Some(last), _) if !last.sound => "damaged".to_owned(),
        (None, Some(drill)) if !drill.passed => DRILL_FAILED.to_owned(),
        (Some(last), Some(drill)) if !drill.passed => format!("{}, {DRILL_FAILED}", proof_age(last, now)),
        (Some(last), None) => proof_age(last, now),
        (Some(last), Some(_)) if last.kind != VerifyDepth::Quick => proof_age(last, now),
        (_, Some(drill)) => {
            let unchecked = if drill.unchecked { ", not checked" } else { "" };
            format!("{} drill{unchecked}", span(now.duration_since(drill.ended_at)))
        }
        (None, None) => "-".to_owned(),
    }
}

/// Returns the labels of a backup: those of its volume, and its own, which win; `None` without labels.
fn labels_of(entry: &Cloudsnap) -> Option<Labels> {
    let labels = entry.labels.clone().overlaid_by(&entry.backup_labels);
    (!labels.is_empty()).then_some(labels)
}

/// Returns the shortest prefix of a cluster id, of at least 4 digits, that no other host of the list has.
pub fn short_host(cluster: Uuid, clusters: &BTreeSet<String>) -> String {
    let id = cluster.to_string();
    let prefixes = (MIN_HOST_DIGITS..id.len()).map(|len| id.chars().take(len).collect::<String>());
    let is_own = |prefix: &String| clusters.iter().filter(|one| one.starts_with(prefix)).count() < 2;
    prefixes.into_iter().find(is_own).unwrap_or_else(|| id.clone())
}

fn kind(backup: BackupType) -> &'static str {
    match backup {
        BackupType::Full => "full",
        BackupType::Incremental => "incr",
    }
}
