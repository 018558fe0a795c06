//! Index over layers: adjacent frozen layers form groups of eight, recursively, and each group has the union
//! of its members' block sets.
//!
//! A block that a group does not hold costs one lookup instead of eight, so 64 layers cost at most 17 lookups
//! and 512 cost 25. Groups are formed from the bottom of the stack, where layers seldom change, and are
//! immutable: a new stack reuses the groups with unchanged members. A group costs the memory of one more
//! block set.

use crate::{
    head::Head,
    head::live_map::BlockState,
    layer::stack::{FrozenLayer, Layer, Source, resolve_held},
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use std::{collections::HashMap, sync::Arc};

/// Members of a group.
const GROUP_MEMBERS: usize = 8;

/// A layer, or adjacent frozen layers with a common block set.
#[derive(Clone)]
pub(crate) enum Cover {
    Open(Arc<Head>),
    Frozen(Arc<FrozenLayer>),
    Group(Arc<Group>),
}

/// Adjacent frozen layers, top first.
pub(crate) struct Group {
    /// Union of the members' blocks.
    held: BlockSet,
    members: Vec<Cover>,
}

impl Cover {
    /// Builds the covers of layers, top first, reusing groups of `old`.
    pub(crate) fn build(layers: &[Layer], old: &[Self]) -> Vec<Self> {
        let mut known = HashMap::new();
        collect_groups(old, &mut known);
        let mut covers = Vec::new();
        let mut frozen = Vec::new();
        for layer in layers {
            match layer {
                Layer::Open(head) => {
                    covers.append(&mut grouped(std::mem::take(&mut frozen), &known));
                    covers.push(Self::Open(head.clone()));
                }
                Layer::Frozen(layer) => frozen.push(Self::Frozen(layer.clone())),
            }
        }
        covers.append(&mut grouped(frozen, &known));
        covers
    }

    /// Returns the identity of a layer or group: its address while it is referenced.
    fn address(&self) -> usize {
        match self {
            Self::Open(head) => Arc::as_ptr(head).addr(),
            Self::Frozen(layer) => Arc::as_ptr(layer).addr(),
            Self::Group(group) => Arc::as_ptr(group).addr(),
        }
    }

    fn union_held_into(&self, union: &mut BlockSet) {
        match self {
            // Open layers are never grouped.
            Self::Open(_) => {}
            Self::Frozen(layer) => union.union_with(&layer.set.held),
            Self::Group(group) => union.union_with(&group.held),
        }
    }
}

/// Returns the approximate memory of the groups' block sets.
pub(crate) fn heap_bytes(covers: &[Cover]) -> u64 {
    let groups = covers.iter().filter_map(|cover| match cover {
        Cover::Group(group) => Some(group),
        _ => None,
    });
    groups.map(|group| group.held.heap_bytes_estimate() + heap_bytes(&group.members)).sum()
}

/// Existing groups by the addresses of their members.
type Known = HashMap<Vec<usize>, Arc<Group>>;

fn addresses(members: &[Cover]) -> Vec<usize> {
    members.iter().map(Cover::address).collect()
}

fn collect_groups(covers: &[Cover], known: &mut Known) {
    for cover in covers {
        if let Cover::Group(group) = cover {
            known.insert(addresses(&group.members), group.clone());
            collect_groups(&group.members, known);
        }
    }
}

/// Groups covers recursively, from the bottom.
fn grouped(mut covers: Vec<Cover>, known: &Known) -> Vec<Cover> {
    let ungrouped = covers.len() % GROUP_MEMBERS;
    if ungrouped == covers.len() {
        return covers;
    }
    let lower = covers.split_off(ungrouped);
    debug_assert!(lower.len().is_multiple_of(GROUP_MEMBERS), "groups are full");
    let groups = lower.chunks(GROUP_MEMBERS).map(|members| {
        Cover::Group(known.get(&addresses(members)).cloned().unwrap_or_else(|| Arc::new(group(members))))
    });
    let groups = groups.collect();
    covers.append(&mut grouped(groups, known));
    covers
}

fn group(members: &[Cover]) -> Group {
    let mut held = BlockSet::new();
    for member in members {
        assert!(!matches!(member, Cover::Open(_)), "open layers are never grouped");
        member.union_held_into(&mut held);
    }
    held.optimize();
    Group { held, members: members.to_vec() }
}

/// Returns the source of a block.
pub(crate) fn source_of(mut covers: &[Cover], block: BlockIndex) -> Source<'_> {
    while let Some((first, below)) = covers.split_first() {
        covers = below;
        match first {
            Cover::Open(head) => match head.state(block) {
                BlockState::Absent => {}
                BlockState::Data => return Some(&head.data),
                BlockState::Zero => return None,
            },
            Cover::Frozen(layer) => {
                if layer.set.held.contains(block) {
                    return (!layer.set.zero.contains(block)).then_some(&layer.data);
                }
            }
            Cover::Group(group) => {
                if group.held.contains(block) {
                    // A member holds the block, so the lower layers are not searched.
                    covers = &group.members;
                }
            }
        }
    }
    None
}

