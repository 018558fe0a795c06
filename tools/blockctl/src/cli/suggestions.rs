//! Familiar names of commands, and corrections of mistyped ones.

use clap::{
    Command,
    builder::StyledStr,
    error::{ContextKind, ContextValue},
};
use std::ffi::OsString;

/// Minimum length of a proposed name: shorter ones are aliases, which resemble any word.
const MIN_CHARS: usize = 3;
/// Length of the common beginning of a mistyped global option and its proposal.
const COMMON_CHARS: usize = 2;

/// Adds the names of other tools to a command and its subcommands: `ls`, `rm` and `show`.
pub fn with_familiar_names(command: Command) -> Command {
    let alias = match command.get_name() {
        "list" => Some("ls"),
        "delete" => Some("rm"),
        "inspect" | "describe" => Some("show"),
        _ => None,
    };
    let command = match alias {
        Some(alias) => command.alias(alias),
        None => command,
    };
    command.mut_subcommands(with_familiar_names)
}

/// Words of other tools, and commands with this meaning, the preferred one first.
const MEANINGS: [(&str, &str); 17] = [
    ("ls", "list get"),
    ("list", "get"),
    ("rm", "delete unset"),
    ("remove", "delete unset"),
    ("del", "delete"),
    ("destroy", "delete"),
    ("show", "inspect list"),
    ("describe", "inspect list"),
    ("info", "inspect list status"),
    ("get", "inspect list"),
    ("cancel", "stop"),
    ("abort", "stop"),
    ("kill", "stop"),
    ("add", "create backup"),
    ("new", "create backup"),
    ("create", "backup"),
    ("check", "verify"),
];

/// Words without a group, and the commands with this meaning.
const WITHOUT_GROUP: [(&str, &str); 18] = [
    ("ack", "anomaly acknowledge"),
    ("acknowledge", "anomaly acknowledge"),
    ("attach", "volume attach"),
    ("backup", "cloudsnap backup"),
    ("backups", "cloudsnap list"),
    ("cancel", "cloudsnap stop"),
    ("check", "doctor"),
    ("mount", "browse mount"),
    ("ps", "cloudsnap status"),
    ("restore", "cloudsnap restore"),
    ("schedule", "cloudsnap schedules"),
    ("schedules", "cloudsnap schedules"),
    ("snapshots", "snapshot"),
    ("stop", "cloudsnap stop"),
    ("task", "cloudsnap status"),
    ("tasks", "cloudsnap status"),
    ("version", "status"),
    ("volumes", "volume"),
];

/// Replaces proposals that do not help: commands by those with the meaning of the typed word, aliases of one
/// or two letters, options passed as values, and options of every command that begin otherwise. Names the one
/// of `options` that stands for a superfluous argument. `root` is the parser.
pub fn improve(root: &Command, mut error: clap::Error, args: &[OsString], options: &[&str]) -> clap::Error {
    error.remove(ContextKind::Suggested);
    if let (Some(option), Some(word)) = (options.first(), typed(&error, ContextKind::InvalidArg))
        && !word.starts_with('-')
    {
        let tip = StyledStr::from(format!("--{option} is given as well"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    let similar = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(names)) => names.clone(),
        _ => Vec::new(),
    };
    if let Some(typed) = typed(&error, ContextKind::InvalidSubcommand) {
        error.remove(ContextKind::SuggestedSubcommand);
        // The most similar one is the last.
        let similar = || similar.into_iter().rfind(|name| name.len() >= MIN_CHARS);
        if let Some(name) = meant(root, &typed, args).or_else(similar) {
            error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![name]));
        }
    }
    let is_far = match (typed(&error, ContextKind::InvalidArg), error.get(ContextKind::SuggestedArg)) {
        (Some(typed), Some(ContextValue::String(option))) => {
            is_global(root, option) && !typed.starts_with(option.get(..2 + COMMON_CHARS).unwrap_or(option))
        }
        _ => false,
    };
    if is_far {
        error.remove(ContextKind::SuggestedArg);
    }
    error
}

/// Returns the word that an error is about.
fn typed(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(typed)) => Some(typed.clone()),
        _ => None,
    }
}

