//! Freeze of several volumes at one point in time.
//!
//! The barrier of a [freeze](crate::freeze) is the exchange of a pointer under a lock. A group exchanges the
//! pointers of all its volumes while all locks are held. If write A was acknowledged before write B was
//! issued, A entered its head before B entered its own. So no barrier separates them with B before and A
//! after it, on any volumes and connections.
//!
//! Slow work happens before or after the barrier: the new heads are created and committed before it,
//! concurrently, and the old heads are frozen after it. A failure before the barrier changes nothing; a
//! failure after it deletes the snapshots of the other members, and merges later remove their layers.
//!
//! Locks are taken in the order of the volumes' ids, so that two groups that share volumes cannot deadlock.
//! Other operations hold the `admin` of one volume at a time and wait for no other volume's.

use crate::{
    error::VolumeError,
    freeze::Frozen,
    head::Head,
    head::volume_dir::VolumeDir,
    io::closer,
    layer::stack::Stack,
    meta::{Meta, SnapshotEntry},
    volume::{Volume, head_of},
};
use blockd_extent::{SnapshotId, VolumeId};
use parking_lot::{Mutex, RwLockWriteGuard};
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Maximum number of members whose files are created or synced concurrently.
const MAX_THREADS: usize = 16;

/// Maximum number of attempts to take all locks without queueing; afterwards the barrier queues, so that a
/// freeze succeeds under any number of writers.
const MAX_TRIES: u32 = 256;

/// Result of a group freeze.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupFrozen {
    /// Result for each member, in the given order.
    pub members: Vec<Frozen>,
    /// Stall time: from the first lock request to the last release, or the longest failed attempt to take all
    /// locks if that is longer.
    pub stall: Duration,
    /// Time of the freeze, in milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// Failure of a group freeze: no member has the snapshot.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume}: {source}")]
pub struct GroupError {
    /// Volume that failed.
    pub volume: VolumeId,
    /// Error of the volume.
    pub source: VolumeError,
}

/// Takes a consistent snapshot of several volumes: for any two writes to any of them, if the first was
/// acknowledged before the second was issued, and the second is in the snapshots, so is the first. The
/// snapshots are durable when the call returns.
///
/// # Errors
/// A volume is listed twice, is closed or has failed, has a snapshot of that id, or its disk is full or
/// fails. Then no member has its snapshot, and no write or dirty block is lost. If a committed snapshot
/// cannot be removed either, it stays listed and can be deleted later.
pub fn freeze_group(members: &[(&Volume, SnapshotId)]) -> Result<GroupFrozen, GroupError> {
    freeze_group_with(members, || Ok(()), || ())
}

/// Runs [`freeze_group`] with callbacks right before and right after the barrier, after all slow preparation,
/// so that applications and filesystems are quiesced as briefly as possible.
///
/// `after` runs only if `before` succeeded, and before the snapshots are durable.
///
/// # Errors
/// As for [`freeze_group`], or `before` fails; then nothing changes. A panic of `before` or `after` is
/// resumed after the group was undone or finished.
pub fn freeze_group_with<E: From<GroupError>>(
    members: &[(&Volume, SnapshotId)],
    before: impl FnOnce() -> Result<(), E>,
    after: impl FnOnce(),
) -> Result<GroupFrozen, E> {
    let order = lock_order(members)?;
    closer::wait_for_capacity();
    let mut locks: Vec<_> = order.iter().map(|&at| members[at].0.admin.lock()).collect();
    let mut group = Vec::with_capacity(order.len());
    for (&at, admin) in order.iter().zip(&mut locks) {
        let (volume, snapshot) = members[at];
        let member = Member { volume, snapshot, admin };
        check(&member).map_err(|source| GroupError { volume: volume.id, source })?;
        group.push(member);
    }

    let prepared = prepare(&mut group)?;
    assert!(prepared.len() == group.len(), "each member has a new head");
    let now = Instant::now();
    let mut exchanges: Vec<_> = group
        .iter()
        .zip(&prepared)
        .map(|(member, (_, head))| Exchange {
            volume: member.volume,
            stack: stack_with_head(member.volume, head),
            requested_at: now,
            stall: Duration::ZERO,
        })
        .collect();
    // A panic must not leave `admin` with a head that the stack lacks.
    let failure = match catch_unwind(AssertUnwindSafe(before)) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(Ok(error)),
        Err(panic) => Some(Err(panic)),
    };
    if let Some(failure) = failure {
        drop(exchanges);
        for (member, (meta, head)) in group.iter_mut().zip(prepared) {
            undo_head(member, meta, &head);
        }
        return Err(failure.unwrap_or_else(|panic| resume_unwind(panic)));
    }
    let stall = barrier(&mut exchanges);
    let after = catch_unwind(AssertUnwindSafe(after));
    let created_unix_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);

    let frozen = finish(&mut group, &exchanges, created_unix_ms);
    after.unwrap_or_else(|panic| resume_unwind(panic));
    let frozen = frozen?;
    let mut in_order: Vec<_> = order.into_iter().zip(frozen).collect();
    in_order.sort_unstable_by_key(|(at, _)| *at);
    Ok(GroupFrozen {
        members: in_order.into_iter().map(|(_, frozen)| frozen).collect(),
        stall,
        created_unix_ms,
    })
}

