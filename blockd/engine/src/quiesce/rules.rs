//! Quiesce rules: requests, and selection of the rules of a freeze.

use crate::{
    error::{ServiceError, blocking},
    quiesce::Quiescer,
    volumes::registry::VolumeEntry,
};
use blockd_api::{
    ApiError, Deleted, ErrorCode, List, RuleName,
    events::{EventKind, Severity},
    first_names,
    quiesce::{HookOptions, Quiesce},
    rules::{CreateRule, HookRule, RuleTarget, UpdateRule},
};
use blockd_catalog::{DbError, NewEvent, RuleRow, RuleUses};
use blockd_extent::VolumeId;
use blockd_quiesce::{QuiescePart, UserRefused, try_user};
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use rusqlite::Transaction;
use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};
use uuid::Uuid;

/// Quiesce options of a request.
#[derive(Clone, Debug, Default)]
pub struct QuiesceRequest {
    /// Options of the request.
    pub hooks: HookOptions,
    /// Default: the schedule's rule.
    pub scheduled: Option<RuleName>,
}

/// Timeout of the test of commands as a user.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Number of rules tested concurrently at the start: each may wait for an unresponsive directory server.
const MAX_CONCURRENT_TRIALS: usize = 8;

fn invalid(message: impl Into<String>) -> ServiceError {
    ServiceError::refused(ErrorCode::InvalidRequest, message)
}

fn not_found(name: &RuleName) -> ServiceError {
    ServiceError::refused(ErrorCode::RuleNotFound, format!("there is no rule {name}"))
}

fn find(tx: &Transaction<'_>, name: &RuleName) -> Result<RuleRow, ServiceError> {
    RuleRow::find(tx, name)?.ok_or_else(|| not_found(name))
}

/// Refuses a rule that does not exist.
pub fn refuse_unknown(tx: &Transaction<'_>, name: Option<&RuleName>) -> Result<(), ServiceError> {
    name.map_or(Ok(()), |name| find(tx, name).map(drop))
}

fn check(quiesce: &Quiesce) -> Result<(), ServiceError> {
    if quiesce.is_nothing() {
        return Err(invalid("the rule is empty: give a pre-command, a post-command or --freeze-fs"));
    }
    quiesce.check().map_err(invalid)
}

/// Returns the results of tests as they end.
fn concurrently<F: Future>(trials: impl IntoIterator<Item = F>) -> impl Stream<Item = F::Output> {
    stream::iter(trials).buffer_unordered(MAX_CONCURRENT_TRIALS)
}

/// Returns the user of the commands, if there are commands.
fn user_of(quiesce: &Quiesce) -> Option<&str> {
    quiesce.user.as_deref().filter(|_| quiesce.has_command())
}

/// Returns the parts for volumes, each with its own rule or that of its group.
fn parts_of(
    tx: &Transaction<'_>,
    members: &[(VolumeId, Option<blockd_api::GroupName>)],
) -> Result<Vec<QuiescePart>, ServiceError> {
    let uses = RuleUses::all(tx)?;
    // By name, for a predictable order.
    let mut found: BTreeMap<RuleName, Vec<VolumeId>> = BTreeMap::new();
    for (volume, group) in members {
        let of_group = || group.as_ref().and_then(|group| uses.groups.get(group));
        if let Some(rule) = uses.volumes.get(volume).or_else(of_group) {
            found.entry(rule.clone()).or_default().push(*volume);
        }
    }
    let part = |(name, volumes): (RuleName, Vec<VolumeId>)| {
        let quiesce = find(tx, &name)?.quiesce;
        Ok(QuiescePart { rule: Some(name), quiesce, volumes })
    };
    found.into_iter().map(part).collect()
}

impl Quiescer {
    /// Refuses contradictory or impossible quiesce options. May take long, so it runs without locks.
    pub async fn check_hooks(&self, asked: &QuiesceRequest) -> Result<(), ServiceError> {
        let HookOptions { quiesce, rule_name: rule, no_rule } = &asked.hooks;
        let given = [!quiesce.is_nothing(), rule.is_some(), *no_rule];
        if given.iter().filter(|is_given| **is_given).count() > 1 {
            return Err(invalid("a rule, no rule and quiesce actions exclude each other: give one of them"));
        }
        quiesce.check().map_err(invalid)?;
        self.refuse_user(quiesce).await
    }

