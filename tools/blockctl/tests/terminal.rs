//! Commands on a terminal: confirmation of destructive ones.

use crate::objects::rule;
use crate::support::{Fake, Ran, Reply, cloudsnap, fail, list, ok, reply, snap, task, volume};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::{Value, json};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    process::{Command, Stdio},
};

/// Runs a command on a terminal that receives `typed`, and returns what it shows.
pub(crate) fn on_terminal(fake: &Fake, line: &str, typed: &str) -> Ran {
    run_with(fake, line, typed, false)
}

/// The same, with stdout and stderr redirected.
fn redirected(fake: &Fake, line: &str, typed: &str) -> Ran {
    run_with(fake, line, typed, true)
}

fn run_with(fake: &Fake, line: &str, typed: &str, is_redirected: bool) -> Ran {
    with_terminal(fake.command(line), typed, is_redirected)
}

fn with_terminal(command: Command, typed: &str, is_redirected: bool) -> Ran {
    on_terminal_of(0, command, typed, is_redirected)
}

/// Runs a command on a terminal of a width; of an unknown one, if it is 0.
fn on_terminal_of(columns: u16, mut command: Command, typed: &str, is_redirected: bool) -> Ran {
    let controller: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&controller, size).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let path = std::ffi::OsStr::from_bytes(name.as_bytes());
    let terminal = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let stdin = Stdio::from(terminal.try_clone().unwrap());
    let stdio = || if is_redirected { Stdio::null() } else { Stdio::from(terminal.try_clone().unwrap()) };
    let mut child = command.stdin(stdin).stdout(stdio()).stderr(stdio()).spawn().unwrap();
    // It has copies of the terminal.
    drop(command);
    drop(terminal);
    let mut controller = File::from(controller);
    controller.write_all(typed.as_bytes()).unwrap();
    let mut shown = Vec::new();
    // The read fails when the command has closed the terminal.
    let mut buffer = [0; 4096];
    while let Ok(len_bytes @ 1..) = controller.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..len_bytes]);
    }
    let status = child.wait().unwrap().code().unwrap();
    Ran { status, stdout: String::from_utf8(shown).unwrap(), stderr: String::new() }
}

fn deletions(fake: &Fake) -> usize {
    fake.seen().iter().filter(|seen| !seen.line.starts_with("GET ")).count()
}

#[test]
fn destructive_commands_ask_on_a_terminal() {
    for (line, words) in [
        ("volume delete db", "Volume db (1.5 GiB on disk, 2 local snapshots) is deleted permanently"),
        ("snapshot delete db@monday", "Snapshot db@monday of Wed, 16 Jan 2019 21:51:53 UTC is deleted"),
        ("snapshot restore db --snapshot monday", "its current content is kept as a snapshot"),
        ("credentials delete nas", "Credential nas is deleted; its backups stay"),
        ("cloudsnap schedules delete nightly", "Schedule nightly (9) with the UUID 078557a3"),
        ("sched-policy delete gold", "Schedule policy gold (daily @01:00, weekly Sunday@03:00) is deleted"),
        ("rule delete pg", "Rule pg (pre-command"),
        (
            "credentials rekey nas --encryption-passphrase old --new-data-key",
            "Credential nas is rekeyed: other hosts refuse to write until",
        ),
        ("cloudsnap gc", "--dry-run lists them"),
        ("cloudsnap restore vol --latest --in-place db --discard", "its current content is discarded"),
        ("cloudsnap stop 3f4f --discard", "of volume vol is discarded; it cannot be resumed"),
        (
            "cloudsnap delete vol@latest",
            "(volume vol, Wed, 16 Jan 2019 21:51:53 UTC, at nas) is deleted permanently",
        ),
    ] {
        let fake = Fake::with_defaults(vec![
            ("POST /v1/cloudsnaps/gc", ok(json!({}))),
            ("GET /v1/tasks", ok(list(json!([task("Backup-Active", 4)])))),
            ("GET /v1/rules/pg", ok(rule("pg", &[]))),
            unpinned(),
        ]);
        let refused = on_terminal(&fake, line, "n\n");
        assert!(refused.stdout.contains(words) && refused.stdout.contains("[y/N]"), "{line} {refused:?}");
        assert!(refused.stdout.contains("cancelled: nothing was changed"), "{line} {refused:?}");
        assert_eq!((refused.status, deletions(&fake)), (1, 0), "{line}");
    }
}

