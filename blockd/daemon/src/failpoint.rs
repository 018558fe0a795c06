//! Test hook: runs a concurrent action at an exact step.

use crate::core::Core;
use parking_lot::Mutex;
use std::fmt;

type FailpointAction = Box<dyn FnOnce(&Core) + Send>;

/// Action that runs once at a step.
#[derive(Default)]
pub(crate) struct Failpoint(Mutex<Option<(&'static str, FailpointAction)>>);

impl fmt::Debug for Failpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Meanwhile").field(&self.0.lock().as_ref().map(|(step, _)| *step)).finish()
    }
}

impl Failpoint {
    /// Sets the action of the next pass of a step.
    pub(crate) fn at(&self, step: &'static str, deed: impl FnOnce(&Core) + Send + 'static) {
        *self.0.lock() = Some((step, Box::new(deed)));
    }

    /// Returns true after the action has run.
    pub(crate) fn is_over(&self) -> bool {
        self.0.lock().is_none()
    }

    pub(crate) fn reached(&self, core: &Core, step: &'static str) {
        let deed = self.0.lock().take_if(|(at, _)| *at == step);
        if let Some((_, deed)) = deed {
            deed(core);
        }
    }
}
