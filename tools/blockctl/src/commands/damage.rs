//! Damaged cloud snapshots: their remedies.

use blockd_api::{
    VolumeName,
    cloudsnaps::{Cloudsnap, LastProof, VerifyDepth},
};

/// Returns true for a proof that tells the state of the content: a quick verification reads none, and tells
/// only of damage that it found.
pub const fn tells_content(proof: &LastProof) -> bool {
    !proof.sound || !matches!(proof.kind, VerifyDepth::Quick)
}

/// Returns true if the content of a cloud snapshot was read and found sound.
pub fn is_sound(snapshot: &Cloudsnap) -> bool {
    snapshot.last_proof.as_ref().is_some_and(|proof| proof.sound && tells_content(proof))
}

/// Returns the next action for the damaged cloud snapshot `id`. `newer` are later ones of its volume at
/// `location`, oldest first. It is deleted only behind a sound one: until then it may be the only copy.
pub fn remedy(id: &str, volume: Option<&VolumeName>, location: Option<&str>, newer: &[&Cloudsnap]) -> String {
    let at = location.map_or_else(String::new, |location| format!(" --cred-id {location}"));
    let is_damaged = |one: &Cloudsnap| one.last_proof.as_ref().is_some_and(|proof| !proof.sound);
    let unverified = newer.iter().rev().find(|one| !is_damaged(one));
    match (unverified, volume) {
        _ if newer.iter().any(|one| is_sound(one)) => format!("blockctl cloudsnap delete {id}"),
        (Some(last), _) => format!("blockctl cloudsnap verify {}", last.cloud_snapshot_id),
        (None, Some(volume)) => format!("blockctl cloudsnap backup {volume} --full{at}"),
        (None, None) => format!("blockctl cloudsnap restore {id} --skip-damaged --volume NEW"),
    }
}
