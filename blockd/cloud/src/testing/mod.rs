//! Repositories made to order, and the suite that any of them must pass; for tests only.

mod frames;
#[allow(clippy::expect_used, clippy::panic, reason = "what does not hold is to be found")]
mod fuzz;
mod snapshots;
mod suite;
mod tebibyte;

use crate::{
    CloudError, DataKey, EncryptionMode, KdfParams,
    keys::{SlotTimes, encode_slot},
    slots::object_of,
};

pub use frames::FrameBench;
pub use fuzz::{
    frame_tables as fuzz_frame_tables, key_slots as fuzz_key_slots, manifests as fuzz_manifests,
    objects as fuzz_objects,
};
pub use snapshots::put_many_snapshots;
pub use suite::{MemoryVolume, repository_suite};
pub use tebibyte::Tebibyte;

/// The slot of a key as a repository holds it: both objects and their content.
///
/// # Errors
/// It cannot be sealed.
pub fn key_slot(key: &DataKey) -> Result<([String; 2], Vec<u8>), CloudError> {
    key_slot_made_at(key, "passphrase", 0)
}

/// The same for a passphrase, and for a key that was made at a time. A plain key needs none.
///
/// # Errors
/// It cannot be sealed.
pub fn key_slot_made_at(
    key: &DataKey,
    passphrase: &str,
    created_unix_s: u64,
) -> Result<([String; 2], Vec<u8>), CloudError> {
    let passphrase = (key.mode() == EncryptionMode::Aes256GcmSiv).then_some(passphrase);
    let times = SlotTimes { created_unix_s, generation: 0 };
    let slot = encode_slot(key, passphrase, KdfParams::fast_for_tests(), &[7; 16], times)?;
    Ok(([0, 1].map(|copy| object_of(copy, key.key_id())), slot))
}
