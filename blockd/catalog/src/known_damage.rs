//! Cloud snapshots that are known to be damaged.

use crate::{DbError, Doubt, KnownProofs, LastProof, newest_backups::manifest_keys_of, rows};
use blockd_cloud::{CloudSnapshotId, ManifestKey};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use rusqlite::{Transaction, params};
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use uuid::Uuid;

/// Cloud snapshot whose last proof is damage. It ends with a later proof that is at least as deep and finds
/// none, and with the deletion of the cloud snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownDamage {
    /// Credential of the proof.
    pub credential: Uuid,
    /// The cloud snapshot.
    pub cloudsnap: CloudSnapshotId,
    /// The last proof.
    pub proof: LastProof,
    /// Name of the volume in the manifest, if that is cached.
    pub volume_name: Option<String>,
    /// Later backup of the volume at the location.
    pub later: Option<LaterBackup>,
    /// Repaired cloud snapshot of the same point in time at the location that replaces it, if cached.
    pub repaired: Option<LaterBackup>,
}

/// Backup that is not known to be damaged and replaces a damaged one: of several, the newest one whose
/// content was read, or else the newest one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaterBackup {
    /// The backup.
    pub cloudsnap: CloudSnapshotId,
    /// Its content was read.
    pub is_read: bool,
}

impl KnownDamage {
    /// Returns the damaged cloud snapshots of all locations, each once for all credentials of its location.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>, now: Timestamp) -> Result<Vec<Self>, DbError> {
        let any = "SELECT EXISTS (SELECT 1 FROM proofs WHERE NOT sound)
            OR EXISTS (SELECT 1 FROM host_proofs WHERE NOT sound)";
        if !tx.query_row(any, [], |row| row.get::<_, bool>(0))? {
            return Ok(Vec::new());
        }
        let abandoned: BTreeSet<_> =
            Doubt::abandoned(tx)?.into_iter().map(|doubt| (doubt.credential, doubt.cloudsnap)).collect();
        let mut all = Vec::new();
        for (credentials, known) in KnownProofs::of_all_locations(tx, now)? {
            let mut volumes = BTreeMap::new();
            for cloudsnap in known.ids() {
                let Some((credential, proof)) = known.damage(&cloudsnap) else { continue };
                let backups = match volumes.entry((cloudsnap.cluster, cloudsnap.volume)) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(free) => {
                        let mut backups = CachedBackup::of_volume(tx, &credentials, *free.key())?;
                        backups.retain(|one| !abandoned.contains(&(one.credential, one.cloudsnap)));
                        free.insert(backups)
                    }
                };
                let own = backups.iter().find(|one| one.cloudsnap == cloudsnap);
                let volume_name = own.and_then(|own| own.volume_name.clone());
                // Without a cached manifest, a backup is later if it was made after the verification.
                let created_ns = own.map_or(proof.proven.as_nanosecond(), |own| own.created_ns);
                let later = later(backups, created_ns, &known);
                let repaired = own.and_then(|own| repaired(backups, own, &known));
                all.push(Self { credential, cloudsnap, proof, volume_name, later, repaired });
            }
        }
        Ok(all)
    }
}

/// Cached manifest of a volume.
struct CachedBackup {
    credential: Uuid,
    cloudsnap: CloudSnapshotId,
    created_ns: i128,
    size_bytes: Option<i64>,
    volume_name: Option<String>,
    repairs: Option<String>,
}