#[test]
fn init_asks_for_the_key_of_a_location_with_backups() {
    const CREATE: &str = "POST /v1/credentials";
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
    std::fs::write(&old, "precious\n").unwrap();
    let mut schedules = reply("GET /v1/schedules");
    schedules["items"] = json!([]);
    let fake = Fake::with_defaults(vec![
        ("POST /v1/credentials/nas/validate", fail(404, "credential_not_found", "there is none")),
        ("GET /v1/schedules", ok(schedules)),
        (CREATE, fail(422, "wrong_passphrase", "the passphrase opens no key slot")),
        (CREATE, ok(reply("POST /v1/credentials/nas/validate"))),
    ]);
    let typed = format!(
        "tape\nlocal\n/srv/nas\n{}\n/nonexistent/key\n{}\n25:00\n03:15\n",
        new.display(),
        old.display()
    );
    let ran = on_terminal(&fake, "init nas --no-backup", &typed);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stdout.contains("has encrypted backups") && !new.exists(), "{ran:?}");
    let seen = fake.seen();
    let sent = |line: &str| seen.iter().rev().find(|one| one.line == line).unwrap().body.clone();
    assert_eq!(sent(CREATE)["encryptionPassphrase"], "precious");
    assert_eq!(sent("POST /v1/schedules")["rules"], json!([{ "when": "daily @03:15" }]));
}

#[test]
fn deletion_of_a_context_asks_with_its_address() {
    let fake = Fake::with_defaults(Vec::new());
    let home = tempfile::tempdir().unwrap();
    let run = |line: &str| {
        let mut command = fake.command(line);
        command.env("XDG_CONFIG_HOME", home.path());
        command
    };
    assert!(
        run("context create vault --endpoint vault.example:9440 --current --ca a --cert b --key c")
            .status()
            .unwrap()
            .success()
    );
    let refused = with_terminal(run("context delete vault"), "n\n", false);
    assert!(
        refused.stdout.contains("Context vault (vault.example:9440) is deleted; without a current"),
        "{refused:?}"
    );
    let listed = Ran::of(run("context list").output().unwrap());
    assert!(refused.status == 1 && listed.stdout.contains("vault.example"), "{listed:?}");
    let deleted = with_terminal(run("context delete vault"), "y\n", false);
    assert!(
        deleted.status == 0 && deleted.stdout.contains("Context vault deleted successfully"),
        "{deleted:?}"
    );
}

/// Local snapshots without a pinned one.
fn unpinned() -> (&'static str, Reply) {
    ("GET /v1/snapshots", ok(list(json!([]))))
}

#[test]
fn confirmed_and_scripted_deletions_are_sent() {
    let fake = Fake::with_defaults(vec![unpinned()]);
    let confirmed = on_terminal(&fake, "volume delete db", "y\n");
    assert!(confirmed.status == 0 && confirmed.stdout.contains("successfully deleted"), "{confirmed:?}");
    assert_eq!(deletions(&fake), 1);
    let skipped = on_terminal(&fake, "volume delete db --yes", "");
    assert!(skipped.status == 0 && !skipped.stdout.contains("[y/N]"), "{skipped:?}");
    assert_eq!(deletions(&fake), 2);
    let script = fake.run("volume delete db");
    assert_eq!((script.status, deletions(&fake)), (0, 3), "{script:?}");
}

#[test]
fn redirected_output_does_not_skip_the_question() {
    let fake = Fake::with_defaults(vec![unpinned()]);
    let refused = redirected(&fake, "volume delete db", "n\n");
    assert!(refused.stdout.contains("[y/N]") && refused.status == 1, "{refused:?}");
    assert_eq!(deletions(&fake), 0);
    let confirmed = redirected(&fake, "volume delete db", "y\n");
    assert_eq!((confirmed.status, deletions(&fake)), (0, 1), "{confirmed:?}");
}

#[test]
fn scripts_delete_cloud_snapshots_by_complete_ids() {
    let fake = Fake::with_defaults(Vec::new());
    let refused = fake.run("cloudsnap delete vol@latest");
    assert!(refused.status == 2 && refused.stderr.contains("requires the complete id"), "{refused:?}");
    assert_eq!(deletions(&fake), 0);
    for line in ["cloudsnap delete vol@latest --yes".to_owned(), format!("cs rm {}", snap("59-61-incr"))] {
        let ran = fake.run(&line);
        assert_eq!(ran.status, 0, "{ran:?}");
    }
    assert_eq!(deletions(&fake), 2);
}

