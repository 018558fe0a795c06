//! Rules.

use super::{Body, Failure, HandlerResult, Named, Reply, caller::Caller, detached};
use crate::core::Core;
use axum::extract::State;
use blockd_api::{
    Deleted, RuleName,
    quiesce::{HookOptions, QuiesceReport},
    roles::Role,
    rules::{CreateRule, HookRule, RuleList, RuleTarget, UpdateRule},
};
use std::sync::Arc;

type Shared = State<Arc<Core>>;

/// Commands run as the user of the daemon, usually root. Rules that admins assigned to volumes apply to every
/// snapshot; only admins replace or skip them.
pub(super) fn may_run(caller: &Caller, hooks: &HookOptions) -> Result<(), Failure> {
    let HookOptions { quiesce, rule, no_rule } = hooks;
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

pub(super) async fn list(State(core): Shared) -> HandlerResult<RuleList> {
    Ok(Reply(core.list_rules().await?))
}

pub(super) async fn create(State(core): Shared, Body(request): Body<CreateRule>) -> HandlerResult<HookRule> {
    detached(async move { core.create_rule(request).await }).await
}

pub(super) async fn inspect(State(core): Shared, Named(rule): Named<RuleName>) -> HandlerResult<HookRule> {
    Ok(Reply(core.rule(rule).await?))
}

pub(super) async fn update(
    State(core): Shared,
    Named(rule): Named<RuleName>,
    Body(request): Body<UpdateRule>,
) -> HandlerResult<HookRule> {
    detached(async move { core.update_rule(rule, request).await }).await
}

pub(super) async fn delete(State(core): Shared, Named(rule): Named<RuleName>) -> HandlerResult<Deleted> {
    detached(async move { core.delete_rule(rule).await }).await
}

pub(super) async fn assign(
    State(core): Shared,
    Named(rule): Named<RuleName>,
    Body(target): Body<RuleTarget>,
) -> HandlerResult<HookRule> {
    detached(async move { core.assign_rule(rule, target, true).await }).await
}

pub(super) async fn unassign(
    State(core): Shared,
    Named(rule): Named<RuleName>,
    Body(target): Body<RuleTarget>,
) -> HandlerResult<HookRule> {
    detached(async move { core.assign_rule(rule, target, false).await }).await
}