impl CachedBackup {
    /// Returns the cached manifests of a volume, newest first.
    fn of_volume(
        tx: &Transaction<'_>,
        credentials: &BTreeSet<Uuid>,
        (cluster, volume): (Uuid, VolumeId),
    ) -> Result<Vec<Self>, DbError> {
        let sql =
            "SELECT key, created_ns, CASE WHEN json_valid(manifest) THEN manifest ->> 'volume_name' END,
                CASE WHEN json_valid(manifest) THEN manifest ->> 'repairs' END,
                CASE WHEN json_valid(manifest) THEN manifest ->> 'size_bytes' END
            FROM catalog WHERE credential = ?1 AND key BETWEEN ?2 AND ?3";
        let (first, last) = manifest_keys_of(cluster, volume);
        let mut all = Vec::new();
        for &credential in credentials {
            let found = rows(tx, sql, params![credential.to_string(), first, last], |row| {
                let key: String = row.get(0)?;
                let (created_ns, volume_name): (i64, _) = (row.get(1)?, row.get(2)?);
                let (repairs, size_bytes) = (row.get(3)?, row.get(4)?);
                let cloudsnap = CloudSnapshotId::from_manifest_key(&key);
                Ok(cloudsnap.map(|cloudsnap| Self {
                    credential,
                    cloudsnap,
                    created_ns: created_ns.into(),
                    size_bytes,
                    volume_name,
                    repairs,
                }))
            })?;
            all.extend(found.into_iter().flatten());
        }
        all.sort_by_key(|one| std::cmp::Reverse(one.created_ns));
        Ok(all)
    }
}

/// Returns the backup that replaces a damaged one of this time.
fn later(backups: &[CachedBackup], created_ns: i128, known: &KnownProofs) -> Option<LaterBackup> {
    let later = backups.iter().take_while(|one| one.created_ns > created_ns).map(|one| one.cloudsnap);
    let mut whole = later.filter(|id| known.damage(id).is_none());
    let is_read = |id: &CloudSnapshotId| known.last(id).is_some_and(|last| last.covers_content());
    let read = whole.clone().find(is_read).map(|cloudsnap| LaterBackup { cloudsnap, is_read: true });
    read.or_else(|| whole.next().map(|cloudsnap| LaterBackup { cloudsnap, is_read: false }))
}

/// Returns the repaired cloud snapshot that replaces a damaged one; of several, one whose content was read.
/// It has the same point in time and size: another host may have stored a wrong claim.
fn repaired(backups: &[CachedBackup], damaged: &CachedBackup, known: &KnownProofs) -> Option<LaterBackup> {
    let id = damaged.cloudsnap.to_string();
    let point = |one: &CachedBackup| (one.created_ns, one.size_bytes);
    let is_claimed = |one: &&CachedBackup| one.repairs.as_ref() == Some(&id) && point(one) == point(damaged);
    let found = backups.iter().filter(is_claimed).map(|one| one.cloudsnap);
    let found = found.filter(|id| known.damage(id).is_none()).map(|cloudsnap| {
        let is_read = known.last(&cloudsnap).is_some_and(|last| last.covers_content());
        LaterBackup { cloudsnap, is_read }
    });
    found.max_by_key(|one| one.is_read)
}

#[cfg(test)]
mod tests {
    use super::super::{CredentialRow, Db, HostProof, ProofRow};
    use super::*;
    use blockd_cloud::VerifyDepth::{self, Deep, Full, Quick};

    const NOW_S: i64 = 1_000_000;
    const SIZE_BYTES: u64 = 1 << 30;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn snap(rest: &str) -> CloudSnapshotId {
        format!("2e4d4b67-95d7-481e-aec5-14223ac55170/{rest}").parse().unwrap()
    }

    struct Catalog {
        db: Db,
        _dir: tempfile::TempDir,
    }

    impl Catalog {
        /// Creates credentials 7 and 8 of one location, and 9 of another.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let db = Db::open(&dir.path().join("blockd.db")).unwrap();
            let paths = [(7, "/backup"), (8, "/backup/."), (9, "/copy")];
            db.transaction::<_, DbError>(|tx| {
                paths.into_iter().try_for_each(|(credential, path)| {
                    CredentialRow::sample(Uuid::from_u128(credential), path, Uuid::nil()).insert(tx)
                })
            })
            .unwrap();
            Self { db, _dir: dir }
        }

