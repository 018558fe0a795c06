//! Consistency groups: real writers on many connections, and a daemon that dies.

use crate::harness::{BLOCK, Bed, Ctl, Daemon, Nbd, wait_for, wait_until};
use serde_json::Value;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

const VOLUMES: u64 = 4;
const CHAINS: u64 = 6;

fn name(volume: u64) -> String {
    format!("v{volume}")
}

/// Sends a chain of writes to all volumes in turn, each after the reply to the one before, each volume on its
/// own connection. Write n has the content n.
fn write_chain(socket: &Path, chain: u64, stop: &AtomicBool, answered: &AtomicU64) {
    let mut clients: Vec<Nbd> = (0..VOLUMES).map(|volume| Nbd::open(socket, &name(volume))).collect();
    for number in 1u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let block = number.to_le_bytes().repeat(BLOCK as usize / 8);
        clients[volume_of(chain, number)].write(chain * BLOCK, &block);
        answered.store(number, Ordering::SeqCst);
    }
}

fn volume_of(chain: u64, write: u64) -> usize {
    let step = if chain.is_multiple_of(2) { 1 } else { VOLUMES - 1 };
    ((write * step + chain) % VOLUMES) as usize
}

/// Returns the number of the chain's last write in each volume.
fn cells_after(chain: u64, last: u64) -> Vec<u64> {
    let mut cells = vec![0; VOLUMES as usize];
    for write in last.saturating_sub(VOLUMES - 1).max(1)..=last {
        cells[volume_of(chain, write)] = write;
    }
    cells
}

fn snapshots_of(taken: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = taken["items"].as_array().unwrap();
    all.iter().map(|snapshot| (text(&snapshot["volumeName"]), text(&snapshot["name"]))).collect()
}

