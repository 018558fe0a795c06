//! Snapshots of requests and output; `INSTA_UPDATE=always cargo test -p blockctl` rewrites them.

use crate::support::{Fake, Reply, TASK, fail, list, ok, reply, task, volume};
use serde_json::{Value, json};
use std::sync::{Arc, Barrier};

/// Compares a text with `snapshots/NAME.snap`.
fn matches(name: &str, text: &str) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

/// Commands that show something and change nothing.
const SHOWN: &[&str] = &[
    "volume list --label app=mysql,x=y",
    "volume list --name '*b*' --sort used -o wide",
    "volume inspect db",
    "volume inspect 59",
    "volume inspect 60",
    "volume uri db",
    "volume uri db@monday",
    "volume check db",
    "snapshot list db",
    "snapshot list --since 2019-01-16T21:51 --sort name --wide",
    "snapshot diff db monday",
    "snapshot diff db other@monday 62",
    "snapshot inspect db@monday",
    "credentials list",
    "credentials list -o wide",
    "credentials inspect my-s3-cred",
    "credentials validate nas",
    "cloudsnap list --src vol -x 2 --status failed --cred-id nas",
    "cloudsnap list --cloudsnap-id 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr",
    "cloudsnap list -o wide",
    "cloudsnap list --until 2019-01-16 --max 2 --sort size",
    "cloudsnap list --name none",
    "cloudsnap inspect 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr --cr nas",
    "cloudsnap status",
    "cloudsnap status 3f4f",
    "cloudsnap status -o wide",
    "cloudsnap status --volume vol --until 2019-01-15",
    "cloudsnap status --active",
    "cloudsnap catalog -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-63-incr --path /etc",
    "cloudsnap diff 2e4d4b67-95d7-481e-aec5-14223ac55170/59-60 2e4d4b67-95d7-481e-aec5-14223ac55170/59-63-incr",
    "cloudsnap drill list db",
    "cloudsnap drill list -o wide",
    "cloudsnap drill inspect 5e11",
    "cloudsnap drill schedules list",
    "cloudsnap drill schedules list -o wide",
    "cloudsnap gc --dry-run",
    "cloudsnap history --uuid 0785",
    "cloudsnap history --uuid nightly --status failed -o wide",
    "cloudsnap schedules list",
    "cloudsnap schedules list -o wide",
    "cloudsnap schedules retention 078557a3-26c7-49b1-9822-34e6f816c2d1",
    "sched-policy list",
    "sched-policy inspect gold",
    "rule list",
    "rule list -o wide",
    "rule inspect pg",
    "anomaly list",
    "anomaly list db --all -o wide",
    "anomaly acknowledge 7f3c2a10 --usual",
    "anomaly acknowledge none",
    "browse list",
    "get BackupLocation",
    "get SchedulePolicy",
    "get Rule",
    "get VolumeBackup",
    "get VolumeBackupSchedule",
    "get VolumeRestore",
    "get VolumeClone",
    "describe BackupLocation my-s3-cred",
    "describe VolumeBackupSchedule nightly",
    "context list",
    "events",
    "events --volume db --kind damage-found,run-failed --severity warning --since 2019-01-16",
    "events --volume other",
];

/// Returns a list of cloud snapshots without those of a location that does not answer.
fn partly_listed() -> (&'static str, Reply) {
    const CLOUDSNAPS: &str = "GET /v1/cloudsnaps";
    let mut list = reply(CLOUDSNAPS);
    let error = json!({ "code": "store_unreachable", "message": "no reply from h:1", "hint": null });
    list["failedCredentials"] = json!([{
        "credentialId": "af563a4d-afd7-48df-90f7-8e8f9414ff77", "credentialName": "s3", "error": error
    }]);
    (CLOUDSNAPS, ok(list))
}