/// Reports the source of each extent of a range, ascending.
pub(crate) fn resolve<'a, E>(
    covers: &'a [Cover],
    range: Extent,
    found: &mut dyn FnMut(Extent, Source<'a>) -> Result<(), E>,
) -> Result<(), E> {
    match range.len_blocks {
        0 => return Ok(()),
        1 => return found(range, source_of(covers, range.start)),
        _ => {}
    }
    let Some((first, below)) = covers.split_first() else { return found(range, None) };
    let mut at = range.start;
    match first {
        Cover::Open(head) => {
            for (extent, state) in head.states(range) {
                at = extent.end();
                match state {
                    BlockState::Absent => resolve(below, extent, found)?,
                    BlockState::Data => found(extent, Some(&head.data))?,
                    BlockState::Zero => found(extent, None)?,
                }
            }
            // `at` may be before the end of the range: an open layer below the head may be shorter than the
            // grown volume.
        }
        Cover::Frozen(layer) => {
            for extent in layer.set.held.extents_in(range) {
                resolve(below, Extent::between(at, extent.start), found)?;
                at = extent.end();
                resolve_held(layer, extent, found)?;
            }
        }
        Cover::Group(group) => {
            for extent in group.held.extents_in(range) {
                resolve(below, Extent::between(at, extent.start), found)?;
                at = extent.end();
                resolve(&group.members, extent, found)?;
            }
        }
    }
    debug_assert!(range.start <= at && at <= range.end(), "sources are inside the range");
    resolve(below, Extent::between(at, range.end()), found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{layer::data_files::DataFiles, layer::set::LayerSet, layer::stack::Stack};
    use blockd_extent::Epoch;
    use proptest::prelude::*;

    const BLOCKS: u64 = 200;

    fn layer(dir: &std::path::Path, epoch: u64, held: &[(u64, u64)], zero: &[(u64, u64)]) -> Layer {
        let set_of = |runs: &[(u64, u64)]| {
            BlockSet::from_iter(
                runs.iter().map(|&(start, len)| Extent::new(BlockIndex(start), len.min(BLOCKS - start))),
            )
        };
        let held = set_of(held);
        let mut zero = set_of(zero);
        zero.intersect_with(&held);
        Layer::Frozen(Arc::new(FrozenLayer {
            epoch: Epoch(epoch),
            file: Epoch(epoch),
            generation: 0,
            size_bytes: BLOCKS * 4096,
            data: Arc::new(DataFiles::create(&dir.join(epoch.to_string()), BLOCKS * 4096).unwrap().into()),
            set: LayerSet { held, zero },
            has_all_zeroes: true,
        }))
    }

    /// Returns the source of a block by a search in every layer: the address of its data files.
    fn expected_source(layers: &[Layer], block: BlockIndex) -> Option<usize> {
        for layer in layers {
            let Layer::Frozen(layer) = layer else { unreachable!("all are frozen") };
            if layer.set.held.contains(block) {
                return (!layer.set.zero.contains(block)).then(|| Arc::as_ptr(&layer.data).addr());
            }
        }
        None
    }

    /// Returns the sources of all blocks of a range from a stack.
    fn resolved(stack: &Stack, range: Extent) -> Vec<Option<usize>> {
        let mut found = Vec::new();
        stack
            .resolve(range, &mut |extent, source| {
                assert_eq!(extent.start.0, range.start.0 + found.len() as u64, "sources are contiguous");
                let source = source.map(|data| Arc::as_ptr(data).addr());
                found.extend((0..extent.len_blocks).map(|_| source));
                Ok::<(), ()>(())
            })
            .unwrap();
        found
    }

    fn runs() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0..BLOCKS, 1..12u64), 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn covers_agree_with_every_layer(
            sets in prop::collection::vec((runs(), runs()), 1..80),
            removed in 0..80usize,
            start in 0..BLOCKS,
            len in 1..BLOCKS,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut layers: Vec<Layer> = sets
                .iter()
                .enumerate()
                .map(|(epoch, (held, zero))| layer(dir.path(), epoch as u64, held, zero))
                .rev()
                .collect();
            let whole = Stack::new(layers.clone(), &Stack::default());
            layers.remove(removed % sets.len());
            // Groups with the removed layer are not reused.
            let shorter = Stack::new(layers.clone(), &whole);
            let range = Extent::new(BlockIndex(start), len.min(BLOCKS - start));
            for stack in [&whole, &shorter] {
                let expected = |range: Extent| {
                    (range.start.0..range.end().0).map(|block| expected_source(stack.layers(), BlockIndex(block))).collect::<Vec<_>>()
                };
                prop_assert_eq!(resolved(stack, range), expected(range));
                for block in 0..BLOCKS {
                    let one = Extent::new(BlockIndex(block), 1);
                    prop_assert_eq!(resolved(stack, one), expected(one));
                }
            }
        }
    }

    #[test]
    fn new_layer_keeps_lower_groups() {
        let dir = tempfile::tempdir().unwrap();
        let mut layers: Vec<Layer> =
            (0..70).rev().map(|epoch| layer(dir.path(), epoch, &[(epoch, 3)], &[])).collect();
        let old = Cover::build(&layers, &[]);
        layers.insert(0, layer(dir.path(), 70, &[(1, 1)], &[]));
        let new = Cover::build(&layers, &old);
        // 70 layers: six single ones, then one group of 64.
        assert_eq!((old.len(), new.len()), (7, 8));
        assert_eq!(old.last().map(Cover::address), new.last().map(Cover::address));
        assert!(heap_bytes(&new) > 0);
        layers.insert(0, layer(dir.path(), 71, &[(2, 1)], &[]));
        assert_eq!(Cover::build(&layers, &new).len(), 2, "eight layers form a group");
    }
}