#[test]
fn in_place_restore_of_another_volume_needs_yes() {
    let mut detail = reply("GET /v1/cloudsnaps/inspect");
    (detail["volumeId"], detail["volumeName"]) = (json!("60"), json!("mem"));
    detail["volumeSizeBytes"] = json!(4 << 20);
    let fake = Fake::with_defaults(vec![("GET /v1/cloudsnaps/inspect", ok(detail))]);
    let line = format!("cs restore {} --in-place db", snap("59-61-incr"));
    let refused = fake.run(&line);
    assert!(
        refused.status == 2
            && refused.stderr.contains("is of another volume, mem (4 MiB), not of db (4 GiB)"),
        "{refused:?}"
    );
    let asked = on_terminal(&fake, &line, "n\n");
    assert!(asked.stdout.contains("of another volume, mem (4 MiB), Wed, 16 Jan 2019"), "{asked:?}");
    assert_eq!((asked.status, deletions(&fake)), (1, 0));
    let confirmed = fake.run(&format!("{line} --yes"));
    assert_eq!((confirmed.status, deletions(&fake)), (0, 1), "{confirmed:?}");
}

#[test]
fn forced_deletion_names_what_it_overrides() {
    let foreign = "7e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr";
    for (id, pinned, cause, words) in [
        (snap("59-61-incr"), true, "is pinned", "at nas, pinned)"),
        (foreign.to_owned(), false, "was made by host 7e4d4b67", "volume vol of host 7e4d4b67,"),
    ] {
        let mut detail = reply("GET /v1/cloudsnaps/inspect");
        (detail["cloudSnapshotId"], detail["pinned"]) = (json!(id), json!(pinned));
        let mut listed = reply("GET /v1/cloudsnaps");
        let entry = &mut listed["items"][0];
        (entry["cloudSnapshotId"], entry["pinned"]) = (json!(id), json!(pinned));
        let fake = Fake::with_defaults(vec![
            ("GET /v1/cloudsnaps/inspect", ok(detail)),
            ("GET /v1/cloudsnaps", ok(listed)),
            ("GET /v1/tasks", ok(list(json!([])))),
        ]);
        let refused = on_terminal(&fake, &format!("cs delete {id}"), "y\n");
        assert!(refused.stdout.contains(cause) && !refused.stdout.contains("[y/N]"), "{refused:?}");
        let object = on_terminal(&fake, &format!("delete VolumeBackup {id}"), "y\n");
        assert!(object.stdout.contains(cause) && !object.stdout.contains("[y/N]"), "{object:?}");
        let asked = on_terminal(&fake, &format!("cs delete {id} --force"), "n\n");
        assert!(asked.stdout.contains(words) && asked.stdout.contains("[y/N]"), "{asked:?}");
        assert_eq!((refused.status, deletions(&fake)), (5, 0), "{refused:?}");
    }
    let mut snapshot = reply("GET /v1/snapshots/db@monday");
    snapshot["pinned"] = json!(true);
    let fake = Fake::with_defaults(vec![
        ("GET /v1/snapshots/db@monday", ok(snapshot.clone())),
        ("GET /v1/snapshots", ok(list(json!([snapshot])))),
    ]);
    for (line, cause, words) in [
        ("snapshot delete db@monday", "snapshot db@monday is pinned", "Snapshot db@monday, which is pinned,"),
        ("volume delete db", "db@monday is pinned", "2 local snapshots, 1 pinned)"),
    ] {
        let refused = on_terminal(&fake, line, "y\n");
        assert!(refused.stdout.contains(cause) && !refused.stdout.contains("[y/N]"), "{refused:?}");
        let asked = on_terminal(&fake, &format!("{line} --force"), "n\n");
        assert!(asked.stdout.contains(words), "{asked:?}");
        assert_eq!((refused.status, deletions(&fake)), (5, 0), "{refused:?}");
    }
}

