//! Block status and changed-block tracking, read by libnbd and QEMU and compared block by block with a model.

use crate::harness::{
    BLOCK, Bed, Daemon, MIB, Nbd, Rng, assert_same, nbd::command, nbd::flag, process::must_run,
};
use serde_json::Value;
use std::collections::BTreeMap;

const SIZE: u64 = 16 * MIB;
const BLOCKS: usize = (SIZE / BLOCK) as usize;

/// Flags of `base:allocation` extents.
const DATA: u64 = 0;
const HOLE: u64 = 3;
const ZERO: u64 = 2;

/// Model of a volume with the expected state of each block.
struct Model {
    content: Vec<u8>,
    allocation: Vec<u64>,
    /// Content and the blocks dirtied since, by snapshot.
    snapshots: BTreeMap<String, (Vec<u8>, Vec<bool>)>,
}

impl Model {
    fn change(&mut self, client: &mut Nbd, rng: &mut Rng) {
        let len = rng.between(1, 24);
        let first = rng.below(BLOCKS as u64 - len);
        let blocks = first as usize..(first + len) as usize;
        let (offset, len) = (first * BLOCK, len * BLOCK);
        let bytes = offset as usize..(offset + len) as usize;
        let (command, flags, what) = match rng.below(6) {
            0 => (command::TRIM, 0, HOLE),
            1 => (command::WRITE_ZEROES, 0, HOLE),
            2 => (command::WRITE_ZEROES, flag::NO_HOLE, ZERO),
            _ => (command::WRITE, 0, DATA),
        };
        let data = if what == DATA { rng.bytes(len) } else { Vec::new() };
        client.call(command, flags, offset, len, &data).unwrap();
        if what == DATA {
            self.content[bytes].copy_from_slice(&data);
        } else {
            self.content[bytes].fill(0);
        }
        for block in blocks.clone() {
            // Zeroing zeroes dirties no block.
            if what == DATA || self.allocation[block] == DATA {
                self.snapshots.values_mut().for_each(|(_, dirty)| dirty[block] = true);
            }
        }
        self.allocation[blocks].fill(what);
    }

    fn snapshot(&mut self, daemon: &Daemon, name: &str) {
        daemon.ctl().json(&["snapshot", "create", "vol", "--name", name]);
        self.snapshots.insert(name.to_owned(), (self.content.clone(), vec![false; BLOCKS]));
        // A freeze drops the allocation of zeroes.
        self.allocation.iter_mut().filter(|what| **what == ZERO).for_each(|what| *what = HOLE);
    }
}

/// Converts the extents of a map to one value per block; fails unless they cover the volume in whole blocks.
fn blocks_of(map: &Value, start: &str, value: impl Fn(&Value) -> u64) -> Vec<u64> {
    let mut blocks = Vec::new();
    for extent in map.as_array().unwrap() {
        let (at, len) = (extent[start].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        assert_eq!(at, blocks.len() as u64 * BLOCK, "a gap in {map:#}");
        assert!(len > 0 && len.is_multiple_of(BLOCK), "{extent:#}");
        blocks.extend(std::iter::repeat_n(value(extent), (len / BLOCK) as usize));
    }
    assert_eq!(blocks.len(), BLOCKS, "the end is missing in {map:#}");
    blocks
}

fn nbdinfo_map(daemon: &Daemon, export: &str, context: &str) -> Vec<u64> {
    let map = must_run("nbdinfo", &[&format!("--map={context}"), "--json", &daemon.uri(export)]);
    blocks_of(&serde_json::from_str(&map).unwrap(), "offset", |extent| extent["type"].as_u64().unwrap())
}

/// Returns the dirty blocks by QEMU, which reads a dirty bitmap as `base:allocation`: dirty blocks have no
/// data.
fn qemu_dirty_map(daemon: &Daemon, snapshot: &str) -> Vec<u64> {
    let socket = daemon.nbd_socket();
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=vol,x-dirty-bitmap=qemu:dirty-bitmap:{snapshot}",
        socket.display()
    );
    let map = must_run("qemu-img", &["map", "--output=json", "--image-opts", &image]);
    blocks_of(&serde_json::from_str(&map).unwrap(), "start", |extent| u64::from(extent["data"] == false))
}

