//! Bandwidth limits by time of day, of credentials and of the host.

use crate::{error::ServiceError, repositories::stores::invalid_settings};
use blockd_api::{
    DailyLimit,
    credentials::{Connection, CredentialLimits},
};
use blockd_cloud::Repository;
use blockd_store::{Bandwidth, LimitStore};
use jiff::{Timestamp, tz::TimeZone};
use parking_lot::Mutex;
use std::sync::Arc;

/// Minimum bandwidth limit: below it even small requests would take minutes.
const MIN_BYTES_PER_S: u64 = 1 << 10;

/// Upload and download limits by time of day, with their time zone.
#[derive(Clone, Debug)]
pub struct LimitPlan {
    upload: DailyLimit,
    download: DailyLimit,
    zone: TimeZone,
}

impl LimitPlan {
    /// Creates the plan of these limits.
    ///
    /// # Errors
    /// A limit is too low, or the time zone is unknown.
    pub fn of(limits: &CredentialLimits) -> Result<Self, ServiceError> {
        for (setting, limit) in [("limit-upload", &limits.upload), ("limit-download", &limits.download)] {
            if limit.lowest_bytes_per_s().is_some_and(|lowest| lowest < MIN_BYTES_PER_S) {
                let message =
                    format!("a limit is below {MIN_BYTES_PER_S} bytes per second: raise or omit it");
                return Err(invalid_settings(message, &[setting]));
            }
        }
        let zone = match limits.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(_) => {
                    let message = format!(
                        "unknown time zone {name:?}: use a name such as Europe/Berlin, or omit it for UTC"
                    );
                    return Err(invalid_settings(message, &["limit-time-zone"]));
                }
            },
        };
        Ok(Self { upload: limits.upload.clone(), download: limits.download.clone(), zone })
    }

    /// Returns the limits at a time, in bytes per second.
    fn at(&self, now: Timestamp) -> Rates {
        let time = now.to_zoned(self.zone.clone()).time();
        (self.upload.bytes_per_s_at(time), self.download.bytes_per_s_at(time))
    }
}

/// Upload and download limit, in bytes per second.
type Rates = (Option<u64>, Option<u64>);

/// Returns the repository with one more bandwidth limit.
pub fn limited(repository: &Repository, bandwidth: Arc<Bandwidth>) -> Repository {
    repository.with_store(Arc::new(LimitStore::new(Arc::clone(repository.store()), bandwidth)))
}

/// Bandwidth limiter that follows a plan.
#[derive(Debug)]
pub struct PlannedBandwidth {
    bandwidth: Arc<Bandwidth>,
    state: Mutex<(LimitPlan, Rates)>,
}

impl PlannedBandwidth {
    pub(crate) fn new(plan: LimitPlan, now: Timestamp) -> Arc<Self> {
        let (up, down) = plan.at(now);
        let bandwidth = Arc::new(Bandwidth::new(up, down));
        Arc::new(Self { bandwidth, state: Mutex::new((plan, (up, down))) })
    }

    /// Returns the limiter that tasks use.
    pub fn bandwidth(&self) -> &Arc<Bandwidth> {
        &self.bandwidth
    }

    /// Replaces the plan, also for requests that wait already.
    pub fn replace(&self, plan: LimitPlan, now: Timestamp) {
        self.state.lock().0 = plan;
        self.follow(now);
    }

    /// Applies the plan's current limits.
    pub fn follow(&self, now: Timestamp) {
        let mut state = self.state.lock();
        let rates = state.0.at(now);
        if state.1 != rates {
            state.1 = rates;
            self.bandwidth.set(rates.0, rates.1);
        }
    }
}

/// Returns the limits from the stored settings of a credential.
pub fn limits_of(connection: &Connection) -> CredentialLimits {
    CredentialLimits {
        upload: DailyLimit {
            otherwise_bytes_per_s: connection.limit_upload_bytes_per_second,
            windows: connection.limit_upload_windows.clone(),
        },
        download: DailyLimit {
            otherwise_bytes_per_s: connection.limit_download_bytes_per_second,
            windows: connection.limit_download_windows.clone(),
        },
        time_zone: connection.limit_time_zone.clone(),
    }
}