        /// Stores the result of a verification as the daemon does.
        fn verify(&self, credential: u128, rest: &str, second: i64, depth: VerifyDepth, sound: bool) {
            let row = ProofRow {
                credential: Uuid::from_u128(credential),
                cloudsnap: snap(rest),
                verified: at(second),
                depth,
                sound,
                damaged: Default::default(),
                digest: None,
                version: "1.2.3".into(),
                location: None,
            };
            self.db
                .transaction::<_, DbError>(|tx| {
                    let known = ProofRow::of_repository(tx, row.credential)?;
                    let before = known.iter().rfind(|known| known.cloudsnap == row.cloudsnap);
                    row.after(before).map_or(Ok(()), |row| row.put(tx))
                })
                .unwrap();
        }

        /// Caches the manifest of a backup.
        fn cache(&self, credential: u128, rest: &str, created_s: i64) {
            let sql = "INSERT INTO catalog VALUES (?1, ?2, NULL, ?3, '{}', ?4)";
            let (credential, key) = (Uuid::from_u128(credential).to_string(), snap(rest).manifest_key());
            let manifest = serde_json::json!({ "volume_name": "db", "size_bytes": SIZE_BYTES }).to_string();
            self.db
                .transaction::<_, DbError>(|tx| {
                    Ok(tx.execute(sql, params![credential, key, created_s * 1_000_000_000, manifest])?)
                })
                .unwrap();
        }

        fn damage(&self) -> Vec<KnownDamage> {
            self.db.transaction(|tx| KnownDamage::all(tx, at(NOW_S))).unwrap()
        }

