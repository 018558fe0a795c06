//! Priority of guests over tasks: while tasks move data, the latency of guest requests is monitored, and
//! tasks are throttled to a share of the time that does not increase it.
//!
//! While guests are active, tasks use threads of the lowest priority, which mostly run on idle processors;
//! the share covers what priorities do not reach, such as a shared disk. While guests are idle, tasks use
//! normal threads: on a host that is busy otherwise, threads of that priority would hardly run. Monitoring
//! costs guests nothing: it uses counters that metrics and the kernel maintain anyway.

mod governor;
mod observer;
mod priority;

use crate::{
    settings::TaskPriority,
    tasks::pressure::{
        governor::Governor,
        observer::Observer,
        priority::{raise_nice, set_idle as lower_priority},
    },
    volumes::registry::Registry,
};
use blockd_store::{Pace, Work, Workers};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// Sampling interval.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);
/// Threads in addition to one per core, since threads also block on disks.
const WAITING_THREADS: usize = 4;

/// Execution policy of tasks, and the number of tasks that move data.
#[derive(Debug)]
pub struct Pressure {
    work: Work,
    pace: Arc<Pace>,
    busy: AtomicUsize,
    begun: Notify,
    is_watched: bool,
    is_low: bool,
}

impl Pressure {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new(priority: TaskPriority, cpu_threads: usize) -> io::Result<Self> {
        let cores = match cpu_threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let is_low = priority == TaskPriority::Low;
        let yielding = match is_low {
            true => Some(Workers::start("task-work", cores + WAITING_THREADS, lower_priority)?),
            false => None,
        };
        let pace = Arc::<Pace>::default();
        let work = Work { yielding, pace: Some(Arc::clone(&pace)) };
        let is_watched = priority != TaskPriority::High;
        Ok(Self { work, pace, busy: AtomicUsize::new(0), begun: Notify::new(), is_watched, is_low })
    }

    /// Returns the execution policy of tasks.
    pub fn work(&self) -> Work {
        self.work.clone()
    }

    /// Returns the execution policy of writes to a local directory store, with worker threads of its own, so
    /// that a hanging store does not block others.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn writing(&self, threads: usize) -> io::Result<Work> {
        let start = || Workers::start("store-write", threads, raise_nice);
        let yielding = self.is_low.then(start).transpose()?;
        Ok(Work { yielding, pace: self.work.pace.clone() })
    }

    /// Counts a task as moving data until the guard is dropped.
    pub fn begin(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_one();
        Busy(self)
    }
}

/// Guard of a task that moves data.
pub struct Busy<'a>(&'a Pressure);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Monitors guest latency whenever tasks move data.
pub async fn run(pressure: Arc<Pressure>, registry: Arc<Registry>) {
    if !pressure.is_watched {
        return;
    }
    loop {
        pressure.begun.notified().await;
        let (mut governor, mut observer) = (Governor::default(), Observer::new(&registry));
        while pressure.busy.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            let before = pressure.pace.permille();
            let share = governor.next_share(&observer.sample(&registry));
            pressure.pace.set_permille(share);
            pressure.pace.set_making_way(governor.sees_guests());
            if share < before {
                tracing::debug!(share_permille = share, "guest latency increased: throttling tasks");
            }
        }
        pressure.pace.set_permille(governor::ALL_PERMILLE);
        pressure.pace.set_making_way(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::Operation,
        volumes::registry::{EntryState, VolumeEntry},
    };
    use blockd_catalog::{VolumeRow, VolumeState};
    use blockd_extent::VolumeId;
    use blockd_volume::Volume;
    use std::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn tasks_are_throttled_only_while_guests_suffer() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Arc::new(Registry::default());
        let id = VolumeId::from_u64(1);
        let row = VolumeRow {
            id,
            name: "one".parse().unwrap(),
            size_bytes: 1 << 20,
            labels: Default::default(),
            created: jiff::Timestamp::UNIX_EPOCH,
            state: VolumeState::Up,
            read_only: false,
            group: None,
        };
        let volume = Volume::create(&dir.path().join("1"), id, 1 << 20).unwrap();
        let entry = VolumeEntry::new(&row, EntryState::Up(volume));
        registry.insert(Arc::clone(&entry));
        let pressure = Arc::new(Pressure::new(TaskPriority::Low, 1).unwrap());
        let watch = tokio::spawn(run(Arc::clone(&pressure), Arc::clone(&registry)));
        let after = async |ago: Duration| {
            for _ in 0..100 {
                entry.traffic.note(Operation::Write, Instant::now().checked_sub(ago).unwrap());
            }
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            pressure.pace.permille()
        };
        assert_eq!(after(Duration::from_millis(20)).await, 1000, "no task moves data");
        let busy = pressure.begin();
        // The share is low until the baseline is known.
        let mut shares = Vec::new();
        while !shares.contains(&20) || shares.last().is_none_or(|share| *share < 200) {
            shares.push(after(Duration::ZERO).await);
            assert!(shares.len() < 2_000, "{shares:?}");
        }
        let first = pressure.pace.permille();
        for _ in 0..3 {
            after(Duration::from_millis(20)).await;
        }
        assert!(pressure.pace.permille() < first / 2);
        drop(busy);
        tokio::time::sleep(2 * SAMPLE_INTERVAL).await;
        assert_eq!(pressure.pace.permille(), 1000);
        watch.abort();
    }
}
