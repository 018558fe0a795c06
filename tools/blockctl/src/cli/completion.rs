//! Completion of names from the daemon.
//!
//! The script of a shell runs `blockctl` for each completion. Candidates follow from the value names of
//! arguments; without a daemon there are none.

use crate::{
    commands::{
        objects::args::{ALL, Kinds},
        schedules::called,
        schema,
    },
    contexts::{self, Global},
    objects::Kind,
    table::short_uuid,
};
use blockd_api::{
    CLONED_BY, Client, RESTORED_BY,
    anomalies::{BackupAnomaly, ListAnomalies},
    cloudsnaps::{Cloudsnap, ListCloudsnaps},
    operations,
    snapshots::{ListSnapshots, Snapshot},
    tasks::{ListTasks, Task, TaskKind, TaskStage},
    volumes::{ListVolumes, Volume},
};
use clap::{Arg, Command, Id};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    time::Duration,
};

/// Timeout of the daemon. A slow host completes late, and Ctrl-C ends the wait.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Source of candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Volumes,
    /// Volumes; after `@`, also local snapshots.
    Exports,
    /// `VOLUME@latest` and backups of tasks: a list of cloud snapshots may need slow stores.
    Points,
    /// The same, and backups of other hosts, which only the stores have.
    RestorablePoints,
    /// `VOLUME@latest`.
    Latest,
    Snapshots,
    /// Names of the snapshots of the volume that is typed before.
    SnapshotsOfVolume,
    SnapshotNames,
    /// Names of backups that tasks made.
    Backups,
    /// Names of backups of other hosts, each with its host.
    BackupsOfOthers,
    /// Hosts with cloud snapshots.
    Clusters,
    /// Words of the commands that have a schema.
    SchemaWords,
    Compressions,
    /// Objects in this label of volumes.
    Makers(&'static str),
    /// Kinds and their names in other systems; of a list, also `all`.
    Kinds {
        is_list: bool,
    },
    /// Names of objects of the kinds that are typed before.
    Objects,
    Groups,
    Credentials,
    Schedules,
    DrillSchedules,
    Policies,
    Rules,
    /// Anomalies without an acknowledgement, and their volumes.
    Anomalies,
    Tasks,
    /// Tasks that can be stopped; with `--discard`, also those that can be resumed.
    StoppableTasks,
    ResumableTasks,
}

/// Compressions; other levels of zstd are accepted too.
const COMPRESSIONS: [&str; 7] = ["auto", "none", "lz4", "zstd:1", "zstd:3", "zstd:6", "zstd:9"];

impl Source {
    /// Returns the source for an argument, which follows from its value name and the other arguments.
    fn of(arg: &Arg, command: &Command) -> Option<Self> {
        let name_of = |arg: &Arg| {
            let first = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
            first.unwrap_or_default()
        };
        let has = |name: &str| command.get_positionals().any(|arg| name_of(arg).starts_with(name));
        Some(match name_of(arg).as_str() {
            "VOLUME" | "VOLUME,…" | "VOLUME|DEVICE" | "VOLUME|GROUP" => Self::Volumes,
            "VOLUME[@SNAPSHOT]" => Self::Exports,
            "ID|VOLUME" => Self::RestorablePoints,
            "UUID" if arg.get_id() == "cluster" => Self::Clusters,
            "COMMAND" if command.get_name() == "schema" => Self::SchemaWords,
            "COMPRESSION" => Self::Compressions,
            "ID" | "ID-1" | "ID-2" | "ID PATH" => Self::Points,
            "SNAPSHOT" | "A" | "B" if has("VOLUME[@SNAPSHOT]") => Self::SnapshotsOfVolume,
            "SNAPSHOT" => Self::Snapshots,
            of @ ("KIND" | "KIND,…") if arg.is_positional() => Self::Kinds { is_list: of != "KIND" },
            "NAME" if arg.is_positional() && has("KIND") => Self::Objects,
            "GROUP" | "GROUP|ID" => Self::Groups,
            "CREDENTIAL" | "CREDENTIALS" => Self::Credentials,
            "SCHEDULE" => Self::Schedules,
            "POLICY" => Self::Policies,
            "RULE" => Self::Rules,
            "ANOMALY|VOLUME" => Self::Anomalies,
            "TASK" => match command.get_name() {
                "stop" | "limit" => Self::StoppableTasks,
                "resume" => Self::ResumableTasks,
                _ => Self::Tasks,
            },
            _ => return None,
        })
    }

