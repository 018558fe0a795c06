//! Restores of ten generations of random requests, each compared with its content.

use crate::harness::{BLOCK, Bed, Daemon, MIB, Model, Rng, Task, assert_same, wait_until};

const GENERATIONS: usize = 10;
const STEPS: usize = 120;
/// A multiple of the block size only.
const SIZE: u64 = 12 * MIB + 7 * BLOCK;

fn restore_and_compare(daemon: &Daemon, snaps: &[(Task, Model)], target: &str) {
    let ctl = daemon.ctl();
    for (nth, (task, model)) in snaps.iter().enumerate() {
        let name = format!("gen-{nth}");
        ctl.restore(task.snap(), &name);
        assert_same(&format!("generation {nth} restored {target}"), &daemon.content(&name), &model.bytes);
        ctl.json(&["volume", "delete", &name]);
    }
}

#[test]
fn ten_generations_are_restored_on_a_fresh_daemon() {
    let passphrase = Some("a passphrase of the tests");
    let mut rng = Rng::of_test("ten_generations_are_restored_on_a_fresh_daemon");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start_with_volume(&store, passphrase, &format!("{SIZE}B"));
    let ctl = daemon.ctl();
    let mut client = daemon.nbd("vol");
    assert_eq!(client.size_bytes(), SIZE);
    let mut model = Model::new(SIZE);
    let mut snaps: Vec<(Task, Model)> = Vec::new();
    for generation in 0..GENERATIONS {
        for _ in 0..STEPS {
            model.step(&mut client, &mut rng);
        }
        let frozen = model.clone();
        let id = ctl.start_backup("vol");
        wait_until("the freeze", || ctl.task(&id).is_frozen());
        // Later writes, during the upload, are not in the snapshot.
        for _ in 0..STEPS / 4 {
            model.step(&mut client, &mut rng);
        }
        let task = ctl.wait_task(&id);
        assert_eq!(task.state(), "Backup-Done", "{task:?}");
        assert_eq!(task.is_incremental(), generation % 7 != 0, "generation {generation}: every 7th is full");
        snaps.push((task, frozen));
        assert_same("the volume itself", &client.read_all(), &model.bytes);
    }
    client.close();
    restore_and_compare(&daemon, &snaps, "on the same daemon");
    drop(daemon);

    let fresh = bed.daemon("b").start();
    let ctl = fresh.ctl();
    ctl.add_local("nas", store.dir(), passphrase);
    let known: Vec<&str> = snaps.iter().map(|(task, _)| task.snap()).collect();
    assert_eq!(ctl.done_cloudsnaps(), known, "list of a fresh daemon");
    restore_and_compare(&fresh, &snaps, "on a fresh daemon");
}
