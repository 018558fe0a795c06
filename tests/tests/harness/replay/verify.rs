//! Starts a daemon on the state after a power cut and checks it against the history.

use super::{
    filesystem::Mount,
    group::all_or_none,
    history::{Presence, VolumeHistory, versions_in},
    image::Image,
    load::MEMBERS,
};
use crate::harness::{BLOCK, Ctl, Daemon, Setup};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

const SECTORS_PER_BLOCK: usize = 8;

/// Checks the state after a power cut at `cut`; returns the first finding.
///
/// `dir` holds the mount points, which are unmounted afterwards.
pub fn verify(volumes: &[VolumeHistory], cut: usize, image: &Image, dir: &Path) -> Result<(), String> {
    let setup = Setup::new(&dir.join("after"));
    finding(|| on(setup, image, dir, |daemon| verify_daemon(volumes, cut, daemon)))
}

/// Converts a panic to a finding.
pub(super) fn finding(check: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let checked = catch_unwind(AssertUnwindSafe(check));
    checked.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(text.unwrap_or_else(|| "a panic without a message".into()))
    })
}

/// Starts a daemon with its data directory on a disk image and runs a check.
pub(super) fn on(
    setup: Setup,
    image: &Image,
    dir: &Path,
    check: impl FnOnce(&Daemon) -> Result<(), String>,
) -> Result<(), String> {
    let file = dir.join("image");
    image.store(&file).map_err(|error| format!("write failed on the image: {error}"))?;
    let mount = Mount::of(&file, &setup.data_dir())?;
    let daemon = setup.try_start().map_err(|(status, log)| format!("blockd ended with {status}:\n{log}"))?;
    let checked = finding(|| check(&daemon));
    let log = daemon.log();
    drop(daemon);
    mount.end()?;
    checked.map_err(|what| format!("{what}\n--- log of blockd:\n{log}---"))
}

