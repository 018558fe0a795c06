//! Recurrence, retention and verification of backups.
//!
//! Everything here is a pure function; the time is an argument.
//!
//! - [`Recurrence`]: a schedule such as `daily @21:00 Europe/Berlin`, and its next time;
//! - [`tick`]: the decision whether a run is due, after any suspension or change of the clock;
//! - [`resume_at`]: the time at which a failed backup resumes;
//! - [`decide`]: the retention verdict on each snapshot, with reasons;
//! - [`next_chain`]: the backups that the background verification reads next, and [`VerifyBudget::period`]:
//!   the time for all.

mod calendar;
mod cron;
mod error;
mod fields;
mod on_calendar;
mod planner;
mod recurrence;
mod resumption;
mod retention;
mod verification;
mod weeks;
mod when;
mod zone;

pub use error::ScheduleError;
pub use planner::{CLOCK_BACK_TOLERANCE_S, Jitter, MAX_MISSED_COUNTED, Tick, tick};
pub use recurrence::Recurrence;
pub use resumption::{FIRST_RESUME_PAUSE_S, MAX_RESUME_PAUSE_S, resume_at};
pub use retention::{
    Condition, DeleteReason, Health, KeepReason, Retention, RetentionError, Snapshot, Verdict, decide,
};
pub use verification::{Turn, VerifyBudget, VerifyChain, next_chain};
pub use weeks::Weeks;
pub use when::{MAX_PERIOD_MINUTES, TimeOfDay, When};
pub use zone::Zone;
