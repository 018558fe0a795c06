//! Import of published proofs: those of other hosts, and those of this host that its database lacks, such as
//! after the credential was created again.

use super::{
    Proofs, Seen,
    import_drills::{self, KnownDrills, drill_row},
    lost::Expected,
};
use crate::{error::ServiceError, fingerprints, repositories::preflight};
use blockd_api::{
    credentials::StoreConfig,
    events::{EventKind, Severity},
};
use blockd_catalog::{
    CredentialRow, DbError, HostProof, KnownProofs, LastProof, NewEvent, ProofRow, PublishedProof,
};
use blockd_cloud::{
    CloudError, CloudSnapshotId, ListedManifest, ListedProof, ManifestFilter, Proof, ProofId, ProofKind,
    Repository, VerifyDepth,
};
use jiff::Timestamp;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};
use uuid::Uuid;

/// Maximum number of proofs that an import reads; the next one reads others.
const MAX_READ: usize = 256;
/// Number of proofs that are read and stored at once.
const BATCH: usize = 32;
/// Maximum number of proofs of a location that are remembered as read.
const MAX_SEEN: usize = 200_000;
/// Maximum time that a listing waits for the import.
const LISTING_TIME_LIMIT: Duration = Duration::from_secs(5);

impl Proofs {
    /// Imports proofs after a listing of the manifests. Waits for some seconds at most;
    /// errors are logged.
    pub async fn import_after_listing(
        &self,
        credential: &CredentialRow,
        repository: &Repository,
        scope: &ManifestFilter,
        manifests: &[ListedManifest],
    ) {
        let import = self.import(credential, repository, scope, manifests);
        if let Err(error) = preflight::in_time(LISTING_TIME_LIMIT, import).await {
            tracing::warn!(credential = %credential.name, %error, "importing proofs failed");
        }
    }

    /// Imports the proofs of a location, and compares those of this host with its published results.
    ///
    /// # Errors
    /// The store or the database fails.
    pub(super) async fn import_all(
        &self,
        credential: &CredentialRow,
        repository: &Repository,
        manifests: &[ListedManifest],
    ) -> Result<(), ServiceError> {
        let uuid = credential.uuid;
        // Before the listing, which then has them.
        let here = self.location(uuid).await?;
        let published = self.db.run(move |tx| PublishedProof::all(tx, uuid, here)).await?;
        let found = repository.list_proofs(&ManifestFilter::default()).await?;
        let exists: HashSet<_> = manifests.iter().filter_map(|listed| listed.id).collect();
        let (host, now) = (self.host.cluster, Timestamp::now());
        let expected = Expected::new(published, &found, host, |id| exists.contains(id), now);
        let damaged = self.read_listed(credential, repository, &found, manifests, &expected).await?;
        self.report_damaged(credential).await?;
        self.withdraw_lost(credential, expected, &found, &damaged).await
    }

    async fn import(
        &self,
        credential: &CredentialRow,
        repository: &Repository,
        scope: &ManifestFilter,
        manifests: &[ListedManifest],
    ) -> Result<(), ServiceError> {
        let found = repository.list_proofs(scope).await?;
        let own = Expected::default();
        self.read_listed(credential, repository, &found, manifests, &own).await.map(drop)
    }

    /// Reads the proofs of listed cloud snapshots that this host does not know, and stores their results.
    /// Also reads the expected proofs of this host, once; returns the damaged ones.
    ///
    /// A proof of another location, or of a bucket that was copied since, shows nothing about this one. An
    /// invalid proof is ignored with a warning.
    async fn read_listed(
        &self,
        credential: &CredentialRow,
        repository: &Repository,
        found: &[ListedProof],
        manifests: &[ListedManifest],
        expected: &Expected,
    ) -> Result<HashSet<ProofId>, ServiceError> {
        let uuid = credential.uuid;
        let here = self.location(uuid).await?;
        self.begin(uuid, here, repository);
        let selection = self.selection(credential, manifests).await?;
        let is_wanted = |one: &&ListedProof| selection.wants(one) || expected.contains(&one.id);
        let mut wanted: Vec<_> = found.iter().filter(is_wanted).copied().collect();
        wanted.retain(|one| !self.is_seen(uuid, &one.id));
        // Those of this host only show whether they can be read.
        wanted.sort_by_key(|one| (expected.contains(&one.id), Reverse(one.id.proven_unix_ms)));
        wanted.truncate(MAX_READ);
        let mut lost = HashSet::new();
        for batch in wanted.chunks(BATCH) {
            let (mut proofs, mut drills) = (Vec::new(), Vec::new());
            let mut seen = Vec::new();
            for (one, read) in repository.read_proofs(batch.to_vec()).await {
                match read {
                    // Without the memory of it, the next import reads it again.
                    Err(error) if error.is_retryable() => {
                        tracing::warn!(credential = %credential.name, %error, "reading a proof failed");
                        continue;
                    }
                    Err(error) => {
                        warn(credential, &error);
                        match is_damage(&error) {
                            true if expected.contains(&one.id) => drop(lost.insert(one.id)),
                            true if one.id.host != self.host.cluster => {
                                self.note_damaged(uuid, error.to_string());
                            }
                            _ => {}
                        }
                    }
                    Ok(_) if expected.contains(&one.id) => {}
                    Ok(proof) if proof.location == here => {
                        let own = self.host.cluster;
                        drills.extend(drill_row(uuid, &one.id, &proof, own, &selection.manifests));
                        proofs.extend(host_proof(uuid, &one, proof, selection.now));
                    }
                    Ok(_) => {}
                }
                seen.push(one.id);
            }
            for proof in proofs.iter().filter(|proof| !proof.sound) {
                let listed = selection.manifests.get(&proof.cloudsnap);
                if let Some(Ok(manifest)) = listed.map(|listed| &listed.manifest) {
                    fingerprints::forget_deltas(&self.host.data_dir, manifest);
                }
            }
            self.store(credential, proofs).await?;
            self.store_drills(drills).await?;
            seen.into_iter().for_each(|id| self.note_seen(uuid, id));
        }
        Ok(lost)
    }