    /// Returns the source for the names of objects of a kind.
    fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::BackupLocation => Self::Credentials,
            Kind::SchedulePolicy => Self::Policies,
            Kind::Rule => Self::Rules,
            Kind::VolumeSnapshot => Self::SnapshotNames,
            Kind::VolumeBackup => Self::Backups,
            Kind::VolumeBackupSchedule => Self::Schedules,
            Kind::RestoreDrill => Self::DrillSchedules,
            Kind::VolumeRestore => Self::Makers(RESTORED_BY),
            Kind::VolumeClone => Self::Makers(CLONED_BY),
        }
    }

    /// Returns the sources for a word on a line.
    fn parts(self, word: &str, line: &[String]) -> Vec<Self> {
        match self {
            Self::Exports if word.contains('@') => vec![Self::Snapshots],
            Self::Exports => vec![Self::Volumes],
            Self::Points => vec![Self::Latest, Self::Backups],
            Self::RestorablePoints => vec![Self::Latest, Self::Backups, Self::BackupsOfOthers],
            Self::Objects => {
                let kinds = line.iter().find_map(|word| word.parse::<Kinds>().ok());
                let kinds = kinds.map_or_else(Vec::new, |kinds| kinds.kinds.into_iter().collect());
                let of_others = kinds.contains(&Kind::VolumeBackup).then_some(Self::BackupsOfOthers);
                kinds.into_iter().map(Self::of_kind).chain(of_others).collect()
            }
            other => vec![other],
        }
    }

    /// Returns the names for a word; of the daemon those that it sends in time.
    fn names(self, word: &str) -> BTreeSet<String> {
        if let Self::Kinds { is_list } = self {
            let is_lower = word.starts_with(|first: char| first.is_ascii_lowercase());
            let spelled = |kind: Kind| if is_lower { kind.text().to_lowercase() } else { kind.to_string() };
            let others = Kind::ALL.into_iter().flat_map(Kind::other_names).chain(is_list.then_some(ALL));
            return Kind::ALL.into_iter().map(spelled).chain(others.map(str::to_owned)).collect();
        }
        let line: Vec<String> = typed().filter_map(|word| word.into_string().ok()).collect();
        if self == Self::SchemaWords {
            return schema_words(&line);
        }
        if self == Self::Compressions {
            return COMPRESSIONS.map(str::to_owned).into();
        }
        let Ok(endpoint) = contexts::resolve(&selected(), |name| std::env::var_os(name)) else {
            return BTreeSet::new();
        };
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return BTreeSet::new();
        };
        let client = Client::at(endpoint);
        let mut names = BTreeSet::new();
        let all = async {
            for part in self.parts(word, &line) {
                names.extend(part.load(&client, &line).await.unwrap_or_default());
            }
        };
        // Slow stores must not hide the names of the daemon.
        let _ = runtime.block_on(async { tokio::time::timeout(TIMEOUT, all).await });
        runtime.shutdown_background();
        names
    }

    async fn load(self, client: &Client, line: &[String]) -> Option<Vec<String>> {
        let volumes = async || {
            let list = client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await.ok()?;
            Some(list.items)
        };
        let snapshots = async || {
            let list = client.call(operations::LIST_SNAPSHOTS, &ListSnapshots::default()).await.ok()?;
            Some(list.items)
        };
        let tasks =
            async || Some(client.call(operations::LIST_TASKS, &ListTasks::default()).await.ok()?.items);
        let names = match self {
            Self::Volumes => volumes().await?.iter().map(|one| one.name.to_string()).collect(),
            Self::Latest => {
                let backed_up = |one: &&Volume| !one.last_backups.is_empty();
                volumes().await?.iter().filter(backed_up).map(|one| format!("{}@latest", one.name)).collect()
            }
            Self::Groups => volumes()
                .await?
                .iter()
                .filter_map(|one| one.group.as_ref().map(ToString::to_string))
                .collect(),
            Self::Makers(label) => {
                volumes().await?.iter().filter_map(|one| one.labels.as_map().get(label).cloned()).collect()
            }
            Self::Snapshots => snapshots().await?.iter().map(full_name).collect(),
            Self::SnapshotNames => snapshots().await?.iter().map(|one| one.name.to_string()).collect(),
            Self::SnapshotsOfVolume => {
                let is_typed = |one: &&Snapshot| {
                    let volume = [one.volume_name.to_string(), one.volume_id.to_string()];
                    line.iter().any(|word| volume.contains(word))
                };
                snapshots().await?.iter().filter(is_typed).map(|one| one.name.to_string()).collect()
            }
            Self::Credentials => {
                let list = client.call(operations::LIST_CREDENTIALS, &()).await.ok()?;
                list.items.iter().map(|one| one.name.to_string()).collect()
            }
            Self::Schedules => schedules(client, line.iter().any(|word| word == "drill")).await?,
            Self::DrillSchedules => schedules(client, true).await?,
            Self::Policies => {
                let list = client.call(operations::LIST_POLICIES, &()).await.ok()?;
                list.items.iter().map(|one| one.name.to_string()).collect()
            }
            Self::Rules => {
                let list = client.call(operations::LIST_RULES, &()).await.ok()?;
                list.items.iter().map(|one| one.name.to_string()).collect()
            }
            Self::Anomalies => {
                let list = client.call(operations::LIST_ANOMALIES, &ListAnomalies::default()).await.ok()?;
                let names = |one: &BackupAnomaly| [short_uuid(one.anomaly_id), one.volume_name.to_string()];
                list.items.iter().flat_map(names).collect()
            }
            Self::Tasks | Self::StoppableTasks | Self::ResumableTasks => {
                let discards = line.iter().any(|word| word == "--discard");
                let offered = |one: &&Task| match self {
                    Self::StoppableTasks => !one.state.stage.is_over() || (discards && one.resumable),
                    Self::ResumableTasks => one.resumable,
                    _ => true,
                };
                tasks().await?.iter().filter(offered).map(|one| short_uuid(one.task_id)).collect()
            }
            Self::Backups => backup_names(&tasks().await?),
            Self::BackupsOfOthers | Self::Clusters => self.load_stored(client).await?,
            _ => return None,
        };
        Some(names)
    }

    /// Returns the names that only the stores have.
    async fn load_stored(self, client: &Client) -> Option<Vec<String>> {
        let own = client.call(operations::GET_STATUS, &()).await.ok()?.cluster_id;
        let list = client.call(operations::LIST_CLOUDSNAPS, &ListCloudsnaps::default()).await.ok()?.list;
        let cluster = |one: &Cloudsnap| one.cloud_snapshot_id.cluster;
        if self == Self::Clusters {
            return Some(list.items.iter().map(cluster).chain([own]).map(short_uuid).collect());
        }
        let others = list.items.iter().filter(|one| cluster(one) != own);
        let name = |one: &Cloudsnap| Some(format!("{}/{}", short_uuid(cluster(one)), one.name.as_ref()?));
        Some(others.filter_map(name).collect())
    }

    /// Returns the candidates for a word. Of a list, the last element is completed.
    fn complete(self, word: &OsStr) -> Vec<CompletionCandidate> {
        let Some(word) = word.to_str() else { return Vec::new() };
        let (before, last) = match word.rsplit_once(',') {
            Some((before, last)) => (format!("{before},"), last),
            None => (String::new(), word),
        };
        let names = self.names(last).into_iter().filter(|name| name.starts_with(last));
        names.map(|name| CompletionCandidate::new(format!("{before}{name}"))).collect()
    }
}

