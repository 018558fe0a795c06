//! In which order lazy volumes were read.
//!
//! `places`, all numbers little-endian: the magic `BDRO`, the version (u16, 1), two bytes of zero, then for each run of blocks its
//! first block (u64) and how many there are (u32). An unknown version is taken for nothing: it is but a hint, and the next volume
//! that is read writes it anew.

use super::DbError;
use blockd_cloud::CloudsnapId;
use blockd_extent::{BlockIndex, Extent};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};

const MAGIC: &[u8; 4] = b"BDRO";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 8;
const RUN_LEN: usize = 12;
/// The most runs that are kept.
const RUNS_MOST: usize = 32_768;
/// Orders of so many volumes are kept, those that changed last.
const VOLUMES_MOST: u32 = 1000;

fn encode(order: &[Extent]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + order.len() * RUN_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    for run in order.iter().take(RUNS_MOST) {
        bytes.extend_from_slice(&run.start.0.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(run.len_blocks).unwrap_or(u32::MAX).to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Vec<Extent> {
    let Some((header, runs)) = bytes.split_at_checked(HEADER_LEN) else { return vec![] };
    if header[..4] != *MAGIC || header[4..6] != VERSION.to_le_bytes() {
        return vec![];
    }
    let (runs, []) = runs.as_chunks::<RUN_LEN>() else { return vec![] };
    let run = |bytes: &[u8; RUN_LEN]| {
        let (mut start, mut len) = ([0; 8], [0; 4]);
        start.copy_from_slice(&bytes[..8]);
        len.copy_from_slice(&bytes[8..]);
        let (start, len) = (u64::from_le_bytes(start), u64::from(u32::from_le_bytes(len)));
        start.checked_add(len).map(|_| Extent::new(BlockIndex(start), len))
    };
    runs.iter().take(RUNS_MOST).filter_map(run).collect()
}

/// The order in which volumes that began as cloud snapshots of the same volume were read, the last one first; empty if none is known.
///
/// # Errors
/// The database fails.
pub fn read_order(tx: &Transaction<'_>, of: &CloudsnapId) -> Result<Vec<Extent>, DbError> {
    let found: Option<Vec<u8>> = tx
        .query_row(
            "SELECT places FROM read_orders WHERE cluster = ?1 AND volume = ?2",
            params![of.cluster.to_string(), of.volume.to_string()],
            |row| row.get(0),
        )
        .optional()?;
    Ok(found.as_deref().map(decode).unwrap_or_default())
}

/// Keeps an order in the place of the one that was known.
///
/// # Errors
/// The database fails.
pub fn put_read_order(
    tx: &Transaction<'_>,
    of: &CloudsnapId,
    order: &[Extent],
    now: Timestamp,
) -> Result<(), DbError> {
    tx.execute(
        "INSERT INTO read_orders (cluster, volume, updated, places) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (cluster, volume) DO UPDATE SET updated = excluded.updated, places = excluded.places",
        params![of.cluster.to_string(), of.volume.to_string(), now.as_microsecond(), encode(order)],
    )?;
    tx.execute(
        "DELETE FROM read_orders WHERE rowid IN
         (SELECT rowid FROM read_orders ORDER BY updated DESC, rowid DESC LIMIT -1 OFFSET ?1)",
        [VOLUMES_MOST],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Db;
    use super::*;

    fn at(start: u64, len: u64) -> Extent {
        Extent::new(BlockIndex(start), len)
    }

    #[test]
    fn an_order_reads_back_and_anything_else_is_none() {
        let order = [at(64, 128), at(0, 64), at(1 << 40, 64)];
        let bytes = encode(&order);
        assert_eq!(bytes[..8], *b"BDRO\x01\0\0\0");
        assert_eq!(bytes[8..20], [64, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0]);
        assert_eq!(decode(&bytes), order);
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).len() < order.len());
        }
        let mut newer = bytes.clone();
        newer[4] = 2;
        assert_eq!(decode(&newer), []);
        let mut beyond = bytes;
        beyond[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(decode(&beyond), order[1..]);
        assert_eq!(decode(&encode(&vec![at(0, 1); RUNS_MOST + 1])).len(), RUNS_MOST);
    }

    #[test]
    fn the_order_of_a_volume_is_that_of_all_its_cloud_snapshots() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        let id = |text: &str| -> CloudsnapId { text.parse().unwrap() };
        let one = id("2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr");
        let later = id("2e4d4b67-95d7-481e-aec5-14223ac55170/59-99");
        let other = id("2e4d4b67-95d7-481e-aec5-14223ac55170/60-61");
        db.transaction::<_, DbError>(|tx| {
            put_read_order(tx, &one, &[at(0, 64)], Timestamp::UNIX_EPOCH)?;
            assert_eq!(read_order(tx, &later)?, [at(0, 64)]);
            assert_eq!(read_order(tx, &other)?, []);
            put_read_order(tx, &later, &[at(64, 64)], Timestamp::now())?;
            assert_eq!(read_order(tx, &one)?, [at(64, 64)]);
            for volume in 0..u64::from(VOLUMES_MOST) {
                let next = CloudsnapId { volume: blockd_extent::VolumeId::from_u64(1000 + volume), ..one };
                put_read_order(tx, &next, &[at(0, 64)], Timestamp::now())?;
            }
            assert_eq!(read_order(tx, &one)?, [], "the oldest has made room");
            Ok(())
        })
        .unwrap();
    }
}
