//! Detection of anomalies: an activity against those before it.
//!
//! The factors were chosen with the simulation in `tests/`, which runs normal work for 200 days and
//! encryption at three speeds.

use crate::BackupActivity;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Period of history before rates are judged: each weekly job was seen once.
pub const WARM_UP: SignedDuration = SignedDuration::from_hours(8 * 24);
/// Period of the compared activities.
const COMPARED: SignedDuration = SignedDuration::from_hours(8 * 7 * 24);
/// Two times of the week within this many seconds are the same one: jobs start late, and clocks change.
const SAME_TIME_S: i64 = 3 * 3600;
/// Shortest interval whose values are extrapolated: one backup just after another says nothing about a day.
const MIN_EXTRAPOLATED_S: u64 = 3600;
const WEEK_S: i64 = 7 * 24 * 3600;

/// Kind of an anomaly.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnomalyKind {
    /// Compressible data was replaced by data that looks random, as encryption in place does.
    TurnedIncompressible,
    /// Far more data changed than usual.
    ChangeRate,
    /// Far more files were deleted than usual.
    MassDeletion,
}

impl AnomalyKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::TurnedIncompressible, Self::ChangeRate, Self::MassDeletion];
}

impl fmt::Display for AnomalyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TurnedIncompressible => "turned-incompressible",
            Self::ChangeRate => "change-rate",
            Self::MassDeletion => "mass-deletion",
        })
    }
}

/// Anomaly of one backup.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Anomaly {
    /// Kind.
    pub kind: AnomalyKind,
    /// Observed bytes, or files of a mass deletion.
    pub observed: u64,
    /// Usual bytes or files of such an interval.
    pub usual: u64,
    /// Threshold that was reached.
    pub threshold: u64,
}

/// Usual activity of an interval.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Baseline {
    /// The history covers [`WARM_UP`].
    pub is_warm: bool,
    /// Data bytes.
    pub dirty_bytes: u64,
    /// Bytes that turn incompressible.
    pub turned_incompressible_bytes: u64,
    /// Deleted files.
    pub deleted_files: u64,
}

impl Baseline {
    /// Returns the usual activity of an interval that ends at `now`. `history` is ascending.
    pub fn of(history: &[BackupActivity], now: Timestamp, interval_s: u64) -> Self {
        let Some(first) = history.first() else { return Self::default() };
        let usual = |value: fn(&BackupActivity) -> u64| usual(history, now, interval_s, value);
        Self {
            is_warm: now.duration_since(first.point_in_time) >= WARM_UP,
            dirty_bytes: usual(|activity| activity.dirty_bytes),
            turned_incompressible_bytes: usual(|activity| activity.turned_incompressible_bytes),
            deleted_files: usual(BackupActivity::deleted_files),
        }
    }
}

/// Returns the maximum at this time of the week, or of all times where the history has none at this one.
/// Values of shorter intervals count in proportion.
fn usual(
    history: &[BackupActivity],
    now: Timestamp,
    interval_s: u64,
    value: fn(&BackupActivity) -> u64,
) -> u64 {
    let (mut same_time, mut any_time) = (None, 0);
    for activity in history.iter().filter(|activity| !activity.is_full()) {
        let age = now.duration_since(activity.point_in_time);
        if age > COMPARED {
            continue;
        }
        let measured_s = activity.interval_s.max(MIN_EXTRAPOLATED_S.min(interval_s)).max(1);
        let scaled = u128::from(value(activity)) * u128::from(interval_s.max(measured_s));
        let scaled = u64::try_from(scaled / u128::from(measured_s)).unwrap_or(u64::MAX);
        let distance_s = age.as_secs().rem_euclid(WEEK_S);
        let is_same_time = distance_s.min(WEEK_S - distance_s) <= SAME_TIME_S && age.as_secs() > SAME_TIME_S;
        if is_same_time || activity.usual_at_any_time {
            same_time = same_time.max(Some(scaled));
        }
        any_time = any_time.max(scaled);
    }
    same_time.unwrap_or(any_time)
}

