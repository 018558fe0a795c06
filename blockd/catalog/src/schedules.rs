//! Rows of schedules and policies.

use crate::{DbError, json, parsed, parsed_if_there, runs::LOCAL, to_json};
use blockd_api::schedules::{PolicyName, Priority, Rule, ScheduleSummary, Selector};
use blockd_api::{Compression, Labels, ObjectName, RuleName, drills::DrillOptions};
use blockd_schedule::{Jitter, Recurrence, Retention};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Columns of a schedule that are stored as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleSpec {
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ObjectName>,
    /// Volumes; a single volume by its id.
    pub selector: Selector,
    /// Credential.
    pub credentials: Vec<Uuid>,
    /// Rules, in addition to those of the policy.
    pub rules: Vec<Rule>,
    /// Retention of backups whose rule has none.
    pub retain: Retention,
    /// Every backup is full.
    pub full: bool,
    /// Each full backup stores all data again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reupload: bool,
    /// Maximum start delay; `None` for the default of each rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// Priority.
    pub priority: Priority,
    /// Retention of local snapshots; without it, none are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Retention>,
    /// Locations with their own retention.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub retain_at: BTreeMap<Uuid, Retention>,
    /// Rule with the hooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// Labels of the backups.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Compression of the backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Options of drills, which the schedule starts instead of backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillOptions>,
}

impl ScheduleSpec {
    /// Returns the credentials of the copies, with [`LOCAL`] first for local snapshots.
    pub fn locations(&self) -> impl Iterator<Item = Uuid> {
        self.local.is_some().then_some(LOCAL).into_iter().chain(self.credentials.iter().copied())
    }
}

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleRow {
    /// Its id.
    pub uuid: Uuid,
    /// Creation time.
    pub created: Timestamp,
    /// Paused.
    pub paused: bool,
    /// Policy with further rules.
    pub policy: Option<PolicyName>,
    /// Further state.
    pub spec: ScheduleSpec,
}

const COLUMNS: &str = "uuid, created, paused, policy, spec";

/// Key and row, or the error of an unreadable row.
pub type Named<T> = (String, Result<T, DbError>);

