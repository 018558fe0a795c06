//! `blockctl rule …`, and what is done around freezes in other commands.

use super::volume::parse_seconds;
use blockd_api::{
    GroupName, RuleName, VolumeRef,
    quiesce::{OnFailure, Quiesce},
};
use clap::{Args, Subcommand, ValueEnum};

const CREATE_HELP: &str = "\
A rule is followed around each freeze of the volumes and groups that have it (`rule assign`), by the \
backups of a schedule that names it (`schedules create --rule`), and where a command names it (--rule). \
What a command says goes before its schedule's rule, and that before those of the volumes; a volume has \
its own rule, or else that of its group. Of several volumes that are frozen together, each rule of any \
of them is followed once, in the order of their names.

Commands are run by blockd with /bin/sh, around the freeze only: never beside the upload. They find \
BLOCKD_VOLUMES, BLOCKD_VOLUME_IDS, BLOCKD_SNAPSHOT, BLOCKD_PHASE (pre or post), BLOCKD_RULE, and of \
groups and schedules BLOCKD_GROUP_ID, BLOCKD_GROUP and BLOCKD_SCHEDULE in their environment; the one \
after it BLOCKD_TAKEN as well: yes, no, or unknown after a crash. If the command before fails or takes too long, there is no \
backup, unless --on-failure continue says otherwise. The command after runs in any case, also when \
blockd was killed in between; it may run when the one before did not, or more than once.

Commands run as the user of blockd unless --user names another one. blockd must be allowed to run them so, and refuses the rule \
otherwise: the packaged unit needs the drop-in /usr/share/doc/blockd/examples/systemd/blockd-rule-users.conf for it.

Examples:
  blockctl rule create pg --pre-command /usr/local/lib/blockd/checkpoint --user postgres --timeout 30s
  blockctl rule create db --pre-command 'hold begin' --post-command 'hold end' --freeze-fs";

const UPDATE_HELP: &str = "\
What is not given stays. An empty command, or an empty user, is none.

Examples:
  blockctl rule update pg --timeout 2m
  blockctl rule update db --post-command '' --freeze-fs false";

const ASSIGN_HELP: &str = "\
It takes the place of the rule that the volume or the group has.

Examples:
  blockctl rule assign pg --volume pgdata
  blockctl rule assign db --group shop";

/// What to do with rules.
#[derive(Debug, Subcommand)]
pub enum RuleCommand {
    /// Create a rule: what is done around freezes
    #[command(visible_alias = "c", after_help = CREATE_HELP)]
    Create(CreateRuleArgs),
    /// List the rules, and what has them
    #[command(visible_alias = "l", after_help = "Examples:\n  blockctl rule list\n  blockctl -j rule list")]
    List,
    /// Show all about a rule
    #[command(visible_alias = "i", after_help = "Examples:\n  blockctl rule inspect pg")]
    Inspect(RuleNameArg),
    /// Change a rule, for all that have it
    #[command(visible_alias = "u", after_help = UPDATE_HELP)]
    Update(UpdateRuleArgs),
    /// Give a rule to a volume or a group
    #[command(after_help = ASSIGN_HELP)]
    Assign(TargetArgs),
    /// Take a rule away from a volume or a group
    #[command(after_help = "Examples:\n  blockctl rule unassign pg --volume pgdata")]
    Unassign(TargetArgs),
    /// Delete a rule that nothing has
    #[command(visible_alias = "d", after_help = "Examples:\n  blockctl rule delete pg")]
    Delete(RuleNameArg),
}

/// A rule.
#[derive(Debug, Args)]
pub struct RuleNameArg {
    /// Name of the rule
    #[arg(value_name = "NAME")]
    pub name: RuleName,
}

/// What becomes of a snapshot when what is to be done before it fails.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OnFailureArg {
    /// There is none
    Abort,
    /// It is taken all the same
    Continue,
}

impl From<OnFailureArg> for OnFailure {
    fn from(arg: OnFailureArg) -> Self {
        match arg {
            OnFailureArg::Abort => Self::Abort,
            OnFailureArg::Continue => Self::Continue,
        }
    }
}

/// `rule create`
#[derive(Debug, Args)]
pub struct CreateRuleArgs {
    /// Which one.
    #[command(flatten)]
    pub name: RuleNameArg,
    /// What it says.
    #[command(flatten)]
    pub quiesce: QuiesceArgs,
}

/// `rule update`
#[derive(Debug, Args)]
pub struct UpdateRuleArgs {
    /// Which one.
    #[command(flatten)]
    pub name: RuleNameArg,
    /// Whether the filesystems are frozen that are mounted from the device
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub freeze_fs: Option<bool>,
    /// Command to run before
    #[arg(long, value_name = "COMMAND")]
    pub pre_command: Option<String>,
    /// Command to run after, whatever fails
    #[arg(long, value_name = "COMMAND")]
    pub post_command: Option<String>,
    /// User of blockd's host as whom the commands run
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// How long each command may take, 1s to 10m
    #[arg(long, visible_alias = "command-timeout", value_name = "TIME", value_parser = parse_seconds)]
    pub timeout: Option<u64>,
    /// Whether there is a backup if what is to be done before it fails
    #[arg(long, value_enum)]
    pub on_failure: Option<OnFailureArg>,
}