    async fn selection<'a>(
        &self,
        credential: &CredentialRow,
        manifests: &'a [ListedManifest],
    ) -> Result<Selection<'a>, ServiceError> {
        let uuid = credential.uuid;
        let known = self.db.run(move |tx| -> Result<_, DbError> {
            let own = ProofRow::of_location(tx, uuid)?;
            Ok((HostProof::all(tx, uuid)?, own, import_drills::known(tx)?))
        });
        let (known, own, drills) = known.await?;
        Ok(Selection {
            host: self.host.cluster,
            own: own.into_iter().map(|proof| proof.cloudsnap).collect(),
            drills,
            now: Timestamp::now(),
            // Files of a directory have the time of their last change, such as of the owner.
            is_bucket: !matches!(credential.store.config, StoreConfig::Local { .. }),
            manifests: manifests.iter().filter_map(|listed| Some((listed.id?, listed))).collect(),
            known: known
                .into_iter()
                .map(|proof| ((proof.cloudsnap, proof.host, proof.depth), proof.proven))
                .collect(),
        })
    }

    /// Forgets what was read of the location with other keys or at another address.
    fn begin(&self, credential: Uuid, here: Uuid, repository: &Repository) {
        let with = (here, repository.keys().iter().map(|key| key.key_id()).collect());
        let mut seen = self.seen.lock();
        let seen = seen.entry(credential).or_default();
        if seen.with != with || seen.ids.len() >= MAX_SEEN {
            *seen = Seen { with, ..Seen::default() };
        }
    }

    fn is_seen(&self, credential: Uuid, id: &ProofId) -> bool {
        self.seen.lock().get(&credential).is_some_and(|seen| seen.ids.contains(id))
    }

    fn note_seen(&self, credential: Uuid, id: ProofId) {
        self.seen.lock().entry(credential).or_default().ids.insert(id);
    }

    fn note_damaged(&self, credential: Uuid, cause: String) {
        let mut seen = self.seen.lock();
        let damaged = &mut seen.entry(credential).or_default().damaged;
        damaged.count += 1;
        damaged.example.get_or_insert(cause);
    }

    /// Stores proofs; an event reports damage of a cloud snapshot that was not known to be damaged.
    async fn store(&self, credential: &CredentialRow, proofs: Vec<HostProof>) -> Result<(), ServiceError> {
        if proofs.is_empty() {
            return Ok(());
        }
        let (uuid, name) = (credential.uuid, credential.name.to_string());
        let own = self.host.cluster;
        let damaged = proofs.iter().filter(|proof| !proof.sound).map(|proof| proof.cloudsnap);
        let names: BTreeMap<CloudSnapshotId, _> =
            damaged.map(|id| (id, self.registry.source_name(&id, own))).collect();
        let stored = self.db.run(move |tx| -> Result<(), DbError> {
            let now = Timestamp::now();
            let put_all = || proofs.iter().try_for_each(|proof| proof.put(tx).map(drop));
            if names.is_empty() {
                return put_all();
            }
            let before = KnownProofs::of_location(tx, uuid, now)?;
            put_all()?;
            let after = KnownProofs::of_location(tx, uuid, now)?;
            for (id, volume) in names {
                if before.last(&id).is_some_and(|last| !last.sound) {
                    continue;
                }
                let Some(LastProof { sound: false, host: Some(host), .. }) = after.last(&id) else {
                    continue;
                };
                let message = format!("a verification by host {host} found cloud snapshot {id} damaged");
                let event = NewEvent {
                    volume_id: (id.cluster == own).then_some(id.volume),
                    volume,
                    credential_id: Some(uuid),
                    credential: Some(name.clone()),
                    cloudsnap: Some(id),
                    ..NewEvent::new(now, Severity::Error, EventKind::DamageFound, message)
                };
                event.insert(tx)?;
            }
            Ok(())
        });
        stored.await?;
        self.events.wake();
        Ok(())
    }
}

