//! Retention: decides which snapshots are kept, with reasons.
//!
//! A snapshot is deleted only if no rule keeps it. Pinned snapshots, the last good one, the last verified
//! one, and all while the newest is known to be bad, are always kept.

use crate::Zone;
use jiff::{SignedDuration, Timestamp, civil::ISOWeekDate};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, str::FromStr};

/// Tolerance for snapshots from the future, in seconds; later ones come from a wrong clock.
const FUTURE_TOLERANCE_S: i64 = 3_600;

/// Numbers of snapshots to keep; all are kept if none is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Retention {
    /// Newest snapshots.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_last: u32,
    /// Newest snapshot of each of the last hours that have one.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_hourly: u32,
    /// Newest snapshot of each of the last days that have one.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_daily: u32,
    /// Newest snapshot of each of the last weeks that have one; weeks start on Monday.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_weekly: u32,
    /// Newest snapshot of each of the last months that have one.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_monthly: u32,
    /// Newest snapshot of each of the last years that have one.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_yearly: u32,
    /// Time zone of hours, days, weeks, months and years.
    #[serde(skip_serializing_if = "is_utc")]
    pub zone: Zone,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_utc(zone: &Zone) -> bool {
    *zone == Zone::utc()
}

/// Invalid retention.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RetentionError {
    /// Text that is not a retention.
    #[error(
        "invalid retention {0:?}: give a number, or numbers by period such as last=14,daily=7,monthly=12 with hourly, weekly and yearly, or all"
    )]
    NotOne(String),
    /// A retention that keeps nothing.
    #[error("a schedule must keep at least one backup: give a number from 1 on")]
    KeepsNothing,
}

impl Retention {
    /// Creates the retention of `--max`: keeps the newest `count`.
    ///
    /// # Errors
    /// `count` is 0.
    pub fn max(count: u32) -> Result<Self, RetentionError> {
        if count == 0 {
            return Err(RetentionError::KeepsNothing);
        }
        Ok(Self { keep_last: count, ..Self::default() })
    }

    /// Returns true if all are kept.
    pub fn keeps_all(&self) -> bool {
        self.parts().iter().all(|(_, count)| *count == 0)
    }

    fn parts(&self) -> [(&'static str, u32); 6] {
        // A rule that is missing here would make `keeps_all` true: without `..`, the compiler finds it.
        let &Self { keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly, zone: _ } =
            self;
        [
            ("last", keep_last),
            ("hourly", keep_hourly),
            ("daily", keep_daily),
            ("weekly", keep_weekly),
            ("monthly", keep_monthly),
            ("yearly", keep_yearly),
        ]
    }
}

impl FromStr for Retention {
    type Err = RetentionError;

    /// Parses a number, as in `--max`, or the output of [`fmt::Display`].
    fn from_str(text: &str) -> Result<Self, RetentionError> {
        let wrong = || RetentionError::NotOne(text.to_owned());
        if text == "all" {
            return Ok(Self::default());
        }
        if let Ok(count) = text.parse() {
            return Self::max(count);
        }
        let mut retention = Self::default();
        for part in text.split(',') {
            let (name, count) = part.split_once('=').ok_or_else(wrong)?;
            let count: u32 = count.parse().map_err(|_| wrong())?;
            let field = match name {
                "last" => &mut retention.keep_last,
                "hourly" => &mut retention.keep_hourly,
                "daily" => &mut retention.keep_daily,
                "weekly" => &mut retention.keep_weekly,
                "monthly" => &mut retention.keep_monthly,
                "yearly" => &mut retention.keep_yearly,
                _ => return Err(wrong()),
            };
            if count == 0 || *field > 0 {
                return Err(wrong());
            }
            *field = count;
        }
        Ok(retention)
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keeps_all() {
            return f.write_str("all");
        }
        let parts: Vec<String> = self
            .parts()
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name}={count}"))
            .collect();
        f.write_str(&parts.join(","))
    }
}