impl UpdateRuleArgs {
    /// What is done until now, with what was given in place of it.
    pub fn patch(&self, now: &Quiesce) -> Quiesce {
        let text = |given: &Option<String>, now: &Option<String>| match given {
            None => now.clone(),
            Some(given) => (!given.is_empty()).then(|| given.clone()),
        };
        Quiesce {
            freeze_fs: self.freeze_fs.unwrap_or(now.freeze_fs),
            pre_command: text(&self.pre_command, &now.pre_command),
            post_command: text(&self.post_command, &now.post_command),
            command_timeout_s: self.timeout.or(now.command_timeout_s),
            user: text(&self.user, &now.user),
            on_failure: self.on_failure.map_or(now.on_failure, Into::into),
        }
    }
}

/// `rule assign` and `unassign`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct TargetArgs {
    /// Which one.
    #[command(flatten)]
    pub name: RuleNameArg,
    /// Name or id of a volume
    #[arg(short, long, value_name = "VOLUME", group = "which")]
    pub volume: Option<VolumeRef>,
    /// A group of volumes, those that come to it later included
    #[arg(short, long, value_name = "GROUP", group = "which")]
    pub group: Option<GroupName>,
}

/// Bringing applications and filesystems to rest.
#[derive(Debug, Default, Args)]
pub struct QuiesceArgs {
    /// Freeze the filesystems that are mounted from the device
    #[arg(long)]
    pub freeze_fs: bool,
    /// Command to run before
    #[arg(long, value_name = "COMMAND")]
    pub pre_command: Option<String>,
    /// Command to run after, whatever fails
    #[arg(long, value_name = "COMMAND")]
    pub post_command: Option<String>,
    /// User of blockd's host as whom the commands run [default: blockd's own]
    #[arg(long = "user", value_name = "USER")]
    pub command_user: Option<String>,
    /// How long each command may take, 1s to 10m [default: 1m]
    #[arg(long, visible_alias = "timeout", value_name = "TIME", value_parser = parse_seconds)]
    pub command_timeout: Option<u64>,
    /// Whether there is a snapshot if what is to be done before it fails [default: abort]
    #[arg(long, value_enum)]
    pub on_failure: Option<OnFailureArg>,
}

impl From<QuiesceArgs> for Quiesce {
    fn from(args: QuiesceArgs) -> Self {
        Self {
            freeze_fs: args.freeze_fs,
            pre_command: args.pre_command,
            post_command: args.post_command,
            command_timeout_s: args.command_timeout,
            user: args.command_user,
            on_failure: args.on_failure.map(Into::into).unwrap_or_default(),
        }
    }
}

/// What is done around a freeze, said by whoever asks for it.
#[derive(Debug, Default, Args)]
pub struct RestArgs {
    /// What is done.
    #[command(flatten)]
    pub quiesce: QuiesceArgs,
    /// Follow this rule, in place of those of the volumes
    #[arg(long, value_name = "NAME", conflicts_with_all = ["freeze_fs", "pre_command", "post_command", "no_rule"])]
    pub rule: Option<RuleName>,
    /// Follow no rule
    #[arg(long, conflicts_with_all = ["freeze_fs", "pre_command", "post_command"])]
    pub no_rule: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, cloudsnap::CloudsnapCommand, tests::parse};

    fn rule(line: &str) -> RuleCommand {
        match parse(line).map(|Cli { command, .. }| command) {
            Ok(Command::Rule(command)) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_is_not_given_of_a_rule_stays() {
        let line = "rule create pg --pre-command x --post-command y --user postgres --timeout 30s --on-failure continue";
        let RuleCommand::Create(args) = rule(line) else { panic!() };
        let now = Quiesce::from(args.quiesce);
        assert_eq!((now.command_timeout_s, now.on_failure), (Some(30), OnFailure::Continue));
        let RuleCommand::Update(args) = rule("rule update pg --freeze-fs --user nobody") else { panic!() };
        let user = Some("nobody".to_owned());
        assert_eq!(args.patch(&now), Quiesce { freeze_fs: true, user, ..now.clone() });
        let line =
            ["rule", "update", "pg", "--post-command", "", "--freeze-fs", "false", "--on-failure", "abort"];
        let parsed = <Cli as clap::Parser>::try_parse_from(std::iter::once("blockctl").chain(line)).unwrap();
        let Command::Rule(RuleCommand::Update(args)) = parsed.command else { panic!() };
        let patched = args.patch(&now);
        assert_eq!((patched.post_command, patched.on_failure), (None, OnFailure::Abort));
    }

    #[test]
    fn a_rule_is_of_one_thing_and_a_backup_says_one_thing() {
        for line in [
            "rule assign pg",
            "rule assign pg --volume a --group b",
            "cs backup db --rule pg --pre-command x",
            "cs backup db --rule pg --no-rule",
            "cs backup db --no-rule --freeze-fs",
            "snap create db --on-failure never",
        ] {
            assert_eq!(parse(line).map(drop).unwrap_err().exit_code(), 2, "{line}");
        }
        match parse("cs bg -g shop --rule pg").map(|Cli { command, .. }| command) {
            Ok(Command::Cloudsnap(CloudsnapCommand::BackupGroup(args))) => {
                assert_eq!(args.rest.rule.unwrap().as_str(), "pg");
            }
            other => panic!("{other:?}"),
        }
    }
}
