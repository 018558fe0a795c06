//! Admission of quiesce operations: one at a time for each volume and rule, and none before the release of
//! everything that an earlier daemon left quiesced.

use crate::{
    failures::Failures,
    keyed_locks::{KeyedGuard, KeyedLocks},
    parts::QuiescePart,
};
use blockd_extent::VolumeId;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Admission of quiesce operations.
#[derive(Debug)]
pub struct Admission {
    /// Failed steps since the start.
    pub failures: Failures,
    locks: KeyedLocks,
    /// True once everything that an earlier daemon quiesced has been resumed.
    is_settled: watch::Sender<bool>,
    /// Number of running quiesce operations.
    running: Arc<watch::Sender<usize>>,
}

/// Guard of a running quiesce operation.
pub(crate) struct RunningGuard(Arc<watch::Sender<usize>>);

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Default for Admission {
    fn default() -> Self {
        let running = Arc::new(watch::channel(0).0);
        let is_settled = watch::channel(true).0;
        Self { failures: Failures::default(), locks: KeyedLocks::default(), is_settled, running }
    }
}

impl Admission {
    /// Waits for exclusive use of these volumes and rules; `None` without quiesce options.
    pub async fn admit(
        &self,
        parts: &[QuiescePart],
        volumes: impl Iterator<Item = VolumeId>,
    ) -> Option<KeyedGuard> {
        if parts.is_empty() {
            return None;
        }
        // The sender lives as long as `self`.
        let _ = self.is_settled.subscribe().wait_for(|is_settled| *is_settled).await;
        let rules = parts.iter().filter_map(|part| part.rule.as_ref()).map(|rule| format!("rule {rule}"));
        Some(self.locks.take(rules.chain(volumes.map(|volume| format!("volume {volume}")))).await)
    }

    /// Waits for the end of all quiesce operations; returns false after the time limit.
    pub async fn ended(&self, time_limit: Duration) -> bool {
        let mut running = self.running.subscribe();
        tokio::time::timeout(time_limit, running.wait_for(|count| *count == 0)).await.is_ok()
    }

    /// Sets whether everything that an earlier daemon quiesced has been resumed.
    pub fn set_settled(&self, is_settled: bool) {
        let _ = self.is_settled.send_replace(is_settled);
    }

    /// Counts a quiesce operation until the guard is dropped.
    pub(crate) fn running(&self) -> RunningGuard {
        self.running.send_modify(|count| *count += 1);
        RunningGuard(Arc::clone(&self.running))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn quiesce_waits_for_the_recovery_of_an_earlier_daemon() {
        let admission = Admission::default();
        let parts = [QuiescePart { rule: "a".parse().ok(), ..QuiescePart::default() }];
        let volume = || [VolumeId::from_u64(1)].into_iter();
        admission.set_settled(false);
        assert!(admission.admit(&[], volume()).await.is_none());
        let mut turn = Box::pin(admission.admit(&parts, volume()));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut turn).await.is_err());
        admission.set_settled(true);
        let turn = turn.await;
        let mut other = Box::pin(admission.admit(&parts, [VolumeId::from_u64(2)].into_iter()));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut other).await.is_err());
        drop(turn);
        other.await;
    }
}