/// Health of a snapshot's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Not verified.
    Unverified,
    /// Verified completely.
    Verified,
    /// Verified completely by another host only: a reason to keep it, and none to delete others.
    VerifiedElsewhere,
    /// Missing or damaged in part.
    Bad,
}

/// Condition of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Complete.
    Done,
    /// In progress, or in use.
    InUse,
    /// Listed, but its commit may be reverted. It replaces no other snapshot, and is kept as long as a good
    /// one.
    InDoubt,
}

/// Snapshot as seen by retention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot<Id> {
    /// Id.
    pub id: Id,
    /// Point in time.
    pub created: Timestamp,
    /// Condition.
    pub condition: Condition,
    /// Health.
    pub health: Health,
    /// Pinned.
    pub pinned: bool,
    /// Held with all snapshots of its volume: an anomaly was not acknowledged.
    pub held: bool,
    /// Expiry date: kept until then; afterwards no rule keeps it.
    pub expires: Option<Timestamp>,
}

/// Reason to keep a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", tag = "kind", content = "number")]
#[non_exhaustive]
pub enum KeepReason {
    /// The newest good one.
    LastGood,
    /// The newest verified one.
    LastVerified,
    /// Pinned.
    Pinned,
    /// An anomaly of the volume was not acknowledged.
    Anomaly,
    /// In progress or in use.
    InUse,
    /// Not expired.
    NotExpired,
    /// The newest snapshot is known to be bad, so none is deleted.
    NewestIsBad,
    /// Dated in the future: its age is unknown.
    FromTheFuture,
    /// Damaged or in doubt, without a newer good one.
    NoneBetter,
    /// No rule deletes anything.
    NoRule,
    /// The schedule was deleted.
    ScheduleGone,
    /// One of the last; number 1 is the newest.
    Last(u32),
    /// Newest of one of the last hours.
    Hourly(u32),
    /// Newest of one of the last days.
    Daily(u32),
    /// Newest of one of the last weeks.
    Weekly(u32),
    /// Newest of one of the last months.
    Monthly(u32),
    /// Newest of one of the last years.
    Yearly(u32),
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LastGood => f.write_str("the last good one"),
            Self::LastVerified => f.write_str("the last verified one"),
            Self::Pinned => f.write_str("pinned"),
            Self::Anomaly => f.write_str("an anomaly of the volume is not acknowledged"),
            Self::InUse => f.write_str("in use"),
            Self::NotExpired => f.write_str("not expired"),
            Self::NewestIsBad => f.write_str("the newest one is damaged"),
            Self::FromTheFuture => f.write_str("dated in the future: check the clock"),
            Self::NoneBetter => f.write_str("damaged or in doubt, but no newer one is good"),
            Self::NoRule => f.write_str("all are kept"),
            Self::ScheduleGone => f.write_str("its schedule was deleted: retention no longer applies"),
            Self::Last(number) => write!(f, "last {number}"),
            Self::Hourly(number) => write!(f, "hourly {number}"),
            Self::Daily(number) => write!(f, "daily {number}"),
            Self::Weekly(number) => write!(f, "weekly {number}"),
            Self::Monthly(number) => write!(f, "monthly {number}"),
            Self::Yearly(number) => write!(f, "yearly {number}"),
        }
    }
}

/// Reason to delete a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DeleteReason {
    /// No rule keeps it.
    NoRuleKeepsIt,
    /// Expired.
    Expired,
    /// Damaged, with a newer verified one.
    Damaged,
}

impl fmt::Display for DeleteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRuleKeepsIt => "no rule keeps it",
            Self::Expired => "expired",
            Self::Damaged => "damaged, and a newer one is verified",
        })
    }
}

/// Verdict on a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Kept, for each of these reasons.
    Keep(Vec<KeepReason>),
    /// Deleted.
    Delete(DeleteReason),
}