#[test]
fn events_over_many_connections_keep_causal_order() {
    const FREEZES: u64 = 100;
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    for volume in 0..VOLUMES {
        ctl.json(&["volume", "create", &name(volume), "--size", "1MiB", "--group", "shop"]);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let answered: Arc<Vec<AtomicU64>> = Arc::new((0..CHAINS).map(|_| AtomicU64::new(0)).collect());
    let writers: Vec<_> = (0..CHAINS)
        .map(|chain| {
            let (socket, stop, answered) = (daemon.nbd_socket(), stop.clone(), answered.clone());
            thread::spawn(move || write_chain(&socket, chain, &stop, &answered[chain as usize]))
        })
        .collect();
    for round in 0..FREEZES {
        let before: Vec<u64> = answered.iter().map(|last| last.load(Ordering::SeqCst)).collect();
        let snap = format!("s{round}");
        let taken = ctl.json(&["snapshot", "create-group", "--group", "shop", "--name", &snap]);
        let after: Vec<u64> = answered.iter().map(|last| last.load(Ordering::SeqCst)).collect();
        assert_eq!(taken["members"], VOLUMES);
        assert!(taken["groupStallMicros"].as_u64().unwrap() > 0);
        let mut clients: Vec<Nbd> =
            (0..VOLUMES).map(|volume| daemon.nbd(&format!("{}@{snap}", name(volume)))).collect();
        for chain in 0..CHAINS {
            let cells: Vec<u64> = clients
                .iter_mut()
                .map(|client| u64::from_le_bytes(client.read(chain * BLOCK, 8)[..8].try_into().unwrap()))
                .collect();
            let last = cells.iter().copied().max().unwrap();
            assert_eq!(cells, cells_after(chain, last), "chain {chain} has a write without its predecessor");
            let (at_least, at_most) = (before[chain as usize], after[chain as usize] + 1);
            assert!((at_least..=at_most).contains(&last), "chain {chain}: {last} of {at_least} to {at_most}");
        }
        clients.into_iter().for_each(Nbd::close);
        for volume in 0..VOLUMES {
            ctl.json(&["snapshot", "delete", &format!("{}@{snap}", name(volume))]);
        }
    }
    // On a busy machine the writers may be slow.
    wait_until("more writes than freezes by each writer", || {
        assert!(writers.iter().all(|writer| !writer.is_finished()), "a writer has ended");
        answered.iter().all(|last| last.load(Ordering::SeqCst) > FREEZES)
    });
    stop.store(true, Ordering::SeqCst);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

fn assert_invalid_groups_are_refused(ctl: &Ctl) {
    // One member with a snapshot of that name prevents the whole group snapshot.
    ctl.fails_with(
        &["snapshot", "create-group", "--group", "shop", "--name", "two"],
        5,
        "volume db has a snapshot two already",
    );
    for (args, code, part) in [
        (vec!["--group", "empty"], 4, "no volume is in group empty"),
        (vec!["--label", "app=none"], 4, "no volume has the labels app=none"),
        (vec!["--volumes", "db,db"], 2, "volume db is named twice"),
        (vec!["--volumes", "db,missing"], 4, "there is no volume missing"),
    ] {
        let line = [vec!["snapshot", "create-group"], args].concat();
        let error = ctl.fails(&line, code);
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
    }
}

#[test]
fn group_members_survive_a_restart() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.json(&["volume", "create", "db", "--size", "1MiB", "--group", "shop", "--label", "app=shop,tier=db"]);
    ctl.json(&["volume", "create", "wal", "--size", "1MiB", "--label", "app=shop"]);
    ctl.json(&["volume", "create", "other", "--size", "1MiB"]);
    let updated = ctl.json(&["volume", "update", "wal", "--group", "shop", "--label", "app=shop,tier=log"]);
    assert_eq!((updated["group"].as_str(), updated["labels"]["tier"].as_str()), (Some("shop"), Some("log")));
    let listed = ctl.json(&["volume", "list", "--group", "shop"]);
    let names: Vec<_> =
        listed["items"].as_array().unwrap().iter().map(|volume| volume["name"].clone()).collect();
    assert_eq!(names, ["db", "wal"]);

    let by_group = ctl.json(&["snapshot", "create-group", "--group", "shop", "--name", "one"]);
    let expect = |volumes: &[&str], snap: &str| -> Vec<(String, String)> {
        volumes.iter().map(|volume| ((*volume).to_owned(), snap.to_owned())).collect()
    };
    assert_eq!(snapshots_of(&by_group), expect(&["db", "wal"], "one"));
    for snapshot in by_group["items"].as_array().unwrap() {
        assert!(snapshot["exclusiveBytes"].is_u64() && snapshot["sharedBytes"].is_u64(), "{snapshot}");
    }
    let by_label = ctl.json(&["snapshot", "create-group", "--label", "app=shop,tier=db", "--name", "two"]);
    assert_eq!(snapshots_of(&by_label), expect(&["db"], "two"));
    let by_name = ctl.json(&["snapshot", "create-group", "--volumes", "wal,other", "--name", "three"]);
    assert_eq!(snapshots_of(&by_name), expect(&["other", "wal"], "three"));
    assert_eq!(by_name["group"], Value::Null);

    assert_invalid_groups_are_refused(&ctl);

    let check = |daemon: &Daemon| {
        let ctl = daemon.ctl();
        let of = |args: &[&str]| -> Vec<String> {
            let list = ctl.json(&[&["snapshot", "list"], args].concat());
            let named = |snapshot: &Value| {
                format!("{}@{}", snapshot["volumeName"].as_str().unwrap(), snapshot["name"].as_str().unwrap())
            };
            list["items"].as_array().unwrap().iter().map(named).collect()
        };
        assert_eq!(of(&["--group", "shop"]), ["db@one", "wal@one"]);
        assert_eq!(of(&["--group", by_name["groupId"].as_str().unwrap()]), ["other@three", "wal@three"]);
        assert_eq!(of(&["wal", "--group", "shop"]), ["wal@one"]);
        assert_eq!(of(&[]), ["db@one", "db@two", "other@three", "wal@one", "wal@three"]);
        let shown = ctl.json(&["snapshot", "inspect", "wal@one"]);
        assert_eq!(without_space(&shown), without_space(&by_group["items"][1]));
        assert_eq!(shown["takenWith"]["groupId"], by_group["groupId"]);
        assert!(shown["freezeStallMicros"].as_u64().unwrap() > 0);
        assert!(shown["takenWith"]["groupStallMicros"].as_u64() >= shown["freezeStallMicros"].as_u64());
        let volume = ctl.volume("wal");
        assert_eq!(
            (volume["group"].as_str(), volume["labels"]["tier"].as_str()),
            (Some("shop"), Some("log"))
        );
    };
    check(&daemon);
    let daemon = daemon.kill().start();
    check(&daemon);
    let text = daemon.ctl().run(&["snapshot", "inspect", "wal@one"]).stdout;
    assert!(text.contains("Group          : shop\n") && text.contains("Freeze         : "), "{text}");

    let left = daemon.ctl().json(&["volume", "update", "wal", "--no-group", "--no-labels"]);
    assert_eq!((&left["group"], &left["labels"]), (&Value::Null, &serde_json::json!({})));
    let alone = daemon.ctl().json(&["snapshot", "create-group", "--group", "shop"]);
    assert_eq!(alone["members"], 1);
}

/// Returns a snapshot without its space, which later writes change.
fn without_space(snapshot: &Value) -> Value {
    let mut snapshot = snapshot.clone();
    let fields = snapshot.as_object_mut().unwrap();
    fields.retain(|name, _| !["exclusiveBytes", "sharedBytes"].contains(&name.as_str()));
    snapshot
}

/// At its next start the daemon ends the pre-hook and runs the post-hook.
#[test]
fn killed_daemon_resumes_quiesced_applications_at_start() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    daemon.ctl().json(&["volume", "create", "db", "--size", "1MiB"]);
    let (started, resumed) = (bed.path("started"), bed.path("resumed"));
    let pre = format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 600", started.display());
    // A zombie counts as ended.
    let post = format!(
        "grep -q '^State:.[^ZX]' /proc/$(head -n 1 {})/status && echo running > {1}.new || echo ended > {1}.new; mv {1}.new {1}",
        started.display(),
        resumed.display()
    );
    let ctl = daemon.ctl();
    let client = thread::spawn(move || {
        ctl.run(&["snapshot", "create", "db", "--pre-command", &pre, "--post-command", &post])
    });
    wait_until("the pre-hook", || started.exists());
    let daemon = daemon.kill().start();
    assert_ne!(client.join().unwrap().code, 0);
    let pre_hook = wait_for("the post-hook", || std::fs::read_to_string(&resumed).ok());
    assert_eq!(pre_hook, "ended\n", "the pre-hook runs during the post-hook");
    assert_eq!(daemon.ctl().json(&["snapshot", "list"])["items"].as_array().unwrap().len(), 0);
}
