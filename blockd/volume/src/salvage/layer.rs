//! Salvage of a layer.

use super::repair::Repairer;
use crate::{
    error::VolumeError,
    head::live_map::{Inspection, LiveMap},
    head::log::HeadLog,
    head::volume_dir::VolumeDir,
    io::files,
    layer::damage::DamageList,
    layer::data_files::{DataFiles, Gap},
    layer::set::{LayerSet, SetIdentity},
    layer::stack::FrozenLayer,
    meta::{LayerEntry, Meta},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent};
use std::{path::Path, sync::Arc};

/// Maximum number of data ranges examined for zeroes of an open layer or a lazy base; the rest counts
/// as data.
const MAX_DATA_RANGES: usize = 4096;

/// Layer with its proven and unproven blocks.
pub(super) struct SalvagedLayer {
    /// Layer with its known blocks, including those with lost data.
    pub(super) layer: Arc<FrozenLayer>,
    /// Blocks that the layer holds or may hold, without proven content, by cause.
    pub(super) unproven: Vec<(BlockSet, String)>,
}

/// Known blocks of a layer, and blocks that it may hold, by cause.
struct Tracked {
    set: LayerSet,
    unknown: Vec<(BlockSet, String)>,
}

impl SalvagedLayer {
    pub(super) fn epoch(&self) -> Epoch {
        self.layer.epoch
    }

    pub(super) fn load(
        dir: &Path,
        meta: &Meta,
        entry: &LayerEntry,
        trust_map: bool,
        repairer: &mut Repairer,
    ) -> Result<Self, VolumeError> {
        let volume_dir = VolumeDir { path: dir, volume: meta.volume, size_bytes: entry.size_bytes };
        let base = files::data_path(dir, entry.file);
        let (data, gaps) = DataFiles::open_for_salvage(&base, entry.size_bytes)?;
        let mut tracked = match (entry.open, entry.lazy) {
            (true, _) => open_layer(volume_dir, entry.file, trust_map),
            (false, true) => lazy_base(volume_dir, entry.file),
            (false, false) => frozen_layer(volume_dir, entry, repairer),
        };
        if entry.open || entry.lazy {
            // Errors leave zeroes as data. Missing ranges count as holes here; `lost_in` corrects that.
            for hole in data.holes(entry.size_bytes, MAX_DATA_RANGES).unwrap_or_default() {
                for zero in tracked.set.held.extents_in(Extent::inside(hole.start, hole.end - hole.start)) {
                    tracked.set.zero.insert_extent(zero);
                }
            }
        }
        let mut unproven = tracked.unknown;
        if !entry.open && !entry.lazy {
            unproven.extend(damaged_blocks(dir, meta, entry, &tracked.set));
        }
        for gap in gaps {
            let lost = lost_in(&gap, &mut tracked.set, !entry.open && !entry.lazy);
            if !lost.is_empty() {
                unproven.push((lost, gap.what));
            } else if !repairer.notes.contains(&gap.what) {
                // No block is lost, but the damage prevents the open.
                repairer.notes.push(gap.what);
            }
        }
        Ok(Self { layer: Arc::new(FrozenLayer::new(entry, data.into(), tracked.set)), unproven })
    }
}

/// Returns the held blocks in a gap of the files, without proven zeroes. Removes zeroes that only the holes
/// of the files indicate.
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

/// Returns the blocks that a scrub found damaged; all data of the layer if the list cannot be read.
fn damaged_blocks(dir: &Path, meta: &Meta, entry: &LayerEntry, set: &LayerSet) -> Option<(BlockSet, String)> {
    match DamageList::load(dir, meta.volume, entry.file) {
        Ok(None) => None,
        Ok(Some(list)) => Some((list.blocks(), "a scrub found the block damaged".to_owned())),
        Err(error) => Some((set.data(), error.to_string())),
    }
}

fn complement(known: &BlockSet, blocks: u64) -> BlockSet {
    let mut others = BlockSet::from_iter([Extent::new(BlockIndex(0), blocks)]);
    others.subtract(known);
    others
}

