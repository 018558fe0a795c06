//! Follows a task to its end.
//!
//! A daemon that restarts meanwhile is waited for: its tasks go on when it is back.

use crate::{failure::Failure, output::Output, progress::Progress};
use blockd_api::{
    Client, ClientError,
    tasks::{Task, WaitTask},
};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use uuid::Uuid;

/// How long one long poll waits.
const POLL_WAIT_MS: u64 = 2_000;
/// The least time between two polls, however fast the task changes.
const POLL_PAUSE: Duration = Duration::from_millis(50);
/// How long a daemon may be away.
pub const AWAY_LIMIT: Duration = Duration::from_secs(60);
/// How often a daemon that is away is looked for.
pub const AWAY_PAUSE: Duration = Duration::from_millis(250);

/// Waits until the task is over and returns it as it ended; Ctrl-C stops the waiting, not the task.
pub async fn follow(client: &Client, task: Uuid, output: &Output) -> Result<Task, Failure> {
    let mut progress = Progress::new(output.is_json());
    let ended = tokio::select! {
        biased;
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::Interrupted { task }),
        ended = poll(client, task, &mut progress) => ended,
    };
    progress.finish();
    ended
}

async fn poll(client: &Client, task: Uuid, progress: &mut Progress) -> Result<Task, Failure> {
    let mut since_version = None;
    let mut away_since: Option<Instant> = None;
    loop {
        let wait = WaitTask { wait_ms: since_version.map(|_| POLL_WAIT_MS), since_version };
        match client.task(task, &wait).await {
            Ok(now) if now.state.stage.is_over() => return Ok(now),
            Ok(now) => {
                away_since = None;
                since_version = Some(now.version);
                progress.update(&now);
                sleep(POLL_PAUSE).await;
            }
            Err(error) if may_come_back(&error) => {
                let since = *away_since.get_or_insert_with(|| {
                    progress.note(&format!("{error}; waiting for it to come back"));
                    Instant::now()
                });
                if since.elapsed() >= AWAY_LIMIT {
                    return Err(Failure::Lost { task, source: error });
                }
                // Versions need not go on where they were.
                since_version = None;
                sleep(AWAY_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn may_come_back(error: &ClientError) -> bool {
    error.is_retryable()
}