/// Returns the command of the typed group with the meaning of an unknown word.
fn meant(root: &Command, typed: &str, args: &[OsString]) -> Option<String> {
    let at = args.iter().take_while(|arg| arg.as_os_str() != typed);
    let group = at.fold(root, |group, arg| group.find_subcommand(arg).unwrap_or(group));
    let elsewhere = || WITHOUT_GROUP.iter().find(|(word, _)| *word == typed).map(|(_, command)| *command);
    if group.get_name() == root.get_name()
        && let Some(command) = elsewhere()
    {
        return Some(command.to_owned());
    }
    let names = MEANINGS.iter().find(|(word, _)| *word == typed).map_or("", |(_, names)| names);
    let here = names.split(' ').find(|name| group.find_subcommand(name).is_some()).map(str::to_owned);
    // The word of another group.
    let other = || {
        let command = elsewhere().or_else(|| root.find_subcommand(typed).map(Command::get_name))?;
        Some(format!("{} {command}", root.get_name()))
    };
    here.or_else(other)
}

/// Returns true for an option of every command.
fn is_global(root: &Command, option: &str) -> bool {
    root.get_arguments().any(|arg| arg.is_global_set() && arg.get_long() == option.strip_prefix("--"))
}

#[cfg(test)]
mod tests {

    fn error(line: &str) -> String {
        crate::cli::tests::parse(line).unwrap_err().to_string()
    }

    #[test]
    fn familiar_names_are_aliases() {
        for line in
            ["volume ls", "cloudsnap rm ID123456", "snapshot show a@b", "credentials ls", "show Rule x"]
        {
            let words = std::iter::once("blockctl").chain(line.split_whitespace());
            assert!(crate::cli::command().try_get_matches_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn words_of_other_tools_propose_the_command() {
        for (line, tip) in [
            ("ls", Some("get")),
            ("rm-all", None),
            ("volume remove db", Some("delete")),
            ("volume destroy db", Some("delete")),
            ("volume info db", Some("inspect")),
            ("cloudsnap cancel", Some("stop")),
            ("cloudsnap schedules show nightly", Some("list")),
            ("cs sched info", Some("list")),
            ("context show", Some("list")),
            ("context remove vault", Some("delete")),
            ("browse show", Some("list")),
            ("sched-policy add gold", Some("create")),
            ("volume creat db", Some("create")),
            ("cloudsnap create db", Some("backup")),
            ("cloudsnap check", Some("verify")),
            ("check", Some("doctor")),
            ("cancel 3f4f", Some("cloudsnap stop")),
            ("version", Some("status")),
            ("volume snapshot db", Some("blockctl snapshot")),
            ("volume backup db", Some("blockctl cloudsnap backup")),
        ] {
            let told = error(line);
            match tip {
                Some(tip) => assert!(told.contains(&format!("exists: '{tip}'")), "{line}: {told}"),
                None => assert!(!told.contains("exists"), "{line}: {told}"),
            }
        }
    }

    #[test]
    fn words_without_a_group_propose_the_command() {
        for (word, command) in super::WITHOUT_GROUP {
            let told = error(&format!("{word} list"));
            assert!(told.contains(&format!("exists: '{command}'")), "{word}: {told}");
            let root = crate::cli::command();
            let found = command.split(' ').try_fold(&root, |group, name| group.find_subcommand(name));
            assert!(found.is_some(), "{command}");
        }
    }

    #[test]
    fn options_of_every_command_are_proposed_for_their_beginning() {
        assert!(!error("sched-policy list --since 7d").contains("tip"));
        assert!(error("sched-policy list --sokcet /s").contains("'--socket'"));
        assert!(error("volume list --grup shop").contains("'--group'"));
    }

    #[test]
    fn proposals_are_whole_words() {
        assert!(error("volume creat db").contains("'create'"));
        for line in ["volume snapshot", "version", "cloudsnap cancel"] {
            let told = error(line);
            assert!(!told.contains("'a'") && !told.contains("'v'") && !told.contains("'l'"), "{told}");
        }
        assert!(!error("cloudsnap backup db --names x").contains("to pass"));
    }
}
