//! Named steps at which tests act: a concurrent action, the death of the daemon, or a store with faults.

use crate::error::ServiceError;
use blockd_cloud::Repository;
use blockd_store::BlobStore;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio_util::sync::CancellationToken;

type Action = Box<dyn FnOnce() + Send>;
type StoreWrapper = Box<dyn Fn(Arc<dyn BlobStore>) -> Arc<dyn BlobStore> + Send + Sync>;

/// Steps of tasks with the actions that a test sets; none by default.
pub struct Failpoints {
    stopping: CancellationToken,
    armed: AtomicBool,
    actions: Mutex<HashMap<&'static str, Action>>,
    dies_at: Mutex<Option<&'static str>>,
    store_wrapper: Mutex<Option<StoreWrapper>>,
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failpoints").field("armed", &self.armed).finish_non_exhaustive()
    }
}

impl Failpoints {
    /// Creates failpoints at which nothing happens. The death of the daemon cancels `stopping`.
    pub fn new(stopping: CancellationToken) -> Self {
        Self {
            stopping,
            armed: AtomicBool::new(false),
            actions: Mutex::default(),
            dies_at: Mutex::default(),
            store_wrapper: Mutex::default(),
        }
    }

    /// Sets the action of the next pass of a step.
    pub fn once(&self, step: &'static str, action: impl FnOnce() + Send + 'static) {
        self.actions.lock().insert(step, Box::new(action));
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Returns true if all actions have run.
    pub fn are_over(&self) -> bool {
        self.actions.lock().is_empty()
    }

    /// Sets the step at which the daemon dies: the task fails there, and the daemon stops.
    pub fn die_at(&self, step: &'static str) {
        *self.dies_at.lock() = Some(step);
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Sets a wrapper around the stores of later backups.
    pub fn wrap_store(
        &self,
        wrapper: impl Fn(Arc<dyn BlobStore>) -> Arc<dyn BlobStore> + Send + Sync + 'static,
    ) {
        *self.store_wrapper.lock() = Some(Box::new(wrapper));
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Marks the end of a step of a task: the daemon may be killed between any two steps.
    ///
    /// # Errors
    /// The daemon dies here.
    pub fn reached(&self, step: &'static str) -> Result<(), ServiceError> {
        if !self.armed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let action = self.actions.lock().remove(step);
        if let Some(action) = action {
            action();
        }
        if *self.dies_at.lock() == Some(step) {
            self.stopping.cancel();
            return Err(ServiceError::Stopping);
        }
        Ok(())
    }

    /// Returns the repository of a backup, with its store in the wrapper.
    pub fn repository(&self, repository: Repository) -> Repository {
        match &*self.store_wrapper.lock() {
            Some(wrapper) => repository.with_store(wrapper(Arc::clone(repository.store()))),
            None => repository,
        }
    }
}
