//! Notifications of systemd's watchdog.
//!
//! They confirm that the runtime of the control API, the scheduler and the tasks makes progress. An
//! unresponsive disk or store does not stop them: a restart would not help, and would disconnect all clients.

use std::time::Duration;
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

/// Notifications per watchdog timeout.
const TIMES: u32 = 3;
/// Minimum interval of notifications.
const MIN_PERIOD: Duration = Duration::from_millis(1);

/// Notifies until the task is aborted; `None` without a watchdog.
pub(crate) fn start() -> Option<JoinHandle<()>> {
    let time_limit = sd_notify::watchdog_enabled().filter(|time_limit| !time_limit.is_zero())?;
    Some(tokio::spawn(tell(time_limit, || notify(sd_notify::NotifyState::Watchdog))))
}

async fn tell(time_limit: Duration, alive: impl Fn()) {
    let mut turns = interval((time_limit / TIMES).max(MIN_PERIOD));
    // After a stall, one notification is enough.
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        alive();
    }
}

/// Notifies the service manager.
pub(crate) fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "notifying systemd failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn watchdog_is_notified_three_times_per_interval() {
        let told = AtomicUsize::new(0);
        let telling = tell(Duration::from_secs(60), || {
            told.fetch_add(1, Ordering::Relaxed);
        });
        let over = tokio::time::timeout(Duration::from_secs(59), telling).await;
        assert!(over.is_err(), "the watchdog ended");
        // At once, after 20 s, after 40 s.
        assert_eq!(told.load(Ordering::Relaxed), 3);
    }
}
