//! Completion of names from the daemon.
//!
//! The script of a shell runs `blockctl` with [`VARIABLE`] for each completion. Candidates follow from the
//! value names of arguments; without a daemon there are none.

use crate::{
    commands::schedules::called,
    contexts::{self, Global},
    table::short_uuid,
};
use blockd_api::{
    Client, operations,
    snapshots::ListSnapshots,
    tasks::ListTasks,
    volumes::{ListVolumes, Volume},
};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use std::{collections::BTreeSet, ffi::OsStr, time::Duration};

/// Environment variable that asks for completions.
pub const VARIABLE: &str = "BLOCKCTL_COMPLETE";
/// Timeout of the daemon.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Source of candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Volumes,
    /// `VOLUME@latest`: a list of cloud snapshots may need slow stores.
    Points,
    Snapshots,
    Groups,
    Credentials,
    Schedules,
    Policies,
    Rules,
    Tasks,
}

impl Source {
    /// Returns the source for the value name of an argument.
    fn of(value_name: &str) -> Option<Self> {
        Some(match value_name {
            "VOLUME" | "VOLUME,…" | "VOLUME|DEVICE" | "VOLUME[@SNAPSHOT]" => Self::Volumes,
            "ID" | "ID|VOLUME" | "ID-1" | "ID-2" | "ID PATH" => Self::Points,
            "SNAPSHOT" => Self::Snapshots,
            "GROUP" | "GROUP|ID" => Self::Groups,
            "CREDENTIAL" | "CREDENTIALS" => Self::Credentials,
            "SCHEDULE" => Self::Schedules,
            "POLICY" => Self::Policies,
            "RULE" => Self::Rules,
            "TASK" => Self::Tasks,
            _ => return None,
        })
    }

    /// Returns the names that the daemon knows; nothing if it does not answer in time.
    fn names(self) -> Vec<String> {
        let Ok(endpoint) = contexts::resolve(&selected(), |name| std::env::var_os(name)) else {
            return Vec::new();
        };
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return Vec::new();
        };
        let client = Client::at(endpoint);
        let found = runtime.block_on(async { tokio::time::timeout(TIMEOUT, self.load(&client)).await });
        runtime.shutdown_background();
        found.ok().flatten().unwrap_or_default()
    }

    async fn load(self, client: &Client) -> Option<Vec<String>> {
        let volumes = async || {
            let list = client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await.ok()?;
            Some(list.items)
        };
        let names = match self {
            Self::Volumes => volumes().await?.iter().map(|one| one.name.to_string()).collect(),
            Self::Points => {
                let backed_up = |one: &&Volume| !one.last_backups.is_empty();
                volumes().await?.iter().filter(backed_up).map(|one| format!("{}@latest", one.name)).collect()
            }
            Self::Groups => {
                let groups: BTreeSet<String> = volumes()
                    .await?
                    .iter()
                    .filter_map(|one| one.group.as_ref().map(ToString::to_string))
                    .collect();
                groups.into_iter().collect()
            }
            Self::Snapshots => {
                let list = client.call(operations::LIST_SNAPSHOTS, &ListSnapshots::default()).await.ok()?;
                list.items.iter().map(|one| format!("{}@{}", one.volume_name, one.name)).collect()
            }
            Self::Credentials => {
                let list = client.call(operations::LIST_CREDENTIALS, &()).await.ok()?;
                list.items.iter().map(|one| one.name.to_string()).collect()
            }
            Self::Schedules => {
                let list = client.call(operations::LIST_SCHEDULES, &()).await.ok()?.list;
                list.items.iter().map(called).collect()
            }
            Self::Policies => {
                let list = client.call(operations::LIST_POLICIES, &()).await.ok()?;
                list.items.iter().map(|one| one.name.to_string()).collect()
            }
            Self::Rules => {
                let list = client.call(operations::LIST_RULES, &()).await.ok()?;
                list.items.iter().map(|one| one.name.to_string()).collect()
            }
            Self::Tasks => {
                let list = client.call(operations::LIST_TASKS, &ListTasks::default()).await.ok()?;
                list.items.iter().map(|one| short_uuid(one.task_id)).collect()
            }
        };
        Some(names)
    }

    /// Returns the candidates for a word. Of a list, the last element is completed.
    fn complete(self, word: &OsStr) -> Vec<CompletionCandidate> {
        let Some(word) = word.to_str() else { return Vec::new() };
        let (before, last) = match word.rsplit_once(',') {
            Some((before, last)) => (format!("{before},"), last),
            None => (String::new(), word),
        };
        let names = self.names().into_iter().filter(|name| name.starts_with(last));
        names.map(|name| CompletionCandidate::new(format!("{before}{name}"))).collect()
    }
}

/// Returns the options that select the daemon, as far as they are typed.
fn selected() -> Global {
    let words: Vec<_> = std::env::args_os().skip_while(|word| word != "--").collect();
    let value = |option: &str| {
        let at = words.iter().position(|word| word == option)?;
        words.get(at + 1).cloned()
    };
    Global {
        socket: value("--socket").map(Into::into),
        context: value("--context").and_then(|name| name.into_string().ok()),
        ..Global::default()
    }
}

/// Adds sources of names to the arguments of a command and its subcommands.
pub fn with_names(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let name = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
        match name.and_then(|name| Source::of(&name)) {
            Some(source) => arg.add(ArgValueCompleter::new(move |word: &OsStr| source.complete(word))),
            None => arg,
        }
    });
    command.mut_subcommands(with_names)
}