#[test]
fn tables() {
    let mut lines: Vec<_> = SHOWN.iter().map(|line| format!("blockctl {line}")).collect();
    for line in [
        "get VolumeBackupSchedule -o yaml",
        "get BackupLocation -o yaml",
        "--color cs status --max 1 | cat -v",
        "--color=never cs status --max 1 | cat -v",
        "cs inspect -i 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr",
    ] {
        lines.push(format!("blockctl {line}"));
    }
    let none = Fake::start(vec![
        ("GET /v1/credentials", ok(list(json!([])))),
        (
            "GET /v1/cloudsnaps",
            ok(json!({ "items": [], "next": null, "damaged": [], "failedCredentials": [], "total": 0 })),
        ),
    ]);
    let forced = "NO_COLOR=1 blockctl --color=always cs status --max 1 | cat -v";
    lines.push(forced.to_owned());
    let empty = none.transcript("blockctl credentials list\nblockctl -j cred list\nblockctl cs list");
    matches("tables", &(Fake::with_defaults(vec![partly_listed()]).transcript(&lines.join("\n")) + &empty));
}

#[test]
fn documents() {
    let lines: Vec<_> = SHOWN.iter().map(|line| format!("blockctl -j {line}")).collect();
    matches("documents", &Fake::with_defaults(vec![partly_listed()]).transcript(&lines.join("\n")));
}

