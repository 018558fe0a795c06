use super::*;
use blockd_cloud::VerifiedSnapshot;
use blockd_extent::{BlockIndex, Extent, SnapshotId, VolumeId};

fn id(snapshot: u64) -> CloudSnapshotId {
    CloudSnapshotId {
        cluster: uuid::Uuid::nil(),
        volume: VolumeId::from_u64(1),
        snapshot: SnapshotId::from_u64(snapshot),
        incremental: false,
    }
}

fn blocks(start: u64) -> BlockSet {
    BlockSet::from_iter([Extent::new(BlockIndex(start), 1)])
}

#[test]
fn listing_check_reports_damage_and_deletes_nothing() {
    let now = Timestamp::UNIX_EPOCH;
    let credential = uuid::Uuid::nil();
    let sound = |id, damaged| VerifiedSnapshot { id, damaged, has_manifest: true, digest: None };
    let mut report = VerifyReport { snapshots: vec![sound(id(1), blocks(5))], ..VerifyReport::default() };
    report.findings.push(VerifyFinding {
        object: "pack".into(),
        offset_bytes: 0,
        what: "torn".into(),
        affects: vec![
            AffectedSnapshot { id: id(1), blocks: blocks(5) },
            AffectedSnapshot { id: id(2), blocks: blocks(6) },
        ],
    });
    let found = proofs(&report, &BTreeMap::new(), (credential, None), VerifyDepth::Full, now);
    let told: Vec<_> = found.iter().map(|proof| (proof.sound, proof.damaged.clone())).collect();
    assert_eq!(told, [(false, blocks(5)), (false, blocks(6))]);

    let known: BTreeMap<_, _> = found.into_iter().map(|proof| (proof.cloudsnap, proof)).collect();
    let report = VerifyReport { snapshots: vec![sound(id(1), BlockSet::new())], ..VerifyReport::default() };
    assert_eq!(proofs(&report, &known, (credential, None), VerifyDepth::Quick, now), []);
    assert!(proofs(&report, &known, (credential, None), VerifyDepth::Full, now)[0].sound);

    let report = VerifyReport { snapshots: vec![sound(id(1), blocks(7))], ..VerifyReport::default() };
    let later = now + jiff::SignedDuration::from_hours(1);
    let mut both = blocks(5);
    both.union_with(&blocks(7));
    let proof = proofs(&report, &known, (credential, None), VerifyDepth::Quick, later).remove(0);
    let told = (proof.sound, proof.damaged, proof.depth, proof.verified);
    assert_eq!(
        told,
        (false, both, VerifyDepth::Full, later),
        "a quick verification only adds damage to a deeper one"
    );
    let proof = proofs(&report, &known, (credential, None), VerifyDepth::Full, later).remove(0);
    assert_eq!((proof.damaged, proof.verified), (blocks(7), later));
    let others = vec![AffectedSnapshot { id: id(3), blocks: blocks(8) }];
    let report = VerifyReport { others, ..VerifyReport::default() };
    let proof = proofs(&report, &known, (credential, None), VerifyDepth::Full, later).remove(0);
    assert_eq!((proof.cloudsnap, proof.sound, proof.damaged), (id(3), false, blocks(8)));
}

#[test]
fn summary_names_damage_behind_the_limits_of_findings() {
    let affects = (1..=40).map(|snapshot| AffectedSnapshot { id: id(snapshot), blocks: blocks(5) });
    let finding = VerifyFinding {
        object: "pack".into(),
        offset_bytes: 7,
        what: "torn".into(),
        affects: affects.collect(),
    };
    let snapshot = VerifiedSnapshot { id: id(40), damaged: blocks(5), has_manifest: true, digest: None };
    let report = VerifyReport {
        snapshots: vec![snapshot],
        findings: vec![finding],
        findings_total: 1,
        ..VerifyReport::default()
    };
    let text = summary(&report);
    assert_eq!(text, "the cloud snapshot is damaged: object pack is damaged at byte 7: torn");
    let affects = &findings::of_report(&report).damage[0].affects;
    assert_eq!(affects[0].cloud_snapshot_id, id(40).to_string(), "the verified ones are listed first");
}

#[test]
fn content_changed_since_its_record_is_reported() {
    let digest = |byte| Some([byte; 32]);
    let snapshot =
        VerifiedSnapshot { id: id(1), damaged: BlockSet::new(), has_manifest: true, digest: digest(1) };
    let mut report = VerifyReport { snapshots: vec![snapshot], block_bytes: 7, ..VerifyReport::default() };
    let mut proof =
        proofs(&report, &BTreeMap::new(), (Uuid::nil(), None), VerifyDepth::Deep, Timestamp::UNIX_EPOCH)
            .remove(0);
    let known = |proof: &ProofRow| BTreeMap::from([(proof.cloudsnap, proof.clone())]);
    assert_eq!((compare_with_recorded(&mut report, &known(&proof)), report.findings_total), (7, 0));
    proof.digest = digest(2);
    compare_with_recorded(&mut report, &known(&proof));
    assert_eq!(report.findings_total, 1);
    assert!(!report.snapshots[0].is_sound());
}
