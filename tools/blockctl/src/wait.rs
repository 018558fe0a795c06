//! Waiting for a task.
//!
//! The wait survives a restart of the daemon: tasks continue afterwards.

use crate::{failure::Failure, output::Output, progress::Progress};
use blockd_api::{
    Client, ClientError, operations,
    tasks::{Task, WaitTask},
};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use uuid::Uuid;

/// Long-poll timeout.
const POLL_WAIT_MS: u64 = 2_000;
/// Minimum interval of polls.
const POLL_PAUSE: Duration = Duration::from_millis(50);
/// Maximum absence of the daemon.
pub const AWAY_LIMIT: Duration = Duration::from_secs(60);
/// Retry interval for an absent daemon.
pub const AWAY_PAUSE: Duration = Duration::from_millis(250);

/// Waits until a task has ended and returns it; Ctrl-C ends the wait, not the task.
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
        match client.call_at(operations::GET_TASK, &task, &wait).await {
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
                // Versions restart with the daemon.
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