/// Returns the next words of the commands that have a schema and begin with the words of a line. Its last
/// word is the one to complete.
fn schema_words(line: &[String]) -> BTreeSet<String> {
    let mut before: Vec<&String> = line.iter().skip_while(|word| *word != "schema").skip(1).collect();
    before.pop();
    let next = |command: &str| {
        let mut words = command.split(' ');
        let begins = before.iter().all(|word| words.next() == Some(word.as_str()));
        words.next().filter(|_| begins).map(str::to_owned)
    };
    schema::commands().filter_map(next).collect()
}

/// Returns the name of a snapshot with its volume.
fn full_name(one: &Snapshot) -> String {
    format!("{}@{}", one.volume_name, one.name)
}

/// Returns the names of the backups that tasks made, without those that tasks deleted.
fn backup_names(tasks: &[Task]) -> Vec<String> {
    let done = |kind: TaskKind| {
        tasks.iter().filter(move |task| task.state.kind == kind && task.state.stage == TaskStage::Done)
    };
    let deleted: BTreeSet<_> =
        done(TaskKind::Delete).filter_map(|task| task.cloud_snapshot_id.as_ref()).collect();
    let is_there = |task: &&Task| task.cloud_snapshot_id.as_ref().is_none_or(|id| !deleted.contains(id));
    let named = done(TaskKind::Backup).filter(is_there).filter_map(|task| task.name.as_ref());
    named.map(ToString::to_string).collect()
}

