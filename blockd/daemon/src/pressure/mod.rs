//! Guests come first: while tasks move data, it is watched how long guests' reads and writes take, and the
//! tasks are given a share of the time that does not make them longer.
//!
//! While guests are at work, tasks have their work done by threads of the lowest priority, which mostly take
//! what is left anyway; the share is for what priorities do not reach, such as a disk that both use. Where
//! guests are idle tasks work as all else does: on a machine that is busy otherwise, threads of that priority
//! would hardly ever run. It costs guests nothing: what is looked at is counted for the metrics in any case,
//! and by the kernel.

mod governor;
mod observer;
mod priority;

use crate::{config::TaskPriority, registry::Registry};
use blockd_cloud::{Pace, Work, Workers};
use governor::Governor;
use observer::Observer;
use priority::{lower as lower_priority, lower_but_in_turn};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, task::JoinHandle};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Threads beyond one for each core: they wait for a disk.
const WAITING_THREADS: usize = 4;

/// How the work of tasks is done, and who moves data now.
#[derive(Debug)]
pub(crate) struct Pressure {
    work: Work,
    pace: Arc<Pace>,
    busy: AtomicUsize,
    begun: Notify,
    is_watched: bool,
    is_low: bool,
}

impl Pressure {
    /// Starts the threads.
    ///
    /// # Errors
    /// A thread cannot be had.
    pub(crate) fn new(priority: TaskPriority, cpu_threads: usize) -> io::Result<Self> {
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

    /// How the work of tasks is done.
    pub(crate) fn work(&self) -> Work {
        self.work.clone()
    }

    /// How a store in a directory is written to, with threads of its own: one that hangs does not hold up
    /// others.
    ///
    /// # Errors
    /// A thread cannot be had.
    pub(crate) fn writing(&self, threads: usize) -> io::Result<Work> {
        let start = || Workers::start("store-write", threads, lower_but_in_turn);
        let yielding = self.is_low.then(start).transpose()?;
        Ok(Work { yielding, pace: self.work.pace.clone() })
    }

    /// A task moves data from now on, until this is dropped.
    pub(crate) fn begin(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_one();
        Busy(self)
    }
}

/// A task that moves data.
pub(crate) struct Busy<'a>(&'a Pressure);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Watches whenever tasks move data, until it is aborted.
pub(crate) fn start(pressure: &Arc<Pressure>, registry: &Arc<Registry>) -> JoinHandle<()> {
    let (pressure, registry) = (Arc::clone(pressure), Arc::clone(registry));
    tokio::spawn(async move {
        if !pressure.is_watched {
            return;
        }
        loop {
            pressure.begun.notified().await;
            let (mut governor, mut observer) = (Governor::default(), Observer::new(&registry));
            while pressure.busy.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
                let before = pressure.pace.permille();
                let share = governor.look(&observer.look(&registry));
                pressure.pace.set_permille(share);
                pressure.pace.set_making_way(governor.sees_guests());
                if share < before {
                    tracing::debug!(share_permille = share, "guests wait: tasks work less");
                }
            }
            pressure.pace.set_permille(governor::ALL_PERMILLE);
            pressure.pace.set_making_way(false);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::{VolumeRow, VolumeState},
        metrics::Operation,
        registry::{EntryState, VolumeEntry},
    };
    use blockd_extent::VolumeId;
    use blockd_volume::Volume;
    use std::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn tasks_work_less_while_guests_wait_and_all_the_time_when_they_are_done() {
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
        let watch = start(&pressure, &registry);
        let after = async |ago: Duration| {
            for _ in 0..100 {
                entry.traffic.note(Operation::Write, Instant::now().checked_sub(ago).unwrap());
            }
            tokio::time::sleep(LOOK_EVERY).await;
            pressure.pace.permille()
        };
        assert_eq!(after(Duration::from_millis(20)).await, 1000, "nobody moves data");
        let busy = pressure.begin();
        // It begins low, and waits for what is usual.
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
        tokio::time::sleep(2 * LOOK_EVERY).await;
        assert_eq!(pressure.pace.permille(), 1000);
        watch.abort();
    }
}