    /// Returns the quiesce parts for these volumes: the [checked](Self::check_hooks) options of the request,
    /// or the rule of its schedule, or those of the volumes.
    ///
    /// # Errors
    /// There is no such rule.
    pub async fn quiesce_for(
        &self,
        asked: &QuiesceRequest,
        members: &[Arc<VolumeEntry>],
    ) -> Result<Vec<QuiescePart>, ServiceError> {
        let volumes: Vec<VolumeId> = members.iter().map(|entry| entry.id).collect();
        let HookOptions { quiesce, rule_name: rule, no_rule } = &asked.hooks;
        if !quiesce.is_nothing() {
            return Ok(vec![QuiescePart { rule: None, quiesce: quiesce.clone(), volumes }]);
        }
        if *no_rule {
            return Ok(Vec::new());
        }
        let named = rule.clone().or_else(|| asked.scheduled.clone());
        let groups: Vec<_> = members.iter().map(|entry| (entry.id, entry.tags().group)).collect();
        self.db
            .run(move |tx| match named {
                Some(name) => {
                    let quiesce = find(tx, &name)?.quiesce;
                    Ok(vec![QuiescePart { rule: Some(name), quiesce, volumes }])
                }
                None => parts_of(tx, &groups),
            })
            .await
    }

    /// Refuses commands that the daemon may not run as their user.
    async fn refuse_user(&self, quiesce: &Quiesce) -> Result<(), ServiceError> {
        let Some(user) = user_of(quiesce).map(str::to_owned) else { return Ok(()) };
        let stopping = self.host.stopping.clone();
        let name = user.clone();
        let trial = blocking(move || Ok::<_, ServiceError>(try_user(&user, &stopping)));
        // A user lookup may wait for an unresponsive directory server.
        let Ok(tried) = tokio::time::timeout(TRIAL_TIMEOUT, trial).await else {
            return Err(invalid(format!(
                "lookup of user {name} timed out after {} s: check `getent passwd {name}` on blockd's host",
                TRIAL_TIMEOUT.as_secs()
            )));
        };
        tried?.map_err(|refused| match refused {
            UserRefused::Stopping(_) => ServiceError::Stopping,
            refused => invalid(refused.to_string()),
        })
    }

    /// Refuses to assign a rule that does not exist or whose commands cannot run as their user.
    pub async fn refuse_rule(&self, name: &RuleName) -> Result<(), ServiceError> {
        let wanted = name.clone();
        let row = self.db.run(move |tx| find(tx, &wanted)).await?;
        self.refuse_user(&row.quiesce).await
    }

    /// Reports rules whose commands cannot run as their user any more: the unit or the users of the host may
    /// have changed.
    pub async fn report_unusable_rules(&self) -> Result<(), ServiceError> {
        let rules = self.db.run(RuleRow::all).await?;
        let trials = rules.into_iter().map(|rule| async move {
            let tried = self.refuse_user(&rule.quiesce).await;
            (rule, tried)
        });
        let mut tried = pin!(concurrently(trials));
        while let Some((rule, tried)) = tried.next().await {
            let Err(error) = tried else { continue };
            if matches!(error, ServiceError::Stopping) {
                return Ok(());
            }
            let message = format!("the commands of rule {} cannot be run: {error}", rule.name);
            tracing::error!(rule = %rule.name, %error, "the commands of a rule cannot be run");
            self.rule_problems.lock().insert(rule.name, error.to_string());
            let event = NewEvent::new(Timestamp::now(), Severity::Error, EventKind::RuleFailed, message);
            self.db.run(move |tx| event.insert(tx)).await?;
            self.events.wake();
        }
        Ok(())
    }

    fn describe_rule(&self, row: RuleRow, uses: &RuleUses) -> HookRule {
        let name_of = |id: &VolumeId| self.registry.by_id(*id).map(|entry| entry.name.clone());
        let mut volumes: Vec<_> = uses
            .volumes
            .iter()
            .filter(|(_, rule)| **rule == row.name)
            .filter_map(|(id, _)| name_of(id))
            .collect();
        volumes.sort_unstable();
        let groups = uses.groups.iter().filter(|(_, rule)| **rule == row.name);
        let (readable, unreadable) = uses.schedules_with(&row.name);
        let mut schedules: Vec<Uuid> = readable.iter().map(|schedule| schedule.schedule_id).collect();
        schedules.extend(unreadable.into_iter().filter_map(|key| key.parse::<Uuid>().ok()));
        HookRule {
            volume_names: volumes,
            groups: groups.map(|(group, _)| group.clone()).collect(),
            schedule_ids: schedules,
            problem: self.rule_problems.lock().get(&row.name).cloned(),
            name: row.name,
            quiesce: row.quiesce,
            labels: row.labels,
        }
    }

