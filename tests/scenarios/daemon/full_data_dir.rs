//! Requests on a full filesystem of the data directory.

use super::*;
use blockd_api::cloudsnaps::InspectCloudsnap;

impl Host {
    /// Makes each change of an existing table fail as on a full filesystem.
    fn fill_database(&self) {
        let tables = self.engine().db.transaction(|tx| -> Result<Vec<String>, DbError> {
            let mut tables = tx.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?;
            Ok(tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
        });
        self.sql("CREATE TABLE filler (bytes BLOB)");
        for table in tables.unwrap().iter().filter(|name| !name.starts_with("sqlite_")) {
            for change in ["INSERT", "UPDATE", "DELETE"] {
                self.sql(&format!(
                    "CREATE TRIGGER full_{table}_{change} BEFORE {change} ON {table}
                     BEGIN INSERT INTO filler VALUES (zeroblob(1 << 20)); END"
                ));
            }
        }
        self.sql("PRAGMA max_page_count = 1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_data_directory_leaves_cloud_snapshots_readable() {
    let host = Host::new().await;
    let credential = host.create_credential().await;
    host.create_volume("data").await;
    let gone = snap_id(&host.backup("data", true).await.cloud_snapshot_id.unwrap());
    let id = snap_id(&host.backup("data", true).await.cloud_snapshot_id.unwrap());
    // Another host deleted it: the listing forgets it.
    fs::remove_file(host.store.path().join(gone.manifest_key())).unwrap();
    host.sql("DELETE FROM catalog");
    host.fill_database();
    host.refused(ErrorCode::NoSpace, CREATE_VOLUME, &new_volume("other")).await;

    let listed: Vec<_> = host.list().await.iter().map(|one| one.cloud_snapshot_id).collect();
    assert_eq!(listed, [id]);
    let inspect = InspectCloudsnap { cloud_snapshot_id: id, credential: None };
    assert_eq!(host.call(INSPECT_CLOUDSNAP, &inspect).await.entry.cloud_snapshot_id, id);
    let problems = |status: blockd_api::status::Status| {
        status.problems.into_iter().filter(|one| one.kind == "location").collect::<Vec<_>>()
    };
    host.call_at(VALIDATE_CREDENTIAL, &blockd_api::CredentialRef::Id(credential), &()).await;
    assert_eq!(problems(host.call(GET_STATUS, &()).await), []);
}
