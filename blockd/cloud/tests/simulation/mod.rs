//! Simulation of two daemons on one bucket: concurrent backups, resumes, deletions, garbage collections and
//! verifications for several days, through a network with failures, latency and disconnections. Each listed
//! snapshot must restore to its frozen content.
//!
//! `BLOCKD_SIMULATION_SEEDS` is the number of runs (8); `BLOCKD_SIMULATION_FIRST` is the first seed.
mod daemon;
mod net;

use crate::common::{BLOCK, Noise, fixed, requests, restored, with_slot};
use blockd_cloud::{
    CancelToken, CloudSnapshotId, EncryptionMode, ManifestFilter, NoCache, Progress, VerifyDepth,
    VerifyOptions, verify,
};
use blockd_testkit::store::MemoryStore;
use daemon::{Daemon, Expected};
use futures::future::join_all;
use net::Pace;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
};

type Content = BTreeMap<u64, Box<[u8]>>;

const SIZE: u64 = 4096 * BLOCK as u64;
const STEPS: u64 = 40;
const DAY_S: i64 = 24 * 3600;

/// Planted bugs, which the simulation must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    Nothing,
    /// One daemon's clock is ahead by more than clocks may be apart.
    WrongClock,
    /// Listings do not show the newest manifests.
    LaggingListings,
    /// Stored data sometimes differs from the sent data.
    RottenWrites,
    /// Deletions list the manifests once, and skip those that are missing when they are read.
    VanishedPassedOver,
    /// A manifest is not deleted again after its objects, though its writer may put it again.
    DeletedOnce,
    /// Existence checks always succeed.
    PresenceTakenForGranted,
}

impl Planted {
    /// Returns true for a bug that shows when a snapshot is deleted whose daemon does not know of its commit.
    fn is_of_doubts(self) -> bool {
        matches!(self, Self::DeletedOnce | Self::PresenceTakenForGranted)
    }

    /// Chooses the next actions of the daemons, with a bias to those that reveal the planted bug.
    fn choice(self, dice: &mut Noise) -> [u64; 2] {
        // One daemon deletes the base of the other's new backup, or the snapshot that the other is about to
        // commit.
        let crossed = match (self, dice.next() % 2) {
            (Self::VanishedPassedOver, 0) => [4, 7],
            (Self::VanishedPassedOver, _) => [7, 4],
            (planted, 0) if planted.is_of_doubts() => [4, 0],
            (planted, _) if planted.is_of_doubts() => [0, 4],
            _ => [[4, 7], [7, 4], [4, 0], [0, 4]][dice.next() as usize % 4],
        };
        match (self, dice.next() % 4) {
            // There must be something to delete.
            (Self::VanishedPassedOver, 1..) => [0, 0],
            (Self::Nothing, 0 | 1) | (Self::VanishedPassedOver | Self::DeletedOnce, _) => crossed,
            (Self::PresenceTakenForGranted, _) => crossed,
            _ => [dice.next() % 8, dice.next() % 8],
        }
    }
}

/// Checks all snapshots in the bucket; the error is the first violation.
///
/// A backup interrupted between its commit and the check of its base is listed and may lack the base; its
/// daemon repeats the check on resume. `unconfirmed` are such backups.
async fn look(
    bucket: &Arc<MemoryStore>,
    expected: &Expected,
    unconfirmed: &[CloudSnapshotId],
) -> Result<(), String> {
    let repo = fixed(bucket.clone(), EncryptionMode::Aes256GcmSiv);
    let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
    let mut ids = Vec::new();
    for listed in listed {
        let manifest = listed.manifest.map_err(|error| error.to_string())?;
        let id = manifest.id();
        if unconfirmed.contains(&id) {
            continue;
        }
        let content = restored(&repo, &manifest).await.map_err(|error| format!("{id}: {error}"))?;
        if content != expected.content[&id] {
            return Err(format!("{id} restores to other content"));
        }
        ids.push(id);
    }
    for id in expected.committed.difference(&expected.deleted) {
        if !ids.contains(id) {
            return Err(format!("{id} was committed and is not listed"));
        }
    }
    let options = VerifyOptions { depth: VerifyDepth::Full, ..VerifyOptions::default() };
    let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
    let report = verify(&repo, &ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
    match report.findings.first() {
        Some(finding) => Err(format!("{}: {}", finding.object, finding.what)),
        None => Ok(()),
    }
}

async fn live(seed: u64, planted: Planted) -> Result<(), String> {
    let bucket = Arc::new(MemoryStore::default());
    // Without a key slot nothing is deleted.
    with_slot(&bucket, EncryptionMode::Aes256GcmSiv);
    let pace = Arc::new(Pace::default());
    let mut daemons = [0, 1].map(|number| Daemon::new(&bucket, &pace, number, seed, planted));
    let told = Mutex::new(Expected::default());
    let mut dice = Noise(seed * 31 + 5);
    let mut now_s = 1_000_000;
    for step in 0..STEPS {
        now_s += (dice.next() % 3) as i64 * DAY_S + 1;
        bucket.set_clock(now_s);
        let choice = planted.choice(&mut dice);
        pace.is_idle.iter().for_each(|is_idle| is_idle.store(false, SeqCst));
        let acts = daemons.iter_mut().zip(choice).map(|(daemon, choice)| {
            let expected = &told;
            let pace = &pace;
            async move {
                match choice {
                    0..=3 => daemon.back_up(now_s, expected).await,
                    4 | 5 => daemon.delete_some(expected).await,
                    6 => daemon.collect(now_s).await,
                    _ => {
                        daemon.replace(now_s, expected).await;
                        daemon.collect(now_s).await;
                    }
                }
                pace.is_idle[daemon.net.number].store(true, SeqCst);
            }
        });
        join_all(acts).await;
        let unconfirmed: Vec<_> =
            daemons.iter().filter_map(|daemon| daemon.kept.as_ref()).map(|kept| kept.spec.id()).collect();
        let expected = std::mem::take(&mut *told.lock());
        let seen = look(&bucket, &expected, &unconfirmed).await;
        *told.lock() = expected;
        seen.map_err(|what| format!("seed {seed}, step {step}, {choice:?}: {what}"))?;
    }
    Ok(())
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test]
async fn listed_snapshots_restore_after_any_fault() {
    let first = number("BLOCKD_SIMULATION_FIRST", 1);
    for seed in first..first + number("BLOCKD_SIMULATION_SEEDS", 8) {
        live(seed, Planted::Nothing).await.unwrap();
    }
}

#[tokio::test]
async fn planted_bugs_are_found() {
    for planted in [
        Planted::WrongClock,
        Planted::LaggingListings,
        Planted::RottenWrites,
        Planted::VanishedPassedOver,
        Planted::DeletedOnce,
        Planted::PresenceTakenForGranted,
    ] {
        let mut found = None;
        // The rarest bug appears in one of several dozen runs; thread scheduling makes each run different.
        for seed in 1..2000 {
            if let Err(what) = live(seed, planted).await {
                found = Some(what);
                break;
            }
        }
        assert!(found.is_some(), "not detected: {planted:?}");
    }
}
