//! Policies, which several schedules share.

use crate::{
    error::ServiceError,
    schedules::{
        plausibility::{check_rules, refuse_never},
        requests::{Schedules, no_policy},
    },
};
use blockd_api::{
    Deleted, ErrorCode, List,
    schedules::{Policy, PolicyName, Rule, UpdatePolicy},
};
use blockd_catalog::{PolicyRow, ScheduleRow};
use blockd_schedule::When;
use jiff::Timestamp;

fn to_api(row: PolicyRow) -> Policy {
    Policy { name: row.name, rules: row.rules, labels: row.labels }
}

impl Schedules {
    /// Creates a policy.
    ///
    /// # Errors
    /// It has no rules or too many, or the name is taken.
    pub async fn create_policy(&self, request: Policy) -> Result<Policy, ServiceError> {
        check_rules(&request.rules)?;
        refuse_none(&request.rules)?;
        refuse_never(&request.rules, Timestamp::now())?;
        let name = request.name.clone();
        let Policy { name: stored, rules, labels } = request.clone();
        let row = PolicyRow { name: stored, rules, labels };
        match self.db.run(move |tx| row.insert(tx)).await {
            Ok(()) => Ok(request),
            Err(error) if error.is_conflict() => Err(ServiceError::refused(
                ErrorCode::PolicyExists,
                format!("schedule policy {name} already exists: choose another name, or delete it first"),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns all policies.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_policies(&self) -> Result<List<Policy>, ServiceError> {
        let rows = self.db.run(PolicyRow::all).await?;
        Ok(rows.into_iter().map(to_api).collect())
    }

    /// Returns a policy.
    ///
    /// # Errors
    /// There is no such policy.
    pub async fn policy(&self, name: PolicyName) -> Result<Policy, ServiceError> {
        let wanted = name.clone();
        let row = self.db.run(move |tx| PolicyRow::find(tx, &wanted)).await?;
        row.map(to_api).ok_or_else(|| no_policy(&name))
    }

    /// Replaces the rules of a policy for all schedules that use it.
    ///
    /// # Errors
    /// There is no such policy, or the rules are invalid.
    pub async fn update_policy(
        &self,
        name: PolicyName,
        request: UpdatePolicy,
    ) -> Result<Policy, ServiceError> {
        check_rules(&request.rules)?;
        refuse_none(&request.rules)?;
        refuse_never(&request.rules, Timestamp::now())?;
        let wanted = name.clone();
        let updated = self.db.run(move |tx| -> Result<_, ServiceError> {
            PolicyRow::update(tx, &wanted, &request.rules, request.labels.as_ref())?;
            // A schedule must not get a duplicate of its own rule.
            for schedule in ScheduleRow::all(tx)? {
                if schedule.policy.as_ref() == Some(&wanted) {
                    let refused = |error: ServiceError| {
                        let message = format!("schedule {}: {}", schedule.summary(), error.to_api().message);
                        ServiceError::refused(error.to_api().code, message)
                    };
                    schedule
                        .rules(tx)
                        .map_err(ServiceError::from)
                        .and_then(|rules| check_rules(&rules))
                        .map_err(refused)?;
                }
            }
            Ok(PolicyRow::find(tx, &wanted)?)
        });
        let updated = updated.await?.map(to_api).ok_or_else(|| no_policy(&name))?;
        self.scheduler.wake();
        Ok(updated)
    }

    /// Deletes a policy.
    ///
    /// # Errors
    /// There is no such policy, or a schedule uses it.
    pub async fn delete_policy(&self, name: PolicyName) -> Result<Deleted, ServiceError> {
        let wanted = name.clone();
        let deleted = self.db.run(move |tx| -> Result<bool, ServiceError> {
            let user = ScheduleRow::all(tx)?.into_iter().find(|row| row.policy.as_ref() == Some(&wanted));
            if let Some(user) = user {
                let message = format!(
                    "schedule {} uses the policy {wanted}: delete that first, or update the policy",
                    user.summary()
                );
                return Err(ServiceError::refused(ErrorCode::PolicyInUse, message));
            }
            Ok(PolicyRow::delete(tx, &wanted)?)
        });
        match deleted.await? {
            true => Ok(Deleted { name: Some(name.to_string()), ..Deleted::default() }),
            false => Err(no_policy(&name)),
        }
    }
}

fn refuse_none(rules: &[Rule]) -> Result<(), ServiceError> {
    if rules.is_empty() {
        let message = format!("a policy needs at least one rule: {}", When::FORMS);
        return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
    }
    Ok(())
}
