//! Rows of rules and of their assignments.

use crate::{DbError, ScheduleRow, json, parsed, rows, to_json};
use blockd_api::{GroupName, Labels, RuleName, quiesce::Quiesce, schedules::ScheduleSummary};
use blockd_extent::VolumeId;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use std::collections::BTreeMap;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRow {
    /// Its name.
    pub name: RuleName,
    /// Quiesce options.
    pub quiesce: Quiesce,
    /// Labels.
    pub labels: Labels,
}

impl RuleRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { name: parsed(row, 0)?, quiesce: json(row, 1)?, labels: json(row, 2)? })
    }

    /// Returns all rules by name.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Vec<Self>, DbError> {
        rows(tx, "SELECT name, quiesce, labels FROM rules ORDER BY name", [], Self::read)
    }

    /// Returns the rule of this name.
    ///
    /// # Errors
    /// The database fails.
    pub fn find(tx: &Transaction<'_>, name: &RuleName) -> Result<Option<Self>, DbError> {
        let sql = "SELECT name, quiesce, labels FROM rules WHERE name = ?1";
        Ok(tx.query_row(sql, [name.as_str()], Self::read).optional()?)
    }

    /// Adds the row.
    ///
    /// # Errors
    /// The database fails; a conflict if the name is taken.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), DbError> {
        let quiesce = to_json("rule", &self.quiesce)?;
        tx.execute(
            "INSERT INTO rules (name, quiesce, labels) VALUES (?1, ?2, ?3)",
            params![self.name.as_str(), quiesce, to_json("labels", &self.labels)?],
        )?;
        Ok(())
    }

    /// Updates a rule, and its labels if they are given; returns false if there is none of this name.
    ///
    /// # Errors
    /// The database fails.
    pub fn update(
        tx: &Transaction<'_>,
        name: &RuleName,
        quiesce: &Quiesce,
        labels: Option<&Labels>,
    ) -> Result<bool, DbError> {
        let labels = labels.map(|labels| to_json("labels", labels)).transpose()?;
        let sql = "UPDATE rules SET quiesce = ?2, labels = coalesce(?3, labels) WHERE name = ?1";
        Ok(tx.execute(sql, params![name.as_str(), to_json("rule", quiesce)?, labels])? > 0)
    }

    /// Deletes the rule; returns false if there is none of this name.
    ///
    /// # Errors
    /// The database fails; a conflict if it is assigned.
    pub fn delete(tx: &Transaction<'_>, name: &RuleName) -> Result<bool, DbError> {
        Ok(tx.execute("DELETE FROM rules WHERE name = ?1", [name.as_str()])? > 0)
    }
}

/// Assignments of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleUses {
    /// Volumes with a rule.
    pub volumes: BTreeMap<VolumeId, RuleName>,
    /// Groups with a rule.
    pub groups: BTreeMap<GroupName, RuleName>,
    /// Schedules with a rule.
    pub schedules: Vec<(ScheduleSummary, RuleName)>,
    /// Unreadable schedules with their stored text.
    pub unreadable: Vec<(String, String)>,
}

impl RuleUses {
    /// Returns all rows.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Self, DbError> {
        let mut statement = tx.prepare("SELECT volume, rule FROM rules_of_volumes")?;
        let volumes = statement
            .query_map([], |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))?
            .collect::<Result<_, _>>()?;
        let mut statement = tx.prepare("SELECT group_name, rule FROM rules_of_groups")?;
        let groups = statement
            .query_map([], |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))?
            .collect::<Result<_, _>>()?;
        let with_rule = |row: ScheduleRow| Some((row.summary(), row.spec.rule?));
        let schedules = ScheduleRow::all(tx)?.into_iter().filter_map(with_rule).collect();
        let unreadable = ScheduleRow::unreadable(tx)?;
        Ok(Self { volumes, groups, schedules, unreadable })
    }

    /// Returns the schedules with a rule, including unreadable ones that may have it.
    pub fn schedules_with(&self, rule: &RuleName) -> (Vec<&ScheduleSummary>, Vec<&str>) {
        let readable = self.schedules.iter().filter(|(_, has)| has == rule).map(|(schedule, _)| schedule);
        let may_have = |spec: &str| match serde_json::from_str::<serde_json::Value>(spec) {
            Ok(spec) => spec["rule"] == rule.as_str(),
            Err(_) => spec.contains(rule.as_str()),
        };
        let unreadable = self.unreadable.iter().filter(|(_, spec)| may_have(spec));
        (readable.collect(), unreadable.map(|(key, _)| key.as_str()).collect())
    }

    /// Assigns a rule to a volume.
    ///
    /// # Errors
    /// The database fails; a conflict if one of them does not exist.
    pub fn set_volume(tx: &Transaction<'_>, volume: VolumeId, rule: &RuleName) -> Result<(), DbError> {
        let sql = "INSERT OR REPLACE INTO rules_of_volumes (volume, rule) VALUES (?1, ?2)";
        tx.execute(sql, params![volume.to_string(), rule.as_str()])?;
        Ok(())
    }

    /// Assigns a rule to a group.
    ///
    /// # Errors
    /// The database fails; a conflict if there is no such rule.
    pub fn set_group(tx: &Transaction<'_>, group: &GroupName, rule: &RuleName) -> Result<(), DbError> {
        let sql = "INSERT OR REPLACE INTO rules_of_groups (group_name, rule) VALUES (?1, ?2)";
        tx.execute(sql, params![group.as_str(), rule.as_str()])?;
        Ok(())
    }

    /// Unassigns this rule from a volume; returns false if it has another one or none.
    ///
    /// # Errors
    /// The database fails.
    pub fn clear_volume(tx: &Transaction<'_>, volume: VolumeId, rule: &RuleName) -> Result<bool, DbError> {
        let sql = "DELETE FROM rules_of_volumes WHERE volume = ?1 AND rule = ?2";
        Ok(tx.execute(sql, params![volume.to_string(), rule.as_str()])? > 0)
    }

    /// Unassigns this rule from a group; returns false if it has another one or none.
    ///
    /// # Errors
    /// The database fails.
    pub fn clear_group(tx: &Transaction<'_>, group: &GroupName, rule: &RuleName) -> Result<bool, DbError> {
        let sql = "DELETE FROM rules_of_groups WHERE group_name = ?1 AND rule = ?2";
        Ok(tx.execute(sql, params![group.as_str(), rule.as_str()])? > 0)
    }
}
