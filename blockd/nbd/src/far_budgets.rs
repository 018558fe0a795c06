//! What connections to devices that may be far away have in flight: a part of what all may, and each source a
//! part of that. So a source that keeps silent cannot bring everybody else to a halt.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::budget::Budget;
use crate::flow::Wake;

/// What all of them may have of what all connections may.
const ALL_SHARE: u64 = 2;
/// What those of one source may have of it.
const SOURCE_SHARE: u64 = 8;

/// The budgets of what is far away.
pub(crate) struct FarBudgets {
    all: Arc<Budget<Wake>>,
    source_limit_bytes: u64,
    by_source: Mutex<HashMap<u128, Weak<Budget<Wake>>>>,
}

impl FarBudgets {
    /// Where all connections may have so many bytes in flight.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            all: Arc::new(Budget::new(limit_bytes / ALL_SHARE)),
            source_limit_bytes: limit_bytes / SOURCE_SHARE,
            by_source: Mutex::default(),
        }
    }

    /// The budgets that a connection to a device with this source is held to as well, in the order in which
    /// they are taken from.
    pub(crate) fn of(&self, source: u128) -> Vec<Arc<Budget<Wake>>> {
        let mut by_source = self.by_source.lock();
        let known = by_source.get(&source).and_then(Weak::upgrade);
        let budget = known.unwrap_or_else(|| {
            // There are no more than connections.
            by_source.retain(|_, budget| budget.strong_count() > 0);
            let budget = Arc::new(Budget::new(self.source_limit_bytes));
            by_source.insert(source, Arc::downgrade(&budget));
            budget
        });
        vec![budget, Arc::clone(&self.all)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_keeps_one_budget_while_in_use() {
        let budgets = FarBudgets::new(800);
        let (one, same, other) = (budgets.of(1), budgets.of(1), budgets.of(2));
        assert!(Arc::ptr_eq(&one[0], &same[0]) && !Arc::ptr_eq(&one[0], &other[0]));
        assert!(Arc::ptr_eq(&one[1], &other[1]));
        drop((one, same));
        let third = budgets.of(3);
        assert_eq!(budgets.by_source.lock().len(), 2, "the first one is forgotten");
        drop((other, third));
    }
}
