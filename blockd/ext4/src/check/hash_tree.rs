//! Hash trees of directories: their nodes name each block once, in the order of hashes.

use super::{limits::Stop, state::Check};
use crate::{
    Inode, Structure,
    bytes::{le16, le32},
    dir::{NODE_TABLE_AT, ROOT_TABLE_AT},
    features::bit,
};

/// Offsets of the length of the root info and of the number of levels.
const INFO_LEN_AT: usize = 29;
const LEVELS_AT: usize = 30;
const INFO_LEN: u8 = 8;
/// Mask of the block numbers in nodes.
const BLOCK_MASK: u32 = 0x0fff_ffff;

impl Check<'_> {
    pub fn check_hash_tree(&mut self, inode: &Inode) -> Result<(), Stop> {
        let blocks = inode.size_bytes / self.fs.disk().block_len() as u64;
        self.memory.take(blocks)?;
        let damage = self.hash_tree_damage(inode, blocks)?;
        self.memory.give_back(blocks);
        if let Some(reason) = damage {
            self.add_damage(Structure::Inode(inode.number), reason);
        }
        Ok(())
    }

    /// Returns the first violation of a hash tree.
    fn hash_tree_damage(&mut self, inode: &Inode, blocks: u64) -> Result<Option<&'static str>, Stop> {
        let mut is_named = vec![false; usize::try_from(blocks).unwrap_or(0)];
        let max_levels = 1 + u8::from(self.fs.superblock().features.has_incompat(bit::INCOMPAT_LARGEDIR));
        let mut nodes = vec![(0u64, None)];
        while let Some((at, levels)) = nodes.pop() {
            let mapping = self.fs.mapping(inode, at);
            let Some(block) = self.found(mapping)?.and_then(|mapping| mapping.physical) else { continue };
            let Some(bytes) = self.read_block(block)? else { continue };
            let levels = levels.unwrap_or(bytes[LEVELS_AT]);
            if at == 0 && (bytes[INFO_LEN_AT] != INFO_LEN || levels > max_levels) {
                return Ok(Some("invalid root of a hash tree"));
            }
            let table = &bytes[if at == 0 { ROOT_TABLE_AT } else { NODE_TABLE_AT }..];
            let (limit, count) = (usize::from(le16(table, 0)), usize::from(le16(table, 2)));
            if count == 0 || count > limit || limit * 8 > table.len() {
                return Ok(Some("invalid number of entries of a hash tree node"));
            }
            let mut last = 0;
            for (entry, index) in table.chunks_exact(8).take(count).zip(0..) {
                let hash = if index == 0 { 0 } else { le32(entry, 0) };
                let child = le32(entry, 4) & BLOCK_MASK;
                if hash < last {
                    return Ok(Some("hash tree entries out of order"));
                }
                match is_named.get_mut(child as usize) {
                    Some(named) if child != 0 && !*named => *named = true,
                    _ => return Ok(Some("hash tree entry of an invalid block")),
                }
                last = hash;
                if levels > 0 {
                    nodes.push((child.into(), Some(levels - 1)));
                }
            }
        }
        let is_complete = is_named.iter().skip(1).all(|named| *named);
        Ok((!is_complete).then_some("block that its hash tree does not contain"))
    }
}