    /// Creates a rule.
    ///
    /// # Errors
    /// The rule is empty, its commands cannot run, or the name is taken.
    pub async fn create_rule(&self, request: CreateRule) -> Result<HookRule, ServiceError> {
        check(&request.quiesce)?;
        self.refuse_user(&request.quiesce).await?;
        let row = RuleRow { name: request.name, quiesce: request.quiesce, labels: request.labels };
        let stored = row.clone();
        match self.db.run(move |tx| stored.insert(tx)).await {
            Ok(()) => {
                tracing::info!(rule = %row.name, "rule created");
                Ok(self.describe_rule(row, &RuleUses::default()))
            }
            Err(error) if error.is_conflict() => Err(ServiceError::refused(
                ErrorCode::RuleExists,
                format!("rule {} already exists: update it, or choose another name", row.name),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns all rules.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_rules(&self) -> Result<List<HookRule>, ServiceError> {
        let found = self.db.run(|tx| -> Result<_, DbError> { Ok((RuleRow::all(tx)?, RuleUses::all(tx)?)) });
        let (rows, uses) = found.await?;
        Ok(rows.into_iter().map(|row| self.describe_rule(row, &uses)).collect())
    }

    /// Returns a rule.
    ///
    /// # Errors
    /// There is no such rule.
    pub async fn rule(&self, name: RuleName) -> Result<HookRule, ServiceError> {
        let found =
            self.db.run(move |tx| -> Result<_, ServiceError> { Ok((find(tx, &name)?, RuleUses::all(tx)?)) });
        let (row, uses) = found.await?;
        Ok(self.describe_rule(row, &uses))
    }

    /// Updates a rule for all its assignments. Accepted operations use the previous version.
    ///
    /// # Errors
    /// There is no such rule, it would be empty, or its commands cannot run.
    pub async fn update_rule(&self, name: RuleName, request: UpdateRule) -> Result<HookRule, ServiceError> {
        check(&request.quiesce)?;
        self.refuse_user(&request.quiesce).await?;
        let (wanted, UpdateRule { quiesce, labels }) = (name.clone(), request);
        let update = move |tx: &Transaction<'_>| RuleRow::update(tx, &wanted, &quiesce, labels.as_ref());
        if !self.db.run(update).await? {
            return Err(not_found(&name));
        }
        self.rule_problems.lock().remove(&name);
        tracing::info!(rule = %name, "rule changed");
        self.rule(name).await
    }

    /// Deletes a rule.
    ///
    /// # Errors
    /// There is no such rule, or it is assigned.
    pub async fn delete_rule(&self, name: RuleName) -> Result<Deleted, ServiceError> {
        let in_use = |by: &str, hint: String| {
            let message = format!("rule {name} is assigned to {by}");
            ServiceError::Refused(ApiError::new(ErrorCode::RuleInUse, message).with_hint(hint))
        };
        let wanted = name.clone();
        let found = self
            .db
            .run(move |tx| -> Result<_, ServiceError> { Ok((find(tx, &wanted)?, RuleUses::all(tx)?)) });
        let (_, uses) = found.await?;
        let users = self.users_of(&name, &uses);
        if !users.is_empty() {
            let by: Vec<&str> = users.iter().map(|(user, _)| user.as_str()).collect();
            let commands = first_names(users.iter().map(|(_, command)| format!("`{command}`")));
            return Err(in_use(&by.join(", "), commands));
        }
        let wanted = name.clone();
        let deleted = self.db.run(move |tx| -> Result<bool, DbError> {
            // A schedule may have been given the rule since.
            let uses = RuleUses::all(tx)?;
            let (schedules, unreadable) = uses.schedules_with(&wanted);
            let is_free = schedules.is_empty() && unreadable.is_empty();
            Ok(is_free && RuleRow::delete(tx, &wanted)?)
        });
        match deleted.await {
            Ok(true) => {
                self.rule_problems.lock().remove(&name);
                Ok(Deleted { name: Some(name.to_string()), ..Deleted::default() })
            }
            // It was given the rule meanwhile.
            Ok(false) => Err(in_use("another object", format!("`blockctl rule inspect {name}` shows it"))),
            Err(error) if error.is_conflict() => {
                Err(in_use("another object", format!("`blockctl rule inspect {name}` shows it")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the volumes, groups and schedules that have a rule, each with the command that takes it away.
    fn users_of(&self, name: &RuleName, uses: &RuleUses) -> Vec<(String, String)> {
        let named = |id: &VolumeId| {
            self.registry.by_id(*id).map_or_else(|| id.to_string(), |entry| entry.name.to_string())
        };
        let volumes = uses.volumes.iter().filter(|(_, rule)| *rule == name).map(|(id, _)| {
            let volume = named(id);
            (format!("volume {volume}"), format!("blockctl rule unassign {name} --volume {volume}"))
        });
        let groups = uses.groups.iter().filter(|(_, rule)| *rule == name).map(|(group, _)| {
            (format!("group {group}"), format!("blockctl rule unassign {name} --group {group}"))
        });
        let (readable, unreadable) = uses.schedules_with(name);
        let readable = readable.into_iter().map(|schedule| {
            let id = schedule.schedule_id;
            let command = format!("blockctl cloudsnap schedules update {id} --no-rule");
            (format!("schedule {schedule}"), command)
        });
        let unreadable = unreadable.into_iter().map(|key| {
            let command = format!("blockctl cloudsnap schedules delete {key}");
            (format!("schedule {key} (which cannot be read, but can be deleted)"), command)
        });
        volumes.chain(groups).chain(readable).chain(unreadable).collect()
    }

    /// Assigns a rule to a volume or group, or unassigns it.
    ///
    /// # Errors
    /// There is no such rule or volume, not exactly one target is named, the target does not have the rule,
    /// or the daemon may not run its commands as their user.
    pub async fn assign_rule(
        &self,
        name: RuleName,
        target: RuleTarget,
        assign: bool,
    ) -> Result<HookRule, ServiceError> {
        let volume = match (&target.volume, &target.group) {
            (Some(volume), None) => Some(self.registry.find(volume)?),
            (None, Some(_)) => None,
            _ => {
                return Err(invalid(
                    "the target of the rule is ambiguous: give exactly one of volume and group",
                ));
            }
        };
        if assign {
            self.refuse_rule(&name).await?;
        }
        let rule = name.clone();
        let id = volume.as_ref().map(|entry| entry.id);
        let group = target.group.clone();
        let done = self.db.run(move |tx| -> Result<bool, ServiceError> {
            find(tx, &rule)?;
            match (id, &group, assign) {
                (Some(id), _, true) => RuleUses::set_volume(tx, id, &rule)?,
                (None, Some(group), true) => RuleUses::set_group(tx, group, &rule)?,
                (Some(id), _, false) => return Ok(RuleUses::clear_volume(tx, id, &rule)?),
                (None, Some(group), false) => return Ok(RuleUses::clear_group(tx, group, &rule)?),
                (None, None, _) => {}
            }
            Ok(true)
        });
        if !done.await? {
            let what = match (&volume, &target.group) {
                (Some(entry), _) => format!("volume {}", entry.name),
                (None, group) => format!("group {}", group.as_ref().map_or("", |group| group.as_str())),
            };
            return Err(invalid(format!("{what} does not have the rule {name}")));
        }
        tracing::info!(rule = %name, volume = id.map(tracing::field::display), assign, "rule assignment changed");
        self.rule(name).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_rule_test_blocks_no_other() {
        // Each continues when all have started.
        let together = tokio::sync::Barrier::new(MAX_CONCURRENT_TRIALS);
        let trials = (0..MAX_CONCURRENT_TRIALS).map(|one| {
            let together = &together;
            async move {
                together.wait().await;
                one
            }
        });
        let tried = tokio::time::timeout(Duration::from_secs(60), concurrently(trials).collect::<Vec<_>>());
        let mut tried = tried.await.unwrap();
        tried.sort_unstable();
        assert_eq!(tried, (0..MAX_CONCURRENT_TRIALS).collect::<Vec<_>>());
    }
}
