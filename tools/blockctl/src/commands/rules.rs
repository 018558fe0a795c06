//! `blockctl rule …`, and reports of quiesce steps.

use super::{
    arguments::WideArg,
    filters::{NamePattern, volume_or_group},
    list_filter::{LabelOption, ListFilter, Listed, Sort},
    rule_deletion,
};
use crate::{
    confirm::YesArg,
    failure::{Exit, Failure},
    output::Context,
    table::{Facts, Table, Width, micros, or_dash, short_uuid},
    times::parse_seconds,
};
use blockd_api::{
    GroupName, Labels, RuleName, VolumeRef, operations,
    quiesce::{
        DEFAULT_COMMAND_TIMEOUT_SECONDS, HookOptions, OnFailure, Quiesce, QuiesceKind, QuiesceReport,
        QuiesceStep,
    },
    rules::{CreateRule, HookRule, RuleTarget, UpdateRule},
    schedules::Schedule,
};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use uuid::Uuid;

const CREATE_HELP: &str = "\
A rule applies to each freeze of the volumes and groups that it is assigned to (`rule assign`), to \
backups of schedules that name it (`schedules create --rule`), and to commands with --rule. \
Options of a command take precedence over the schedule's rule, and that over the rules of the \
volumes; a volume has its own rule, or else that of its group. Of volumes that are frozen \
together, each rule runs once, in the order of the rules' names.

The daemon runs commands with /bin/sh around the freeze only, never during the upload. Their \
environment has BLOCKD_VOLUMES, BLOCKD_VOLUME_IDS, BLOCKD_SNAPSHOT, BLOCKD_PHASE (pre or post), \
BLOCKD_RULE, for groups and schedules BLOCKD_GROUP_ID, BLOCKD_GROUP and BLOCKD_SCHEDULE, and for \
the post-command BLOCKD_TAKEN: yes, no, or unknown after a crash. If the pre-command fails or \
times out, no backup is made, unless --on-failure continue is given. The post-command always runs, \
also after the daemon was killed in between; it may run without the pre-command, or more than \
once.

Commands run as the daemon's user unless --user is given. A rule whose user the daemon may not \
switch to is refused: the packaged unit needs the drop-in \
/usr/share/doc/blockd/examples/systemd/blockd-rule-users.conf.

Examples:
  blockctl rule create pg --pre-command /usr/local/lib/blockd/checkpoint --user postgres --timeout 30s
  blockctl rule create db --pre-command 'hold begin' --post-command 'hold end' --freeze-fs";

const UPDATE_HELP: &str = "\
Omitted options stay. An empty command or user removes it.

Examples:
  blockctl rule update pg --timeout 2m
  blockctl rule update db --post-command '' --freeze-fs false";

const ASSIGN_USAGE: &str = "blockctl rule assign <RULE> <VOLUME|GROUP|--volume <VOLUME>|--group <GROUP>>";
const UNASSIGN_USAGE: &str = "blockctl rule unassign <RULE> <VOLUME|GROUP|--volume <VOLUME>|--group <GROUP>>";

const ASSIGN_HELP: &str = "\
It replaces the current rule of the volume or group.

Examples:
  blockctl rule assign pg --volume pgdata
  blockctl rule assign db --group shop";

/// Subcommands of `rule`.
#[derive(Debug, Subcommand)]
pub enum RuleCommand {
    /// Create a rule
    #[command(visible_alias = "c", after_help = CREATE_HELP)]
    Create(CreateRuleArgs),
    /// List rules and their assignments
    #[command(
        visible_alias = "l",
        after_help = "Examples:\n  blockctl rule list\n  blockctl rule list -o wide\n  blockctl -j rule list"
    )]
    List(ListArgs),
    /// Show a rule in detail
    #[command(visible_alias = "i", after_help = "Examples:\n  blockctl rule inspect pg")]
    Inspect(RuleNameArg),
    /// Change a rule
    #[command(visible_alias = "u", after_help = UPDATE_HELP)]
    Update(UpdateRuleArgs),
    /// Assign a rule to a volume or group
    #[command(override_usage = ASSIGN_USAGE, after_help = ASSIGN_HELP)]
    Assign(TargetArgs),
    /// Remove a rule from a volume or group
    #[command(override_usage = UNASSIGN_USAGE, after_help = "Examples:\n  blockctl rule unassign pg --volume pgdata")]
    Unassign(TargetArgs),
    /// Delete an unassigned rule
    #[command(visible_alias = "d", after_help = "Examples:\n  blockctl rule delete pg")]
    Delete(DeleteRuleArgs),
}

/// `rule list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Filter.
    #[command(flatten)]
    filter: ListFilter<HookRule>,
    /// Width option.
    #[command(flatten)]
    width: WideArg,
}

