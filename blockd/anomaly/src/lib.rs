//! Unusual changes of volumes, found from the activity of their backups.
//!
//! Everything here is a pure function; the time is an argument.
//!
//! - [`BlockClass`]: class of a block, from its bytes;
//! - [`Observation`] of a backup's blocks against the [`ContentProfile`] of the volume, which gives a
//!   [`BackupActivity`];
//! - [`detect`]: compares an activity with those before it.

#![forbid(unsafe_code)]

mod activity;
mod class;
mod detect;

pub use activity::{BackupActivity, ContentProfile, Observation, Sample};
pub use class::BlockClass;
pub use detect::{Anomaly, AnomalyKind, Baseline, WARM_UP, detect};
