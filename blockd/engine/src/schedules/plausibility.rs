//! Plausibility of schedules: runs occur, and jitter does not delay them until the next one.

use crate::{
    drills::drill_task,
    error::ServiceError,
    schedules::selection::{self, Candidate},
};
use blockd_api::{
    EXCLUDED, ErrorCode,
    schedules::{MAX_RULES, Rule, Selector},
};
use blockd_catalog::ScheduleSpec;
use blockd_schedule::{Jitter, Recurrence};
use jiff::Timestamp;
use uuid::Uuid;

/// Number of runs considered for the shortest interval.
const LOOK_AHEAD: usize = 64;
/// Warning about a schedule without a location.
const LOCAL_ONLY: &str = "the schedule makes local snapshots only: --cred-id NAME also backs up";

pub(super) fn invalid(message: impl Into<String>) -> ServiceError {
    ServiceError::refused(ErrorCode::InvalidRequest, message)
}

/// Refuses too many rules, and duplicates.
pub(super) fn check_rules(rules: &[Rule]) -> Result<(), ServiceError> {
    if rules.len() > MAX_RULES {
        return Err(invalid(format!("{} rules are too many: give at most {MAX_RULES}", rules.len())));
    }
    for (at, rule) in rules.iter().enumerate() {
        if rules[..at].iter().any(|earlier| earlier.when == rule.when) {
            return Err(invalid(format!("rule {} is given twice", rule.when)));
        }
    }
    Ok(())
}

/// Refuses options of backups for a schedule of drills, and options of drills that are out of range.
pub(super) fn check_drills(spec: &ScheduleSpec) -> Result<(), ServiceError> {
    let Some(options) = &spec.drill else { return Ok(()) };
    let is_of_backups =
        spec.full || spec.compression.is_some() || spec.local.is_some() || spec.rule.is_some();
    if is_of_backups || !spec.retain.keeps_all() || !spec.retain_at.is_empty() {
        return Err(invalid(
            "a schedule of drills makes no backups: omit retention, local snapshots, full backups, compression and rule",
        ));
    }
    drill_task(options.files, None, options.timeout_seconds, "a schedule").map(drop)
}

/// Refuses new copies of all data in incremental backups.
pub(super) fn check_reupload(spec: &ScheduleSpec) -> Result<(), ServiceError> {
    match spec.reupload && !spec.full {
        true => Err(invalid("only full backups store all data again: request full backups too")),
        false => Ok(()),
    }
}

/// Refuses a rule without future runs.
pub(super) fn refuse_never(rules: &[Rule], now: Timestamp) -> Result<(), ServiceError> {
    match rules.iter().find(|rule| rule.when.next_after(now).is_none()) {
        Some(rule) => {
            Err(invalid(format!("rule {} has no future runs: give one with future times", rule.when)))
        }
        None => Ok(()),
    }
}

/// Returns the shortest interval between the next runs, in seconds.
pub(super) fn shortest_s(recurrence: &Recurrence, now: Timestamp) -> Option<i64> {
    let mut at = recurrence.next_after(now)?;
    let mut shortest: Option<i64> = None;
    for _ in 0..LOOK_AHEAD {
        let Some(next) = recurrence.next_after(at) else { break };
        let apart_s = next.as_second() - at.as_second();
        shortest = Some(shortest.map_or(apart_s, |shortest| shortest.min(apart_s)));
        at = next;
    }
    shortest
}

/// Refuses a jitter above half of the shortest interval.
pub(super) fn refuse_long_jitter(
    rules: &[Rule],
    jitter: Option<Jitter>,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let Some(jitter) = jitter.filter(|jitter| jitter.max_s > 0) else { return Ok(()) };
    for rule in rules {
        let Some(apart_s) = shortest_s(&rule.when, now) else { continue };
        let most_s = apart_s / 2;
        if i64::from(jitter.max_s) > most_s {
            return Err(invalid(format!(
                "a jitter of {} s is too long for rule {}, whose shortest interval is {apart_s} s: give at most {most_s} s",
                jitter.max_s, rule.when
            )));
        }
    }
    Ok(())
}

/// Returns warnings about a created or updated schedule.
pub(super) fn warnings(selector: &Selector, credentials: &[Uuid], volumes: &[Candidate]) -> Vec<String> {
    let mut warnings = Vec::new();
    if credentials.is_empty() {
        warnings.push(LOCAL_ONLY.to_owned());
    }
    if selection::selects_any(selector, volumes) {
        return warnings;
    }
    let what = match (&selector.group, &selector.label) {
        (Some(group), _) => format!("there is no volume in group {group} now"),
        (None, Some(label)) => format!("there is no volume with the labels {label} now"),
        (None, None) if selector.all && volumes.is_empty() => "there is no volume now".to_owned(),
        (None, None) if selector.all => {
            let (key, value) = EXCLUDED;
            format!("all volumes have the label {key}={value} now")
        }
        (None, None) => "its volume no longer exists".to_owned(),
    };
    warnings.push(format!("{what}: the schedule has no effect until there is one"));
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<Rule> {
        vec![Rule { when: text.parse().unwrap(), retain: None }]
    }

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn past_schedule_is_refused() {
        let past = Recurrence::utc(blockd_schedule::When::on_calendar("2020-01-01").unwrap());
        let error = refuse_never(&[Rule { when: past, retain: None }], now()).unwrap_err().to_api().message;
        assert!(error.contains("2020-01-01") && error.contains("has no future runs"), "{error}");
        refuse_never(&rules("daily @21:00"), now()).unwrap();
    }

    #[test]
    fn schedule_without_location_warns_of_local_snapshots() {
        let all = Selector { all: true, ..Selector::default() };
        let volumes = [Candidate {
            id: blockd_extent::VolumeId::from_u64(1),
            name: "v".parse().unwrap(),
            tags: crate::volumes::registry::Tags::default(),
        }];
        assert_eq!(warnings(&all, &[], &volumes), [LOCAL_ONLY]);
        assert!(warnings(&all, &[Uuid::from_u128(1)], &volumes).is_empty());
    }

    #[test]
    fn jitter_is_at_most_half_of_the_interval() {
        let refused = |text, max_s| {
            let refused = refuse_long_jitter(&rules(text), Some(Jitter { max_s }), now());
            refused.err().map(|error| error.to_api().message)
        };
        assert_eq!(refused("daily @21:00", 43_200), None);
        assert_eq!(refused("periodic 15", 450), None);
        let error = refused("periodic 15", 451).unwrap();
        assert!(error.contains("is 900 s: give at most 450 s"), "{error}");
        assert!(refused("daily @21:00", 43_201).is_some());
    }
}