const CHANGES: &str = "
blockctl volume create db --size 8GiB --label a=b,c=d
blockctl v c --label=a=b,c=d --size=8G db
blockctl v create -s 8192MiB -l a=b,c=d --group shop db
blockctl volume clone new --from db@monday
blockctl volume resize db --size 4GiB
blockctl volume rename db shop-db
blockctl volume update db --read-only on
blockctl volume update db --group shop --label a=b
blockctl volume update db --no-group --no-labels
blockctl volume attach db --device /dev/nbd3 --read-only --persistent --timeout 1m --dead-timeout 2d --connections 2
blockctl volume detach db
blockctl volume detach /dev/nbd3 --force
blockctl volume delete db
blockctl snapshot create db --name monday
blockctl snapshot create-group --volumes a,b,7 --name monday
blockctl snap cg --group shop
blockctl snapshot create-group -l a=b,c=d
blockctl snapshot restore db --snapshot monday
blockctl snapshot restore db -s 61 --discard
blockctl snapshot pin db@monday
blockctl snapshot unpin db@monday
blockctl snapshot delete db@monday
blockctl credentials limit nas --limit-upload 20M@08:00-18:00,100M --limit-time-zone Europe/Berlin
blockctl credentials limit nas --limit-download none
blockctl credentials set-default nas
blockctl credentials delete nas
blockctl cloudsnap backup vol --full --cred-id nas --limit-upload 10M
blockctl cs backup -fv vol --cr=nas --cr other
blockctl cs backup db --expires 2027-01-31 --pin --pre-command sync --freeze-fs --on-failure continue --timeout 30s
blockctl cs backup db --rule pg
blockctl cs backup db --compression zstd:19
blockctl cs backup db --compression zstd:20
blockctl cs backup db@monday
blockctl cs backup -v db --keep-local
blockctl cs backup db --name before-upgrade --label change=1742,owner=me
blockctl cloudsnap backup-group --volume_ids vol1,vol2
blockctl cs bg -v vol1,7 -v vol3 --cr nas --cr other
blockctl cs bg --label app=mysql --full
blockctl cs bg -g shop --rule pg
blockctl cs bg --snapshot-group 0f0e8b1a-64a5-4c70-9b4e-0a2b2d3d8f10
blockctl cs bg --label shop=a --name release --backup-label change=1742
blockctl cs l --name before-upgrade --label change=1742
blockctl cs l -s vol -c 2e4d4b67-95d7-481e-aec5-14223ac55170 -t stopped -x 3 --label a=b
blockctl cs l -t Aborted
blockctl cs l -m
blockctl -j cs l --migration
blockctl secrets kvdb login
blockctl secrets vault login --vault-addr http://h
blockctl cloudsnap restore vol --latest --volume new
blockctl cloudsnap restore --snap 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --volume new
blockctl cs r -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 -v new --lazy --on-store-loss error
blockctl cs r -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --in-place db --discard
blockctl cs clone -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 -v new
blockctl cs delete -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --force
blockctl cs pin vol@latest
blockctl cs pin -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --cr nas
blockctl cs unpin --snap 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61
blockctl cs expire -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --at 2027-01-31
blockctl cs expire -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --never
blockctl cs expire -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --at 2027-01-31 --force
blockctl volume scrub
blockctl volume scrub db --budget 100GiB --limit 50MiB --repair
blockctl cs verify
blockctl cs verify vol@latest
blockctl cs verify 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --quick
blockctl cs verify -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --deep --cr nas
blockctl cs repair vol@latest --dry-run
blockctl cs repair 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --cr nas --from s3
blockctl cs drill run vol@latest --files 9 --seed 7 --timeout 10m
blockctl cs drill run vol@latest 2e4d4b67-95d7-481e-aec5-14223ac55170/59-61 --cr nas
blockctl cs drill run --group shop --cr nas --files 9 --probe postgresql --accept-layout
blockctl cs stop -n 3F4F0A67-e12a-4d35-81ad-985657757352 --discard
blockctl cs resume 3f4f0a67-e12a-4d35-81ad-985657757352 --wait
blockctl cs limit -n 3f4f0a67-e12a-4d35-81ad-985657757352 --limit-upload 20MiB
blockctl cs limit -n 3f4f0a67-e12a-4d35-81ad-985657757352 --limit-upload none --max-requests 5000 --max-egress none --max-cost 0.5
blockctl browse umount /mnt/browse
blockctl sched-policy create gold --periodic 60,24 --daily 22:14,7 --weekly Thursday@10:13PM,5
blockctl sched-policy update gold --daily 02:00 --cron '0 4 * * 1,3;9' --on-calendar '*-*-* 02:30 Asia/Tokyo;9'
blockctl sched-policy delete gold
blockctl rule create pg --pre-command x --post-command y --user postgres --timeout 30s --on-failure continue
blockctl rule update pg --freeze-fs --user nobody
blockctl rule update pg --post-command '' --freeze-fs false --on-failure abort
blockctl rule assign pg --volume db
blockctl rule unassign pg --group shop
blockctl rule delete pg
blockctl context create near --socket /s
blockctl context create far --endpoint h:1 --ca ca --cert c --key k --current
blockctl context set near
blockctl context unset
blockctl context delete near
";

#[test]
fn changes() {
    let one = list(json!([task("Backup-Done", 1)]));
    matches("changes", &Fake::with_defaults(vec![("GET /v1/tasks", ok(one))]).transcript(CHANGES));
}