/// Sets the limits in the stored settings of a credential.
pub fn keep(connection: &mut Connection, limits: CredentialLimits) {
    connection.limit_upload_bytes_per_second = limits.upload.otherwise_bytes_per_s;
    connection.limit_upload_windows = limits.upload.windows;
    connection.limit_download_bytes_per_second = limits.download.otherwise_bytes_per_s;
    connection.limit_download_windows = limits.download.windows;
    connection.limit_time_zone = limits.time_zone;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(upload: &str, zone: &str) -> LimitPlan {
        let limits = CredentialLimits {
            upload: upload.parse().unwrap(),
            time_zone: Some(zone.to_owned()),
            ..CredentialLimits::default()
        };
        LimitPlan::of(&limits).unwrap()
    }

    fn is_limited(plan: &LimitPlan, at: &str) -> bool {
        plan.at(at.parse().unwrap()).0.is_some()
    }

    #[test]
    fn limit_window_follows_local_time_in_summer_and_winter() {
        let berlin = plan("20M@08:00-18:00", "Europe/Berlin");
        for (at, limited) in [
            ("2026-01-15T06:59:59Z", false),
            ("2026-01-15T07:00:00Z", true),
            ("2026-01-15T16:59:59Z", true),
            ("2026-01-15T17:00:00Z", false),
            ("2026-07-15T05:59:59Z", false),
            ("2026-07-15T06:00:00Z", true),
            ("2026-07-15T15:59:59Z", true),
            ("2026-07-15T16:00:00Z", false),
        ] {
            assert_eq!(is_limited(&berlin, at), limited, "{at}");
        }
        let utc = LimitPlan::of(&CredentialLimits {
            upload: "20M@08:00-18:00".parse().unwrap(),
            ..CredentialLimits::default()
        });
        assert!(is_limited(&utc.unwrap(), "2026-07-15T17:59:59Z"));
    }

    #[test]
    fn limit_window_follows_daylight_saving_changes() {
        // On 2026-03-29 02:00 becomes 03:00; on 2026-10-25 03:00 becomes 02:00.
        let spring = plan("1M@02:00-03:00", "Europe/Berlin");
        for minute in 0..180 {
            let at = Timestamp::from_second(1_774_742_400 + minute * 60).unwrap();
            assert_eq!(spring.at(at).0, None, "{at}: the skipped hour");
        }
        assert_eq!("2026-03-29T00:00:00Z".parse::<Timestamp>().unwrap().as_second(), 1_774_742_400);
        let autumn = plan("1M@02:30-02:45", "Europe/Berlin");
        for (at, limited) in [
            ("2026-10-25T00:29:00Z", false),
            ("2026-10-25T00:30:00Z", true),
            ("2026-10-25T00:45:00Z", false),
            ("2026-10-25T01:30:00Z", true),
            ("2026-10-25T01:44:59Z", true),
            ("2026-10-25T01:45:00Z", false),
        ] {
            assert_eq!(is_limited(&autumn, at), limited, "{at}: the repeated hour");
        }
        let across = plan("1M@22:00-06:00", "Europe/Berlin");
        let count = |from: &str| {
            let from: Timestamp = from.parse().unwrap();
            let minutes = (0..24 * 60).map(|minute| from + jiff::SignedDuration::from_mins(minute));
            minutes.filter(|at| across.at(*at).0.is_some()).count()
        };
        assert_eq!(count("2026-03-28T12:00:00Z"), 7 * 60, "the shortest night");
        assert_eq!(count("2026-10-24T12:00:00Z"), 9 * 60, "the longest");
        assert_eq!(count("2026-06-24T12:00:00Z"), 8 * 60);
    }

    #[test]
    fn bandwidth_follows_the_plan() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let planned = PlannedBandwidth::new(plan("1M@08:00-18:00", "UTC"), at("2026-01-15T07:00:00Z"));
        assert!(!planned.bandwidth().is_limited());
        planned.follow(at("2026-01-15T08:00:00Z"));
        assert!(planned.bandwidth().is_limited());
        planned.follow(at("2026-01-15T18:00:00Z"));
        assert!(!planned.bandwidth().is_limited());
        planned.replace(plan("2M", "UTC"), at("2026-01-15T18:00:00Z"));
        assert!(planned.bandwidth().is_limited());
    }

    #[test]
    fn invalid_limit_is_refused_by_name() {
        let limits = |upload: &str, zone: Option<&str>| CredentialLimits {
            upload: upload.parse().unwrap(),
            time_zone: zone.map(str::to_owned),
            ..CredentialLimits::default()
        };
        for (bad, setting) in [
            (limits("7", None), "limit-upload"),
            (limits("1M,1000@08:00-09:00", None), "limit-upload"),
            (limits("1M", Some("Europe/Nowhere")), "limit-time-zone"),
        ] {
            assert_eq!(LimitPlan::of(&bad).unwrap_err().to_api().settings, [setting]);
        }
        let mut connection = Connection::default();
        let given = limits("1M@08:00-09:00,2M", Some("Europe/Berlin"));
        keep(&mut connection, given.clone());
        assert_eq!(limits_of(&connection), given);
    }
}
