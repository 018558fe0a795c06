//! Deletion of all cloud snapshots of a volume.

use crate::{
    support::{Fake, Reply, TASK, cloudsnap, fail, list, ok, reply, snap, task},
    terminal::on_terminal,
};
use serde_json::{Value, json};

/// Daemon with two cloud snapshots of volume 59, and one of a former volume and of another host.
fn fake(pinned: bool, is_present: bool) -> Fake {
    let other_host = "7e4d4b67-95d7-481e-aec5-14223ac55170/59-64";
    let entries = [snap("59-61"), snap("59-62-incr"), snap("60-63"), other_host.to_owned()].map(|id| {
        let mut one = cloudsnap("59-61");
        one["volumeId"] = json!(id.split(['/', '-']).nth(5).unwrap());
        (one["volumeName"], one["cloudSnapshotId"], one["pinned"]) = (json!("db"), json!(id), json!(pinned));
        one
    });
    let listed =
        json!({ "items": entries, "next": null, "damaged": [], "failedCredentials": [], "total": 4 });
    let present = match is_present {
        true => ok(crate::support::volume("59", "db")),
        false => fail(404, "volume_not_found", "there is no such volume"),
    };
    let task_route = format!("GET /v1/tasks/{TASK}");
    Fake::with_defaults(vec![
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/cloudsnaps", ok(listed)),
        ("GET /v1/volumes/db", present),
        (&task_route, ok(task("Delete-Done", 2))),
    ])
}

/// Returns the ids of the deletions that were requested.
fn deleted(fake: &Fake) -> Vec<Value> {
    let seen = fake.seen().into_iter().filter(|seen| seen.line == "POST /v1/cloudsnaps/delete");
    seen.map(|seen| seen.body["cloudSnapshotId"].clone()).collect()
}

#[test]
fn all_cloud_snapshots_of_one_volume_are_deleted() {
    let own = [json!(snap("59-61")), json!(snap("59-62-incr"))];
    for volume in ["db", "59"] {
        let fake = fake(false, true);
        let ran = fake.run(&format!("cs delete --src {volume} --yes"));
        assert_eq!((ran.status, deleted(&fake).as_slice()), (0, &own[..]), "{ran:?}");
        assert_eq!(ran.stdout.matches("Cloudsnap deleted successfully").count(), 2, "{ran:?}");
    }
    let json = fake(false, true).run("-j cs delete --src db --yes").json();
    assert_eq!(json["items"].as_array().map(Vec::len), Some(2));
}

#[test]
fn refused_deletions_of_a_volume_delete_nothing() {
    for (fake, line, status, words) in [
        (fake(false, true), "cs delete --src db", 2, "without --yes"),
        (fake(true, true), "cs delete --src db --yes", 5, "is pinned"),
        (fake(false, false), "cs delete --src db --yes", 2, "2 former volumes had the name db: 59, 60"),
        (fake(false, true), "cs delete --src db db@latest", 2, "cannot be used with"),
        (
            fake(false, true),
            "cs delete --src 61 --yes",
            4,
            "volume 61 neither exists nor has cloud snapshots",
        ),
    ] {
        let ran = fake.run(line);
        assert!(ran.status == status && (ran.stdout.clone() + &ran.stderr).contains(words), "{line} {ran:?}");
        assert!(deleted(&fake).is_empty(), "{line}");
    }
}

const LOCATIONS: [(&str, &str); 2] =
    [("078557a3-26c7-49b1-9822-34e6f816c2d1", "off"), ("178557a3-26c7-49b1-9822-34e6f816c2d1", "copy")];

/// Daemon with cloud snapshots of volume 59 that both locations list, and replies to the deletions.
fn copied(suffixes: &[&str], deletions: Vec<Reply>) -> Fake {
    located(suffixes, [None; 2], deletions)
}