const SCHEDULES: &str = "
blockctl cloudsnap schedules create testVol --daily 21:00 --max 15 --cred-id nas
blockctl cs sched c -v testVol -d @21:00 -x 15 --cr nas -n nightly
blockctl cs sched c db -d 21:00,22:30 -w sun@3:00,wed@3:00 --cron '0 3 * * 1,3'
blockctl cs sched c db -p 60 -p 90
blockctl cs sched c db -p 60,24
blockctl cs sched c db -w sun@3:00/2,wed@3:00/2+1
blockctl cs sched c db -w sun@3:00/0
blockctl cs sched c --label a=b -p 60 -w sun@3:00 -m 1@3:00 --time-zone Europe/Berlin -f
blockctl cs sched c db --on-calendar '*-*-* 02:30 Europe/Berlin' --time-zone Europe/Berlin
blockctl cs sched c db --on-calendar '*-*-* 02:30 UTC'
blockctl cs sched c db --on-calendar '*-*-* 02:30 UTC' --time-zone Europe/Berlin
blockctl cs sched c db --on-calendar '*-*-* 02:30 Europe/Nowhere'
blockctl cs sched c db -p 60 --keep-weekly 0
blockctl cs sched c db -p 60 --local-keep-daily 0
blockctl cs sched c db -p 60 --local-keep-last 24 --local-keep-daily 3 --cr nas --keep-at nas:monthly=12
blockctl cs sched c db -p 60 --keep-local 3
blockctl cs sched c db -p 60 --local-keep-all
blockctl cs sched c db --policy gold --cr nas --keep-all --paused
blockctl cs sched c db -p 60 --cr nas --compression none
blockctl cs sched update 0785 --compression zstd
blockctl cs sched update 0785 --location-compression
blockctl cs sched update 0785 -x 3
blockctl cs sched update 0785 --keep-all
blockctl cs sched update --uuid 078557a3-26c7-49b1-9822-34e6f816c2d1 --daily 02:00 --local-keep-last 9
blockctl cs sched pause 0785
blockctl cs sched resume -u 0785
blockctl cs sched run-now 0785
blockctl cs sched delete --uuid 0785
blockctl cs sched delete --uuid 078557a3-26c7-49b1-9822-34e6f816c2d1
blockctl cs drill schedules create db --weekly sun@4:00 --files 9 --timeout 20m --jitter 60 -n weekly
blockctl cs drill schedules create --group shop --policy gold --cr nas --paused --probe postgresql
blockctl cs drill schedules update weekly --daily 6:00 --policy gold --files 9 --jitter 60 --priority high
blockctl cs drill schedules update weekly --timeout 2h
blockctl cs drill schedules update weekly --probe postgresql
blockctl cs drill schedules update weekly --files 9 --no-probe
blockctl cs drill schedules update weekly
blockctl cs drill schedules update nightly --files 9
blockctl cs drill schedules pause nightly
blockctl cs drill schedules pause weekly
blockctl cs drill schedules run-now weekly
blockctl cs drill schedules delete weekly
";

#[test]
fn schedules() {
    matches("schedules", &Fake::with_defaults(Vec::new()).transcript(SCHEDULES));
}

