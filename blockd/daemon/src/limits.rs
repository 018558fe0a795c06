//! Bandwidth by the time of day: of each credential, and of the host.

use crate::{core::Core, error::ServiceError};
use blockd_api::{
    DailyLimit, ErrorCode,
    credentials::{Connection, CredentialLimits},
};
use blockd_cloud::store::Bandwidth;
use jiff::{Timestamp, tz::TimeZone};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;

/// How often it is looked whether another limit holds now.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The lowest limit of bandwidth: below it even small requests would take minutes.
const MIN_BYTES_PER_S: u64 = 1 << 10;

/// What may move when, and where the clock hangs that tells.
#[derive(Clone, Debug)]
pub(crate) struct LimitPlan {
    upload: DailyLimit,
    download: DailyLimit,
    zone: TimeZone,
}

impl LimitPlan {
    /// What these limits mean.
    ///
    /// # Errors
    /// One is too low; there is no such time zone.
    pub(crate) fn of(limits: &CredentialLimits) -> Result<Self, ServiceError> {
        let refused = |message: String| Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        for (flag, limit) in [("--limit-upload", &limits.upload), ("--limit-download", &limits.download)] {
            if limit.lowest_bytes_per_s().is_some_and(|lowest| lowest < MIN_BYTES_PER_S) {
                return refused(format!(
                    "{flag} is below {MIN_BYTES_PER_S} bytes a second: give more, or none"
                ));
            }
        }
        let zone = match limits.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(_) => {
                    return refused(format!(
                        "there is no time zone {name:?}: give one such as Europe/Berlin, or none for UTC"
                    ));
                }
            },
        };
        Ok(Self { upload: limits.upload.clone(), download: limits.download.clone(), zone })
    }

    /// Bytes a second that may be sent and received at an instant.
    fn at(&self, now: Timestamp) -> Rates {
        let time = now.to_zoned(self.zone.clone()).time();
        (self.upload.bytes_per_s_at(time), self.download.bytes_per_s_at(time))
    }
}

/// Bytes a second that may be sent and received.
type Rates = (Option<u64>, Option<u64>);

/// Bandwidth that follows a plan.
#[derive(Debug)]
pub(crate) struct PlannedBandwidth {
    bandwidth: Arc<Bandwidth>,
    state: Mutex<(LimitPlan, Rates)>,
}

impl PlannedBandwidth {
    pub(crate) fn new(plan: LimitPlan, now: Timestamp) -> Arc<Self> {
        let (up, down) = plan.at(now);
        let bandwidth = Arc::new(Bandwidth::new(up, down));
        Arc::new(Self { bandwidth, state: Mutex::new((plan, (up, down))) })
    }

    /// What tasks are held to.
    pub(crate) fn bandwidth(&self) -> &Arc<Bandwidth> {
        &self.bandwidth
    }

    /// Another plan from now on, also for what waits already.
    pub(crate) fn replace(&self, plan: LimitPlan, now: Timestamp) {
        self.state.lock().0 = plan;
        self.follow(now);
    }

    /// Has what the plan says hold.
    pub(crate) fn follow(&self, now: Timestamp) {
        let mut state = self.state.lock();
        let rates = state.0.at(now);
        if state.1 != rates {
            state.1 = rates;
            self.bandwidth.set(rates.0, rates.1);
        }
    }
}

/// The limits in what is kept of a credential.
pub(crate) fn limits_of(connection: &Connection) -> CredentialLimits {
    CredentialLimits {
        upload: DailyLimit {
            otherwise_bytes_per_s: connection.limit_upload_bytes_per_s,
            windows: connection.limit_upload_windows.clone(),
        },
        download: DailyLimit {
            otherwise_bytes_per_s: connection.limit_download_bytes_per_s,
            windows: connection.limit_download_windows.clone(),
        },
        time_zone: connection.limit_time_zone.clone(),
    }
}

/// Puts limits into what is kept of a credential.
pub(crate) fn keep(connection: &mut Connection, limits: CredentialLimits) {
    connection.limit_upload_bytes_per_s = limits.upload.otherwise_bytes_per_s;
    connection.limit_upload_windows = limits.upload.windows;
    connection.limit_download_bytes_per_s = limits.download.otherwise_bytes_per_s;
    connection.limit_download_windows = limits.download.windows;
    connection.limit_time_zone = limits.time_zone;
}

/// Follows all plans until it is aborted.
pub(crate) fn start(core: &Arc<Core>) -> JoinHandle<()> {
    let core = Arc::clone(core);
    tokio::spawn(async move {
        let work = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let now = Timestamp::now();
                let opened: Vec<_> = core.repositories.opened.lock().values().cloned().collect();
                opened.iter().for_each(|(_, planned)| planned.follow(now));
                core.bandwidth.follow(now);
            }
        };
        tokio::select! {
            () = work => {}
            () = core.stopping.cancelled() => {}
        }
    })
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
    fn a_window_is_that_of_a_clock_on_the_wall_in_summer_and_in_winter() {
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
    fn clocks_that_are_put_forward_and_back() {
        // On 2026-03-29 two o'clock is three; on 2026-10-25 three o'clock is two once more.
        let spring = plan("1M@02:00-03:00", "Europe/Berlin");
        for minute in 0..180 {
            let at = Timestamp::from_second(1_774_742_400 + minute * 60).unwrap();
            assert_eq!(spring.at(at).0, None, "{at}: that hour is left out");
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
            assert_eq!(is_limited(&autumn, at), limited, "{at}: it is there twice");
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
    fn what_cannot_work_is_refused() {
        let limits = |upload: &str, zone: Option<&str>| CredentialLimits {
            upload: upload.parse().unwrap(),
            time_zone: zone.map(str::to_owned),
            ..CredentialLimits::default()
        };
        for (bad, word) in [
            (limits("7", None), "--limit-upload"),
            (limits("1M,1000@08:00-09:00", None), "--limit-upload"),
            (limits("1M", Some("Europe/Nowhere")), "Europe/Nowhere"),
        ] {
            let error = LimitPlan::of(&bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let mut connection = Connection::default();
        let given = limits("1M@08:00-09:00,2M", Some("Europe/Berlin"));
        keep(&mut connection, given.clone());
        assert_eq!(limits_of(&connection), given);
    }
}
