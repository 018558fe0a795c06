//! Damaged cloud snapshots in the status, until they are deleted or found sound.

use super::*;
use blockd_api::{cloudsnaps::VerifyDepth, status::KnownDamage};
use blockd_catalog::ProofRow;
use jiff::{SignedDuration, Timestamp};

impl Host {
    /// Returns the damaged cloud snapshots of the status, which the metrics count, too.
    async fn known_damage(&self) -> Vec<KnownDamage> {
        let found = self.call(GET_STATUS, &()).await.damaged_cloudsnaps;
        assert_eq!(self.damaged().await, found.len().to_string());
        found
    }

    /// Returns the next actions for the damaged cloud snapshots.
    async fn actions(&self) -> Vec<String> {
        self.known_damage().await.into_iter().map(|one| one.action).collect()
    }

    /// Dates the results of all verifications back.
    fn age_proofs(&self, age: SignedDuration) {
        let aged = self.engine().db.transaction::<_, DbError>(|tx| {
            for row in ProofRow::of_volume(tx, None)? {
                ProofRow { verified: row.verified - age, ..row }.put(tx)?;
            }
            Ok(())
        });
        aged.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_stays_in_the_status_until_its_deletion() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    Model::new().write(&volume, 0, 1, 1 << 20);
    drop(volume);
    let backup = async |host: &Host| host.backup("data", true).await.cloud_snapshot_id.unwrap();
    let (first, second) = (backup(&host).await, backup(&host).await);
    host.packs().iter().for_each(damage);
    let full = StartVerify { depth: VerifyDepth::Full, ..StartVerify::default() };
    assert_eq!(host.verify(&full).await.state.stage, TaskStage::Failed);
    let begun = Timestamp::now();
    host.age_proofs(SignedDuration::from_hours(30 * 24));
    host.restart().await;
    let away = host.hide_store();
    let found = host.known_damage().await;
    host.show_store(&away);
    let ids: Vec<_> = found.iter().map(|one| one.cloud_snapshot_id).collect();
    let mut both = [snap_id(&first), snap_id(&second)];
    both.sort();
    assert_eq!(ids, both);
    for one in &found {
        let of = (one.volume_name.as_deref(), one.credential_name.as_str(), one.kind);
        assert_eq!(of, (Some("data"), "nas", VerifyDepth::Full));
        assert!(one.found_at < begun - SignedDuration::from_hours(29 * 24), "{one:?}");
    }

    assert_eq!(host.verify_snapshot(&second, VerifyDepth::Quick).await.state.stage, TaskStage::Done);
    assert_eq!(host.known_damage().await.len(), 2);
    host.delete_cloudsnap(&delete_of(&second)).await;
    assert_eq!(host.actions().await, [format!("blockctl cloudsnap repair {first} --cred-id nas")]);
    // No source is left.
    Model::new().write(&host.volume("data"), 0, 2, 1 << 20);
    let repair = host.call(START_REPAIR, &super::repairs::repair_of(&first)).await.task_id;
    assert_eq!(host.wait(repair).await.state.stage, TaskStage::Failed);
    // The only backup of the location.
    assert_eq!(host.actions().await, ["blockctl cloudsnap backup data --full --cred-id nas"]);
    let third = backup(&host).await;
    assert_eq!(host.actions().await, [format!("blockctl cloudsnap verify {third} --cred-id nas")]);
    assert_eq!(host.verify_snapshot(&third, VerifyDepth::Full).await.state.stage, TaskStage::Done);
    assert_eq!(host.actions().await, [format!("blockctl cloudsnap delete {first} --cred-id nas")]);
    // Another host deletes it.
    fs::remove_file(host.manifest(&first)).unwrap();
    assert_eq!(host.list().await.len(), 1);
    assert_eq!(host.known_damage().await, []);
}