const CREDENTIALS: &str = r#"
echo s3cret > key; chmod 600 key
echo s3cret > open; chmod 644 open
echo hunter2 | AWS_ACCESS_KEY_ID=AKIA AWS_SECRET_ACCESS_KEY=other BLOCKD_ENCRYPTION_PASSPHRASE=hunter3 blockctl cred create s --provider s3 --s3-endpoint http://h:1 --bucket b --s3-secret-key-file -
AWS_SECRET_ACCESS_KEY=hunter2 blockctl cred create --help | grep hunter2
blockctl cred create n --provider local --path /srv/backup --encryption-passphrase-file key
blockctl cred create n --provider local --path /srv/backup --encryption-passphrase-file open
blockctl cred c --provider=local n --path=some/dir
blockctl cred c --provider=local n --path=some/dir --compression zstd:9
blockctl cred create n --provider s3 --s3-endpoint https://s3.example.org --bucket b --s3-access-key a --s3-secret-key-from command:/secret/x --encryption-passphrase-from systemd:p
blockctl cred create n --provider s3 --s3-endpoint [::1]:9000 --s3-disable-ssl --bucket b --use-iam --prefix p --limit-upload 20MiB
blockctl cred create n --provider s3 --s3-endpoint a:9010,b:9010 --s3-access-key a --s3-secret-key b --s3-disable-ssl
blockctl cred create n --provider s3 --s3-endpoint http://a:9010,b:9010 --s3-access-key a --s3-secret-key b
blockctl cred create n --provider google --google-json-key-from command:/secret/x
blockctl cred create n --provider azure --azure-account-name a --bucket b --azure-account-key-file key
blockctl cred create n --provider azure --azure-account-name a --bucket b --azure-account-key-from command:/secret/x
blockctl cred create n --provider azure --azure-account-name a --bucket b --azure-sas-token-from command:/secret/x
blockctl cred create n --provider google --bucket b --google-json-key-from command:/secret/x
blockctl cred create n --provider swift --bucket b --swift-user u --swift-key k --swift-auth-url https://h/auth/v1.0
blockctl cred create n --provider swift --bucket b --swift-user u --swift-key-from command:/secret/x --swift-auth-url https://h/v2.0/ --swift-tenant-id t
blockctl cred create n --provider swift --bucket b --swift-user u --swift-key k --swift-auth-url https://h --swift-tenant-name t
blockctl cred create n --provider swift --bucket b --swift-user u --swift-key k --swift-auth-url https://h --swift-project-name p
blockctl cred create n --provider swift --bucket b --swift-token t --swift-storage-url https://h/v1/a
printf 'provider = "azure"\nbucket = "b"\nazure-account-name = "a"\nazure-account-key = "k"\nlimit-upload = "20MiB"\nencryption-passphrase = "pp"\n' > toml; chmod 600 toml
blockctl cred create n --file toml --bucket typed
printf '{"provider": "local", "path": "/x", "encryption-passphrase-from": "command:/a/b"}' > json; chmod 600 json
blockctl cred create n --file json
blockctl cred create n --file json --encryption-passphrase-from systemd:t
printf 'a = 1\nplanted = 2' > bad; chmod 600 bad; blockctl cred create n --file bad
printf 'bucket = "b"\nuse-iam = "planted"' > bad; blockctl cred create n --file bad
printf '{"use-iam": "planted"}' > bad; blockctl cred create n --file bad
printf 'provider = "local"\npath = "/x"\nencryption-passphrase-from = "command:/a/b"\nencryption-passphrase = "planted"' > bad; blockctl cred create n --file bad
blockctl credentials update my-s3-cred --s3-access-key a --s3-secret-key-from systemd:k
blockctl credentials update my-s3-cred --proxy=
blockctl credentials update my-s3-cred --compression auto
blockctl credentials update az --use-iam --azure-client-id i
blockctl credentials update az --use-iam --azure-account-key k
blockctl credentials update nas --use-iam
blockctl credentials update my-s3-cred
blockctl credentials update my-s3-cred --bucket other
blockctl credentials update my-s3-cred --s3-disable-ssl
blockctl credentials update my-s3-cred --swift-key k --s3-access-key a
blockctl credentials update my-s3-cred --s3-secret-key-file - --encryption-passphrase-file -
blockctl credentials rekey nas --encryption-passphrase-file key --new-encryption-passphrase-file key --new-data-key
blockctl credentials rekey nas --accept-key 6b657900-0000-4000-8000-000000000001
"#;

#[test]
fn credentials() {
    let mut rekeyed = reply("POST /v1/credentials/nas/rekey");
    (rekeyed["rewrapped"], rekeyed["foreign"], rekeyed["newDataKey"]) = (json!(0), json!(0), json!(false));
    let current = Fake::with_defaults(vec![("POST /v1/credentials/nas/rekey", ok(rekeyed))]).transcript(
        "echo s3cret > key; chmod 600 key\nblockctl credentials rekey nas --encryption-passphrase-file key --new-encryption-passphrase-file key",
    );
    matches("credentials", &(Fake::with_defaults(Vec::new()).transcript(CREDENTIALS) + &current));
}

/// Command lines that end with exit status 2 and send no request.
const INVALID: &str = include_str!("support/invalid.txt");

#[test]
fn usage_errors() {
    let fake = Fake::start(Vec::new());
    let lines: Vec<_> = INVALID.lines().map(|line| format!("blockctl {line}")).collect();
    let text = fake.transcript(&lines.join("\n"));
    let refused = text.matches("[exit status 2]").count();
    assert!(refused == lines.len() && fake.seen().is_empty(), "{refused} of {}", lines.len());
    let document =
        "blockctl -j volume create db\nblockctl -j secrets kvdb status\nblockctl -j cs status --watch";
    matches("usage_errors", &(text + &fake.transcript(document)));
}

