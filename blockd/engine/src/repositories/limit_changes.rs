//! Changes of bandwidth limits by the time of day.

use crate::repositories::Repositories;
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// Interval between checks for a change of the limits.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Applies all plans periodically.
pub async fn run(repositories: Arc<Repositories>) {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let now = Timestamp::now();
        let opened: Vec<_> = repositories.opened.lock().values().cloned().collect();
        opened.iter().for_each(|(_, planned)| planned.follow(now));
        repositories.bandwidth.follow(now);
    }
}
