//! Interruption of `--wait` and `--watch`, and stops of tasks.

use crate::support::{Fake, Ran, Reply, TASK, fail, list, ok, reply, snap, task, volume};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixListener,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

const BACKUP: &str = "POST /v1/cloudsnaps/backup";
const ONE_TASK: &str = "GET /v1/tasks/3f4f0a67-e12a-4d35-81ad-985657757352";

fn started() -> (&'static str, Reply) {
    (BACKUP, ok(list(json!([{ "taskId": TASK }]))))
}

#[test]
fn watch_ends_at_ctrl_c_in_each_phase() {
    const TASKS: &str = "GET /v1/tasks";
    let active = || ok(list(json!([task("Backup-Active", 4)])));
    // More than the capacity of a pipe.
    let many: Vec<_> = (0..2_000).map(|_| task("Backup-Active", 4)).collect();
    for (script, asked) in [
        (vec![(TASKS, Reply::Hold)], 1),
        (vec![(TASKS, active()), (TASKS, Reply::Hold)], 2),
        (vec![(TASKS, active()), (TASKS, Reply::Close)], 3),
        (vec![(TASKS, ok(list(many)))], 1),
    ] {
        for signal in [Signal::INT, Signal::TERM] {
            let fake = Fake::start(script.clone());
            let mut child = fake
                .command("cs status --watch")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            for _ in 0..asked {
                assert_eq!(fake.arrival(), TASKS);
            }
            kill_process(Pid::from_child(&child), signal).unwrap();
            // The pipe is not read during the wait.
            let until = Instant::now() + Duration::from_secs(120);
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                if Instant::now() >= until {
                    child.kill().unwrap();
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            assert_eq!(status.code(), Some(130), "after {asked} requests, {signal:?}");
        }
    }
}

#[test]
fn ctrl_c_stops_the_waiting_and_not_the_task() {
    for flag in ["", "-j"] {
        let fake = Fake::start(vec![started(), (ONE_TASK, Reply::Hold)]);
        let child = fake
            .command(&format!("cs backup vol --wait {flag}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(fake.arrival(), BACKUP);
        // The signal handler is installed before the first request.
        assert_eq!(fake.arrival(), ONE_TASK);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.status, 130);
        let look = format!("blockctl cloudsnap status --name {TASK}");
        if flag.is_empty() {
            assert!(ran.stderr.contains("continues") && ran.stderr.contains(&look), "{ran:?}");
        } else {
            assert_eq!((&ran.json()["error"]["code"], ran.stderr.as_str()), (&json!("interrupted"), ""));
            assert!(ran.json()["error"]["hint"].as_str().unwrap().contains(&look));
        }
    }
}

#[test]
fn ctrl_c_names_all_tasks_of_the_wait() {
    let other = TASK.replace("3f4f", "4f4f");
    for done in [0, 1] {
        let tasks = list(json!([{ "taskId": TASK }, { "taskId": other }]));
        let second = format!("GET /v1/tasks/{other}");
        let first = if done == 0 { Reply::Hold } else { ok(task("Backup-Done", 2)) };
        let fake = Fake::start(vec![(BACKUP, ok(tasks)), (ONE_TASK, first), (&second, Reply::Hold)]);
        let mut command = fake.command("cs backup vol --wait");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        for line in [BACKUP, ONE_TASK, &second].iter().take(2 + done) {
            assert_eq!(fake.arrival(), *line);
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        let told = match done {
            0 => format!("stopped waiting: tasks {TASK}, {other} are not stopped\n"),
            _ => format!("stopped waiting: task {other} continues\n"),
        };
        assert!(ran.status == 130 && ran.stderr.contains(&told), "{ran:?}");
    }
}

/// Serves the handshake of an export of 1 MiB, and reads until the client has left; returns the last command.
fn serve_export(listener: UnixListener) -> thread::JoinHandle<u16> {
    thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        client.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
        let mut head = [0; 20];
        client.read_exact(&mut head).unwrap();
        let mut option = vec![0; usize::from(head[19])];
        client.read_exact(&mut option).unwrap();
        let reply = |kind: u32, data: &[u8]| {
            let (len, head) = (data.len() as u32, 0x0003_e889_0455_65a9_u64.to_be_bytes());
            [&head[..], &7_u32.to_be_bytes(), &kind.to_be_bytes(), &len.to_be_bytes(), data].concat()
        };
        let info = [&0_u16.to_be_bytes()[..], &(1_u64 << 20).to_be_bytes(), &1_u16.to_be_bytes()].concat();
        client.write_all(&[reply(3, &info), reply(1, &[])].concat()).unwrap();
        let mut requests = Vec::new();
        client.read_to_end(&mut requests).unwrap();
        requests.chunks_exact(28).last().map_or(0, |last| u16::from_be_bytes([last[6], last[7]]))
    })
}

#[test]
fn incomplete_copy_of_an_image_leaves_no_volume() {
    const DELETE: &str = "DELETE /v1/volumes/59";
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(2 << 20).unwrap();
    let image = image.display().to_string();
    // The export has 1 MiB, and stdin never ends.
    for (from, signal, status, last_command) in [
        (image.as_str(), None, 1, 2),
        ("-", Some(Signal::INT), 130, 0),
        ("-", Some(Signal::TERM), 130, 0),
        ("-", Some(Signal::HUP), 130, 0),
    ] {
        let socket = dir.path().join(format!("nbd{}-{status}", signal.map_or(0, Signal::as_raw)));
        let server = serve_export(UnixListener::bind(&socket).unwrap());
        let mut volume = volume("59", "db");
        volume["uri"] = json!(format!("nbd+unix:///db?socket={}", socket.display()));
        // The daemon sees the end of the connection late.
        let fake = Fake::start(vec![
            ("POST /v1/volumes", ok(volume)),
            (DELETE, fail(409, "volume_in_use", "volume db has 1 client")),
            (DELETE, ok(reply("DELETE /v1/volumes/db"))),
        ]);
        let mut command = fake.command(&format!("volume create db --size 2MiB --from-image {from}"));
        let child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert_eq!(fake.arrival(), "POST /v1/volumes");
        if let Some(signal) = signal {
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        assert_eq!(fake.arrival(), DELETE);
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert!(ran.status == status && !ran.stderr.contains("is left"), "{from} {ran:?}");
        assert_eq!(fake.seen().iter().filter(|seen| seen.line == DELETE).count(), 2);
        assert_eq!(server.join().unwrap(), last_command, "{from} {signal:?}");
    }
}

#[test]
fn damage_that_only_others_have_is_a_warning() {
    let damage = |affects: &[&str]| {
        let affects: Vec<_> = affects
            .iter()
            .map(|id| json!({ "cloudSnapshotId": snap(id), "lostBytes": 1, "ranges": [] }))
            .collect();
        json!({ "object": "blockd/data/pack-00000000", "offsetBytes": 1, "cause": "altered", "affects": affects })
    };
    for (affects, warning) in [
        (vec![], "no cloud snapshot needs".to_owned()),
        (vec!["59-62"], format!("cloud snapshot {} needs", snap("59-62"))),
        (vec!["59-63", "59-62"], format!("cloud snapshot {} and 1 other need", snap("59-62"))),
    ] {
        let mut verified = task("Verify-Done", 2);
        verified["findings"] = json!({
            "snapshots": 1, "damagedSnapshots": [], "objects": 3, "blockBytes": 1, "comparedBytes": 0,
            "damage": [damage(&affects)], "damageTotal": 1,
        });
        let verify = "POST /v1/cloudsnaps/verify";
        let fake = Fake::start(vec![(verify, ok(reply(verify))), (ONE_TASK, ok(verified))]);
        let ran = fake.run(&format!("cloudsnap verify --snap {} --wait", snap("59-61")));
        assert_eq!(ran.status, 0, "{ran:?}");
        let expected = format!("warning: object blockd/data/pack-00000000 is damaged, which {warning}");
        assert!(ran.stderr.contains(&expected), "{ran:?}");
    }
}

#[test]
fn stop_of_a_group_stops_its_unfinished_backups() {
    const GROUP: &str = "aaaaaaaa-e12a-4d35-81ad-985657757352";
    let ids = ["11111111", "22222222", "33333333"].map(|id| format!("{id}{}", &TASK[8..]));
    let member = |id: &str, state| {
        let mut task = task(state, 1);
        (task["taskId"], task["groupId"]) = (json!(id), json!(GROUP));
        task
    };
    let tasks =
        [member(&ids[0], "Backup-Active"), member(&ids[1], "Backup-Done"), member(&ids[2], "Backup-Pending")];
    let stops =
        [&ids[0], &ids[2]].map(|id| (format!("POST /v1/tasks/{id}/stop"), member(id, "Backup-Stopped")));
    let mut replies = vec![("GET /v1/tasks", ok(list(json!(tasks))))];
    replies.extend(stops.iter().map(|(line, task)| (line.as_str(), ok(task.clone()))));
    let fake = Fake::with_defaults(replies);
    let ran = fake.run("cloudsnap stop --name aaaaaaaa");
    assert_eq!((ran.status, ran.stdout.lines().count()), (0, 2), "{ran:?}");
    let stopped: Vec<_> =
        fake.seen().into_iter().map(|seen| seen.line).filter(|line| line.contains("/stop")).collect();
    assert_eq!(stopped, stops.each_ref().map(|(line, _)| line.clone()));
    // The document of a group is a list, also with one member.
    let (line, stopped) = &stops[0];
    let fake = Fake::with_defaults(vec![
        ("GET /v1/tasks", ok(list(json!([tasks[0]])))),
        (line.as_str(), ok(stopped.clone())),
    ]);
    assert_eq!(fake.run("-j cs stop aaaaaaaa").json()["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(fake.run("-j cs stop 11111111").json()["taskId"], json!(ids[0]));
    // A prefix of the group and of one of its tasks is ambiguous.
    let mut own = tasks.clone();
    own[2]["taskId"] = json!(format!("aaaa{}", &TASK[4..]));
    let fake = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!(own))))]);
    let ran = fake.run("cloudsnap stop --name aaaa --discard");
    assert!(ran.status == 2 && fake.changes().is_empty(), "{ran:?}");
    // A prefix of several tasks is no group.
    let mut other = member(&ids[1], "Backup-Active");
    other["groupId"] = json!(TASK);
    let fake = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!([tasks[0], other]))))]);
    assert_eq!(fake.run("cloudsnap stop --name aaaaaaaa").status, 2);
}

