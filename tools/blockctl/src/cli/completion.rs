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
use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    time::Duration,
};

/// Environment variable that asks for completions.
pub const VARIABLE: &str = "BLOCKCTL_COMPLETE";
/// Timeout of the daemon. A slow host completes late, and Ctrl-C ends the wait.
const TIMEOUT: Duration = Duration::from_secs(10);

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
    selected_by(&std::env::args_os().skip_while(|word| word != "--").collect::<Vec<_>>())
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
