//! Full verification before a repair: a drill and a quick verification know the first damage only.

use super::task::{Known, RepairWork};
use crate::{
    error::{ServiceError, spawned},
    fingerprints,
    repositories::opening::is_missing_or_damaged,
    tasks::{LiveTask, findings},
};
use blockd_catalog::{DbError, DbManifestCache, KnownProofs, ProofRow};
use blockd_cloud::{
    CloudSnapshotId, Manifest, Progress, Repository, VerifyDepth, VerifyOptions, VerifyReport,
    verify_manifests,
};
use blockd_extent::BlockSet;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

/// Adds a cloud snapshot whose stored manifest is missing or damaged: the listing takes unchanged objects
/// from the cache.
async fn add_if_unreadable(
    repository: &Repository,
    id: CloudSnapshotId,
    unreadable: &mut Vec<CloudSnapshotId>,
) -> Result<(), ServiceError> {
    match repository.manifest(&id).await {
        Err(error) if !is_missing_or_damaged(&error) => Err(error.into()),
        Err(_) if !unreadable.contains(&id) => {
            unreadable.push(id);
            Ok(())
        }
        _ => Ok(()),
    }
}

impl RepairWork {
    /// Reads all frames of the cloud snapshots that a repair replaces, and adds their damage. Returns them,
    /// oldest first; none if the damage was a passing error. The damage of a cloud snapshot that has a
    /// repaired one is settled.
    pub(super) async fn examine(
        &self,
        live: &LiveTask,
        repository: &Repository,
        known: &mut Known,
        progress: &Arc<Progress>,
    ) -> Result<Vec<Manifest>, ServiceError> {
        let id = live.view().cloudsnap;
        let (mut read, mut lost) = (BTreeSet::new(), BTreeMap::<CloudSnapshotId, BlockSet>::new());
        loop {
            if read.contains(&id) && !known.damaged.contains_key(&id) {
                return Ok(Vec::new());
            }
            let affected = known.to_repair(&id)?;
            let is_unread =
                |one: &&Manifest| known.repaired(&one.id()).is_none() && !read.contains(&one.id());
            let unread: Vec<Manifest> = affected.iter().filter(is_unread).cloned().collect();
            if unread.is_empty() {
                return Ok(affected);
            }
            for one in unread.iter().map(Manifest::id).filter(|one| read.insert(*one) && *one != id) {
                add_if_unreadable(repository, one, &mut known.unreadable).await?;
            }
            let location = self.repositories.location_now(live.view().credential).await;
            let mut report = self.read(live, repository, unread, progress).await?;
            // Their frames were read with this host's copies.
            for one in report.snapshots.iter_mut().filter(|one| known.unreadable.contains(&one.id)) {
                one.has_manifest = false;
            }
            let manifests = DbManifestCache::new(Arc::clone(&self.db), live.view().credential);
            fingerprints::forget_reported(&self.host.data_dir, &manifests, &report);
            self.put_proofs(live, &report, location).await?;
            let found = report.snapshots.iter().map(|one| (one.id, &one.damaged));
            let found = found.chain(report.others.iter().map(|one| (one.id, &one.blocks)));
            for (id, blocks) in found.filter(|(_, blocks)| !blocks.is_empty()) {
                lost.entry(id).or_default().union_with(blocks);
            }
            known.damaged = self.damage(live, &known.unreadable).await?;
            for (id, blocks) in &lost {
                known.damaged.entry(*id).or_default().union_with(blocks);
            }
        }
    }

    /// Verifies manifests, which may be this host's copies of damaged ones.
    async fn read(
        &self,
        live: &LiveTask,
        repository: &Repository,
        manifests: Vec<Manifest>,
        progress: &Arc<Progress>,
    ) -> Result<VerifyReport, ServiceError> {
        let options = VerifyOptions {
            depth: VerifyDepth::Full,
            download_concurrency: self.host.settings.download_concurrency,
            cpu_threads: self.host.settings.cpu_threads,
        };
        let cache = DbManifestCache::new(Arc::clone(&self.db), live.view().credential);
        let (repository, progress, cancel) = (repository.clone(), Arc::clone(progress), live.cancel.clone());
        spawned(async move {
            verify_manifests(&repository, &manifests, &options, &cache, &progress, &cancel).await
        })
        .await
    }

    /// Records new damage, and that all frames were read without any. Known damage keeps its time: each
    /// finding is repaired once.
    async fn put_proofs(
        &self,
        live: &LiveTask,
        report: &VerifyReport,
        location: Option<Uuid>,
    ) -> Result<(), ServiceError> {
        let credential = live.view().credential;
        let known = self.db.run(move |tx| ProofRow::of_location(tx, credential)).await?;
        let known: BTreeMap<CloudSnapshotId, ProofRow> =
            known.into_iter().map(|proof| (proof.cloudsnap, proof)).collect();
        let (of, now) = ((credential, location), Timestamp::now());
        let mut proofs = findings::proofs(report, &known, of, VerifyDepth::Full, now);
        proofs.retain(|proof| {
            let before = known.get(&proof.cloudsnap).filter(|before| !before.sound && !proof.sound);
            before.is_none_or(|before| findings::loses_more(before, &proof.lost_blocks()))
        });
        Ok(self.db.run(move |tx| proofs.iter().try_for_each(|proof| proof.put(tx))).await?)
    }

    /// Returns the known damage of the volume's cloud snapshots at the location: blocks, or none if all may
    /// be damaged or another host found it.
    pub(super) async fn damage(
        &self,
        live: &LiveTask,
        unreadable: &[CloudSnapshotId],
    ) -> Result<BTreeMap<CloudSnapshotId, BlockSet>, ServiceError> {
        let row = live.view();
        let (id, credential, now) = (row.cloudsnap, row.credential, Timestamp::now());
        let known = self.db.run(move |tx| -> Result<_, DbError> {
            Ok((ProofRow::of_repository(tx, credential)?, KnownProofs::of_location(tx, credential, now)?))
        });
        let (proofs, known) = known.await?;
        let is_of_volume = |one: &CloudSnapshotId| (one.cluster, one.volume) == (id.cluster, id.volume);
        let of_others = known.ids().into_iter().filter(|id| known.damage_of_others(id).is_some());
        let ids = of_others.filter(is_of_volume).chain(unreadable.iter().copied());
        let mut damaged: BTreeMap<_, _> = ids.map(|id| (id, BlockSet::new())).collect();
        for proof in proofs.iter().filter(|proof| is_of_volume(&proof.cloudsnap) && !proof.sound) {
            damaged.entry(proof.cloudsnap).or_default().union_with(&proof.damaged);
        }
        Ok(damaged)
    }
}