fn names(list: &Value) -> Vec<String> {
    let entries = list["items"].as_array().into_iter().flatten();
    entries.map(|entry| entry["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Compares the found names with the expected presence. Returns the items that were found.
fn present<'a, T>(
    what: &str,
    all: impl Iterator<Item = (&'a str, Presence, T)>,
    found: &[String],
) -> Result<Vec<T>, String> {
    let mut there = Vec::new();
    let mut known = 0;
    for (name, presence, item) in all {
        let is_there = found.iter().any(|found| found == name);
        match (presence, is_there) {
            (Presence::Must, false) => return Err(format!("{what} {name} is missing")),
            (Presence::Cannot, true) => return Err(format!("{what} {name} exists and must not")),
            _ => {}
        }
        if is_there {
            known += 1;
            there.push(item);
        }
    }
    match known == found.len() {
        true => Ok(there),
        false => Err(format!("an unknown {what} is among {found:?}")),
    }
}

fn verify_daemon(volumes: &[VolumeHistory], cut: usize, daemon: &Daemon) -> Result<(), String> {
    let ctl = daemon.ctl();
    let list = ctl.json(&["volume", "list"]);
    let all = volumes.iter().map(|volume| (volume.name.as_str(), volume.presence(cut), volume));
    let members = &volumes[..volumes.len().min(MEMBERS)];
    if members.iter().all(|volume| volume.presence(cut) == Presence::Must) {
        let listed = |volume: &VolumeHistory| names(&ctl.json(&["snapshot", "list", &volume.name]));
        all_or_none(members, &members.iter().map(listed).collect::<Vec<_>>(), cut)?;
    }
    for volume in present("volume", all, &names(&list))? {
        verify_volume(volume, cut, daemon, &ctl).map_err(|what| format!("volume {}: {what}", volume.name))?;
    }
    Ok(())
}

fn verify_volume(volume: &VolumeHistory, cut: usize, daemon: &Daemon, ctl: &Ctl) -> Result<(), String> {
    let name = &volume.name;
    let shown = ctl.volume(name);
    if shown["state"] != "up" {
        return Err(format!("state is not up: {shown:#}"));
    }
    let sizes = volume.possible_sizes(cut);
    let current = daemon.content(name);
    if !sizes.contains(&(current.len() as u64)) {
        return Err(format!("size is {} bytes instead of one of {sizes:?}", current.len()));
    }
    let current = versions_in(&current)?;
    for (sector, version) in current.iter().enumerate() {
        if !volume.possible_versions(sector, cut).any(|possible| possible == *version) {
            let possible: Vec<u64> = volume.possible_versions(sector, cut).collect();
            return Err(format!("sector {sector} has version {version} instead of one of {possible:?}"));
        }
    }
    let list = ctl.json(&["snapshot", "list", name]);
    let all =
        volume.snapshots.iter().map(|snapshot| (snapshot.name.as_str(), snapshot.presence(cut), snapshot));
    let snapshots = present("snapshot", all, &names(&list))?;
    for snapshot in &snapshots {
        let found = versions_in(&daemon.content(&format!("{name}@{}", snapshot.name)))
            .map_err(|what| format!("snapshot {}: {what}", snapshot.name))?;
        if found != snapshot.versions {
            let first = found.iter().zip(&snapshot.versions).position(|(a, b)| a != b);
            return Err(format!(
                "snapshot {} differs from the frozen content, first at sector {first:?}",
                snapshot.name
            ));
        }
        covers(ctl, name, &snapshot.name, None, &snapshot.versions, &current)?;
    }
    for pair in snapshots.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        covers(ctl, name, &from.name, Some(&to.name), &from.versions, &to.versions)?;
    }
    let (code, checked) = ctl.document(&["volume", "check", name]);
    match (code, &checked["sound"]) {
        (0, Value::Bool(true)) => verify_use(daemon, name, &current),
        _ => Err(format!("volume check failed: {checked:#}")),
    }
}

/// Checks that changed-block tracking between two points covers all differences.
fn covers(
    ctl: &Ctl,
    volume: &str,
    from: &str,
    to: Option<&str>,
    old: &[u64],
    new: &[u64],
) -> Result<(), String> {
    let mut args = vec!["snapshot", "diff", volume, from];
    args.extend(to);
    let document = ctl.json(&args);
    let mut tracked: BTreeMap<u64, u64> = BTreeMap::new();
    for extent in document["items"].as_array().into_iter().flatten() {
        let number = |field: &str| extent[field].as_u64().unwrap_or_default();
        tracked.insert(number("offsetBytes"), number("offsetBytes") + number("lenBytes"));
    }
    for (number, sectors) in new.chunks(SECTORS_PER_BLOCK).enumerate() {
        let first = number * SECTORS_PER_BLOCK;
        let before = (first..first + sectors.len()).map(|at| old.get(at).copied().unwrap_or(0));
        let at = number as u64 * BLOCK;
        let is_tracked = tracked.range(..=at).next_back().is_some_and(|(_, end)| at < *end);
        if !is_tracked && !before.eq(sectors.iter().copied()) {
            let to = to.unwrap_or("now");
            return Err(format!("block {number} differs between {from} and {to} and is not tracked"));
        }
    }
    Ok(())
}

/// Checks that the volume is writable. Acknowledges discarded writes first: without a reboot the daemon
/// assumes that clients survived the power cut.
fn verify_use(daemon: &Daemon, name: &str, current: &[u64]) -> Result<(), String> {
    let ctl = daemon.ctl();
    if !ctl.volume(name)["discardedWrites"].is_null() {
        ctl.json(&["volume", "update", name, "--acknowledge-discarded-writes"]);
    }
    let mut client = daemon.nbd(name);
    let at = (current.len() as u64 / 2) * 512;
    let data = [0x5a; 700];
    client.write(at, &data);
    client.flush();
    match client.read(at, data.len() as u64) == data {
        true => Ok(()),
        false => Err("a write does not read back".into()),
    }
}