#[test]
fn errors() {
    let mut text = String::new();
    for (status, code) in [
        (404, "volume_not_found"),
        (409, "volume_in_use"),
        (400, "invalid_request"),
        (502, "store_unreachable"),
        (503, "shutting_down"),
        (500, "internal"),
        (418, "of_next_year"),
    ] {
        let fake = Fake::start(vec![("DELETE /v1/volumes/db", fail(status, code, "no volume \"db\""))]);
        text += &fake.transcript("blockctl volume delete db\nblockctl volume delete db --json");
    }
    let fake = Fake::start(vec![
        ("GET /v1/volumes", Reply::Close),
        ("GET /v1/cloudsnaps", ok(json!({ "items": 7 }))),
    ]);
    text += &fake.transcript(
        "
        blockctl volume list
        blockctl -j volume list
        blockctl cs list
        blockctl --socket none.sock volume list
        blockctl --socket none.sock -j volume list
        ",
    );
    let no_tasks = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!([]))))]);
    text += &no_tasks.transcript("blockctl cs status 3f4f");
    text += &Fake::with_defaults(Vec::new()).transcript(
        "
        blockctl cs stop 3f4f
        blockctl cs status 3f4f --wait
        blockctl cs sched pause --uuid 0999
        ",
    );
    matches("errors", &text);
}

#[test]
fn waits() {
    const LIST: &str = "GET /v1/tasks";
    const BACKUP: &str = "POST /v1/cloudsnaps/backup";
    let one = format!("GET /v1/tasks/{TASK}");
    let started = || (BACKUP, ok(list(json!([{ "taskId": TASK }]))));
    let states = |states: &[(&str, u64)]| -> Vec<_> {
        states.iter().map(|(state, version)| (one.as_str(), ok(task(state, *version)))).collect()
    };
    let mut text = String::new();
    let mut run =
        |lines: &str, answers: Vec<(&str, Reply)>| text += &Fake::with_defaults(answers).transcript(lines);

    let followed = [("Backup-Pending", 4), ("Backup-Active", 7), ("Backup-Done", 9)];
    for line in ["blockctl cs backup vol --wait", "blockctl -j cs backup vol --wait"] {
        run(line, [vec![started()], states(&followed)].concat());
        run(line, [vec![started()], states(&[("Backup-Failed", 4)])].concat());
        run(line, vec![started(), (&one, fail(404, "task_not_found", "no such task"))]);
    }
    // The versions of the daemon before its restart do not count.
    let restart = vec![
        started(),
        (&one, ok(task("Backup-Active", 50))),
        (&one, Reply::Close),
        (&one, fail(503, "shutting_down", "blockd is stopping")),
        (&one, ok(task("Backup-Done", 3))),
    ];
    run("blockctl cs backup vol --wait", restart);
    run(
        "blockctl cs restore -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-63-incr -v new --wait",
        states(&[("Restore-Done", 1)]),
    );
    run(
        "blockctl cs delete -s 2e4d4b67-95d7-481e-aec5-14223ac55170/59-60 --wait",
        states(&[("Delete-Done", 1)]),
    );

    let tasks = |state: &str, version| (LIST, ok(list(json!([task(state, version)]))));
    let watched = vec![tasks("Backup-Active", 4), tasks("Backup-Active", 7), tasks("Backup-Done", 9)];
    run("blockctl cs status --name 3f4f --watch", watched);
    run(
        "blockctl cs status --name 3f4f --wait",
        [vec![tasks("Delete-Active", 1)], states(&[("Delete-Done", 1)])].concat(),
    );
    let restart = vec![
        tasks("Backup-Active", 4),
        (LIST, Reply::Close),
        (LIST, fail(503, "shutting_down", "blockd is stopping")),
        tasks("Backup-Done", 9),
    ];
    run("blockctl cs status --watch", restart);
    // The command does not wait for a daemon that it never reached.
    run("blockctl cs status --watch", vec![(LIST, Reply::Close)]);
    matches("waits", &text);
}

