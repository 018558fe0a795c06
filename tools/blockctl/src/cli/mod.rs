//! Command line grammar; the arguments of each command are beside its implementation.

mod completion;
mod option_names;
#[cfg(test)]
mod pxctl;
mod suggestions;
pub mod unsupported;

use crate::{
    commands::{
        anomaly, arguments::TaskArg, browse, cloudsnap, completions, context, credentials, doctor, events,
        init, objects, rules, schedules, schema, secrets, snapshot, status, top, volume,
    },
    contexts::Global,
    output::ColorChoice,
};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::{OsStr, OsString};

const AFTER_HELP: &str = "\
Exit status:
  0    done
  1    failed (with --wait: the task failed)
  2    invalid command line or request
  3    the daemon cannot be reached
  4    not found
  5    conflict: exists already, or is in use
  6    `apply` without --wait: objects wait for a running backup; the rest is applied
  130  Ctrl-C while waiting; the task continues

Environment:
  BLOCKD_SOCKET                   control socket of blockd
  BLOCKD_ENDPOINT                 address of a blockd on another host
  BLOCKD_ENCRYPTION_PASSPHRASE    passphrase for `credentials create`
  AWS_ACCESS_KEY_ID               S3 access key for `credentials create`
  AWS_SECRET_ACCESS_KEY           S3 secret key for `credentials create`
  AZURE_…, GOOGLE_…, ST_…, OS_…   the same for Azure, Google and Swift: `credentials create --help`
  NO_COLOR                        no colours, if it is set

Examples:
  blockctl volume create db --size 8GiB
  blockctl credentials create nas --provider local --path /srv/backup
  blockctl cloudsnap backup db --wait
  blockctl cloudsnap list
  blockctl cloudsnap restore --snap ID --volume db-restored --wait";

/// Manages blockd: volumes, snapshots and cloud snapshots.
#[derive(Debug, Parser)]
#[command(name = "blockctl", version, after_help = AFTER_HELP, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// Subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set up a backup location and a schedule, and make first backups
    #[command(after_help = init::args::INIT_HELP)]
    Init(Box<init::args::InitArgs>),
    /// Check host, daemon, backup locations, schedules and verifications
    #[command(after_help = doctor::DOCTOR_HELP)]
    Doctor,
    /// Manage volumes
    #[command(subcommand, visible_alias = "v")]
    Volume(volume::args::VolumeCommand),
    /// Manage local snapshots
    #[command(subcommand, visible_alias = "snap")]
    Snapshot(snapshot::args::SnapshotCommand),
    /// Manage credentials of backup locations
    #[command(subcommand, visible_alias = "cred", alias = "creds")]
    Credentials(credentials::args::CredentialsCommand),
    /// Back up and restore cloud snapshots
    #[command(subcommand, visible_alias = "cs")]
    Cloudsnap(cloudsnap::CloudsnapCommand),
    /// Browse snapshots as files
    #[command(subcommand)]
    Browse(browse::BrowseCommand),
    /// Manage schedule policies
    #[command(subcommand, visible_alias = "sp")]
    SchedPolicy(schedules::args::PolicyCommand),
    /// Manage hooks and filesystem freezes
    #[command(subcommand)]
    Rule(rules::RuleCommand),
    /// Apply objects from a file
    #[command(after_help = objects::args::APPLY_HELP)]
    Apply(objects::args::ApplyArgs),
    /// List objects
    #[command(after_help = objects::args::GET_HELP)]
    Get(objects::args::GetArgs),
    /// Show an object in detail
    #[command(after_help = objects::args::DESCRIBE_HELP)]
    Describe(objects::args::Selection),
    /// Show the changes of `apply`
    #[command(after_help = objects::args::DIFF_HELP)]
    Diff(objects::args::FileArg),
    /// Delete an object, or the objects of a file
    #[command(after_help = objects::args::DELETE_HELP)]
    Delete(objects::args::DeleteArgs),
    /// Manage contexts (named daemons)
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Accept the login to a secret store, which is not needed
    #[command(hide = true, after_help = secrets::LOGIN_HELP)]
    Secrets(secrets::SecretsArgs),
    /// Show protection of volumes, daemon status and problems
    #[command(after_help = status::STATUS_HELP)]
    Status(status::StatusArgs),
    /// Show current requests, throughput and latency
    #[command(after_help = top::args::TOP_HELP)]
    Top(top::args::TopArgs),
    /// Manage anomalies: backups with unusual changes
    #[command(subcommand)]
    Anomaly(anomaly::AnomalyCommand),
    /// List daemon events
    #[command(after_help = events::EVENTS_HELP)]
    Events(events::EventsArgs),
    /// Show what a task did
    #[command(after_help = events::LOGS_HELP)]
    Logs(TaskArg),
    /// Write diagnostics without secrets to a file
    #[command(after_help = events::BUNDLE_HELP)]
    SupportBundle(events::BundleArgs),
    /// Print the JSON schema of a command's output
    #[command(after_help = schema::SCHEMA_HELP)]
    Schema(schema::SchemaArgs),
    /// Print a completion script for a shell
    #[command(after_help = completions::COMPLETIONS_HELP)]
    Completions(completions::CompletionsArgs),
    /// Print the man page, or write all to a directory
    #[command(after_help = completions::MAN_HELP)]
    Man(completions::ManArgs),
}