/// Member between the creation of its new head and the end of the freeze.
struct Member<'a> {
    volume: &'a Volume,
    snapshot: SnapshotId,
    admin: &'a mut Meta,
}

/// Exchange of one member's stack.
struct Exchange<'a> {
    volume: &'a Volume,
    /// The new stack before the barrier, the old one after it.
    stack: Arc<Stack>,
    requested_at: Instant,
    stall: Duration,
}

/// Exchanges all stacks under one barrier. Returns the stall time: from the first lock request to the last
/// release, or the longest failed attempt if that is longer.
///
/// Writers wait while a lock is held, and until all are released nothing is allocated, freed or read.
///
/// A writer can be preempted while it holds a lock, and queueing for that lock would stall all other writers:
/// 3.8 ms were measured with as many busy writers as CPUs. So the locks are first tried without queueing,
/// from the start after each failure.
fn barrier(exchanges: &mut [Exchange<'_>]) -> Duration {
    let mut held = Vec::with_capacity(exchanges.len());
    let mut longest_try = Duration::ZERO;
    for _ in 0..MAX_TRIES {
        let began = Instant::now();
        let free = exchanges.iter_mut().all(|exchange| {
            exchange.requested_at = Instant::now();
            exchange.volume.stack.try_write().map(|current| held.push(current)).is_some()
        });
        if free {
            return exchange_held(held, exchanges, began).max(longest_try);
        }
        // Failed attempts stall writers, too.
        held.clear();
        longest_try = longest_try.max(began.elapsed());
        thread::yield_now();
    }
    let began = Instant::now();
    for exchange in exchanges.iter_mut() {
        exchange.requested_at = Instant::now();
        held.push(exchange.volume.stack.write());
    }
    exchange_held(held, exchanges, began).max(longest_try)
}

/// Exchanges stacks under locks that were requested at `began`.
fn exchange_held(
    mut held: Vec<RwLockWriteGuard<'_, Arc<Stack>>>,
    exchanges: &mut [Exchange<'_>],
    began: Instant,
) -> Duration {
    assert!(held.len() == exchanges.len(), "each member is locked at the barrier");
    for (current, exchange) in held.iter_mut().zip(exchanges.iter_mut()) {
        std::mem::swap(&mut **current, &mut exchange.stack);
    }
    for (current, exchange) in held.into_iter().zip(exchanges) {
        drop(current);
        exchange.stall = exchange.requested_at.elapsed();
    }
    began.elapsed()
}

/// Returns the positions of the members in lock order.
fn lock_order(members: &[(&Volume, SnapshotId)]) -> Result<Vec<usize>, GroupError> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_unstable_by_key(|&at| members[at].0.id);
    match order.windows(2).find(|pair| members[pair[0]].0.id == members[pair[1]].0.id) {
        Some(pair) => {
            let volume = members[pair[0]].0.id;
            let source = VolumeError::InvalidInput("the volume is listed twice in the group".into());
            Err(GroupError { volume, source })
        }
        None => Ok(order),
    }
}

fn check(member: &Member<'_>) -> Result<(), VolumeError> {
    let Member { volume, snapshot, admin } = member;
    volume.check_usable()?;
    match admin.snapshots.iter().any(|entry| entry.id == *snapshot) {
        true => Err(VolumeError::Busy(format!("snapshot {snapshot} exists on volume {}", volume.id))),
        false => Ok(()),
    }
}

/// Metadata before the commit of the new head, and that head.
type Prepared = (Meta, Arc<Head>);

/// Creates the new heads of all members, or of none.
fn prepare(group: &mut [Member<'_>]) -> Result<Vec<Prepared>, GroupError> {
    let prepared = in_parallel(group, |member| {
        member.volume.finish_open_layers(member.admin)?;
        let before = member.admin.clone();
        let head = member.volume.prepare_head(member.admin, member.volume.size_bytes())?;
        Ok((before, head))
    });
    all_or_undo(group, prepared, |member, (before, head)| undo_head(member, before, &head))
}

/// Removes a head without writes. Its epoch is reused, because each ended epoch must have an interval set.
fn undo_head(member: &mut Member<'_>, before: Meta, head: &Head) {
    let volume = member.volume;
    // If this commit fails, `volume.meta` may still reference the head, so its files stay. The head is empty,
    // so reads after a start are unchanged. The next commit, before the epoch is reused, drops the reference.
    let restored = volume.commit(member.admin, before.clone());
    *member.admin = before;
    match restored {
        Ok(()) => {
            let volume_dir = VolumeDir { size_bytes: head.size_bytes, ..volume.volume_dir() };
            if let Err(error) = Head::remove_files(volume_dir, head.epoch) {
                tracing::warn!(volume = %volume.id, %error, "removal failed on the files of an unused head: left to the next freeze or start");
            }
        }
        Err(error) => {
            tracing::warn!(volume = %volume.id, %error, "removal failed on an unused head: left to the next freeze or start");
        }
    }
}

/// Returns the stack with a new head on top. It stays current: only holders of `admin` replace the stack.
fn stack_with_head(volume: &Volume, head: &Arc<Head>) -> Arc<Stack> {
    Arc::new(volume.current().below(Arc::clone(head)))
}

/// Freezes the old heads and commits the snapshots: all or none.
fn finish(
    group: &mut [Member<'_>],
    exchanges: &[Exchange<'_>],
    created_unix_ms: u64,
) -> Result<Vec<Frozen>, GroupError> {
    let mut work: Vec<_> = group.iter_mut().zip(exchanges).collect();
    let finished = in_parallel(&mut work, |(member, exchange)| {
        let old_head = head_of(&exchange.stack);
        let entry = SnapshotEntry {
            id: member.snapshot,
            epoch: old_head.epoch,
            created_unix_ms,
            stall_ns: u64::try_from(exchange.stall.as_nanos()).unwrap_or(u64::MAX),
        };
        let dirty_blocks = member.volume.finish_open_layer(member.admin, old_head, Some(entry))?;
        Ok(Frozen { epoch: old_head.epoch, stall: exchange.stall, dirty_blocks })
    });
    all_or_undo(group, finished, |member, _| undo_snapshot(member))
}

/// Deletes a committed snapshot of a failed group. Its epoch and interval set stay.
fn undo_snapshot(member: &mut Member<'_>) {
    let (volume, snapshot) = (member.volume, member.snapshot);
    if let Err(error) = volume.forget_snapshot(member.admin, snapshot) {
        tracing::warn!(volume = %volume.id, %snapshot, %error, "the snapshot of a failed group was not removed: its removal is tried again");
    }
}

/// Returns the results of all members, or undoes the successful ones if any failed.
fn all_or_undo<R>(
    group: &mut [Member<'_>],
    results: Vec<Result<R, VolumeError>>,
    undo: impl Fn(&mut Member<'_>, R),
) -> Result<Vec<R>, GroupError> {
    let mut done = Vec::with_capacity(group.len());
    let mut failed = None;
    for (member, result) in group.iter_mut().zip(results) {
        match result {
            Ok(result) => done.push((member, result)),
            Err(source) => {
                failed.get_or_insert(GroupError { volume: member.volume.id, source });
            }
        }
    }
    match failed {
        None => Ok(done.into_iter().map(|(_, result)| result).collect()),
        Some(error) => {
            done.into_iter().for_each(|(member, result)| undo(member, result));
            Err(error)
        }
    }
}

/// Runs the work for all items on several threads, including this one; results are in the order of the items.
fn in_parallel<T: Send, R: Send>(items: &mut [T], work: impl Fn(&mut T) -> R + Sync) -> Vec<R> {
    let threads = items.len().min(MAX_THREADS);
    let slots: Vec<_> = items.iter_mut().map(|item| Mutex::new((item, None))).collect();
    let next = AtomicUsize::new(0);
    let do_some = || {
        while let Some(slot) = slots.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut slot = slot.lock();
            let result = work(slot.0);
            slot.1 = Some(result);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // The threads that did start share the work.
            if thread::Builder::new().name("freeze".into()).spawn_scoped(scope, do_some).is_err() {
                break;
            }
        }
        do_some();
    });
    slots.into_iter().filter_map(|slot| slot.into_inner().1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_at_the_barrier_keeps_the_intervals_consistent() {
        for is_before in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let volume = Volume::create(&dir.path().join("v"), VolumeId::from_u64(5), 1 << 20).unwrap();
            let first = volume.freeze(SnapshotId::from_u64(1)).unwrap().epoch;
            volume.write(4096, &[1; 4096], false).unwrap();
            let members = [(&*volume, SnapshotId::from_u64(2))];
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let before = || {
                    assert!(!is_before, "injected");
                    Ok::<(), GroupError>(())
                };
                freeze_group_with(&members, before, || panic!("injected"))
            }));
            assert!(panicked.is_err());
            assert_eq!(volume.snapshots().len(), 1 + usize::from(!is_before));
            volume.write(8192, &[2; 4096], false).unwrap();
            let last = volume.freeze(SnapshotId::from_u64(3)).unwrap().epoch;
            assert_eq!(volume.changes(Some(first), last).unwrap().data.len_blocks(), 2);
            assert_eq!(volume.check().findings, Vec::<String>::new());
        }
    }
}
