//! Blocks that are stored again: as requested, and by a repair of references.

use super::*;
use blockd_cloud::{Repair, RepairSource, UploadOptions, backup};
use blockd_extent::SnapshotId;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_to_store_again_are_no_references() {
    let (host, live, first) = sample().await;
    let again = set((100..110).chain([499]));
    let next = of_volume(1, spec(2, SIZE, set(0..500), set([]), Some(&first)));
    let next = host.deduplicated_but(next, &live, &[], &again);
    assert_eq!(next.data, again);
    let next = run(&host.repo, next, &live).await.unwrap().manifest;
    assert!(restored(&host.repo, &next).await.unwrap() == live.content());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_references_to_itself_and_others_are_repaired() {
    let (host, live, first) = sample().await;
    let (clone, mut noise) = (live.fork(), Noise(5));
    (0..1400).for_each(|block| clone.set(block, &noise.block()));
    (0..200).for_each(|block| clone.set(4000 + block, &clone.block(block)));
    let second = of_volume(2, spec(2, SIZE, set((0..3000).chain(4000..4200)), set([]), None));
    let second = host.deduplicated(second, &clone, std::slice::from_ref(&first));
    let second = run(&host.repo, second, &clone).await.unwrap().manifest;
    assert_eq!((second.delta.data_blocks, second.delta.reference_blocks), (1400, 1800));
    for (of, block) in [("1/1", 2999), ("2/2", 200)] {
        let pack = format!("blockd/data/{}/{of}/pack-00000000", first.cluster);
        let mut body = host.store.objects()[&pack].to_vec();
        body[64 + block * BLOCK] ^= 1;
        host.store.insert(&pack, body);
    }
    let damaged = damaged_blocks(&host.repo, second.id()).await;
    assert_eq!(damaged, set((128..256).chain(2944..3000).chain(4128..4200)));
    let mut repair = Repair::plan(&host.repo, &second, &damaged, &[]).await.unwrap();
    assert_eq!(*repair.wanted(), damaged);
    let source =
        RepairSource { blocks: damaged.clone(), data: damaged.clone(), reader: Arc::new(clone.fork()) };
    repair.add_source(source);
    let (spec, reader) = repair.into_backup(SnapshotId::from_u64(3), Timestamp::now(), [3; 32]).unwrap();
    let (journal, progress) = (Arc::new(MemoryJournal::default()), Arc::new(Progress::new(requests())));
    let (options, cancel) = (UploadOptions::default(), CancelToken::new());
    let repaired =
        backup(&host.repo, Arc::new(spec), reader, journal, &options, progress, &cancel).await.unwrap();
    for id in [first.id(), second.id()] {
        delete_snapshot(&host.repo, &id, &[], &NoCache, CHECKED).await.unwrap();
    }
    assert!(damaged_blocks(&host.repo, repaired.id()).await.is_empty());
    assert!(restored(&host.repo, &repaired).await.unwrap() == clone.content());
}

async fn damaged_blocks(repo: &Repository, id: CloudSnapshotId) -> BlockSet {
    let options = VerifyOptions { depth: VerifyDepth::Full, ..VerifyOptions::default() };
    let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
    let report = verify(repo, &[id], &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
    report.snapshots[0].damaged.clone()
}