impl Listed for HookRule {
    const NAME_HELP: &'static str = "Only rules of this name; * matches any characters";
    const LABEL: LabelOption = LabelOption::Absent;
    const SORTS: &'static [Sort] = &[];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        pattern.matches(self.name.as_str())
    }

    fn at(&self) -> Option<Timestamp> {
        None
    }
}

/// `rule delete`
#[derive(Debug, Args)]
pub struct DeleteRuleArgs {
    /// Target.
    #[command(flatten)]
    pub name: RuleNameArg,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

/// Rule name argument.
#[derive(Debug, Args)]
pub struct RuleNameArg {
    /// Name of the rule
    #[arg(value_name = "RULE")]
    pub name: RuleName,
}

/// Action after a failed pre-hook or filesystem freeze.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OnFailureArg {
    /// Take no snapshot
    Abort,
    /// Take the snapshot anyway
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
    /// Target.
    #[command(flatten)]
    pub name: RuleNameArg,
    /// Quiesce options.
    #[command(flatten)]
    pub quiesce: QuiesceArgs,
}

/// `rule update`
#[derive(Debug, Args)]
pub struct UpdateRuleArgs {
    /// Target.
    #[command(flatten)]
    pub name: RuleNameArg,
    /// Freeze filesystems on the device
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub freeze_fs: Option<bool>,
    /// Pre-command
    #[arg(long, value_name = "COMMAND")]
    pub pre_command: Option<String>,
    /// Post-command; always runs
    #[arg(long, value_name = "COMMAND")]
    pub post_command: Option<String>,
    /// User of the commands, on the daemon's host
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Timeout of each command, 1s to 10m
    #[arg(long, visible_alias = "command-timeout", value_name = "TIME", value_parser = parse_seconds)]
    pub timeout: Option<u64>,
    /// Action after a failed pre-command or freeze
    #[arg(long, value_enum)]
    pub on_failure: Option<OnFailureArg>,
}

impl UpdateRuleArgs {
    /// Returns the current settings with the given changes.
    pub fn patch(&self, now: &Quiesce) -> Quiesce {
        let text = |given: &Option<String>, now: &Option<String>| match given {
            None => now.clone(),
            Some(given) => (!given.is_empty()).then(|| given.clone()),
        };
        Quiesce {
            freeze_fs: self.freeze_fs.unwrap_or(now.freeze_fs),
            pre_command: text(&self.pre_command, &now.pre_command),
            post_command: text(&self.post_command, &now.post_command),
            command_timeout_seconds: self.timeout.or(now.command_timeout_seconds),
            user: text(&self.user, &now.user),
            on_failure: self.on_failure.map_or(now.on_failure, Into::into),
        }
    }
}

/// `rule assign` and `unassign`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct TargetArgs {
    /// Target.
    #[command(flatten)]
    pub name: RuleNameArg,
    /// Name or id of a volume, or the name of a group
    #[arg(value_name = "VOLUME|GROUP", group = "which")]
    pub target: Option<VolumeRef>,
    /// Name or id of a volume
    #[arg(short, long, value_name = "VOLUME", group = "which")]
    pub volume: Option<VolumeRef>,
    /// Consistency group, including later members
    #[arg(short, long, value_name = "GROUP", group = "which")]
    pub group: Option<GroupName>,
}

impl TargetArgs {
    async fn resolve(self, context: &Context<'_>) -> Result<(RuleName, RuleTarget), Failure> {
        let (volume, group) = match self.target {
            Some(target) => volume_or_group(context, target).await?,
            None => (self.volume, self.group),
        };
        Ok((self.name.name, RuleTarget { volume, group }))
    }

    /// Resolves the target as an assignment of the rule: its group may have no members.
    async fn assigned(self, context: &Context<'_>) -> Result<(RuleName, RuleTarget), Failure> {
        let Some(VolumeRef::Name(name)) = &self.target else { return self.resolve(context).await };
        let rule = context.client.call_at(operations::GET_RULE, &self.name.name, &()).await?;
        let group = rule.groups.into_iter().find(|group| group.as_str() == name.as_str());
        match group.filter(|_| !rule.volume_names.contains(name)) {
            Some(group) => Ok((self.name.name, RuleTarget { volume: None, group: Some(group) })),
            None => self.resolve(context).await,
        }
    }
}