/// Selection of the proofs to read.
struct Selection<'a> {
    host: Uuid,
    /// Cloud snapshots with a result of this host.
    own: BTreeSet<CloudSnapshotId>,
    drills: KnownDrills,
    now: Timestamp,
    is_bucket: bool,
    manifests: BTreeMap<CloudSnapshotId, &'a ListedManifest>,
    /// Times of the known proofs.
    known: BTreeMap<(CloudSnapshotId, Uuid, VerifyDepth), Timestamp>,
}

impl Selection<'_> {
    fn wants(&self, one: &ListedProof) -> bool {
        let id = &one.id;
        let Some(manifest) = self.manifests.get(&id.cloudsnap) else { return false };
        let is_new = match depth(id.kind) {
            Some(depth) => {
                let known = self.known.get(&(id.cloudsnap, id.host, depth));
                let is_lacking = id.host != self.host || !self.own.contains(&id.cloudsnap);
                is_lacking && known.is_none_or(|known| *known < id.proven())
            }
            None => !self.drills.contains(&(id.cloudsnap, id.proven_unix_ms)),
        };
        is_new && !id.is_from_the_future(self.now) && !(self.is_bucket && one.is_older_than(manifest))
    }
}

fn host_proof(credential: Uuid, one: &ListedProof, proof: Proof, now: Timestamp) -> Option<HostProof> {
    Some(HostProof {
        credential,
        cloudsnap: proof.cloudsnap,
        host: proof.host,
        depth: depth(proof.kind)?,
        proven: one.id.proven(),
        verified: one.counts_from(proof.sound).min(now),
        sound: proof.sound,
        host_name: proof.host_name,
        version: proof.version,
    })
}

fn is_damage(error: &CloudError) -> bool {
    matches!(error, CloudError::ProofIgnored(cause) if matches!(**cause, CloudError::Damaged { .. }))
}

fn warn(credential: &CredentialRow, error: &CloudError) {
    // A key of another host: `credentials rekey` opens it.
    let is_foreign =
        matches!(error, CloudError::ProofIgnored(cause) if matches!(**cause, CloudError::UnknownKey { .. }));
    match is_foreign {
        true => tracing::debug!(credential = %credential.name, %error, "proof skipped"),
        false => tracing::warn!(credential = %credential.name, %error, "proof of a cloud snapshot ignored"),
    }
}

/// Returns the depth of a kind that reads everything or checks all objects; a drill reads a part.
fn depth(kind: ProofKind) -> Option<VerifyDepth> {
    match kind {
        ProofKind::Quick => Some(VerifyDepth::Quick),
        ProofKind::Full => Some(VerifyDepth::Full),
        ProofKind::Deep => Some(VerifyDepth::Deep),
        ProofKind::Drill => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_000_000;

    #[test]
    fn import_reads_later_proofs_that_the_host_lacks() {
        let at = |second: u64| Timestamp::from_second(second as i64).unwrap();
        let cloudsnap: CloudSnapshotId = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61".parse().unwrap();
        let unlisted = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-62".parse().unwrap();
        let verified = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-63".parse().unwrap();
        let [own, other] = [1, 2].map(Uuid::from_u128);
        let [manifest, of_verified] = [cloudsnap, verified].map(|id| ListedManifest {
            key: String::new(),
            id: Some(id),
            manifest: Err(CloudError::SnapshotNotFound { id, store: String::new() }),
            stored: Some(at(NOW_S)),
        });
        let proof = |second: u64| ProofId {
            cloudsnap,
            proven_unix_ms: second * 1000,
            kind: ProofKind::Full,
            host: other,
        };
        let valid = proof(NOW_S);
        let wants = |id, is_bucket, known: Option<u64>| {
            let known = known.map(|second| ((cloudsnap, other, VerifyDepth::Full), at(second)));
            let selection = Selection {
                host: own,
                own: BTreeSet::from([verified]),
                drills: BTreeSet::from([(verified, valid.proven_unix_ms)]),
                now: at(NOW_S),
                is_bucket,
                manifests: BTreeMap::from([(cloudsnap, &manifest), (verified, &of_verified)]),
                known: known.into_iter().collect(),
            };
            selection.wants(&ListedProof { id, stored: None })
        };
        assert!(wants(valid, true, None) && wants(valid, true, Some(NOW_S - 1)));
        assert!(!wants(valid, true, Some(NOW_S)), "it is known");
        assert!(!wants(proof(NOW_S + 3601), true, None), "it is from the future");
        let copied = proof(NOW_S - 3601);
        assert!(!wants(copied, true, None) && wants(copied, false, None), "the bucket was copied since");
        assert!(wants(ProofId { host: own, ..valid }, true, None), "the host lacks its own");
        let foreign = [
            ProofId { host: own, cloudsnap: verified, ..valid },
            ProofId { cloudsnap: unlisted, ..valid },
            ProofId { kind: ProofKind::Drill, cloudsnap: verified, ..valid },
        ];
        assert!(wants(ProofId { kind: ProofKind::Drill, ..valid }, true, None), "the drill is not known");
        assert!(!foreign.into_iter().any(|id| wants(id, true, None)));
    }
}