#[test]
fn forced_date_of_another_hosts_backup_asks() {
    let foreign = "7e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr";
    let fake = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(list(json!([]))))]);
    let line = format!("cs expire {foreign} --at 2027-01-31 --force");
    let asked = on_terminal(&fake, &line, "n\n");
    assert!(
        asked.stdout.contains("of host 7e4d4b67 is deleted permanently on Sun, 31 Jan 2027"),
        "{asked:?}"
    );
    assert_eq!((asked.status, deletions(&fake)), (1, 0), "{asked:?}");
    assert_eq!((fake.run(&line).status, deletions(&fake)), (0, 1));
    let own = on_terminal(&fake, &format!("cs expire {} --at 2027-01-31", snap("59-61")), "");
    assert_eq!((own.status, deletions(&fake)), (0, 2), "{own:?}");
}

/// Starts a daemon for deletions and replacements of objects.
fn with_objects() -> Fake {
    let volume = reply("GET /v1/volumes/db");
    let mut other = volume.clone();
    (other["name"], other["volumeId"]) = (json!("NewVol"), json!("60"));
    let snapshot = reply("GET /v1/snapshots")["items"][0].take();
    let credential = reply("GET /v1/credentials/nas");
    let delete = format!("DELETE /v1/credentials/{}", credential["credentialId"].as_str().unwrap());
    Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([volume, other])))),
        ("GET /v1/tasks", ok(list(json!([])))),
        ("GET /v1/credentials", ok(list(json!([credential])))),
        ("DELETE /v1/snapshots/61", ok(snapshot)),
        (delete.as_str(), ok(reply("DELETE /v1/credentials/nas"))),
    ])
}

#[test]
fn objects_are_deleted_and_replaced_after_a_question() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.yaml");
    let object = |kind: &str, spec: &str| {
        format!("apiVersion: blockd/v1\nkind: {kind}\nmetadata: {{name: monday}}\nspec: {{{spec}}}\n---\n")
    };
    let source = format!("cloudSnapshotId: {}, destinationVolume: NewVol", snap("59-61-incr"));
    let restore = object("VolumeRestore", &format!("{source}, replacePolicy: Delete"));
    let both = object("VolumeSnapshot", "volume: db") + &object("Rule", "preCommand: sync");
    let replaced = "VolumeRestore/monday replaces the content of volume NewVol (by that of another volume, vol, 4 GiB), which is kept as a snapshot";
    for (line, text, words) in [
        ("delete VolumeSnapshot monday", "", "VolumeSnapshot/monday is deleted permanently (db@monday)"),
        ("delete VolumeBackupSchedule nightly", "", "VolumeBackupSchedule/nightly is deleted"),
        ("delete BackupLocation nas", "", "BackupLocation/nas is deleted"),
        ("delete -f FILE", &both, "VolumeSnapshot/monday is deleted permanently (db@monday)"),
        ("apply -f FILE", &restore, replaced),
    ] {
        std::fs::write(&path, text).unwrap();
        let line = line.replace("FILE", path.to_str().unwrap());
        let refused = with_objects();
        let shown = on_terminal(&refused, &line, "n\n");
        assert!(shown.stdout.contains(words) && shown.stdout.contains("[y/N]"), "{line} {shown:?}");
        assert_eq!((shown.status, deletions(&refused)), (1, 0), "{line} {shown:?}");
        for (option, typed) in [("", "y\n"), (" --yes", "")] {
            let confirmed = with_objects();
            let shown = on_terminal(&confirmed, &format!("{line}{option}"), typed);
            assert_eq!((shown.status, deletions(&confirmed)), (0, 1), "{line}{option} {shown:?}");
        }
        // A dry run changes nothing.
        let shown = on_terminal(&refused, &format!("{line} --dry-run"), "");
        assert!(shown.status == 0 && !shown.stdout.contains("[y/N]"), "{line} {shown:?}");
        assert_eq!(deletions(&refused), 0);
    }
}

/// Volumes, cloud snapshots and tasks of the volume `db` with the backup `good`, and the volume `acc`.
fn replies_of_good(volumes: &[Value], is_stored: bool, tasks: &[Value]) -> Vec<(&'static str, Reply)> {
    let mut found = cloudsnap("59-61");
    (found["name"], found["volumeName"]) = (json!("good"), json!("db"));
    let found = if is_stored { vec![found] } else { Vec::new() };
    let listed =
        json!({ "items": found, "next": null, "damaged": [], "failedCredentials": [], "total": found.len() });
    vec![
        ("GET /v1/volumes", ok(list(json!(volumes)))),
        ("GET /v1/cloudsnaps", ok(listed)),
        ("GET /v1/tasks", ok(list(json!(tasks)))),
    ]
}