/// Quiesce options.
#[derive(Debug, Default, Args)]
pub struct QuiesceArgs {
    /// Freeze filesystems on the device
    #[arg(long)]
    pub freeze_fs: bool,
    /// Pre-command
    #[arg(long, value_name = "COMMAND")]
    pub pre_command: Option<String>,
    /// Post-command; always runs
    #[arg(long, value_name = "COMMAND")]
    pub post_command: Option<String>,
    /// User of the commands [default: the daemon's]
    #[arg(long = "user", value_name = "USER")]
    pub command_user: Option<String>,
    /// Timeout of each command, 1s to 10m [default: 1m]
    #[arg(long, visible_alias = "timeout", value_name = "TIME", value_parser = parse_seconds)]
    pub command_timeout: Option<u64>,
    /// Action after a failed pre-command or freeze [default: abort]
    #[arg(long, value_enum)]
    pub on_failure: Option<OnFailureArg>,
}

impl From<QuiesceArgs> for Quiesce {
    fn from(args: QuiesceArgs) -> Self {
        Self {
            freeze_fs: args.freeze_fs,
            pre_command: args.pre_command,
            post_command: args.post_command,
            command_timeout_seconds: args.command_timeout,
            user: args.command_user,
            on_failure: args.on_failure.map(Into::into).unwrap_or_default(),
        }
    }
}

/// Hooks around the freeze of a request.
#[derive(Debug, Default, Args)]
pub struct HookArgs {
    /// Quiesce options.
    #[command(flatten)]
    pub quiesce: QuiesceArgs,
    /// Use this rule instead of the volumes' rules
    #[arg(long, value_name = "RULE", conflicts_with_all = ["freeze_fs", "pre_command", "post_command", "no_rule"])]
    pub rule: Option<RuleName>,
    /// Use no rule
    #[arg(long, conflicts_with_all = ["freeze_fs", "pre_command", "post_command"])]
    pub no_rule: bool,
}

impl HookArgs {
    /// Returns the checked options.
    ///
    /// # Errors
    /// A command is empty or too long, or the timeout is out of range.
    pub fn options(self) -> Result<HookOptions, Failure> {
        let options =
            HookOptions { quiesce: self.quiesce.into(), rule_name: self.rule, no_rule: self.no_rule };
        options.quiesce.check().map_err(Failure::usage)?;
        Ok(options)
    }
}

pub async fn run(context: &Context<'_>, command: RuleCommand) -> Exit {
    let Context { client, output } = context;
    match command {
        RuleCommand::List(args) => {
            let mut list = client.call(operations::LIST_RULES, &()).await?;
            args.filter.apply(context, &mut list.items, None).await?;
            let schedules = schedules(context, &list.items).await?;
            let exit = output.list(&list, "rules", || table(&list.items, &schedules, args.width.width()));
            for HookRule { name, problem, .. } in &list.items {
                if let Some(problem) = problem {
                    output.note(format!("the commands of rule {name} cannot be run: {problem}"));
                }
            }
            exit
        }
        RuleCommand::Inspect(args) => {
            let rule = client.call_at(operations::GET_RULE, &args.name, &()).await?;
            let schedules = schedules(context, std::slice::from_ref(&rule)).await?;
            output.describe(&rule, || facts(&rule, &schedules))
        }
        RuleCommand::Delete(args) => rule_deletion::delete(context, &args).await,
        RuleCommand::Create(args) => {
            let quiesce: Quiesce = args.quiesce.into();
            quiesce.check().map_err(Failure::usage)?;
            let request = CreateRule { name: args.name.name, quiesce, labels: Labels::default() };
            let rule = client.call(operations::CREATE_RULE, &request).await?;
            output.tell(&rule, || format!("Rule {} created successfully", rule.name))
        }
        RuleCommand::Update(args) => {
            let now = client.call_at(operations::GET_RULE, &args.name.name, &()).await?;
            let quiesce = args.patch(&now.quiesce);
            quiesce.check().map_err(Failure::usage)?;
            if quiesce == now.quiesce {
                return Err(Failure::usage(
                    "no changes given: give --pre-command, --post-command, --freeze-fs, --user, --timeout or --on-failure",
                ));
            }
            let request = UpdateRule { quiesce, labels: None };
            let rule = client.call_at(operations::UPDATE_RULE, &args.name.name, &request).await?;
            output.tell(&rule, || format!("Rule {} updated successfully", rule.name))
        }
        RuleCommand::Assign(args) => {
            let (name, target) = args.resolve(context).await?;
            let rule = client.call_at(operations::ASSIGN_RULE, &name, &target).await?;
            output.tell(&rule, || format!("Rule {} assigned to {target} successfully", rule.name))
        }
        RuleCommand::Unassign(args) => {
            let (name, target) = args.assigned(context).await?;
            let rule = client.call_at(operations::UNASSIGN_RULE, &name, &target).await?;
            output.tell(&rule, || format!("Rule {} unassigned from {target} successfully", rule.name))
        }
    }
}