        /// Returns credential, cloud snapshot and depth of each damage.
        fn found(&self) -> Vec<(u128, String, VerifyDepth)> {
            let found = self.damage().into_iter();
            let of = |one: KnownDamage| {
                let rest = one.cloudsnap.to_string().rsplit('/').next().unwrap().to_owned();
                (one.credential.as_u128(), rest, one.proof.kind)
            };
            found.map(of).collect()
        }
    }

    #[test]
    fn damage_ends_with_a_sound_proof_of_its_depth() {
        for (found, later, ends) in [
            (Quick, Quick, true),
            (Quick, Full, true),
            (Full, Quick, false),
            (Full, Full, true),
            (Full, Deep, true),
            (Deep, Full, false),
            (Deep, Deep, true),
        ] {
            for credential in [7, 8] {
                let catalog = Catalog::new();
                // Far more than a day ago.
                catalog.verify(7, "59-61", 10, found, false);
                assert_eq!(catalog.found(), [(7, "59-61".into(), found)]);
                catalog.verify(credential, "59-61", 20, later, true);
                assert_eq!(catalog.found().is_empty(), ends, "{found} {later} {credential}");
            }
        }
        // Less deep damage replaces no deeper one.
        let catalog = Catalog::new();
        catalog.verify(7, "59-61", 10, Deep, false);
        catalog.verify(7, "59-61", 20, Full, false);
        catalog.verify(7, "59-61", 30, Full, true);
        assert_eq!(catalog.found(), [(7, "59-61".into(), Deep)]);
    }

    #[test]
    fn damage_of_a_location_is_reported_once() {
        let catalog = Catalog::new();
        catalog.verify(7, "59-61", 10, Full, false);
        catalog.verify(8, "59-61", 20, Full, false);
        catalog.verify(8, "59-62", 20, Full, false);
        catalog.verify(9, "59-61", 30, Full, false);
        assert_eq!(
            catalog.found(),
            [(8, "59-61".into(), Full), (8, "59-62".into(), Full), (9, "59-61".into(), Full)]
        );
        catalog
            .db
            .transaction::<_, DbError>(|tx| ProofRow::remove(tx, Uuid::from_u128(7), &snap("59-61")))
            .unwrap();
        assert_eq!(catalog.found(), [(8, "59-62".into(), Full), (9, "59-61".into(), Full)]);
    }

    #[test]
    fn damage_of_another_host_ends_with_a_proof_of_its_depth() {
        for (later, ends) in [(Full, false), (Deep, true)] {
            let catalog = Catalog::new();
            let proof = |depth, second, sound| HostProof {
                credential: Uuid::from_u128(7),
                cloudsnap: snap("59-61"),
                host: Uuid::from_u128(1),
                depth,
                proven: at(second),
                verified: at(second),
                sound,
                host_name: "db2".into(),
                version: "1.2.3".into(),
            };
            let put = |proof: HostProof| catalog.db.transaction(|tx| proof.put(tx)).unwrap();
            put(proof(Deep, 10, false));
            assert_eq!(catalog.damage()[0].proof.host.as_deref(), Some("db2"));
            put(proof(later, 20, true));
            assert_eq!(catalog.found().is_empty(), ends, "{later}");
            catalog.verify(7, "59-61", 30, later, true);
            assert_eq!(catalog.found().is_empty(), ends, "{later}");
        }
    }

    #[test]
    fn repaired_snapshot_replaces_the_damaged_one() {
        let catalog = Catalog::new();
        catalog.verify(7, "59-61", 500, Full, false);
        catalog.cache(7, "59-61", 100);
        let repaired = || catalog.damage().remove(0).repaired.map(|one| (one.cloudsnap, one.is_read));
        catalog.cache(7, "59-62", 100);
        assert_eq!(repaired(), None, "it has the same time only");
        let set = |created_s: i64, size_bytes: u64| {
            let manifest =
                serde_json::json!({ "repairs": snap("59-61"), "size_bytes": size_bytes }).to_string();
            let sql = "UPDATE catalog SET manifest = ?1, created_ns = ?2 WHERE key = ?3";
            let values = params![manifest, created_s * 1_000_000_000, snap("59-62").manifest_key()];
            assert_eq!(catalog.db.transaction::<_, DbError>(|tx| Ok(tx.execute(sql, values)?)).unwrap(), 1);
        };
        for (created_s, size_bytes) in [(101, SIZE_BYTES), (100, 2 * SIZE_BYTES)] {
            set(created_s, size_bytes);
            assert_eq!(repaired(), None, "{created_s} {size_bytes}");
        }
        set(100, SIZE_BYTES);
        assert_eq!(repaired(), Some((snap("59-62"), false)));
        catalog.verify(7, "59-62", 510, Full, true);
        assert_eq!(repaired(), Some((snap("59-62"), true)));
        catalog.verify(7, "59-62", 520, Full, false);
        assert_eq!(repaired(), None, "it is damaged, too");
    }

    #[test]
    fn later_backup_is_the_newest_one_that_was_read() {
        let catalog = Catalog::new();
        let later = || {
            let found = catalog.damage().remove(0);
            (found.volume_name, found.later.map(|later| (later.cloudsnap, later.is_read)))
        };
        let of_db = |later: Option<(&str, bool)>| {
            (Some("db".to_owned()), later.map(|(rest, is_read)| (snap(rest), is_read)))
        };
        catalog.verify(7, "59-61", 500, Full, false);
        catalog.cache(7, "59-63", 200);
        assert_eq!(later(), (None, None), "its time is not known");
        catalog.cache(7, "59-61", 100);
        assert_eq!(later(), of_db(Some(("59-63", false))));
        for (credential, rest, created_s) in
            [(8, "59-64-incr", 300), (7, "59-60", 50), (7, "159-65", 400), (9, "59-66", 400)]
        {
            catalog.cache(credential, rest, created_s);
        }
        assert_eq!(later(), of_db(Some(("59-64-incr", false))));
        catalog.verify(7, "59-64-incr", 510, Quick, true);
        catalog.verify(7, "59-63", 510, Full, true);
        assert_eq!(later(), of_db(Some(("59-63", true))));
        catalog.verify(7, "59-63", 520, Full, false);
        catalog.verify(7, "59-64-incr", 520, Full, false);
        assert_eq!(later(), of_db(None));
    }
}