/// Returns the line as far as it is typed.
fn typed() -> impl Iterator<Item = OsString> {
    std::env::args_os().skip_while(|word| word != "--")
}

/// Returns the options that select the daemon, as far as they are typed.
fn selected() -> Global {
    selected_by(&typed().collect::<Vec<_>>())
}

fn selected_by(words: &[OsString]) -> Global {
    let value = |option: &str| {
        words.iter().enumerate().find_map(|(at, word)| {
            let joined = word.as_bytes().strip_prefix(option.as_bytes())?;
            match joined.split_first() {
                // Some shells split the words at `=`.
                None if words.get(at + 1).is_some_and(|next| next == "=") => words.get(at + 2).cloned(),
                None => words.get(at + 1).cloned(),
                Some((b'=', value)) => Some(OsStr::from_bytes(value).to_owned()),
                Some(_) => None,
            }
        })
    };
    let text = |option: &str| value(option).and_then(|value| value.into_string().ok());
    let path = |option: &str| value(option).map(PathBuf::from);
    Global {
        socket: path("--socket"),
        endpoint: text("--endpoint"),
        ca: path("--ca"),
        cert: path("--cert"),
        key: path("--key"),
        context: text("--context"),
        ..Global::default()
    }
}

/// Returns the words that the value name of an argument lists, such as `on|off`.
fn listed_words(arg: &Arg) -> Option<Vec<String>> {
    let name = arg.get_value_names()?.first()?;
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let is_list = name.contains('|') && name.split('|').all(is_word);
    is_list.then(|| name.split('|').map(str::to_owned).collect())
}

/// Adds sources of names to the arguments of a command and its subcommands.
pub fn with_names(command: Command) -> Command {
    let sources: BTreeMap<Id, Source> = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_id().clone(), Source::of(arg, &command)?)))
        .collect();
    let command = command.mut_args(|arg| match (sources.get(arg.get_id()).copied(), listed_words(&arg)) {
        (Some(source), _) => arg.add(ArgValueCompleter::new(move |word: &OsStr| source.complete(word))),
        (None, Some(words)) => arg.add(ArgValueCompleter::new(move |typed: &OsStr| {
            let typed = typed.to_string_lossy();
            let begun = words.iter().filter(|word| word.starts_with(&*typed));
            begun.map(CompletionCandidate::new).collect()
        })),
        (None, None) => arg,
    });
    command.mut_subcommands(with_names)
}

/// Returns the names of the schedules of backups or of drills.
async fn schedules(client: &Client, of_drills: bool) -> Option<Vec<String>> {
    let list = match of_drills {
        true => client.call(operations::LIST_DRILL_SCHEDULES, &()).await.ok()?.list,
        false => client.call(operations::LIST_SCHEDULES, &()).await.ok()?.list,
    };
    Some(list.items.iter().map(called).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_daemon_are_found_in_all_forms() {
        let selected = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
            selected_by(&words)
        };
        for line in
            ["-- blockctl --socket /s volume", "-- blockctl --socket=/s volume", "-- --socket = /s volume"]
        {
            assert_eq!(selected(line).socket, Some("/s".into()), "{line}");
        }
        let remote = selected("-- blockctl --endpoint=h:1 --ca a --cert=c --key k volume inspect");
        assert_eq!((remote.endpoint.as_deref(), remote.ca), (Some("h:1"), Some("a".into())));
        assert_eq!((remote.cert, remote.key), (Some("c".into()), Some("k".into())));
        assert_eq!(selected("-- blockctl --context far").context.as_deref(), Some("far"));
        let none = selected("-- blockctl --sockets volume");
        assert!(none.socket.is_none() && none.endpoint.is_none());
    }
}
