//! Remains of a layer.

use super::repair::Repairer;
use crate::{
    error::VolumeError,
    head::live_map::{Inspection, LiveMap},
    head::log::HeadLog,
    head::place::Place,
    io::files,
    layer::data_files::{DataFiles, Gap},
    layer::set::{LayerSet, SetIdentity},
    layer::stack::FrozenLayer,
    meta::{LayerEntry, Meta},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent};
use std::{path::Path, sync::Arc};

/// Maximum number of data ranges examined for zeroes of an open layer; the rest counts as data.
const MAX_RANGES: usize = 4096;

/// Layer, as far as it can be proven.
pub(super) struct Rescued {
    /// Known blocks, including those with lost data.
    pub(super) layer: Arc<FrozenLayer>,
    /// Blocks that it holds or may hold but cannot deliver, by cause.
    pub(super) unproven: Vec<(BlockSet, String)>,
}

/// Blocks of a layer, and blocks that it may hold, by cause.
struct Tracked {
    set: LayerSet,
    unknown: Vec<(BlockSet, String)>,
}

impl Rescued {
    pub(super) fn epoch(&self) -> Epoch {
        self.layer.epoch
    }

    pub(super) fn load(
        dir: &Path,
        meta: &Meta,
        entry: &LayerEntry,
        believe_map: bool,
        mender: &mut Repairer,
    ) -> Result<Self, VolumeError> {
        let place = Place { dir, volume: meta.volume, size_bytes: entry.size_bytes };
        let base = files::data_path(dir, entry.file);
        let (data, gaps) = DataFiles::open_for_salvage(&base, entry.size_bytes)?;
        let mut tracked = match (entry.open, entry.lazy) {
            (true, _) => open_layer(place, entry.file, believe_map),
            (false, true) => lazy_base(place, entry.file),
            (false, false) => frozen_layer(place, entry, mender),
        };
        if entry.open || entry.lazy {
            // A file that was truncated since its length was read has false holes.
            for hole in data.holes(entry.size_bytes, MAX_RANGES).unwrap_or_default() {
                for run in tracked.set.held.extents_in(Extent::inside(hole.start, hole.end - hole.start)) {
                    tracked.set.zero.insert_extent(run);
                }
            }
        }
        let mut unproven = tracked.unknown;
        for gap in gaps {
            let lost = lost_in(&gap, &mut tracked.set, !entry.open && !entry.lazy);
            if !lost.is_empty() {
                unproven.push((lost, gap.what));
            } else if !mender.notes.contains(&gap.what) {
                // Nothing is missing, but this prevents opening the volume.
                mender.notes.push(gap.what);
            }
        }
        Ok(Self { layer: Arc::new(FrozenLayer::new(entry, data.into(), tracked.set)), unproven })
    }
}

/// Returns the blocks of a gap that should have data, without zeroes that are proven by more than holes of
/// the file.
fn lost_in(gap: &Gap, set: &mut LayerSet, zeroes_are_proven: bool) -> BlockSet {
    let first = BlockIndex(gap.range.start / BLOCK_SIZE_BYTES);
    let extent = Extent::between(first, BlockIndex(gap.range.end / BLOCK_SIZE_BYTES));
    let mut lost = BlockSet::from_iter([extent]);
    lost.intersect_with(&set.held);
    if zeroes_are_proven {
        lost.subtract(&set.zero);
    } else {
        set.zero.remove_extent(extent);
    }
    lost
}

fn every_block_but(known: &BlockSet, blocks: u64) -> BlockSet {
    let mut others = BlockSet::from_iter([Extent::new(BlockIndex(0), blocks)]);
    others.subtract(known);
    others
}

fn frozen_layer(place: Place<'_>, entry: &LayerEntry, mender: &mut Repairer) -> Tracked {
    match mender.set(place.dir, SetIdentity::of(place.volume, entry)) {
        Ok(set) => Tracked { set, unknown: vec![] },
        Err(error) => {
            let all = every_block_but(&BlockSet::new(), entry.blocks());
            Tracked { set: LayerSet::default(), unknown: vec![(all, error.to_string())] }
        }
    }
}

/// Returns the blocks of a log, and its damage if it may have named others.
fn logged(place: Place<'_>, file: Epoch) -> (BlockSet, Option<String>) {
    let (path, identity) = (files::log_path(place.dir, file), place.identity(file));
    match HeadLog::inspect(&path, identity) {
        Ok(log) if log.ends_as_written => (log.named, None),
        Ok(log) => {
            let what = match log.torn_bytes {
                0 => "it ends with its last record, where zeroes should follow".to_owned(),
                torn => format!("it ends in {torn} bytes that are no record"),
            };
            let doubt = "what it named there may have been flushed, unless the power was cut just then";
            (log.named, Some(format!("{} is unproven at its end: {what}; {doubt}", path.display())))
        }
        Err(error) => (HeadLog::rescue(&path, identity), Some(error.to_string())),
    }
}

/// Rescues a head, or a layer with an unfinished freeze. Blocks of its log have their data; blocks of its map
/// only were acknowledged and never flushed: their writeback may have failed, which only the sync of the next
/// start would report.
fn open_layer(place: Place<'_>, file: Epoch, believe_map: bool) -> Tracked {
    let blocks = place.blocks();
    let (held, log_damage) = logged(place, file);
    let mut unknown = Vec::new();
    let map_path = files::map_path(place.dir, file);
    let map = if believe_map {
        LiveMap::inspect(&map_path, place.identity(file))
    } else {
        Ok(Inspection::Outlived)
    };
    match map {
        Ok(Inspection::Believed(map)) => {
            let readable = Extent::between(BlockIndex(0), map.unread.unwrap_or(BlockIndex(blocks)));
            let mut missed = held.slice(readable);
            missed.subtract(&map.held);
            if missed.is_empty() {
                let mut unflushed = map.held;
                unflushed.subtract(&held);
                let why = log_damage.unwrap_or_else(|| {
                    let what = "what was written and not flushed is unproven: only the page cache has it for certain";
                    format!("{} names more than the log: {what}", map_path.display())
                });
                unknown.push((unflushed, why));
            } else {
                // It names all blocks of the log (unless it was altered).
                let what = "it lacks blocks that the log names";
                unknown.push((every_block_but(&held, blocks), format!("{}: {what}", map_path.display())));
            }
            if let Some(unread) = map.unread {
                let mut behind = BlockSet::from_iter([Extent::between(unread, BlockIndex(blocks))]);
                behind.subtract(&held);
                unknown.push((behind, format!("{} is cut short", map_path.display())));
            }
        }
        Ok(Inspection::Outlived) => {
            if let Some(what) = log_damage {
                unknown.push((every_block_but(&held, blocks), what));
            }
        }
        Ok(Inspection::Doubtful(what)) => unknown.push((every_block_but(&held, blocks), what)),
        Err(error) => unknown.push((every_block_but(&held, blocks), error.to_string())),
    }
    unknown.retain(|(blocks, _)| !blocks.is_empty());
    Tracked { set: LayerSet { held, zero: BlockSet::new() }, unknown }
}

/// Rescues a lazy base: it holds every block, and delivers present ones.
fn lazy_base(place: Place<'_>, file: Epoch) -> Tracked {
    let (there, log_damage) = logged(place, file);
    let missing = every_block_but(&there, place.blocks());
    let why = log_damage.unwrap_or_else(|| "it was not fetched from the cloud yet".into());
    let unknown = if missing.is_empty() { vec![] } else { vec![(missing, why)] };
    Tracked { set: LayerSet { held: there, zero: BlockSet::new() }, unknown }
}