impl Verdict {
    /// Returns true if it is kept for this reason.
    pub fn is_kept_as(&self, reason: KeepReason) -> bool {
        matches!(self, Self::Keep(reasons) if reasons.contains(&reason))
    }

    /// Returns true if it is deleted.
    pub fn is_delete(&self) -> bool {
        matches!(self, Self::Delete(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep(reasons) => {
                let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                write!(f, "keep: {}", reasons.join(", "))
            }
            Self::Delete(reason) => write!(f, "delete: {reason}"),
        }
    }
}

/// Bucket of local time.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Bucket(i16, i8, i8, i64);

struct Rule {
    count: u32,
    bucket: fn(&Retention, Timestamp) -> Bucket,
    reason: fn(u32) -> KeepReason,
    seen: BTreeSet<Bucket>,
}

impl Rule {
    /// Returns the reason that would keep a snapshot, without counting it.
    fn would_take(&self, retention: &Retention, created: Timestamp) -> Option<KeepReason> {
        let number = u32::try_from(self.seen.len()).unwrap_or(u32::MAX).saturating_add(1);
        let fits = number <= self.count && !self.seen.contains(&(self.bucket)(retention, created));
        fits.then(|| (self.reason)(number))
    }

    /// Counts the first snapshot of a bucket, newest first, and returns its number, up to the limit of the
    /// rule.
    fn takes(&mut self, retention: &Retention, created: Timestamp) -> Option<KeepReason> {
        let number = u32::try_from(self.seen.len()).unwrap_or(u32::MAX).saturating_add(1);
        let fits = number <= self.count && self.seen.insert((self.bucket)(retention, created));
        fits.then(|| (self.reason)(number))
    }
}

fn rules(retention: &Retention) -> Vec<Rule> {
    let rule = |count, bucket, reason| Rule { count, bucket, reason, seen: BTreeSet::new() };
    vec![
        rule(
            retention.keep_hourly,
            |r, at| {
                let local = r.zone.time_zone().to_datetime(at);
                // A repeated hour counts as two.
                let offset_s = i64::from(r.zone.time_zone().to_offset(at).seconds());
                Bucket(
                    local.year(),
                    local.month(),
                    local.day(),
                    i64::from(local.hour()) * 1_000_000 + offset_s,
                )
            },
            KeepReason::Hourly,
        ),
        rule(
            retention.keep_daily,
            |r, at| {
                let local = r.zone.time_zone().to_datetime(at);
                Bucket(local.year(), local.month(), local.day(), 0)
            },
            KeepReason::Daily,
        ),
        rule(
            retention.keep_weekly,
            |r, at| {
                let week = ISOWeekDate::from(r.zone.time_zone().to_datetime(at).date());
                Bucket(week.year(), week.week(), 0, 0)
            },
            KeepReason::Weekly,
        ),
        rule(
            retention.keep_monthly,
            |r, at| {
                let local = r.zone.time_zone().to_datetime(at);
                Bucket(local.year(), local.month(), 0, 0)
            },
            KeepReason::Monthly,
        ),
        rule(
            retention.keep_yearly,
            |r, at| Bucket(r.zone.time_zone().to_datetime(at).year(), 0, 0, 0),
            KeepReason::Yearly,
        ),
    ]
}

/// Returns the verdict on each snapshot, newest first; equal times are ordered by id.
pub fn decide<Id: Clone + Ord>(
    snapshots: &[Snapshot<Id>],
    retention: &Retention,
    now: Timestamp,
) -> Vec<(Id, Verdict)> {
    let mut sorted: Vec<&Snapshot<Id>> = snapshots.iter().collect();
    sorted.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| b.id.cmp(&a.id)));
    let latest = now.checked_add(SignedDuration::from_secs(FUTURE_TOLERANCE_S)).unwrap_or(Timestamp::MAX);
    let is_past = |snapshot: &&&Snapshot<Id>| snapshot.created <= latest;
    let is_bad = |snapshot: &Snapshot<Id>| snapshot.health == Health::Bad;
    let is_done = |snapshot: &Snapshot<Id>| snapshot.condition == Condition::Done;
    let good = |snapshot: &&&Snapshot<Id>| is_past(snapshot) && is_done(snapshot) && !is_bad(snapshot);
    // Includes snapshots in use or in doubt, whose known damage counts.
    let newest_is_bad = sorted
        .iter()
        .filter(is_past)
        .find(|snapshot| is_done(snapshot) || is_bad(snapshot))
        .is_some_and(|newest| is_bad(newest));
    let is_verified = |snapshot: &Snapshot<Id>| snapshot.health == Health::Verified;
    let is_verified_anywhere =
        |snapshot: &&&Snapshot<Id>| is_verified(snapshot) || snapshot.health == Health::VerifiedElsewhere;
    let last_good = sorted.iter().find(good).map(|snapshot| &snapshot.id);
    let last_verified = sorted.iter().filter(good).find(is_verified_anywhere).map(|snapshot| &snapshot.id);

    let mut rules = rules(retention);
    let mut last = 0;
    let mut good_seen = false;
    let mut verified_seen = false;
    let mut verdicts = Vec::with_capacity(sorted.len());
    for snapshot in &sorted {
        let mut reasons = Vec::new();
        let expired = snapshot.expires.is_some_and(|expires| expires <= now);
        let is_good = good(&snapshot);
        let mut keep_if = |condition: bool, reason| condition.then(|| reasons.push(reason));
        keep_if(last_good == Some(&snapshot.id), KeepReason::LastGood);
        // A doubt takes nothing from one that was verified before.
        let is_last_verified = is_verified(snapshot) && !verified_seen && is_past(&snapshot);
        let is_last_verified = is_last_verified && snapshot.condition != Condition::InUse;
        keep_if(last_verified == Some(&snapshot.id) || is_last_verified, KeepReason::LastVerified);
        keep_if(snapshot.pinned, KeepReason::Pinned);
        keep_if(snapshot.held, KeepReason::Anomaly);
        keep_if(snapshot.condition == Condition::InUse, KeepReason::InUse);
        keep_if(snapshot.expires.is_some() && !expired, KeepReason::NotExpired);
        keep_if(snapshot.created > latest, KeepReason::FromTheFuture);
        keep_if(newest_is_bad, KeepReason::NewestIsBad);
        let is_in_doubt = snapshot.condition == Condition::InDoubt;
        keep_if((is_bad(snapshot) || is_in_doubt) && !good_seen, KeepReason::NoneBetter);
        keep_if(retention.keeps_all() && !expired, KeepReason::NoRule);
        // Expired and damaged snapshots do not count.
        if is_good && !expired {
            last += 1;
            keep_if(last <= retention.keep_last, KeepReason::Last(last));
            for rule in &mut rules {
                reasons.extend(rule.takes(retention, snapshot.created));
            }
        } else if !expired && (is_in_doubt || (is_bad(snapshot) && !verified_seen)) {
            // One bad frame damages all snapshots that share it, while most of each is readable. Until a
            // newer one is verified, they are kept as long as good ones.
            keep_if(last < retention.keep_last, KeepReason::Last(last.saturating_add(1)));
            reasons.extend(rules.iter().filter_map(|rule| rule.would_take(retention, snapshot.created)));
        }
        good_seen |= is_good;
        verified_seen |= is_good && is_verified(snapshot);
        let verdict = if !reasons.is_empty() {
            Verdict::Keep(reasons)
        } else {
            Verdict::Delete(match (expired, is_bad(snapshot) && verified_seen) {
                (true, _) => DeleteReason::Expired,
                (false, true) => DeleteReason::Damaged,
                (false, false) => DeleteReason::NoRuleKeepsIt,
            })
        };
        verdicts.push((snapshot.id.clone(), verdict));
    }
    verdicts
}

#[cfg(test)]
mod tests;
