//! Tasks of a name that several objects have or had.

use crate::{
    names::completed,
    support::{Fake, TASK, list, ok, reply, task, volume},
    terminal::on_terminal,
};
use serde_json::{Value, json};

const OTHER_TASK: &str = "7f4f0a67-e12a-4d35-81ad-985657757352";

/// Returns a task of a volume, with the name of its start.
fn task_of(id: &str, state: &str, [volume, name]: [&str; 2]) -> Value {
    let mut task = task(state, 1);
    (task["taskId"], task["volumeId"], task["volumeName"]) = (json!(id), json!(volume), json!(name));
    task["resumable"] = json!(state.ends_with("-Stopped"));
    task
}

/// Starts a daemon with volumes of these ids and names that replies with these lists of tasks in turn: first
/// those of an id prefix, if the name may be one.
fn with_tasks(lists: &[&[&Value]], volumes: &[(&str, &str)]) -> Fake {
    let volumes: Vec<Value> = volumes.iter().map(|(id, name)| volume(id, name)).collect();
    let stop = |task: &&&Value| {
        let line = format!("POST /v1/tasks/{}/stop", task["taskId"].as_str().unwrap());
        (line, ok((**task).clone()))
    };
    let stops: Vec<_> = lists.iter().copied().flatten().map(|task| stop(&task)).collect();
    let mut replies = vec![("GET /v1/volumes", ok(list(json!(volumes))))];
    replies.extend(lists.iter().map(|tasks| ("GET /v1/tasks", ok(list(json!(tasks))))));
    replies.extend(stops.iter().map(|(line, reply)| (line.as_str(), reply.clone())));
    Fake::with_defaults(replies)
}

/// Returns the requests that stop tasks, or the exit status and the error.
fn stopped(fake: &Fake, line: &str) -> Result<Vec<String>, (i32, String)> {
    let ran = fake.run(line);
    if ran.status == 0 {
        return Ok(fake.changes());
    }
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    Err((ran.status, ran.stderr))
}

fn stop_of(id: &str) -> Result<Vec<String>, (i32, String)> {
    Ok(vec![format!("POST /v1/tasks/{id}/stop")])
}

#[test]
fn tasks_of_a_renamed_volume_have_its_present_name() {
    let own = task_of(TASK, "Backup-Stopped", ["7", "old"]);
    let volumes = [("7", "new"), ("8", "old")];
    let daemon = |volumes: &[(&str, &str)]| with_tasks(&[&[&own]], volumes);
    let (status, told) = stopped(&daemon(&volumes), "cs stop old --discard --yes").unwrap_err();
    assert!(status == 4 && told.contains("no task is of volume old"), "{told}");
    assert_eq!(stopped(&daemon(&volumes), "cs stop new --discard --yes"), stop_of(TASK));
    // No volume has the former name.
    assert_eq!(stopped(&daemon(&volumes[..1]), "cs stop old --discard --yes"), stop_of(TASK));
}

#[test]
fn name_of_a_volume_wins_over_the_id_of_a_task() {
    let foreign = task_of("963eda82-e12a-4d35-81ad-985657757352", "Backup-Active", ["7", "new"]);
    let volumes = [("7", "new"), ("8", "963e")];
    // Without a task of the volume, none is meant.
    let fake = with_tasks(&[&[&foreign]], &volumes);
    let (status, told) = stopped(&fake, "cs stop 963e --discard --yes").unwrap_err();
    assert!(status == 4 && told.contains("no task is of volume 963e"), "{told}");
    let own = task_of(TASK, "Backup-Active", ["8", "963e"]);
    let fake = with_tasks(&[&[&foreign], &[&foreign, &own]], &volumes);
    assert_eq!(stopped(&fake, "cs stop 963e"), stop_of(TASK));
    assert_eq!(fake.run("-j logs 963e").json()["task"]["taskId"], json!(TASK));
    // A longer prefix names the other one.
    let fake = with_tasks(&[&[&foreign]], &volumes);
    assert_eq!(stopped(&fake, "cs stop 963eda82"), stop_of(foreign["taskId"].as_str().unwrap()));
}

#[test]
fn ended_task_of_an_id_leaves_a_name_unambiguous() {
    let ended = task_of("cafe0a67-e12a-4d35-81ad-985657757352", "Backup-Done", ["7", "db"]);
    let mut named = task_of(TASK, "Backup-Active", ["7", "db"]);
    named["name"] = json!("cafe");
    let fake = with_tasks(&[&[&ended], &[&ended, &named]], &[("7", "db")]);
    assert_eq!(stopped(&fake, "cs stop cafe"), stop_of(TASK));
    let (mut active, mut done) = (ended, named);
    (active["state"], done["state"]) = (json!("Backup-Active"), json!("Backup-Done"));
    let fake = with_tasks(&[&[&active], &[&active, &done]], &[("7", "db")]);
    assert_eq!(stopped(&fake, "cs stop cafe"), stop_of(active["taskId"].as_str().unwrap()));
}

