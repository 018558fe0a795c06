//! In-flight budgets of connections to remote-backed devices: one for all of them, and one for each source,
//! both shares of the total budget. An unresponsive source cannot stall other connections.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::connection::budget::Budget;

/// Divisor of the total budget for all remote-backed connections.
const ALL_SHARE: u64 = 2;
/// Divisor of the total budget for one source.
const SOURCE_SHARE: u64 = 8;

/// Budgets of remote-backed connections.
pub(crate) struct RemoteBudgets {
    all: Arc<Budget>,
    source_limit_bytes: u64,
    by_source: Mutex<HashMap<u128, Weak<Budget>>>,
}

impl RemoteBudgets {
    /// Creates the budgets as shares of the total limit, in bytes.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            all: Arc::new(Budget::new(limit_bytes / ALL_SHARE)),
            source_limit_bytes: limit_bytes / SOURCE_SHARE,
            by_source: Mutex::default(),
        }
    }

    /// Returns the budgets of a connection to this source, in the order of charging.
    pub(crate) fn of(&self, source: u128) -> Vec<Arc<Budget>> {
        let mut by_source = self.by_source.lock();
        let known = by_source.get(&source).and_then(Weak::upgrade);
        let budget = known.unwrap_or_else(|| {
            // The number of connections bounds the size of the map.
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
        let budgets = RemoteBudgets::new(800);
        let (one, same, other) = (budgets.of(1), budgets.of(1), budgets.of(2));
        assert!(Arc::ptr_eq(&one[0], &same[0]) && !Arc::ptr_eq(&one[0], &other[0]));
        assert!(Arc::ptr_eq(&one[1], &other[1]));
        drop((one, same));
        let third = budgets.of(3);
        assert_eq!(budgets.by_source.lock().len(), 2, "the unused budget was removed");
        drop((other, third));
    }
}
