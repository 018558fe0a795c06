//! Group snapshots in a recorded workload, during a chain of writes to both members: each write is sent after
//! the reply to the one before.

use super::{
    history::{SECTOR_BYTES, VolumeHistory, sector_content},
    load::{GROUP, Load, MAX_SNAPSHOTS, MEMBERS},
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Sector of the chain in both members.
const CHAIN_SECTOR: u64 = 300;
/// Maximum number of rounds of the chain during a snapshot.
const MAX_ROUNDS: u64 = 30;

impl Load<'_> {
    /// Returns the id of the second member.
    pub(super) fn peer_id(&self) -> String {
        self.ctl().volume_id(&self.volumes[1].name)
    }

    /// Freezes both members while the chain grows: round n is written to the first member and, after its
    /// reply, to the second one.
    pub(super) fn group_snapshot(&mut self) {
        for member in 0..MEMBERS {
            let snapshots = self.volumes[member].present_snapshots();
            if snapshots.len() >= MAX_SNAPSHOTS {
                self.delete_snapshot(member, &snapshots);
            }
        }
        self.count("group snapshots");
        let name = self.new_name("g");
        let written: Vec<usize> =
            self.volumes[..MEMBERS].iter().map(|volume: &VolumeHistory| volume.written()).collect();
        let mut clients: Vec<_> = (0..MEMBERS)
            .map(|member| {
                self.client(member);
                self.clients[member].take().expect("it was just opened")
            })
            .collect();
        let (recorder, first) = (self.recorder, self.last_version + 1);
        let (started, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let (sent, made) = thread::scope(|scope| {
            let chain = scope.spawn(|| {
                let mut sent = Vec::new();
                for version in first..first + MAX_ROUNDS {
                    for (member, client) in clients.iter_mut().enumerate() {
                        sent.push((member, version, recorder.position()));
                        client.write(CHAIN_SECTOR * SECTOR_BYTES, &sector_content(CHAIN_SECTOR, version));
                    }
                    started.store(true, Ordering::Release);
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                }
                sent
            });
            // The snapshots must contain the first round.
            while !started.load(Ordering::Acquire) && !chain.is_finished() {
                thread::yield_now();
            }
            let args = ["snapshot", "create-group", "--group", GROUP, "--name", &name];
            let (_, made) = self.span(|| self.ctl().json(&args));
            stop.store(true, Ordering::Release);
            (chain.join().expect("the chain"), made)
        });
        self.clients.splice(..MEMBERS, clients.into_iter().map(Some));
        let rounds = sent.len() / MEMBERS;
        for (member, version, at) in sent {
            self.volumes[member].write(CHAIN_SECTOR, CHAIN_SECTOR + 1, version, at);
            self.last_version = self.last_version.max(version);
        }
        for (member, written) in written.into_iter().enumerate() {
            self.volumes[member].flushed(written, made.answered);
            self.note_snapshot(member, &name, made, |sector| if sector == CHAIN_SECTOR { rounds } else { 1 });
        }
        let links: Vec<u64> = self.volumes[..MEMBERS]
            .iter()
            .filter_map(|volume| Some(volume.snapshots.last()?.versions[CHAIN_SECTOR as usize]))
            .collect();
        let is_chain = links[0] >= first && (links[0] == links[1] || links[0] == links[1] + 1);
        assert!(is_chain, "group snapshot {name} has a write without its predecessor: {links:?}");
    }
}

/// Checks that after a power cut each group snapshot exists for all members or none; `found` has the snapshot
/// names of each volume. Individually deleted snapshots are ignored.
pub(super) fn all_or_none(
    volumes: &[VolumeHistory],
    found: &[Vec<String>],
    cut: usize,
) -> Result<(), String> {
    let Some(first) = volumes.first() else { return Ok(()) };
    for name in first.snapshots.iter().map(|snapshot| &snapshot.name) {
        let of_member = |volume: &VolumeHistory| {
            volume.snapshots.iter().find(|snapshot| snapshot.name == *name).map(|snapshot| snapshot.deleted)
        };
        let members: Vec<_> = volumes.iter().filter_map(of_member).collect();
        let may_be_deleted = members.iter().flatten().any(|span| span.is_possible(cut));
        if members.len() < MEMBERS || may_be_deleted {
            continue;
        }
        let present = found.iter().filter(|names| names.contains(name)).count();
        if present != 0 && present != MEMBERS {
            return Err(format!("group snapshot {name} exists for {present} of {MEMBERS} members"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::replay::history::{SnapshotHistory, Span};

    #[test]
    fn partial_group_is_reported_unless_a_member_was_deleted() {
        let volume = |deleted: Option<usize>| {
            let span = |at| Span { asked: at, answered: at + 1 };
            let mut volume = VolumeHistory::new("v", span(0), &[0]);
            for name in ["g1", "other"] {
                volume.snapshots.push(SnapshotHistory {
                    name: name.into(),
                    made: span(5),
                    deleted: deleted.map(span),
                    versions: vec![0],
                });
            }
            volume
        };
        let both = [volume(None), volume(None)];
        let (present, absent) = (vec!["g1".to_owned()], vec![]);
        assert_eq!(all_or_none(&both, &[present.clone(), present.clone()], 6), Ok(()));
        assert_eq!(all_or_none(&both, &[absent.clone(), absent.clone()], 6), Ok(()));
        assert!(all_or_none(&both, &[present.clone(), absent.clone()], 6).is_err());
        let one = [volume(None), volume(Some(8))];
        assert!(all_or_none(&one, &[present.clone(), absent.clone()], 8).is_err());
        assert_eq!(all_or_none(&one, &[present, absent], 9), Ok(()));
    }
}
