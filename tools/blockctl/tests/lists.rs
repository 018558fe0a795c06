//! Width of lists, and the protection in `status`.

use crate::support::{Fake, list, ok};
use serde_json::json;

/// Maximum width of a list.
const COLUMNS: usize = 80;

#[test]
fn lists_fit_into_80_columns() {
    let fake = Fake::with_defaults(Vec::new());
    for line in [
        "volume list --name NewVol",
        "snapshot list",
        "credentials list",
        "cloudsnap list",
        "cloudsnap status",
        "cloudsnap history",
        "cloudsnap schedules list --name nightly",
        "rule list",
        "sched-policy list",
        "browse list",
        "events",
    ] {
        let ran = fake.run(line);
        // Causes of errors are complete.
        let lines = ran.stdout.lines().filter(|line| !line.contains("unreadable: "));
        let widest = lines.map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= COLUMNS, "{line}: {widest}\n{}", ran.stdout);
    }
}

/// The ages in the output follow the clock.
#[test]
fn status_shows_protection_and_problems() {
    let fake = Fake::with_defaults(Vec::new());
    let shown = fake.run("status").stdout;
    assert!(shown.contains("Health         : ") && shown.contains("- volume e is not served"), "{shown}");
    let row = |volume: &str| {
        let line = shown.lines().find(|line| line.starts_with(&format!("{volume} "))).unwrap_or_default();
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let db = row("db");
    assert_eq!(
        (db[1].as_str(), db[2].as_str(), db.last().unwrap().as_str()),
        ("nightly", "local", "missed"),
        "{shown}"
    );
    assert_eq!(row("mood").last().unwrap(), "no schedule", "{shown}");
    assert!(shown.lines().any(|line| line.starts_with("db3 ") && line.contains("1.5 GiB")), "{shown}");
    let nas = row("nas");
    assert_eq!((nas[1].as_str(), nas[2].as_str()), ("12", "3 GiB"), "{shown}");
    assert!(nas[3].ends_with("d ago") && row("s3").last().unwrap() == "-", "{shown}");
    let document = fake.run("-j status").json();
    assert_eq!(document["volumeSpace"][0]["usedBytes"], 1_610_612_736, "{document:#}");
    assert_eq!(document["locations"][0]["storedBytes"], 3_221_225_472_u64, "{document:#}");
    let protection = document["protection"].as_array().unwrap();
    assert!(
        protection.iter().any(|one| one["volumeName"] == "mood" && one["objective"] == "no-schedule"),
        "{document:#}"
    );

    let check = fake.run("status --check");
    assert_eq!(check.status, 1);
    assert!(
        check.stdout.lines().any(|line| line.starts_with("no schedule selects volume mood: blockctl")),
        "{check:?}"
    );
    let calm = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([])))),
        ("GET /v1/schedules", ok(list(json!([])))),
        ("GET /v1/tasks", ok(list(json!([])))),
    ]);
    let check = calm.run("status --check");
    assert_eq!((check.status, check.stdout.as_str()), (0, "no problems\n"), "{check:?}");
}
