//! Restore drills.

use crate::{
    names::{OTHER, entry, fake, restored},
    support::snap,
};
use serde_json::json;

#[test]
fn drill_of_an_ambiguous_name_is_refused() {
    let [here, there] = ["59-1111111111111111111", "59-2222222222222222222"].map(snap);
    let [first, mut second] = [&here, &there].map(|id| entry(id, "2026-11-20T21:00:30Z", "before-upgrade"));
    second["credentialId"] = json!(OTHER);
    // One of the copies is at the default location.
    let copies = fake(&[first.clone(), second.clone()]);
    assert_eq!(restored(&copies, "cs drill run before-upgrade"), Ok(here.clone()));
    let elsewhere = |id: &str, name| {
        let mut entry = entry(id, "2026-11-20T21:00:30Z", name);
        entry["credentialId"] = json!("0f4d4b67-95d7-481e-aec5-14223ac55170");
        entry
    };
    let copies = fake(&[elsewhere(&here, "before-upgrade"), second.clone()]);
    for line in ["cs drill run before-upgrade", "cs drill run db", "cs drill run db@latest --dry-run"] {
        let told = restored(&copies, line).unwrap_err();
        assert!(
            told.contains(&here) && told.contains(&there) && told.contains("--cred-id"),
            "{line}: {told}"
        );
    }
    // A backup has the name of a volume.
    let mut named = entry(&there, "2026-11-19T21:00:30Z", "db");
    named["volumeId"] = json!("60");
    named["volumeName"] = json!("other");
    let both = fake(&[first, named]);
    let told = restored(&both, "cs drill run db").unwrap_err();
    assert!(told.contains(&here) && told.contains(&there) && told.contains("db@latest"), "{told}");
}
