//! Cloud snapshots, schedules and tasks by name, prefix or point in time.

use crate::support::{CLUSTER, Fake, cloudsnap, ok, snap};
use serde_json::{Value, json};

const OTHER: &str = "7e4d4b67-95d7-481e-aec5-14223ac55170";

fn entry(id: &str, time: &str, name: &str) -> Value {
    let mut entry = cloudsnap("59-61");
    (entry["ID"], entry["Timestamp"], entry["SrcVolumeName"]) = (json!(id), json!(time), json!("db"));
    entry["Metadata"]["snapshotName"] = json!(name);
    entry
}

fn fake(entries: &[Value]) -> Fake {
    let list =
        json!({ "cloudsnaps": entries, "damaged": [], "failedCredentials": [], "total": entries.len() });
    Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(list))])
}

/// Returns the restored cloud snapshot.
fn restored(fake: &Fake, line: &str) -> Result<String, String> {
    let ran = fake.run(line);
    let sent = fake.seen().into_iter().rev().find(|seen| seen.line.starts_with("POST "));
    match (ran.status, sent) {
        (0, Some(sent)) => Ok(sent.body["snap"].as_str().unwrap().to_owned()),
        _ => Err(ran.stderr),
    }
}

#[test]
fn points_in_time_select_the_newest_before_them() {
    let ids =
        ["59-1111111111111111111", "59-2222222222222222222-incr", "59-3333333333333333333-incr"].map(snap);
    let mut entries = [
        entry(&ids[0], "2026-11-20T20:59:10Z", "before-upgrade"),
        entry(&ids[1], "2026-11-20T21:00:30Z", "snap-2"),
        entry(&ids[2], "2026-11-21T21:00:30Z", "snap-3"),
    ];
    entries[2]["Status"] = json!("Damaged");
    let fake = fake(&entries);
    for (line, id) in [
        ("cs restore db --latest", &ids[1]),
        ("cs restore db@latest", &ids[1]),
        ("cs restore --snap db@2026-11-20T21:00", &ids[1]),
        ("cs restore db --at 2026-11-20T20:59Z", &ids[0]),
        ("cs restore before-upgrade", &ids[0]),
        ("cs restore 22222222", &ids[1]),
        ("cs clone db@2026-11-20", &ids[1]),
    ] {
        assert_eq!(restored(&fake, line).as_ref(), Ok(id), "{line}");
    }
    let early = fake.run("cs restore db --at 2026-11-19");
    assert_eq!(early.status, 4);
    assert!(early.stderr.contains("hint: its oldest is of 2026-11-20T20:59Z"), "{early:?}");
    let volume = fake.run("cs restore db");
    assert!(volume.status == 4 && volume.stderr.contains("db@latest"), "{volume:?}");
    let both = fake.run("cs restore db@latest --at 2026-11-19");
    assert!(both.status == 2 && both.stderr.contains("need the name or id of a volume"), "{both:?}");
}

#[test]
fn candidates_of_ambiguous_names_are_listed() {
    let here = snap("59-1111111111111111111");
    let there = format!("{OTHER}/59-1111111122222222222");
    let entries = [entry(&here, "2026-11-20T21:00:30Z", "x"), entry(&there, "2026-11-21T21:00:30Z", "x")];
    let prefix = fake(&entries).run("cs inspect 11111111");
    assert_eq!(prefix.status, 2);
    assert!(prefix.stderr.contains(&here) && prefix.stderr.contains(&there), "{prefix:?}");
    // Backups of this host have priority; those of two other hosts are listed.
    assert_eq!(restored(&fake(&entries), "cs restore db --latest"), Ok(here.clone()));
    let third = here.replace(CLUSTER, "8e4d4b67-95d7-481e-aec5-14223ac55170");
    let foreign = [entry(&there, "2026-11-21T21:00:30Z", "x"), entry(&third, "2026-11-20T21:00:30Z", "x")];
    let told = restored(&fake(&foreign), "cs restore db --latest").unwrap_err();
    assert!(told.contains(&there) && told.contains(&third) && told.contains("2 hosts"), "{told}");
}

#[test]
fn schedules_are_found_by_name() {
    let fake = Fake::with_defaults(Vec::new());
    assert_eq!(fake.run("cs sched pause nightly").status, 0);
    let unknown = fake.run("cs sched pause monthly");
    assert_eq!(unknown.status, 4);
    assert!(unknown.stderr.contains("the schedules are nightly, 178557a3"), "{unknown:?}");
}

#[test]
fn all_credentials_are_verified_and_collected() {
    let fake = Fake::with_defaults(Vec::new());
    assert_eq!(fake.run("cs verify --all --quick").status, 0);
    let sent: Vec<Value> =
        fake.seen().into_iter().filter(|seen| seen.line.starts_with("POST ")).map(|seen| seen.body).collect();
    assert_eq!(sent.len(), 5);
    assert_eq!((&sent[0]["credId"], &sent[0]["depth"]), (&json!("nas"), &json!("quick")));
    let collected = fake.run("-j cs gc --all --dry-run");
    assert_eq!(collected.json().as_array().map(Vec::len), Some(5), "{collected:?}");
}
