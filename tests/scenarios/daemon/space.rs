//! Space of backup locations in the status.

use super::*;
use blockd_api::status::LocationSpace;
use jiff::Timestamp;

impl Host {
    async fn space(&self) -> LocationSpace {
        let mut locations = self.call(GET_STATUS, &()).await.locations;
        assert_eq!(locations.len(), 1, "{locations:?}");
        locations.remove(0)
    }

    /// Returns the bytes of all packs and indexes in the store.
    fn data_bytes(&self) -> u64 {
        let files = walk(self.store.path()).into_iter().filter(|path| path.contains("/data/"));
        files.map(|path| fs::metadata(self.store.path().join(path)).unwrap().len()).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn space_of_a_location_follows_backups_and_listings() {
    let host = Host::new().await;
    host.create_credential().await;
    let counts = |space: &LocationSpace| (space.cloud_snapshot_count, space.stored_bytes);
    let empty = host.space().await;
    assert_eq!((empty.credential_name.as_str(), counts(&empty), empty.listed_at), ("nas", (0, 0), None));

    let volume = host.create_volume("data").await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let full = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    model.write(&volume, 0, 2, 4096);
    host.backup("data", false).await;
    let two = host.space().await;
    assert_eq!((counts(&two), two.listed_at), ((2, host.data_bytes()), None), "no store was listed");

    // The incremental backup still needs the data of the full one.
    host.delete_cloudsnap(&delete_of(&full)).await;
    let one = host.space().await;
    assert_eq!(counts(&one), (1, host.data_bytes()));
    assert!(one.stored_bytes > 1 << 20, "{one:?}");

    // Another host deletes the rest.
    let before = Timestamp::now();
    fs::remove_dir_all(host.store.path().join("blockd/manifests")).unwrap();
    assert_eq!(counts(&host.space().await), counts(&one), "the change is not known yet");
    let credential = host.engine().repositories.credential(None).await.unwrap();
    host.engine().maintenance.collect_garbage_of(&credential, false, Timestamp::now).await.unwrap();
    let collected = host.space().await;
    assert_eq!(counts(&collected), (0, 0));
    assert!(collected.listed_at.unwrap() >= before, "{collected:?}");
    host.list().await;
    assert!(host.space().await.listed_at > collected.listed_at);
}