/// Restores the backup `good` into the volume `acc`.
const INTO_ACC: &str = "apiVersion: blockd/v1\nkind: VolumeRestore\nmetadata: {name: back}\n\
    spec: {backupLocation: nas, backupName: good, destinationVolume: acc, replacePolicy: Delete}\n";

#[test]
fn replacement_that_becomes_known_later_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    std::fs::write(&path, INTO_ACC).unwrap();
    let (db, acc) = (volume("59", "db"), volume("1", "acc"));
    let mut running = task("Backup-Active", 1);
    (running["name"], running["volumeName"]) = (json!("good"), json!("db"));
    let fake = || {
        let before = replies_of_good(std::slice::from_ref(&db), false, &[running.clone()]);
        let after = replies_of_good(&[db.clone(), acc.clone()], true, &[]);
        let credentials = ok(list(json!([reply("GET /v1/credentials/nas")])));
        let rest = vec![("GET /v1/credentials", credentials), ("GET /v1/schedules", ok(list(json!([]))))];
        Fake::with_defaults([before, after, rest].concat())
    };
    let line = format!("apply --wait -f {}", path.display());
    let refused = fake();
    let shown = on_terminal(&refused, &line, "n\n");
    let words = ["volume acc", "which is kept as a snapshot", "cancelled: VolumeRestore/back is not applied"];
    assert!(shown.status == 1 && words.iter().all(|words| shown.stdout.contains(words)), "{shown:?}");
    assert_eq!(deletions(&refused), 0);
    // A script needs the option: the volume is another one.
    for (option, status, changes) in [("", 5, 0), (" --yes", 0, 1)] {
        let scripted = fake();
        let ran = scripted.run(&format!("{line}{option}"));
        assert_eq!((ran.status, scripted.changes().len()), (status, changes), "{ran:?}");
    }
}

#[test]
fn other_volume_of_a_confirmed_name_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("both.yaml");
    let backup = "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: new}\n\
        spec: {backupLocation: nas, volume: db}\n---\n";
    std::fs::write(&path, [backup, INTO_ACC].concat()).unwrap();
    let db = volume("59", "db");
    // After the start of the backup, the volume `acc` is another one.
    let before = replies_of_good(&[db.clone(), volume("1", "acc")], true, &[]);
    let after = replies_of_good(&[db, volume("2", "acc")], true, &[]);
    let credentials = ok(list(json!([reply("GET /v1/credentials/nas")])));
    let rest = vec![("GET /v1/credentials", credentials), ("GET /v1/schedules", ok(list(json!([]))))];
    for (typed, status, restores) in [("y\nn\n", 1, 0), ("y\ny\n", 0, 1)] {
        let fake = Fake::with_defaults([before.clone(), after.clone(), rest.clone()].concat());
        let shown = on_terminal(&fake, &format!("apply -f {}", path.display()), typed);
        let sent = fake.seen().into_iter().filter(|seen| seen.line.ends_with("restore-in-place"));
        let sent: Vec<Value> = sent.map(|seen| seen.body["volume"].clone()).collect();
        assert_eq!((shown.status, sent), (status, vec![json!("2"); restores]), "{shown:?}");
    }
}

#[test]
fn volume_that_another_user_creates_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    std::fs::write(&path, INTO_ACC).unwrap();
    let (db, acc) = (volume("59", "db"), volume("1", "acc"));
    let before = replies_of_good(std::slice::from_ref(&db), true, &[]);
    let after = replies_of_good(&[db, acc], true, &[]);
    let rest = vec![
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/schedules", ok(list(json!([])))),
        ("POST /v1/cloudsnaps/restore", fail(409, "volume_exists", "volume acc exists")),
    ];
    let fake = Fake::with_defaults([before, after, rest].concat());
    let ran = fake.run(&format!("apply -f {}", path.display()));
    assert!(ran.status == 5 && ran.stderr.contains("volume acc exists"), "{ran:?}");
    assert_eq!(fake.changes(), ["POST /v1/cloudsnaps/restore"]);
}

