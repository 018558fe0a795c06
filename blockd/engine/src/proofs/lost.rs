//! Published proofs of this host that its location no longer has intact.
//!
//! The next exchange publishes them again from their rows. It lists the manifests first, so that no proof of
//! a cloud snapshot that was deleted meanwhile is stored.

use super::{Damaged, Proofs};
use crate::error::ServiceError;
use blockd_api::events::{EventKind, Severity};
use blockd_catalog::{CredentialRow, DbError, NewEvent, PublishedProof};
use blockd_cloud::{CloudSnapshotId, ListedProof, ProofId};
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// Start of the message of damaged proofs of other hosts.
const DAMAGED: &str = "damaged proofs of other hosts";

/// Published results of this host, by the proofs that a location should have.
#[derive(Default)]
pub(super) struct Expected(HashMap<ProofId, PublishedProof>);

impl Expected {
    /// Returns the proofs of `published` that neither a listed nor another one of them replaces, and whose
    /// cloud snapshot exists. One from the future counts nowhere.
    pub fn new(
        published: Vec<PublishedProof>,
        listed: &[ListedProof],
        host: Uuid,
        exists: impl Fn(&CloudSnapshotId) -> bool,
        now: Timestamp,
    ) -> Self {
        let mut expected: HashMap<_, _> = published.into_iter().map(|row| (row.id(host), row)).collect();
        expected.retain(|id, _| exists(&id.cloudsnap) && !id.is_from_the_future(now));
        let mut newest: HashMap<_, u64> = HashMap::new();
        let own = listed.iter().map(|one| one.id).filter(|id| id.host == host && !id.is_from_the_future(now));
        for id in own.chain(expected.keys().copied()) {
            let last = newest.entry((id.cloudsnap, id.kind)).or_default();
            *last = id.proven_unix_ms.max(*last);
        }
        expected.retain(|id, _| newest.get(&(id.cloudsnap, id.kind)) == Some(&id.proven_unix_ms));
        Self(expected)
    }

    pub fn contains(&self, id: &ProofId) -> bool {
        self.0.contains_key(id)
    }

    /// Returns the rows whose proofs are damaged, and those whose proofs are missing.
    fn lost(self, listed: &[ListedProof], damaged: &HashSet<ProofId>) -> Vec<(PublishedProof, bool)> {
        let there: HashSet<_> = listed.iter().map(|one| one.id).collect();
        let lost = self.0.into_iter().filter_map(|(id, row)| {
            let is_damaged = damaged.contains(&id);
            (is_damaged || !there.contains(&id)).then_some((row, is_damaged))
        });
        lost.collect()
    }
}

impl Proofs {
    /// Withdraws the results whose proofs are lost, with one event.
    pub(super) async fn withdraw_lost(
        &self,
        credential: &CredentialRow,
        expected: Expected,
        listed: &[ListedProof],
        damaged: &HashSet<ProofId>,
    ) -> Result<(), ServiceError> {
        let lost = expected.lost(listed, damaged);
        let Some((first, _)) = lost.first() else { return Ok(()) };
        let message = format!(
            "proofs of this host that are damaged or missing: {}, such as {}; they are published again",
            lost.len(),
            first.id(self.host.cluster).key()
        );
        tracing::warn!(credential = %credential.name, "{message}");
        let event = NewEvent {
            credential_id: Some(credential.uuid),
            credential: Some(credential.name.to_string()),
            ..NewEvent::new(Timestamp::now(), Severity::Warning, EventKind::ProofDamaged, message)
        };
        let withdrawn = self.db.run(move |tx| -> Result<(), DbError> {
            lost.iter().try_for_each(|(row, is_damaged)| row.withdraw(tx, *is_damaged))?;
            event.insert(tx)
        });
        withdrawn.await?;
        self.events.wake();
        Ok(())
    }

    /// Reports the damaged proofs of other hosts that were read since the last report, in one event a day:
    /// each writer of the bucket can make any number of them.
    pub(super) async fn report_damaged(&self, credential: &CredentialRow) -> Result<(), ServiceError> {
        let uuid = credential.uuid;
        let found = self.seen.lock().get(&uuid).map(|seen| seen.damaged.clone()).unwrap_or_default();
        let Some(example) = found.example else { return Ok(()) };
        let message = format!("{DAMAGED}: {}, such as {example}", found.count);
        let event = NewEvent {
            credential_id: Some(uuid),
            credential: Some(credential.name.to_string()),
            ..NewEvent::new(Timestamp::now(), Severity::Warning, EventKind::ProofDamaged, message)
        };
        if self.db.run(move |tx| event.insert_daily(DAMAGED, tx)).await? {
            if let Some(seen) = self.seen.lock().get_mut(&uuid) {
                seen.damaged = Damaged::default();
            }
            self.events.wake();
        }
        Ok(())
    }
}