fn frozen_layer(volume_dir: VolumeDir<'_>, entry: &LayerEntry, repairer: &mut Repairer) -> Tracked {
    match repairer.set(volume_dir.path, SetIdentity::of(volume_dir.volume, entry)) {
        Ok(set) => Tracked { set, unknown: vec![] },
        Err(error) => {
            let all = complement(&BlockSet::new(), entry.blocks());
            Tracked { set: LayerSet::default(), unknown: vec![(all, error.to_string())] }
        }
    }
}

/// Returns the blocks of a log, and its damage if it may have named more blocks.
fn logged(volume_dir: VolumeDir<'_>, file: Epoch) -> (BlockSet, Option<String>) {
    let (path, identity) = (files::log_path(volume_dir.path, file), volume_dir.identity(file));
    match HeadLog::inspect(&path, identity) {
        Ok(log) if log.has_intact_end => (log.named, None),
        Ok(log) => {
            let what = match log.torn_bytes {
                0 => "no zeroes follow the last record".to_owned(),
                torn => format!("the last {torn} bytes are not a valid record"),
            };
            let doubt = "it may have named flushed blocks there";
            (log.named, Some(format!("{} has an unproven end: {what}; {doubt}", path.display())))
        }
        Err(error) => (HeadLog::rescue(&path, identity), Some(error.to_string())),
    }
}

/// Salvages a head, or a layer with an unfinished freeze. Blocks of the log have their data on disk. Blocks
/// only in the map were acknowledged but not flushed, and are unproven: their writeback may have failed,
/// which only the sync of the next start would report.
fn open_layer(volume_dir: VolumeDir<'_>, file: Epoch, trust_map: bool) -> Tracked {
    let blocks = volume_dir.blocks();
    let (held, log_damage) = logged(volume_dir, file);
    let mut unknown = Vec::new();
    let map_path = files::map_path(volume_dir.path, file);
    let map = if trust_map {
        LiveMap::inspect(&map_path, volume_dir.identity(file))
    } else {
        Ok(Inspection::Stale)
    };
    match map {
        Ok(Inspection::Trusted(map)) => {
            let readable = Extent::between(BlockIndex(0), map.unread.unwrap_or(BlockIndex(blocks)));
            let mut missed = held.slice(readable);
            missed.subtract(&map.held);
            if missed.is_empty() {
                let mut unflushed = map.held;
                unflushed.subtract(&held);
                let why = log_damage.unwrap_or_else(|| {
                    let what = "unflushed writes are unproven, because their writeback may have failed";
                    format!("{} has blocks that the log lacks: {what}", map_path.display())
                });
                unknown.push((unflushed, why));
            } else {
                // A sound map names all blocks of the log, so it is corrupted.
                let what = "blocks of the log are missing";
                unknown
                    .push((complement(&held, blocks), format!("{} is damaged: {what}", map_path.display())));
            }
            if let Some(unread) = map.unread {
                let mut rest = BlockSet::from_iter([Extent::between(unread, BlockIndex(blocks))]);
                rest.subtract(&held);
                unknown.push((rest, format!("{} is damaged: file is truncated", map_path.display())));
            }
        }
        Ok(Inspection::Stale) => {
            if let Some(what) = log_damage {
                unknown.push((complement(&held, blocks), what));
            }
        }
        Ok(Inspection::Suspect(what)) => unknown.push((complement(&held, blocks), what)),
        Err(error) => unknown.push((complement(&held, blocks), error.to_string())),
    }
    unknown.retain(|(blocks, _)| !blocks.is_empty());
    Tracked { set: LayerSet { held, zero: BlockSet::new() }, unknown }
}

/// Salvages a lazy base: it holds every block, and the logged ones have their data.
fn lazy_base(volume_dir: VolumeDir<'_>, file: Epoch) -> Tracked {
    let (logged_blocks, log_damage) = logged(volume_dir, file);
    let missing = complement(&logged_blocks, volume_dir.blocks());
    let why = log_damage.unwrap_or_else(|| "block was not fetched from the cloud snapshot yet".into());
    let unknown = if missing.is_empty() { vec![] } else { vec![(missing, why)] };
    Tracked { set: LayerSet { held: logged_blocks, zero: BlockSet::new() }, unknown }
}
