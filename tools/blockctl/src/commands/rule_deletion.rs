//! `blockctl rule delete`

use super::rules::{DeleteRuleArgs, schedules, used_by};
use crate::{failure::Exit, output::Context, table::Width};
use blockd_api::{ApiError, ErrorCode, operations};
use std::slice;

/// Deletes a rule; asks on a terminal, unless the rule is in use.
///
/// # Errors
/// It is assigned, or used by a schedule.
pub async fn delete(context: &Context<'_>, args: &DeleteRuleArgs) -> Exit {
    let (Context { client, output }, name) = (context, &args.name.name);
    if args.yes.must_ask() {
        let rule = client.call_at(operations::GET_RULE, name, &()).await?;
        // As the daemon refuses it after the question.
        if let Some(users) = used_by(&rule, &schedules(context, slice::from_ref(&rule)).await?, Width::Wide) {
            let message = format!("rule {name} is assigned to {users}");
            let hint = "`blockctl rule unassign` and `blockctl cloudsnap schedules update --no-rule` remove it there";
            return Err(ApiError::new(ErrorCode::RuleInUse, message).with_hint(hint).into());
        }
        let quiesce = rule.quiesce;
        let commands = [
            quiesce.pre_command.map(|command| format!("pre-command {}", first_line(&command))),
            quiesce.post_command.map(|command| format!("post-command {}", first_line(&command))),
            quiesce.freeze_fs.then(|| "freeze of filesystems".to_owned()),
        ];
        let commands: Vec<String> = commands.into_iter().flatten().collect();
        args.yes.confirm(output, &format!("Rule {name} ({}) is deleted.", commands.join(", ")))?;
    }
    let deleted = client.call_at(operations::DELETE_RULE, name, &()).await?;
    output.tell(&deleted, || format!("Rule {name} deleted successfully"))
}

/// Returns the first line of a command, with a mark if there are more.
fn first_line(command: &str) -> String {
    match command.trim().split_once('\n') {
        Some((first, _)) => format!("{first} …"),
        None => command.trim().to_owned(),
    }
}
