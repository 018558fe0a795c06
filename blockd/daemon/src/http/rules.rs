//! Rules.

use super::{caller::Caller, replies::Failure, routes::Routes};
use blockd_api::{
    operations,
    quiesce::{HookOptions, QuiesceReport},
    roles::Role,
};

/// Commands run as the user of the daemon, usually root. Rules that admins assigned to volumes apply to every
/// snapshot; only admins replace or skip them.
pub(super) fn may_run(caller: &Caller, hooks: &HookOptions) -> Result<(), Failure> {
    let HookOptions { quiesce, rule_name: rule, no_rule } = hooks;
    if quiesce.has_command() || quiesce.user.is_some() {
        caller.needs(Role::Admin, "a command before or after a snapshot")?;
    }
    if rule.is_some() {
        caller.needs(Role::Admin, "choosing a rule")?;
    }
    if *no_rule {
        caller.needs(Role::Admin, "skipping the rules of a volume")?;
    }
    Ok(())
}

/// Hides commands and their output, which may contain secrets, from callers who may not run them.
pub(super) fn hide_commands(caller: &Caller, report: Option<&mut QuiesceReport>) {
    if let Some(report) = report.filter(|_| !caller.is_admin()) {
        report.hide_commands();
    }
}

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::LIST_RULES, async |call| call.engine.quiescer.list_rules().await)
        .detached(operations::CREATE_RULE, async |call| call.engine.quiescer.create_rule(call.input).await)
        .on(operations::GET_RULE, async |call| call.engine.quiescer.rule(call.path).await)
        .detached(operations::UPDATE_RULE, async |call| {
            call.engine.quiescer.update_rule(call.path, call.input).await
        })
        .detached(operations::DELETE_RULE, async |call| call.engine.quiescer.delete_rule(call.path).await)
        .detached(operations::ASSIGN_RULE, async |call| {
            call.engine.quiescer.assign_rule(call.path, call.input, true).await
        })
        .detached(operations::UNASSIGN_RULE, async |call| {
            call.engine.quiescer.assign_rule(call.path, call.input, false).await
        })
}