#[test]
fn newest_task_is_meant_if_none_fits() {
    let newest = task_of(OTHER_TASK, "Backup-Done", ["7", "shop"]);
    let older = task_of(TASK, "Backup-Failed", ["7", "shop"]);
    let fake = with_tasks(&[&[&newest, &older]], &[("7", "shop")]);
    assert_eq!(stopped(&fake, "cs stop shop"), stop_of(OTHER_TASK));
}

#[test]
fn discarded_task_is_of_the_present_name_of_its_volume() {
    let mut renamed = task("Backup-Active", 4);
    renamed["volumeId"] = json!("7");
    for (id, name, shown) in [("7", "new", "of volume new is"), ("8", "vol", "of volume 7 is")] {
        let fake = Fake::with_defaults(vec![
            ("GET /v1/tasks", ok(list(json!([renamed])))),
            ("GET /v1/volumes", ok(list(json!([volume(id, name)])))),
        ]);
        let asked = on_terminal(&fake, "cloudsnap stop 3f4f --discard", "n\n");
        assert!(asked.stdout.contains(shown), "{asked:?}");
    }
}

#[test]
fn tasks_are_completed_by_their_state() {
    let tasks =
        [("Backup-Active", "aa"), ("Backup-Stopped", "ab"), ("Backup-Done", "ac")].map(|(state, id)| {
            let mut one = task(state, 1);
            one["taskId"] = json!(format!("{id}{}", &one["taskId"].as_str().unwrap()[2..]));
            one["resumable"] = json!(id == "ab");
            one
        });
    let fake = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!(tasks))))]);
    for (words, ids) in [
        (&["stop"][..], &["aa"][..]),
        (&["stop", "--discard"], &["aa", "ab"]),
        (&["limit"], &["aa"]),
        (&["resume"], &["ab"]),
    ] {
        let shown = completed(&fake, &[&["blockctl", "cloudsnap"], words, &["a"]].concat());
        let shown: Vec<_> = shown.iter().map(|id| &id[..2]).collect();
        assert_eq!(shown, ids, "{words:?}");
    }
}

#[test]
fn backups_of_other_hosts_are_completed() {
    let mut stored = reply("GET /v1/cloudsnaps");
    let (host, id) = ("aaaa0a67", "aaaa0a67-e12a-4d35-81ad-985657757352/59-60");
    (stored["items"][0]["cloudSnapshotId"], stored["items"][0]["name"]) = (json!(id), json!("far"));
    stored["items"][1]["name"] = json!("own");
    let fake = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(stored))]);
    for words in [&["cloudsnap", "restore"][..], &["get", "vb"], &["delete", "VolumeBackup"]] {
        let shown = completed(&fake, &[&["blockctl"], words, &["aaaa"]].concat());
        assert_eq!(shown, [format!("{host}/far")], "{words:?}");
    }
    for (typed, clusters) in [("aa", &[host][..]), ("2e", &["2e4d4b67"]), ("b", &[])] {
        let shown = completed(&fake, &["blockctl", "cloudsnap", "list", "--cluster", typed]);
        assert_eq!(shown, clusters, "{typed}");
    }
}

#[test]
fn commands_with_a_schema_are_completed() {
    let fake = Fake::start(Vec::new());
    for (words, found) in [
        (&["clouds"][..], &["cloudsnap"][..]),
        (&["cloudsnap", "schedules", "ret"], &["retention"]),
        (&["volume", "re"], &["rename", "resize"]),
        (&["nosuch", "v"], &[]),
    ] {
        let shown = completed(&fake, &[&["blockctl", "schema"], words].concat());
        assert_eq!(shown, found, "{words:?}");
    }
}

#[test]
fn history_of_drills_has_the_ids_of_their_tasks() {
    let mut runs = reply("GET /v1/schedule-runs");
    runs["items"].as_array_mut().unwrap().truncate(1);
    let run = &mut runs["items"][0];
    (run["cloudSnapshotId"], run["snapshotId"]) = (json!(null), json!(null));
    run["taskId"] = json!("7f3c2a10-5a0e-4a6c-9d35-0d2f5f0b7a11");
    let fake = Fake::with_defaults(vec![("GET /v1/schedule-runs", ok(runs))]);
    let ran = fake.run("cs history");
    assert!(ran.stdout.contains(" 7f3c2a10 "), "{ran:?}");
}
