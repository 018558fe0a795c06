//! Times at which a failed backup resumes.

use crate::planner::mixed;
use jiff::{SignedDuration, Timestamp};

/// Pause after the first failure of a backup, in seconds; it doubles with each further one.
pub const FIRST_RESUME_PAUSE_S: u32 = 60;
/// Maximum pause before a failed backup resumes, in seconds.
pub const MAX_RESUME_PAUSE_S: u32 = 1_800;

/// Returns the time at which a backup that failed at `now`, after `resumed` resumptions, resumes: half of the
/// pause is fixed, half depends on the id of its task, so that the backups of many hosts do not resume
/// simultaneously after an outage.
pub fn resume_at(now: Timestamp, resumed: u32, task_id: u128) -> Timestamp {
    let full_s =
        FIRST_RESUME_PAUSE_S.checked_shl(resumed.min(16)).unwrap_or(u32::MAX).min(MAX_RESUME_PAUSE_S);
    let half_s = u64::from(full_s / 2);
    let random_s = mixed(task_id.wrapping_add(resumed.into())) % (half_s + 1);
    let pause_s = i64::try_from(half_s + random_s).unwrap_or(MAX_RESUME_PAUSE_S.into());
    now.checked_add(SignedDuration::from_secs(pause_s)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause_s(resumed: u32, task_id: u128) -> i64 {
        resume_at(Timestamp::UNIX_EPOCH, resumed, task_id).as_second()
    }

    #[test]
    fn pauses_double_up_to_their_maximum_and_spread() {
        for (resumed, full_s) in
            [(0, 60), (1, 120), (2, 240), (3, 480), (4, 960), (5, 1800), (u32::MAX, 1800)]
        {
            let pauses: Vec<i64> = (0..1_000).map(|task_id| pause_s(resumed, task_id)).collect();
            assert!(
                pauses.iter().all(|pause| (full_s / 2..=full_s).contains(pause)),
                "{resumed}: {pauses:?}"
            );
            let different: std::collections::BTreeSet<_> = pauses.iter().collect();
            assert!(different.len() > 25, "{resumed}: {different:?}");
        }
        assert_eq!(pause_s(3, 7), pause_s(3, 7));
    }
}