/// Returns the anomalies of a backup. `history` has the activities before it to the same location, ascending.
/// Without content known from before, such as after a restore in place, there are none.
pub fn detect(history: &[BackupActivity], activity: &BackupActivity) -> Vec<Anomaly> {
    let mut found = Vec::new();
    if activity.compressible_bytes == 0 {
        return found;
    }
    let baseline = Baseline::of(history, activity.point_in_time, activity.interval_s);
    let mut judge = |kind, observed, usual, threshold| {
        if observed >= threshold {
            found.push(Anomaly { kind, observed, usual, threshold });
        }
    };
    let turned = activity.turned_incompressible_bytes;
    let usual = baseline.turned_incompressible_bytes;
    let compressible = activity.compressible_bytes;
    // Encryption replaces most of what it writes; what a full backup has is not what was written.
    if activity.is_full() || turned >= activity.dirty_bytes / 3 {
        // Before the warm-up, an archive job may be new.
        let threshold = match baseline.is_warm {
            true => (compressible / 100).clamp(16 << 20, 256 << 20),
            false => (compressible / 10).max(64 << 20),
        };
        // On a small volume, that may be more than all of its data.
        let threshold = threshold.min((compressible / 2).max(4 << 20));
        judge(AnomalyKind::TurnedIncompressible, turned, usual, threshold.max(usual.saturating_mul(3)));
    }
    if baseline.is_warm && !activity.is_full() {
        let usual = baseline.dirty_bytes;
        let threshold = (compressible / 5).max(1 << 30).max(usual.saturating_mul(6));
        judge(AnomalyKind::ChangeRate, activity.dirty_bytes, usual, threshold);
    }
    if let Some(before) = activity.files_before {
        let usual = baseline.deleted_files;
        let threshold = (before / 4).max(1000).max(usual.saturating_mul(4));
        judge(AnomalyKind::MassDeletion, activity.deleted_files(), usual, threshold);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(at_s: i64, interval_s: u64, turned_mib: u64) -> BackupActivity {
        BackupActivity {
            point_in_time: Timestamp::from_second(at_s).unwrap(),
            interval_s,
            dirty_bytes: turned_mib << 20,
            turned_incompressible_bytes: turned_mib << 20,
            compressible_bytes: 10 << 30,
            files_before: None,
            files: None,
            usual_at_any_time: false,
        }
    }

    /// Returns hourly activities of 30 days, and the time of the next.
    fn hourly(turned_mib: u64) -> (Vec<BackupActivity>, i64) {
        let history: Vec<_> = (1..=30 * 24).map(|hour| activity(hour * 3600, 3600, turned_mib)).collect();
        let next = (30 * 24 + 1) * 3600;
        (history, next)
    }

    #[test]
    fn backup_just_after_another_raises_no_threshold() {
        let (mut history, next) = hourly(1);
        history.insert(200, activity(200 * 3600 + 1, 1, 1));
        assert_eq!(detect(&history, &activity(next, 3600, 120)).len(), 1);
        let baseline = Baseline::of(&history, Timestamp::from_second(next).unwrap(), 24 * 3600);
        assert_eq!(baseline.turned_incompressible_bytes, 24 << 20);
    }

    #[test]
    fn usual_activity_counts_at_any_time() {
        let (mut history, next) = hourly(1);
        history[300] = activity(301 * 3600, 3600, 100);
        assert_eq!(detect(&history, &activity(next, 3600, 120)).len(), 1);
        history[300].usual_at_any_time = true;
        assert_eq!(detect(&history, &activity(next, 3600, 120)), []);
    }

    #[test]
    fn encryption_of_a_part_is_found_by_a_full_backup() {
        let (history, next) = hourly(1);
        let full = BackupActivity { interval_s: 0, dirty_bytes: 10 << 30, ..activity(next, 0, 200) };
        let kinds = |activity| detect(&history, &activity).iter().map(|one| one.kind).collect::<Vec<_>>();
        assert_eq!(kinds(full), [AnomalyKind::TurnedIncompressible]);
        assert_eq!(kinds(BackupActivity { interval_s: 3600, ..full }), [AnomalyKind::ChangeRate]);
    }

    #[test]
    fn encryption_of_half_of_a_small_volume_is_found() {
        for (compressible_mib, turned_mib, count) in [(35, 18, 1), (35, 17, 0), (7, 4, 1), (7, 3, 0)] {
            let small =
                BackupActivity { compressible_bytes: compressible_mib << 20, ..activity(9, 9, turned_mib) };
            assert_eq!(detect(&[], &small).len(), count, "{turned_mib} of {compressible_mib} MiB");
        }
    }

    #[test]
    fn merged_activity_has_the_larger_figures() {
        let full = BackupActivity { interval_s: 0, ..activity(50, 0, 900) };
        let merged = activity(10, 60, 5).merged_with(full).merged_with(activity(90, 1, 9));
        assert_eq!(merged, BackupActivity { interval_s: 60, ..activity(90, 1, 9) });
    }
}