#[test]
fn several_requests() {
    let mut text = String::new();
    let mut run =
        |lines: &str, answers: Vec<(&str, Reply)>| text += &Fake::with_defaults(answers).transcript(lines);

    // The rollback ends after the volume was requested.
    let both = Arc::new(Barrier::new(2));
    let mut db = volume("59", "db");
    db["rollback"] = json!({ "doneBytes": 1 << 20, "totalBytes": 4 << 20 });
    let restored = json!({ "volumeName": "db", "snapshotName": "monday", "keptSnapshot": null, "changedBytes": 8192, "copiedBytes": 4096 });
    let rollback = vec![
        ("POST /v1/volumes/db/rollback", Reply::Together(Arc::clone(&both), restored)),
        ("GET /v1/volumes/db", Reply::Together(both, db)),
    ];
    run("blockctl snapshot restore db --snapshot monday --discard", rollback);
    let mut logged = task("Backup-Failed", 4);
    let step = json!({ "kind": "pre-command", "target": "hold begin", "durationMicros": 1500, "exitStatus": 0, "output": "begun\n", "error": null });
    logged["quiesce"] = json!({ "steps": [step] });
    let event = |id: u64, task: Option<&str>, message: &str| {
        json!({
            "eventId": id, "occurredAt": "2019-01-16T22:27:30Z", "severity": "error", "kind": "backup-failed",
            "volumeName": "vol", "credentialName": "nas", "taskId": task, "message": message
        })
    };
    let events =
        [event(1, Some(TASK), "backup failed: the directory /srv is full"), event(2, None, "another one")];
    let logs =
        || vec![("GET /v1/tasks", ok(list(json!([logged])))), ("GET /v1/events", ok(list(json!(events))))];
    run("blockctl logs 3f4f", logs());
    run("blockctl -j logs 3f4f", logs());
    let page = |offset: u64, kind: &str, next: Option<u64>| {
        let reply = json!({
            "volumeName": "db", "fromSnapshotName": "monday", "toSnapshotName": null, "fromSizeBytes": 1 << 20, "toSizeBytes": 2 << 20,
            "dataBytes": 8192, "zeroBytes": 4096, "next": next,
            "items": [{ "offsetBytes": offset, "lenBytes": 8192 >> (offset >> 20), "kind": kind }],
        });
        ("GET /v1/volumes/db/diff", ok(reply))
    };
    run(
        "blockctl snapshot diff db monday",
        vec![page(4096, "data", Some(1 << 20)), page(1 << 20, "zero", None)],
    );
    let file = |path: &str, kind: &str| json!({ "path": path, "kind": kind, "sizeBytes": 0, "mode": 0o755, "uid": 0, "gid": 0, "modifiedAt": null });
    let reply = |file: Value, entries: Value, xattrs: Value| {
        (
            "GET /v1/cloudsnaps/files",
            ok(json!({ "file": file, "items": entries, "next": null, "xattrs": xattrs })),
        )
    };
    let dir = || reply(file("/", "directory"), json!([file("/su", "symlink")]), json!([]));
    let su = |value: &str| {
        reply(file("/su", "symlink"), json!([]), json!([{ "name": "security.capability", "value": value }]))
    };
    let of = "2e4d4b67-95d7-481e-aec5-14223ac55170/59";
    run(
        &format!("blockctl cs diff {of}-60 {of}-63-incr --files --content"),
        vec![dir(), dir(), su("none"), su("all")],
    );
    matches("several_requests", &text);
}