/// Returns the schedules if a rule is used by one.
pub(super) async fn schedules(context: &Context<'_>, rules: &[HookRule]) -> Result<Vec<Schedule>, Failure> {
    match context.output.is_json() || rules.iter().all(|rule| rule.schedule_ids.is_empty()) {
        true => Ok(Vec::new()),
        false => Ok(context.client.call(operations::LIST_SCHEDULES, &()).await?.list.items),
    }
}

/// Formats the users of a rule; schedules without a name have their id.
pub(super) fn used_by(rule: &HookRule, schedules: &[Schedule], width: Width) -> Option<String> {
    let volumes = rule.volume_names.iter().map(ToString::to_string);
    let groups = rule.groups.iter().map(|group| format!("group {group}"));
    let called = |id: Uuid| {
        let schedule = schedules.iter().find(|one| one.schedule_id == id);
        match (schedule.and_then(|one| one.name.as_ref()), width) {
            (Some(name), _) => name.to_string(),
            (None, Width::Narrow) => short_uuid(id),
            (None, Width::Wide) => id.to_string(),
        }
    };
    let schedules = rule.schedule_ids.iter().map(|id| format!("schedule {}", called(*id)));
    let all: Vec<String> = volumes.chain(groups).chain(schedules).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn timeout(quiesce: &Quiesce) -> String {
    format!("{}s", quiesce.command_timeout_seconds.unwrap_or(DEFAULT_COMMAND_TIMEOUT_SECONDS))
}

fn table(rules: &[HookRule], schedules: &[Schedule], width: Width) -> Table {
    let command = |command: &Option<String>| match width {
        Width::Narrow => or_dash(command.as_ref().map(|_| "yes")),
        Width::Wide => or_dash(command.as_ref()),
    };
    Table::list(rules, width)
        .both("NAME", |rule| &rule.name)
        .both("PRE|PRE-COMMAND", |rule| command(&rule.quiesce.pre_command))
        .both("POST|POST-COMMAND", |rule| command(&rule.quiesce.post_command))
        .both("FREEZE-FS", |rule| rule.quiesce.freeze_fs)
        .both("USER", |rule| or_dash(rule.quiesce.user.as_ref()))
        .wide("TIMEOUT", |rule| timeout(&rule.quiesce))
        .wide("ON-FAILURE", |rule| rule.quiesce.on_failure)
        .both("USED-BY", |rule| or_dash(used_by(rule, schedules, width)))
        .fit_with_text("NAME|USER")
}

fn facts(rule: &HookRule, schedules: &[Schedule]) -> Facts {
    let quiesce = &rule.quiesce;
    let mut facts = Facts::default();
    facts
        .add("Rule", &rule.name)
        .add("Pre-command", or_dash(quiesce.pre_command.as_ref()))
        .add("Post-command", or_dash(quiesce.post_command.as_ref()))
        .add("Freeze filesystems", quiesce.freeze_fs)
        .add("User", or_dash(quiesce.user.as_ref()))
        .add("Timeout", timeout(quiesce))
        .add("On failure", quiesce.on_failure)
        .add("Used by", or_dash(used_by(rule, schedules, Width::Wide)));
    if let Some(problem) = &rule.problem {
        facts.add("Problem", problem);
    }
    facts
}

/// Returns the display name of a step.
pub fn step_name(step: &QuiesceStep) -> &'static str {
    match step.kind {
        QuiesceKind::PreCommand => "Pre-command",
        QuiesceKind::FreezeFs => "Filesystem frozen",
        QuiesceKind::ThawFs => "Filesystem thawed",
        QuiesceKind::PostCommand => "Post-command",
        _ => "Step",
    }
}

/// Formats the quiesce steps of a freeze, one per line, with output of commands.
pub fn steps_table(report: &QuiesceReport, width: Width) -> Table {
    let rows = report.steps.iter().map(|step| {
        let (error, output) = (step.error.clone(), step.output.as_deref().map(one_line));
        let (result, text) = match (width, error) {
            (_, None) => ("ok".to_owned(), output),
            (Width::Wide, Some(error)) => (error, output),
            (Width::Narrow, Some(error)) => (
                "failed".to_owned(),
                Some(std::iter::once(error).chain(output).collect::<Vec<_>>().join(": ")),
            ),
        };
        [
            step.kind.to_string(),
            or_dash(step.rule_name.as_ref()),
            step.target.clone(),
            micros(step.duration_micros),
            or_dash(step.exit_status),
            result,
            or_dash(text),
        ]
    });
    let table = Table::of("STEP|RULE|WHAT|TIME|EXIT|RESULT|OUTPUT", rows);
    if width == Width::Narrow { table.fit("RULE|WHAT").with_text() } else { table }
}

/// Formats output of a command in one line; the JSON document has the complete output.
pub fn one_line(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" | ")
}
