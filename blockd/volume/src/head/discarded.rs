//! Record of acknowledged writes that a start may have discarded.
//!
//! A start that rejects the live map recovers from the log, which discards acknowledged, unflushed writes. A
//! client that outlives the daemon cannot detect that, and would take the next acknowledged FLUSH as covering
//! them. The record is durable before the start replaces the map, which is the evidence of the loss, and
//! stays until an administrator acknowledges it.
//!
//! # File `volume.discarded`
//!
//! All integers little-endian.
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | magic `BLKDDISC` |
//! | 8–11 | version, 1 |
//! | 12–15 | clients that may have survived: 1 remote clients, 2 all clients |
//! | 16–19 | cause: 1 map missing, 2 other boot, 3 other mount, 4 map unreadable, 5 writeback failed |
//! | 20–23 | zero |
//! | 24–31 | time of the start, in milliseconds since 1970 |
//! | 32–39 | xxh3-64 of everything before it |

use crate::{
    error::{IoContext, VolumeError},
    io::files,
    io::record::{check_version, half_at, seal, unseal, word_at},
    io::storage,
};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

const MAGIC: &[u8; 8] = b"BLKDDISC";
const VERSION: u32 = 1;
const LEN_BYTES: usize = 40;

/// Clients that may have survived the loss without an error. The discriminants are those of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SurvivingClients {
    /// Clients on other hosts: this host was booted since.
    Remote = 1,
    /// All clients, including those on this host and in its kernel.
    All,
}

impl SurvivingClients {
    const ALL: [Self; 2] = [Self::Remote, Self::All];
}

/// Cause of the loss of acknowledged writes. The discriminants are those of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardCause {
    /// The live map was missing or unfinished.
    MapMissing = 1,
    /// The host was booted without a clean stop of the volume.
    OtherBoot,
    /// The filesystem was unmounted without a clean stop of the volume.
    OtherMount,
    /// The live map could not be read.
    MapUnreadable,
    /// The kernel could not write data or the live map to the disk.
    WritebackFailed,
}

impl DiscardCause {
    const ALL: [Self; 5] =
        [Self::MapMissing, Self::OtherBoot, Self::OtherMount, Self::MapUnreadable, Self::WritebackFailed];
}

impl fmt::Display for DiscardCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MapMissing => "the record of unflushed writes was missing",
            Self::OtherBoot => "the host was booted without a clean stop",
            Self::OtherMount => "the filesystem was unmounted, or lost power, without a clean stop",
            Self::MapUnreadable => "the record of unflushed writes was unreadable",
            Self::WritebackFailed => "writeback to the disk failed",
        })
    }
}

/// Acknowledged writes that a start may have discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardedWrites {
    /// Clients that may have survived without an error.
    pub clients: SurvivingClients,
    /// Cause of the last loss.
    pub cause: DiscardCause,
    /// Time of the start that detected the loss, in milliseconds since 1970.
    pub found_unix_ms: u64,
}

impl DiscardedWrites {
    pub(crate) fn now(cause: DiscardCause) -> Self {
        let clients = match cause {
            DiscardCause::OtherBoot => SurvivingClients::Remote,
            _ => SurvivingClients::All,
        };
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { clients, cause, found_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
    }

    fn encode(self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for value in [VERSION, self.clients as u32, self.cause as u32, 0] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.found_unix_ms.to_le_bytes());
        let out = seal(out);
        assert!(out.len() == LEN_BYTES, "a record has its length");
        debug_assert!(Self::decode(&out) == Some(self), "a record reads back");
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let body = unseal(bytes).filter(|_| bytes.len() == LEN_BYTES)?;
        if !body.starts_with(MAGIC) || half_at(body, 8) != VERSION {
            return None;
        }
        let (clients, cause) = (half_at(body, 12), half_at(body, 16));
        let clients = SurvivingClients::ALL.into_iter().find(|known| *known as u32 == clients)?;
        let cause = DiscardCause::ALL.into_iter().find(|known| *known as u32 == cause)?;
        Some(Self { clients, cause, found_unix_ms: word_at(body, 24) })
    }

    /// Stores the loss, durably; keeps the wider set of clients of an earlier record.
    pub(crate) fn record(mut self, dir: &Path) -> Result<(), VolumeError> {
        if let Some(earlier) = Self::load(dir)? {
            self.clients = self.clients.max(earlier.clients);
        }
        files::write_whole(&path(dir), &self.encode())
    }

    /// Loads the record of a volume. A damaged record counts as a loss for all clients.
    ///
    /// # Errors
    /// The record has a newer format, or the file cannot be read.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, VolumeError> {
        let path = path(dir);
        match storage::read(&path) {
            Ok(bytes) => {
                check_version(&path, &bytes, MAGIC, VERSION)?;
                Ok(Some(Self::decode(&bytes).unwrap_or_else(|| Self::now(DiscardCause::MapUnreadable))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).during("read", &path),
        }
    }
}

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("volume.discarded")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: DiscardedWrites = DiscardedWrites {
        clients: SurvivingClients::All,
        cause: DiscardCause::OtherMount,
        found_unix_ms: 1_795_000_000_000,
    };

    #[test]
    fn golden_file_reads_and_is_written() {
        let golden = include_bytes!("../../tests/golden/discarded-v1");
        assert_eq!(DiscardedWrites::decode(golden), Some(EXAMPLE));
        assert_eq!(EXAMPLE.encode(), golden);
    }

    #[test]
    fn damaged_record_counts_as_a_loss_for_all() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(DiscardedWrites::load(dir.path()).unwrap(), None);
        // An increased version is refused instead.
        for at in (0..LEN_BYTES).filter(|at| !(9..12).contains(at)) {
            let mut bad = EXAMPLE.encode();
            bad[at] ^= 1;
            std::fs::write(path(dir.path()), &bad).unwrap();
            let found = DiscardedWrites::load(dir.path()).unwrap().unwrap();
            assert!(found.clients == SurvivingClients::All && found != EXAMPLE, "byte {at}");
        }
    }

    #[test]
    fn record_of_a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut newer = EXAMPLE.encode();
        newer[8] = 2;
        std::fs::write(path(dir.path()), &newer).unwrap();
        let loss = DiscardedWrites::now(DiscardCause::OtherBoot);
        for refused in [DiscardedWrites::load(dir.path()).map(drop), loss.record(dir.path())] {
            let error = refused.unwrap_err();
            assert!(matches!(error, VolumeError::NewerFormat { found: 2, known: 1, .. }), "{error}");
        }
        assert_eq!(std::fs::read(path(dir.path())).unwrap(), newer);
    }

    #[test]
    fn second_loss_keeps_the_wider_set_of_clients() {
        let dir = tempfile::tempdir().unwrap();
        EXAMPLE.record(dir.path()).unwrap();
        DiscardedWrites::now(DiscardCause::OtherBoot).record(dir.path()).unwrap();
        let found = DiscardedWrites::load(dir.path()).unwrap().unwrap();
        assert_eq!((found.clients, found.cause), (SurvivingClients::All, DiscardCause::OtherBoot));
    }
}