fn qemu_map(daemon: &Daemon) -> Vec<u64> {
    let map = must_run("qemu-img", &["map", "--output=json", "-f", "raw", &daemon.uri("vol")]);
    let value = |extent: &Value| if extent["zero"] == true { HOLE } else { DATA };
    blocks_of(&serde_json::from_str(&map).unwrap(), "start", value)
}

fn assert_blocks(what: &str, got: &[u64], wanted: &[u64]) {
    let differing: Vec<usize> = (0..BLOCKS).filter(|block| got[*block] != wanted[*block]).collect();
    let Some(first) = differing.first() else { return };
    panic!(
        "{what}: {} blocks differ, the first is {first}: {} instead of {}",
        differing.len(),
        got[*first],
        wanted[*first]
    );
}

fn check(bed: &Bed, daemon: &Daemon, model: &Model) {
    assert_same("the content", &daemon.content("vol"), &model.content);
    assert_blocks("base:allocation", &nbdinfo_map(daemon, "vol", "base:allocation"), &model.allocation);
    // QEMU does not distinguish holes from allocated zeroes.
    let as_qemu: Vec<u64> =
        model.allocation.iter().map(|what| if *what == DATA { DATA } else { HOLE }).collect();
    assert_blocks("qemu-img map", &qemu_map(daemon), &as_qemu);
    for (name, (content, dirty)) in &model.snapshots {
        let dirty: Vec<u64> = dirty.iter().map(|dirty| u64::from(*dirty)).collect();
        let context = format!("qemu:dirty-bitmap:{name}");
        assert_blocks(&context, &nbdinfo_map(daemon, "vol", &context), &dirty);
        assert_blocks(&format!("qemu-img map of {context}"), &qemu_dirty_map(daemon, name), &dirty);
        let copy = bed.path("copy");
        must_run("nbdcopy", &[&daemon.uri(&format!("vol@{name}")), copy.to_str().unwrap()]);
        assert_same(&format!("nbdcopy of vol@{name}"), &std::fs::read(&copy).unwrap(), content);
        // A snapshot has holes exactly where it reads as zeroes.
        let map = nbdinfo_map(daemon, &format!("vol@{name}"), "base:allocation");
        for (block, what) in map.iter().enumerate() {
            let bytes = &content[block * BLOCK as usize..][..BLOCK as usize];
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            assert_eq!(*what, if is_zero { HOLE } else { DATA }, "block {block} of vol@{name}");
        }
    }
}

#[test]
fn block_status_maps_are_exact_to_the_block() {
    let mut rng = Rng::of_test("block_status_maps_are_exact_to_the_block");
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    daemon.ctl().create_volume("vol", "16MiB");
    let mut model =
        Model { content: vec![0; SIZE as usize], allocation: vec![HOLE; BLOCKS], snapshots: BTreeMap::new() };
    let mut client = daemon.nbd("vol");
    for name in ["first", "second", "third"] {
        for _ in 0..40 {
            model.change(&mut client, &mut rng);
        }
        check(&bed, &daemon, &model);
        model.snapshot(&daemon, name);
        check(&bed, &daemon, &model);
    }
    for _ in 0..20 {
        model.change(&mut client, &mut rng);
    }
    check(&bed, &daemon, &model);
    // Changes before the oldest remaining snapshot are dropped; the rest stays.
    daemon.ctl().json(&["snapshot", "delete", "vol@second"]);
    model.snapshots.remove("second");
    check(&bed, &daemon, &model);
    client.flush();
    client.close();
    let setup = daemon.stop();
    let daemon = setup.start();
    // After a restart, zeroed blocks that hide blocks of lower layers may be reported as data.
    let found = nbdinfo_map(&daemon, "vol", "base:allocation");
    for (what, found) in model.allocation.iter_mut().zip(found).filter(|(what, _)| **what != DATA) {
        assert!([DATA, HOLE].contains(&found));
        *what = found;
    }
    check(&bed, &daemon, &model);
    let _ = daemon.stop();
}