impl ScheduleRow {
    /// Returns the start delay of the runs of a rule, in seconds.
    pub fn delay_s(&self, when: &Recurrence) -> u32 {
        let jitter = match self.spec.jitter {
            Some(jitter) => jitter,
            // Local snapshots load no store.
            None if self.spec.local.is_some() && self.spec.credentials.is_empty() => Jitter::default(),
            None => Jitter::default_of(when),
        };
        jitter.delay_s(self.uuid.as_u128())
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            uuid: parsed(row, 0)?,
            created: parsed(row, 1)?,
            paused: row.get(2)?,
            policy: parsed_if_there(row, 3)?,
            spec: json(row, 4)?,
        })
    }

    /// Returns the readable schedules, oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        Ok(Self::each(tx)?.into_iter().filter_map(|(_, row)| row.ok()).collect())
    }

    /// Returns all schedules, oldest first, with the errors of unreadable ones: a time zone may be missing on
    /// this host. The others must continue.
    ///
    /// # Errors
    /// The database fails.
    pub fn each(tx: &Transaction<'_>) -> Result<Vec<Named<Self>>, DbError> {
        let mut statement = tx.prepare(&format!("SELECT {COLUMNS} FROM schedules ORDER BY created, uuid"))?;
        let mut rows = statement.query([])?;
        let mut each = Vec::new();
        while let Some(row) = rows.next()? {
            let read = Self::read(row).map_err(DbError::from).and_then(|read| {
                read.rules(tx)?;
                Ok(read)
            });
            match read {
                Err(error) if !error.is_unreadable() => return Err(error),
                read => each.push((row.get(0)?, read)),
            }
        }
        Ok(each)
    }

    /// Returns the ids of unreadable schedules with their stored text: backups and rules that they may need
    /// must stay.
    ///
    /// # Errors
    /// The database fails.
    pub fn unreadable(tx: &Transaction<'_>) -> Result<Vec<(String, String)>, DbError> {
        let mut found = Vec::new();
        for (key, row) in Self::each(tx)? {
            if row.is_err() {
                let sql = "SELECT CAST(spec AS BLOB) FROM schedules WHERE uuid = ?1";
                let spec: Vec<u8> = tx.query_row(sql, [&key], |row| row.get(0))?;
                found.push((key, String::from_utf8_lossy(&spec).into_owned()));
            }
        }
        Ok(found)
    }

    /// Returns true for an existing schedule, readable or not.
    ///
    /// # Errors
    /// The database fails.
    pub fn exists(tx: &Transaction<'_>, uuid: Uuid) -> Result<bool, DbError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM schedules WHERE uuid = ?1)";
        Ok(tx.query_row(sql, [uuid.to_string()], |row| row.get(0))?)
    }

    /// Returns a schedule by id.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, uuid: Uuid) -> Result<Option<Self>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM schedules WHERE uuid = ?1");
        Ok(tx.query_row(&sql, [uuid.to_string()], Self::read).optional()?)
    }

    /// Returns the name of a schedule, also of an unreadable one.
    ///
    /// # Errors
    /// The database fails.
    pub fn name_of(tx: &Transaction<'_>, uuid: Uuid) -> Result<Option<String>, DbError> {
        let sql = "SELECT json_extract(spec, '$.name') FROM schedules WHERE uuid = ?1 AND json_valid(spec)";
        Ok(tx.query_row(sql, [uuid.to_string()], |row| row.get(0)).optional()?.flatten())
    }

    /// Returns the name of a schedule, or its id without one.
    ///
    /// # Errors
    /// The database fails.
    pub fn called(tx: &Transaction<'_>, uuid: Uuid) -> Result<String, DbError> {
        Ok(Self::name_of(tx, uuid)?.unwrap_or_else(|| uuid.to_string()))
    }

    /// Returns the id and the name.
    pub fn summary(&self) -> ScheduleSummary {
        ScheduleSummary { schedule_id: self.uuid, schedule_name: self.spec.name.clone() }
    }

    /// Adds or replaces the row.
    ///
    /// # Errors
    /// The database fails, or there is no such policy.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        tx.execute(
            "INSERT INTO schedules (uuid, created, paused, policy, spec) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (uuid) DO UPDATE SET paused = excluded.paused, policy = excluded.policy, spec = excluded.spec",
            params![
                self.uuid.to_string(),
                self.created.to_string(),
                self.paused,
                self.policy.as_ref().map(PolicyName::as_str),
                to_json("schedule", &self.spec)?
            ],
        )?;
        Ok(())
    }

    /// Removes the row and its cursors; its runs keep its name.
    ///
    /// # Errors
    /// The database fails.
    pub fn delete(tx: &Transaction<'_>, uuid: Uuid) -> Result<(), DbError> {
        tx.execute(
            "UPDATE schedule_runs SET schedule_name = ?2 WHERE schedule = ?1",
            params![uuid.to_string(), Self::name_of(tx, uuid)?],
        )?;
        tx.execute("DELETE FROM schedules WHERE uuid = ?1", [uuid.to_string()])?;
        Ok(())
    }

    /// Returns its own rules and those of its policy.
    ///
    /// # Errors
    /// The database fails.
    pub fn rules(&self, tx: &Transaction<'_>) -> Result<Vec<Rule>, DbError> {
        let mut rules = self.spec.rules.clone();
        if let Some(name) = &self.policy {
            rules.extend(PolicyRow::find(tx, name)?.map(|policy| policy.rules).unwrap_or_default());
        }
        Ok(rules)
    }

    /// Returns the time up to which the runs of a rule are processed.
    ///
    /// # Errors
    /// The database fails.
    pub fn cursor(&self, tx: &Transaction<'_>, rule: &Recurrence) -> Result<Option<Timestamp>, DbError> {
        let sql = "SELECT processed_until FROM schedule_cursors WHERE schedule = ?1 AND rule = ?2";
        let params = params![self.uuid.to_string(), rule.to_string()];
        Ok(tx.query_row(sql, params, |row| parsed(row, 0)).optional()?)
    }

    /// Sets the time up to which the runs of a rule are processed.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_cursor(
        &self,
        tx: &Transaction<'_>,
        rule: &Recurrence,
        processed_until: Timestamp,
    ) -> Result<(), DbError> {
        tx.execute(
            "INSERT OR REPLACE INTO schedule_cursors (schedule, rule, processed_until) VALUES (?1, ?2, ?3)",
            params![self.uuid.to_string(), rule.to_string(), processed_until.to_string()],
        )?;
        Ok(())
    }

    /// Removes the cursors of other rules than its own and those of its policy.
    ///
    /// # Errors
    /// The database fails.
    pub fn retain_cursors(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        let rules: Vec<_> = self.rules(tx)?.iter().map(|rule| rule.when.to_string()).collect();
        tx.execute(
            "DELETE FROM schedule_cursors WHERE schedule = ?1 AND rule NOT IN (SELECT value FROM json_each(?2))",
            params![self.uuid.to_string(), to_json("rules", &rules)?],
        )?;
        Ok(())
    }

    /// Removes the cursors: all rules start again at the next pass.
    ///
    /// # Errors
    /// The database fails.
    pub fn clear_cursors(tx: &Transaction<'_>, uuid: Uuid) -> Result<(), DbError> {
        tx.execute("DELETE FROM schedule_cursors WHERE schedule = ?1", [uuid.to_string()])?;
        Ok(())
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRow {
    /// Its name.
    pub name: PolicyName,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// Labels.
    pub labels: Labels,
}

impl PolicyRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { name: parsed(row, 0)?, rules: json(row, 1)?, labels: json(row, 2)? })
    }

    /// Returns the readable policies by name.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        let mut statement = tx.prepare("SELECT name, rules, labels FROM sched_policies ORDER BY name")?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            match Self::read(row).map_err(DbError::from) {
                Ok(policy) => all.push(policy),
                Err(error) if error.is_unreadable() => {
                    tracing::error!(%error, "read failed on schedule policy");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Returns the policy of this name.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, name: &PolicyName) -> Result<Option<Self>, DbError> {
        let sql = "SELECT name, rules, labels FROM sched_policies WHERE name = ?1";
        Ok(tx.query_row(sql, [name.as_str()], Self::read).optional()?)
    }

    /// Adds the row.
    ///
    /// # Errors
    /// The database fails; a conflict if the name is taken.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        let rules = to_json("policy", &self.rules)?;
        tx.execute(
            "INSERT INTO sched_policies (name, rules, labels) VALUES (?1, ?2, ?3)",
            params![self.name.as_str(), rules, to_json("labels", &self.labels)?],
        )?;
        Ok(())
    }

    /// Replaces the rules of a policy, and its labels if they are given; returns false if there is none of
    /// this name.
    ///
    /// # Errors
    /// The database fails.
    pub fn update(
        tx: &Transaction<'_>,
        name: &PolicyName,
        rules: &[Rule],
        labels: Option<&Labels>,
    ) -> Result<bool, DbError> {
        let labels = labels.map(|labels| to_json("labels", labels)).transpose()?;
        let sql = "UPDATE sched_policies SET rules = ?2, labels = coalesce(?3, labels) WHERE name = ?1";
        Ok(tx.execute(sql, params![name.as_str(), to_json("policy", &rules)?, labels])? > 0)
    }

    /// Deletes the policy; returns false if there is none of this name.
    ///
    /// # Errors
    /// The database fails; a conflict if a schedule uses it.
    pub fn delete(tx: &Transaction<'_>, name: &PolicyName) -> Result<bool, DbError> {
        Ok(tx.execute("DELETE FROM sched_policies WHERE name = ?1", [name.as_str()])? > 0)
    }
}