/// Daemon as that of [`copied`], with the ids of the locations of both credentials.
fn located(suffixes: &[&str], location_ids: [Option<&str>; 2], deletions: Vec<Reply>) -> Fake {
    let credentials = LOCATIONS.map(|(id, name)| {
        let mut one = reply("GET /v1/credentials/nas");
        (one["credentialId"], one["name"]) = (json!(id), json!(name));
        one
    });
    let listing = |((id, name), location): ((&str, &str), Option<&str>)| {
        let entry = |suffix: &&str| {
            let mut one = cloudsnap(suffix);
            (one["volumeName"], one["pinned"]) = (json!("db"), json!(false));
            (one["credentialId"], one["credentialName"]) = (json!(id), json!(name));
            one["locationId"] = json!(location);
            one
        };
        let items: Vec<Value> = suffixes.iter().map(entry).collect();
        let total = items.len();
        ok(json!({ "items": items, "next": null, "damaged": [], "failedCredentials": [], "total": total }))
    };
    let task_route = format!("GET /v1/tasks/{TASK}");
    let mut replies = vec![
        ("GET /v1/credentials", ok(list(json!(credentials)))),
        (task_route.as_str(), ok(task("Delete-Done", 2))),
    ];
    let listings = LOCATIONS.into_iter().zip(location_ids);
    replies.extend(listings.map(|location| ("GET /v1/cloudsnaps", listing(location))));
    replies.extend(deletions.into_iter().map(|reply| ("POST /v1/cloudsnaps/delete", reply)));
    Fake::with_defaults(replies)
}

fn started() -> Reply {
    ok(json!({ "taskId": TASK }))
}

fn gone() -> Reply {
    fail(404, "cloudsnap_not_found", "there is no such cloud snapshot")
}

#[test]
fn copies_at_all_locations_of_a_volume_are_deleted() {
    let fake = copied(&["59-61"], vec![started()]);
    let ran = fake.run("cs delete --src db --yes");
    assert_eq!(ran.status, 0, "{ran:?}");
    let requests = fake.seen().into_iter().filter(|seen| seen.line == "POST /v1/cloudsnaps/delete");
    let locations: Vec<_> = requests.map(|seen| seen.body["credential"].clone()).collect();
    assert_eq!(locations, LOCATIONS.map(|(id, _)| json!(id)));
}

#[test]
fn two_credentials_of_one_store_delete_once() {
    let ran = copied(&["59-61"], vec![started(), gone()]).run("-j cs delete --src db --yes");
    assert_eq!((ran.status, ran.json()["items"].as_array().map(Vec::len)), (0, Some(1)), "{ran:?}");
    assert!(ran.json().get("error").is_none(), "{ran:?}");
    // One that this run did not delete is missing.
    let ran = copied(&["59-61"], vec![gone()]).run("cs delete --src db --yes");
    assert!(ran.status == 4 && ran.stderr.contains("there is no such cloud snapshot"), "{ran:?}");
}

#[test]
fn cloud_snapshot_of_one_location_is_counted_once() {
    let [one, other] = LOCATIONS.map(|(id, _)| Some(id));
    for (location_ids, count) in [([one, one], "1 cloud snapshot"), ([one, other], "2 cloud snapshots")] {
        let fake = || located(&["59-61"], location_ids, vec![started()]);
        let asked = on_terminal(&fake(), "cs delete --src db", "n\n");
        assert!(asked.stdout.contains(&format!("{count} of volume db")), "{asked:?}");
        let fake = fake();
        let ran = fake.run("cs delete --src db --yes");
        assert_eq!((ran.status, deleted(&fake).len()), (0, count[..1].parse().unwrap()), "{ran:?}");
    }
}

#[test]
fn deletions_before_a_refusal_are_reported() {
    let refusal = fail(409, "cloudsnap_in_use", "a lazy volume needs it");
    let fake = copied(&["59-61", "59-62"], vec![started(), refusal]);
    let text = fake.transcript("blockctl -j cs delete --src db --yes");
    assert!(text.ends_with("[exit status 5]\n\n"), "{text}");
    assert!(text.contains("Delete-Done") && text.contains("\"code\": \"cloudsnap_in_use\""), "{text}");
}

#[test]
fn unknown_volume_without_cloud_snapshots_is_not_found() {
    for line in ["cs delete --src nosuch --yes", "cs delete --src 60123 --yes"] {
        let ran = copied(&[], Vec::new()).run(line);
        assert!(ran.status == 4 && ran.stderr.contains("neither exists nor has"), "{line} {ran:?}");
    }
    let ran = copied(&[], Vec::new()).run("cs delete --src db --yes");
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "Volume db has no cloud snapshots of this host.\n"));
}
