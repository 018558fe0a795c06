//! Resume of an interrupted restore: restored blocks are not fetched again.
use crate::common::{BLOCK, fixed, requests, run, set};
use blockd_cloud::{
    BlockWriter, CancelToken, EncryptionMode, Progress, RestoreOptions, RestoreRequest, restore,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use parking_lot::Mutex;
use std::{io, sync::Arc};

const SIZE: u64 = 200_000 * BLOCK as u64;

/// Volume that records its restored blocks.
#[derive(Default)]
struct Target {
    volume: MemoryVolume,
    settled: Mutex<BlockSet>,
    written: Mutex<BlockSet>,
}

impl BlockWriter for Target {
    fn write_blocks(&self, start: BlockIndex, data: &[u8]) -> io::Result<()> {
        self.written.lock().insert_extent(Extent::new(start, (data.len() / BLOCK) as u64));
        self.volume.write_blocks(start, data)
    }

    fn settled(&self, extents: &[Extent]) -> io::Result<()> {
        let mut settled = self.settled.lock();
        extents.iter().for_each(|extent| settled.insert_extent(*extent));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_blocks_are_not_fetched_again() {
    let inner = Arc::new(MemoryStore::default());
    let live = MemoryVolume::default();
    // Four packs, with zero blocks in the frames; an incremental on top.
    let data = Extent::new(BlockIndex(7), 8192 * 4);
    (data.start.0..data.end().0).step_by(3).for_each(|block| live.set(block, &[block as u8 | 1; BLOCK]));
    let repo = fixed(inner.clone(), EncryptionMode::Aes256GcmSiv);
    let full = spec(1, SIZE, BlockSet::from_iter([data]), set([]), None);
    let full = run(&repo, full, &live).await.unwrap().manifest;
    live.set(9000, &[77; BLOCK]);
    live.clear(10);
    let tip = run(&repo, spec(2, SIZE, set([9000]), set([10]), Some(&full)), &live).await.unwrap().manifest;

    let faults = Arc::new(FaultStore::new(inner));
    let repo = repo.with_store(faults.clone());
    let once = async |target: &Arc<Target>| {
        let request = RestoreRequest { skip: target.settled.lock().clone(), ..RestoreRequest::default() };
        let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
        let told = progress.clone();
        let options = RestoreOptions { download_concurrency: 1, cpu_threads: 1 };
        let done = restore(&repo, &tip, target.clone(), &request, &options, progress, &cancel);
        done.await.map(|_| told.snapshot().bytes_processed)
    };
    let whole_bytes = once(&Arc::default()).await.unwrap();
    let operations = faults.operations();
    assert_eq!(operations, 2 + 1 + 4, "two indexes, a pack of one frame, four packs");
    for operation in 0..operations {
        faults.heal();
        let target = Arc::<Target>::default();
        faults.fail_from(faults.operations() + operation, Fault::ShortBody);
        once(&target).await.err().unwrap();
        let in_place = target.settled.lock().clone();
        faults.heal();
        target.written.lock().remove_extent(Extent::whole(SIZE));
        let before = faults.operations();
        let told_bytes = once(&target).await.unwrap();
        assert_eq!(told_bytes, whole_bytes, "restored blocks are reported, too: {operation}");
        let mut again = target.written.lock().clone();
        again.intersect_with(&in_place);
        assert!(again.is_empty(), "written twice after {operation}");
        // Restored packs are not fetched.
        let spared = operation.saturating_sub(2);
        assert_eq!(faults.operations() - before, operations - spared, "{operation}");
        assert_eq!(target.volume.content(), live.content(), "{operation}");
    }
}
