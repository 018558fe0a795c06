//! How backups, restores and verifications have done what takes a processor or a disk.

use crate::{CloudError, Pace, Workers, repository::run_blocking, workers::Lost};
use std::{sync::Arc, time::Instant};

/// Where the work is done, and what share of the time it may take. By default on the runtime's threads that may block, all
/// of the time.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Threads of a low priority, for the times when the pace says that work makes way.
    pub yielding: Option<Workers>,
    /// What share of the time it takes, and whether it makes way.
    pub pace: Option<Arc<Pace>>,
}

impl Work {
    /// The threads for the next piece, if it is to make way.
    fn yielding(&self) -> Option<(&Workers, &Pace)> {
        let (workers, pace) = (self.yielding.as_ref()?, self.pace.as_deref()?);
        pace.makes_way().then_some((workers, pace))
    }

    /// Has a piece of work done, and rests for as long as the pace wants: whoever holds the permission for the next piece
    /// holds it until then.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, CloudError> + Send + 'static,
    ) -> Result<T, CloudError> {
        // Without the time in the queue.
        let timed = move || {
            let began = Instant::now();
            Ok((work()?, began.elapsed()))
        };
        let (done, took) = match self.yielding() {
            Some((workers, pace)) => {
                let done = workers.run(timed).await.map_err(|error| CloudError::worker(&error))?;
                done.inspect(|(_, took)| pace.note_made_way(*took))?
            }
            None => run_blocking(timed).await?,
        };
        if let Some(pace) = &self.pace {
            pace.rest(took).await;
        }
        Ok(done)
    }

    /// Has a piece of work done by threads that make way, if it is to, and gives it back otherwise. It does not rest.
    pub(crate) async fn make_way<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Result<Result<T, Lost>, F> {
        let Some((workers, pace)) = self.yielding() else { return Err(work) };
        let began = Instant::now();
        let done = workers.run(work).await;
        pace.note_made_way(began.elapsed());
        Ok(done)
    }
}