#[test]
fn backups_at_several_locations_are_told_apart() {
    let ids = [TASK, "4f4f0a67-e12a-4d35-81ad-985657757352"];
    let ended = |id: &str, location: &str, state: &str| {
        let mut one = task(state, 9);
        (one["taskId"], one["credentialName"]) = (json!(id), json!(location));
        ok(one)
    };
    let routes = ids.map(|id| format!("GET /v1/tasks/{id}"));
    let fake = Fake::with_defaults(vec![
        (BACKUP, ok(list(json!(ids.map(|id| json!({ "taskId": id })))))),
        (&routes[0], ended(ids[0], "nas", "Backup-Done")),
        (&routes[1], ended(ids[1], "offsite", "Backup-Failed")),
    ]);
    let ran = fake.run("cs backup db --cred-id nas --cred-id offsite --wait");
    for words in [
        &format!("backup at nas started successfully with id: {}\n", ids[0]),
        &format!("backup at offsite started successfully with id: {}\n", ids[1]),
        "backup at nas completed: ",
    ] {
        assert!(ran.stdout.contains(words), "{words} {ran:?}");
    }
    assert!(ran.stderr.contains("backup at offsite failed: "), "{ran:?}");
    let one = Fake::with_defaults(vec![started(), (ONE_TASK, ended(TASK, "nas", "Backup-Done"))]);
    let ran = one.run("cs backup db --cred-id nas --wait");
    assert!(ran.stdout.contains("backup started ") && ran.stdout.contains("backup completed"), "{ran:?}");
}

