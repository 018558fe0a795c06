//! When backups are due, and which of them are kept.
//!
//! Everything here is a function of its arguments: the time is one of them, and nothing is read or written.
//!
//! - [`Recurrence`]: what a person writes (`daily @21:00 Europe/Berlin`), and the next instant that it means;
//! - [`tick`]: whether a run is due, however long the host slept and wherever its clock went;
//! - [`decide`]: what retention keeps and deletes, with the reason for each.

mod calendar;
mod cron;
mod error;
mod fields;
mod on_calendar;
mod planner;
mod recurrence;
mod retention;
mod when;
mod zone;

pub use error::ScheduleError;
pub use planner::{CLOCK_BACK_TOLERANCE_S, Jitter, MAX_MISSED_COUNTED, Tick, tick};
pub use recurrence::Recurrence;
pub use retention::{
    Condition, DeleteReason, Health, KeepReason, Retention, RetentionError, Snapshot, Verdict, decide,
};
pub use when::{MAX_PERIOD_MINUTES, TimeOfDay, When};
pub use zone::Zone;
