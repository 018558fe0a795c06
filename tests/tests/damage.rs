//! Damaged volumes: refusal and salvage.

use crate::harness::{Bed, Daemon, KIB, Nbd, Rng, Setup, assert_same};
use serde_json::Value;

fn message(error: &Value) -> String {
    format!("{} {}", error["message"].as_str().unwrap(), error["hint"].as_str().unwrap_or_default())
}

fn assert_names(error: &Value, parts: &[&str]) {
    for part in parts {
        assert!(message(error).contains(part), "the error does not name {part:?}: {error:#}");
    }
}

/// A volume of three layers, in units of 64 KiB, and the content of two of its points.
struct Layers {
    name: &'static str,
    now: Vec<u8>,
    first: Vec<u8>,
}

const UNIT: u64 = 64 * KIB;

impl Layers {
    /// Creates the volume: the first layer has units 0 to 31, the second 8 to 15 and 40 to 47, the head 12
    /// and 13.
    fn make(daemon: &Daemon, name: &'static str, rng: &mut Rng) -> Self {
        let ctl = daemon.ctl();
        ctl.create_volume(name, "4MiB");
        let mut client = daemon.nbd(name);
        client.write_long(0, &rng.bytes(32 * UNIT));
        ctl.json(&["snapshot", "create", name, "--name", "first"]);
        let first = client.read_all();
        for unit in [8, 40] {
            client.write(unit * UNIT, &rng.bytes(8 * UNIT));
        }
        ctl.json(&["snapshot", "create", name, "--name", "second"]);
        client.write(12 * UNIT, &rng.bytes(2 * UNIT));
        client.flush();
        let now = client.read_all();
        client.close();
        Self { name, now, first }
    }

    /// Exports a point and compares the readable units. Returns the unreadable units.
    fn lost(&self, setup: &Setup, point: Option<&str>, expected: &[u8]) -> Vec<u64> {
        let image = setup.data_dir().with_file_name("image");
        let image_arg = image.to_str().unwrap();
        let mut args = vec!["--check-volumes", self.name, "--export", image_arg, "--json"];
        args.extend(point.map(|name| ["--snapshot", name]).into_iter().flatten());
        let (code, stdout, stderr) = setup.check(&args);
        assert_eq!(code, 1, "{stdout}{stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        let exported = &report["volumes"][0]["exported"];
        let number = |range: &Value, field: &str| range[field].as_u64().unwrap();
        let mut lost = Vec::new();
        for range in exported["unreadable"].as_array().unwrap() {
            assert!(!range["why"].as_str().unwrap().is_empty(), "{report:#}");
            let start = number(range, "offsetBytes");
            lost.extend(start / UNIT..(start + number(range, "lengthBytes")) / UNIT);
        }
        assert_eq!(number(exported, "unreadableBytes"), lost.len() as u64 * UNIT);
        let mut held = expected.to_vec();
        for &unit in &lost {
            held[(unit * UNIT) as usize..][..UNIT as usize].fill(0);
        }
        assert_same(&format!("{} {point:?}", self.name), &std::fs::read(&image).unwrap(), &held);
        std::fs::remove_file(image).unwrap();
        lost
    }
}

fn alter(path: &std::path::Path, at: usize, bits: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= bits;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_volume_is_refused_and_salvageable() {
    let mut rng = Rng::of_test("damaged_volume_is_refused_and_salvageable");
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let names = ["sound", "missing", "short", "bit", "set", "meta", "lost"];
    let volumes = names.map(|name| Layers::make(&daemon, name, &mut rng));
    let ids = names.map(|name| daemon.ctl().volume_id(name));
    let data_dir = daemon.seen_data_dir();
    let setup = daemon.stop();
    let file = |nth: usize, name: &str| data_dir.join("volumes").join(&ids[nth]).join(name);
    let layer = |number: u32, end: &str| format!("layer-{number:016x}.{end}");
    std::fs::remove_file(file(1, &layer(2, "data"))).unwrap();
    let short = std::fs::File::options().write(true).open(file(2, &layer(1, "data"))).unwrap();
    short.set_len(20 * UNIT + 1).unwrap();
    alter(&file(3, &layer(2, "g0.set")), 60, 4);
    alter(&file(4, &layer(2, "g0.set")), 60, 5);
    alter(&file(5, "volume.meta"), 33, 64);
    alter(&file(6, "volume.meta"), 33, 65);

    let daemon = setup.start();
    let ctl = daemon.ctl();
    let culprits = [layer(2, "data"), layer(1, "data"), layer(2, "g0.set"), layer(2, "g0.set")];
    let culprits = culprits.into_iter().chain(["volume.meta".to_owned(), "volume.meta".to_owned()]);
    for (volume, culprit) in volumes[1..].iter().zip(culprits) {
        let shown = ctl.volume(volume.name);
        assert_eq!(shown["state"], "failed", "{shown:#}");
        assert!(shown["stateReason"].as_str().unwrap().contains(&culprit), "{shown:#}");
        let refused = Nbd::try_open(&daemon.nbd_socket(), volume.name).map(drop).unwrap_err();
        assert!(refused.to_string().contains(&culprit), "{refused}");
        let error = ctl.fails(&["snapshot", "create", volume.name], 1);
        assert_names(&error, &[&culprit, "blockd --check-volumes"]);
    }
    // The undamaged volume is served.
    assert_same("the sound volume", &daemon.content("sound"), &volumes[0].now);
    let setup = daemon.stop();

    let [_, missing, short, bit, set, meta, lost] = &volumes;
    let units = |ranges: &[std::ops::Range<u64>]| ranges.iter().cloned().flatten().collect::<Vec<_>>();
    assert_eq!(missing.lost(&setup, None, &missing.now), units(&[8..12, 14..16, 40..48]));
    assert_eq!(missing.lost(&setup, Some("first"), &missing.first), units(&[]));
    assert_eq!(short.lost(&setup, None, &short.now), units(&[20..26, 26..32]));
    assert_eq!(short.lost(&setup, Some("first"), &short.first), units(&[20..26, 26..32]));
    // One flipped bit is corrected. With more damage, only blocks above the layer are readable.
    assert_eq!(bit.lost(&setup, None, &bit.now), units(&[]));
    assert_eq!(set.lost(&setup, None, &set.now), units(&[0..12, 14..64]));
    assert_eq!(set.lost(&setup, Some("first"), &set.first), units(&[]));
    assert_eq!(meta.lost(&setup, None, &meta.now), units(&[]));
    let image = bed.path("image");
    let refused = |args: &[&str], word: &str| {
        let args = [args, &["--export", image.to_str().unwrap()]].concat();
        let (code, stdout, stderr) = setup.check(&args);
        assert!(code == 3 && stderr.contains(word), "{code} {stdout}{stderr}");
    };
    refused(&["--check-volumes", lost.name], "volume.meta");
    refused(&["--check-volumes", "set", "--snapshot", "never"], "no snapshot never");
    refused(&["--check-volumes", "set", "bit"], "exactly one volume");
    std::fs::write(&image, "mine").unwrap();
    refused(&["--check-volumes", "sound"], "File exists");
    assert_eq!(std::fs::read(&image).unwrap(), b"mine");

    // The checks changed no file: the repaired volume has its content.
    alter(&file(4, &layer(2, "g0.set")), 60, 5);
    let daemon = setup.start();
    assert_same("the repaired volume", &daemon.content("set"), &set.now);
}