#[test]
fn watch_of_a_stored_name_lists_the_store_once() {
    const TASKS: &str = "GET /v1/tasks";
    let restore = |state: &str| {
        let mut one = task(state, 4);
        (one["cloudSnapshotId"], one["name"]) = (json!(snap("59-60")), json!(null));
        ok(list(json!([one])))
    };
    let mut stored = reply("GET /v1/cloudsnaps");
    stored["items"][0]["name"] = json!("before");
    let fake = Fake::with_defaults(vec![
        (TASKS, restore("Restore-Active")),
        (TASKS, restore("Restore-Active")),
        (TASKS, restore("Restore-Done")),
        ("GET /v1/cloudsnaps", ok(stored)),
    ]);
    let ran = fake.run("cs status --watch before");
    let lists = fake.seen().iter().filter(|seen| seen.line.starts_with("GET /v1/cloudsnaps")).count();
    assert_eq!((ran.status, lists), (0, 1), "{ran:?}");
    assert!(ran.stdout.contains("Restore-Done"), "{ran:?}");
}

#[test]
fn damage_of_a_volume_is_listed_with_its_files() {
    let files: Vec<_> = (1..8).map(|number| format!("/srv/{}/{number}", "data".repeat(9))).collect();
    let object = format!("layer 42 of volume {}", "data".repeat(15));
    let cause =
        "4096 bytes differ from their checksum; the first snapshot with them: snapshot 590114184663672482";
    let damage = |files: &[String]| {
        let offset = 109_951_162_777_600_u64;
        json!({ "object": object, "offsetBytes": offset, "cause": cause, "affects": [], "files": files })
    };
    let mut scrubbed = task("Scrub-Failed", 2);
    scrubbed["findings"] = json!({
        "blockBytes": 1 << 30, "damage": [damage(&files), damage(&files[..1]), damage(&[])], "damageTotal": 3,
    });
    let scrub = "POST /v1/scrub";
    let fake = Fake::start(vec![(scrub, ok(reply(scrub))), (ONE_TASK, ok(scrubbed))]);
    let ran = fake.run("volume scrub db --wait");
    assert_eq!(ran.status, 1, "{ran:?}");
    let table = ran.stdout.split_once("OBJECT").unwrap().1;
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{}", ran.stdout);
    let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
    let first = files[..5].join(", ");
    let listed = [format!("{cause}; files: {first} and 2 more"), format!("{cause}; files: {}", files[0])];
    assert!(listed.iter().all(|text| words.contains(text)) && words.ends_with(cause), "{}", ran.stdout);
}