/// Returns the parser.
pub fn command() -> clap::Command {
    option_names::with_help(suggestions::with_familiar_names(Cli::command()))
}

/// Returns the parser with completion of names.
pub fn completable() -> clap::Command {
    completion::with_names(option_names::with_options(command()))
}

/// Parses a command line, with the name of the program.
///
/// # Errors
/// It is not valid, or asks for help or the version.
pub fn parse(args: &[OsString], color: ColorChoice) -> Result<Cli, clap::Error> {
    let (command, options) = option_names::as_given(command().color(color.into()), args);
    let parsed = command.try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| suggestions::improve(&self::command(), error, args, &options))
}

/// Options needed to report errors of the command line itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prescan {
    /// Presence of `-j` or `--json`.
    pub json: bool,
    /// Value of `--color`.
    pub color: ColorChoice,
}

impl Prescan {
    /// Scans the arguments, without the program's name.
    pub fn of<'a>(args: impl Iterator<Item = &'a OsString>) -> Self {
        let mut found = Self::default();
        let mut args = args.map(OsString::as_os_str).take_while(|arg| *arg != "--");
        while let Some(arg) = args.next().and_then(OsStr::to_str) {
            let switches = arg.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
            // Only switches without a value can be clustered before a `j`.
            let clustered =
                switches.is_some_and(|rest| rest.contains('j') && rest.chars().all(|c| "jfah".contains(c)));
            if arg == "--json" || clustered {
                found.json = true;
            }
            let color = match arg.strip_prefix("--color=") {
                None if arg == "--color" => Some(ColorChoice::Always),
                value => value.and_then(|value| ColorChoice::from_str(value, false).ok()),
            };
            found.color = color.unwrap_or(found.color);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a command line, split at spaces.
    pub fn parse(line: &str) -> Result<Cli, clap::Error> {
        let args: Vec<OsString> =
            std::iter::once("blockctl").chain(line.split_whitespace()).map(Into::into).collect();
        super::parse(&args, ColorChoice::Never)
    }

    #[test]
    fn parser_passes_debug_assertions() {
        command().debug_assert();
    }

    #[test]
    fn commands_have_help_with_examples() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no help");
            if !command.has_subcommands() || path == " blockctl" {
                let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(after.contains("Examples:\n"), "{path} has no examples");
            }
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{path}: {} has no help", arg.get_id());
            }
            command.get_subcommands().for_each(|sub| walk(sub, &path));
        }
        walk(&command(), "");
    }

    #[test]
    fn help_texts_match_the_snapshot() {
        fn help(command: &mut clap::Command) -> String {
            let short = command.render_help().to_string();
            let has_more = short.contains("see more with '--help'");
            if has_more { command.render_long_help().to_string() } else { short }
        }
        fn walk(command: &mut clap::Command, path: &str, texts: &mut String) {
            let path = format!("{path} {}", command.get_name());
            *texts += &format!("${path} --help\n{}\n", help(command));
            let shown = |sub: &&mut clap::Command| !sub.is_hide_set() && sub.get_name() != "help";
            command.get_subcommands_mut().filter(shown).for_each(|sub| walk(sub, &path, texts));
        }
        let built = |command: clap::Command| {
            let mut command = command.term_width(100);
            command.build();
            command
        };
        let mut texts = help(&mut built(command()));
        // Global options are in the first text only.
        let mut rest = built(command().mut_args(|arg| {
            let is_global = arg.is_global_set();
            arg.hide(is_global)
        }));
        rest.get_subcommands_mut().for_each(|sub| walk(sub, " blockctl", &mut texts));
        insta::with_settings!({
            snapshot_path => "../../tests/snapshots",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!("help", texts) });
    }

    #[test]
    fn json_and_colour_are_found_before_parsing() {
        let scan = |line: &str| {
            let args: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
            Prescan::of(args.iter())
        };
        for line in ["-j volume", "volume x --json", "cs backup -fj v", "cs list -ja"] {
            assert!(scan(line).json, "{line}");
        }
        for line in ["volume create --name j", "-x j", "-vj", "-- -j", "--jsonx", "-"] {
            assert!(!scan(line).json, "{line}");
        }
        assert_eq!(scan("volume --color=never").color, ColorChoice::Never);
        assert_eq!(scan("--color volume").color, ColorChoice::Always);
        assert_eq!(scan("--color=x").color, ColorChoice::Auto);
    }

    #[test]
    fn colour_without_a_value_is_always() {
        assert_eq!(parse("--color volume list").unwrap().global.color, ColorChoice::Always);
        assert_eq!(parse("--color=never volume list").unwrap().global.color, ColorChoice::Never);
        assert_eq!(parse("volume list").unwrap().global.color, ColorChoice::Auto);
    }

    #[test]
    fn global_flags_are_accepted_in_any_position() {
        for line in
            ["-j --socket /s volume list", "volume -j list --socket /s", "volume list --json --socket=/s"]
        {
            let cli = parse(line).unwrap();
            assert!(cli.global.json && cli.global.socket == Some("/s".into()), "{line}");
        }
    }
}