#[test]
fn restore_without_a_volume_to_replace_asks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    for (spec, words) in [
        ("backupName: typo", "there is no VolumeBackup/typo"),
        ("backupName: monday, includedNamespaces: [none]", "has no volume with the selected labels"),
    ] {
        let text = format!(
            "apiVersion: velero.io/v1\nkind: Restore\nmetadata: {{name: back}}\nspec: {{existingResourcePolicy: update, {spec}}}\n"
        );
        std::fs::write(&path, text).unwrap();
        let mut listed = reply("GET /v1/cloudsnaps");
        listed["items"][0]["name"] = json!("monday");
        let fake = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(listed))]);
        let refused = on_terminal(&fake, &format!("apply -f {}", path.display()), "y\n");
        assert!(refused.stdout.contains(words) && !refused.stdout.contains("[y/N]"), "{spec} {refused:?}");
        assert_eq!((refused.status, deletions(&fake)), (4, 0), "{spec} {refused:?}");
    }
}

#[test]
fn deletion_of_interrupted_backups_asks() {
    let mut stopped = task("Backup-Stopped", 1);
    (stopped["name"], stopped["resumable"]) = (json!("vb"), json!(true));
    let fake = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!([stopped]))))]);
    let refused = on_terminal(&fake, "delete vb vb", "n\n");
    let words = "VolumeBackup/vb is deleted permanently with 1 interrupted backup";
    assert!(refused.stdout.contains(words) && refused.stdout.contains("[y/N]"), "{refused:?}");
    assert_eq!((refused.status, deletions(&fake)), (1, 0));
}

#[test]
fn question_about_a_rule_has_first_lines_only() {
    let mut rule = rule("pg", &[]);
    rule["quiesce"]["preCommand"] = json!("set -e\nhold begin\n");
    let fake = Fake::with_defaults(vec![("GET /v1/rules/pg", ok(rule))]);
    let refused = on_terminal(&fake, "rule delete pg", "n\n");
    assert!(refused.stdout.contains("Rule pg (pre-command set -e …"), "{refused:?}");
}

#[test]
fn objects_in_errors_fit_into_the_terminal() {
    let object = "blockd/data/6c27ca2d-95d7-481e-aec5-14223ac55170/5314714750556152743/9169363135108883125/pack-00000000";
    let message =
        format!("object {object} is damaged at byte 40: its content was altered in the backup location");
    let mut failed = task("Restore-Failed", 1);
    failed["error"] = json!({ "code": "cloudsnap_damaged", "message": message, "hint": null });
    let mut event = reply("GET /v1/events")["items"][0].take();
    (event["severity"], event["message"]) = (json!("error"), json!(message));
    let fake = Fake::with_defaults(vec![
        ("GET /v1/tasks", ok(list(json!([failed])))),
        ("GET /v1/events", ok(list(json!([event])))),
    ]);
    for line in ["cs status 3f4f", "events", "logs 3f4f"] {
        let shown = on_terminal_of(80, fake.command(line), "", false).stdout.replace('\r', "");
        let wide = shown.lines().find(|shown| shown.chars().count() > 80);
        assert!(wide.is_none() && shown.contains("blockd/data/6c27ca2d"), "{line}\n{shown}");
    }
    let whole = fake.run("cs status 3f4f").stderr;
    assert!(whole.contains(object), "{whole}");
}

#[test]
fn long_texts_are_broken_at_words_on_a_terminal_only() {
    let mut lost = volume("7", "lost");
    let cause = ["the data file of the head is shorter than its map"; 3].join(" and ");
    (lost["state"], lost["stateReason"]) = (json!("failed"), json!(cause));
    let fake = Fake::with_defaults(vec![("GET /v1/volumes", ok(list(json!([lost]))))]);
    for line in ["status", "status --check", "doctor"] {
        let narrow = on_terminal_of(80, fake.command(line), "", false).stdout.replace('\r', "");
        let wide = narrow.lines().find(|shown| shown.chars().count() > 80);
        assert_eq!(wide, None, "{line}\n{narrow}");
        let ran = fake.run(line);
        assert!(ran.stdout.lines().any(|line| line.contains(&cause)), "{line} {ran:?}");
        let words = |text: &str| text.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
        let narrow = narrow.replace("\u{1b}", "");
        assert!(words(&ran.stdout).iter().all(|word| narrow.contains(word)), "{line}\n{narrow}");
    }
}
