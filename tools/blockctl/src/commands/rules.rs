//! `blockctl rule …`, and reports of quiesce steps.

use super::{Context, or_dash};
use crate::{
    cli::rules::RuleCommand,
    failure::{EXIT_DONE, Failure},
    table::{Facts, Table},
};
use blockd_api::{
    operations,
    quiesce::{DEFAULT_COMMAND_TIMEOUT_S, Quiesce, QuiesceKind, QuiesceReport, QuiesceStep},
    rules::{CreateRule, HookRule, RuleTarget, UpdateRule},
};

pub async fn run(context: &Context<'_>, command: RuleCommand) -> Result<u8, Failure> {
    let client = &context.client;
    let (rule, line) = match command {
        RuleCommand::List => {
            let list = client.call(operations::LIST_RULES, &()).await?;
            match context.output.is_json() {
                true => context.output.document(&list)?,
                false => context.output.table(&table(&list.rules))?,
            }
            for rule in &list.rules {
                if let Some(problem) = &rule.problem {
                    context
                        .output
                        .note(format!("the commands of rule {} cannot be run: {problem}", rule.name));
                }
            }
            return Ok(EXIT_DONE);
        }
        RuleCommand::Inspect(args) => {
            let rule = client.call_at(operations::GET_RULE, &args.name, &()).await?;
            match context.output.is_json() {
                true => context.output.document(&rule)?,
                false => context.output.raw(facts(&rule).render().as_bytes())?,
            }
            return Ok(EXIT_DONE);
        }
        RuleCommand::Delete(args) => {
            let deleted = client.call_at(operations::DELETE_RULE, &args.name, &()).await?;
            match context.output.is_json() {
                true => context.output.document(&deleted)?,
                false => context.output.line(format!("Rule {} deleted successfully", deleted.name))?,
            }
            return Ok(EXIT_DONE);
        }
        RuleCommand::Create(args) => {
            let quiesce: Quiesce = args.quiesce.into();
            quiesce.check().map_err(Failure::usage)?;
            let rule =
                client.call(operations::CREATE_RULE, &CreateRule { name: args.name.name, quiesce }).await?;
            let line = format!("Rule {} created successfully", rule.name);
            (rule, line)
        }
        RuleCommand::Update(args) => {
            let now = client.call_at(operations::GET_RULE, &args.name.name, &()).await?;
            let quiesce = args.patch(&now.quiesce);
            quiesce.check().map_err(Failure::usage)?;
            if quiesce == now.quiesce {
                return Err(Failure::usage(
                    "nothing is to be changed: give --pre-command, --post-command, --freeze-fs, --user, --timeout or --on-failure",
                ));
            }
            let rule =
                client.call_at(operations::UPDATE_RULE, &args.name.name, &UpdateRule { quiesce }).await?;
            let line = format!("Rule {} updated successfully", rule.name);
            (rule, line)
        }
        RuleCommand::Assign(args) => {
            let target = RuleTarget { volume: args.volume, group: args.group };
            let rule = client.call_at(operations::ASSIGN_RULE, &args.name.name, &target).await?;
            let line = format!("Rule {} is that of {} now", rule.name, describe(&target));
            (rule, line)
        }
        RuleCommand::Unassign(args) => {
            let target = RuleTarget { volume: args.volume, group: args.group };
            let rule = client.call_at(operations::UNASSIGN_RULE, &args.name.name, &target).await?;
            let line = format!("Rule {} is that of {} no more", rule.name, describe(&target));
            (rule, line)
        }
    };
    match context.output.is_json() {
        true => context.output.document(&rule)?,
        false => context.output.line(line)?,
    }
    Ok(EXIT_DONE)
}

fn describe(target: &RuleTarget) -> String {
    match (&target.volume, &target.group) {
        (Some(volume), _) => format!("volume {volume}"),
        (None, Some(group)) => format!("group {group}"),
        (None, None) => "nothing".to_owned(),
    }
}

fn used_by(rule: &HookRule) -> Option<String> {
    let volumes = rule.volumes.iter().map(ToString::to_string);
    let groups = rule.groups.iter().map(|group| format!("group {group}"));
    let schedules = rule.schedules.iter().map(|schedule| format!("schedule {schedule}"));
    let all: Vec<String> = volumes.chain(groups).chain(schedules).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn timeout(quiesce: &Quiesce) -> String {
    format!("{}s", quiesce.command_timeout_s.unwrap_or(DEFAULT_COMMAND_TIMEOUT_S))
}

fn table(rules: &[HookRule]) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "PRE-COMMAND",
        "POST-COMMAND",
        "FREEZE-FS",
        "USER",
        "TIMEOUT",
        "ON-FAILURE",
        "USED-BY",
    ]);
    for rule in rules {
        let quiesce = &rule.quiesce;
        table.row([
            rule.name.to_string(),
            or_dash(quiesce.pre_command.as_ref()),
            or_dash(quiesce.post_command.as_ref()),
            quiesce.freeze_fs.to_string(),
            or_dash(quiesce.user.as_ref()),
            timeout(quiesce),
            quiesce.on_failure.to_string(),
            or_dash(used_by(rule)),
        ]);
    }
    table
}

fn facts(rule: &HookRule) -> Facts {
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
        .add("Used by", or_dash(used_by(rule)));
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
pub fn steps_table(report: &QuiesceReport) -> Table {
    let mut table = Table::new(&["STEP", "RULE", "WHAT", "TIME", "EXIT", "RESULT", "OUTPUT"]);
    for step in &report.steps {
        table.row([
            step.kind.to_string(),
            or_dash(step.rule.as_ref()),
            step.target.clone(),
            super::snapshot::micros(step.duration_micros),
            or_dash(step.exit_status),
            step.error.clone().unwrap_or_else(|| "ok".to_owned()),
            or_dash(step.output.as_deref().map(one_line)),
        ]);
    }
    table
}

/// Formats output of a command in one line; the JSON document has all of it.
pub fn one_line(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" | ")
}
