//! Lists the extents in which two images differ: `changed_blocks OLD NEW`.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;

use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};

/// Reads a block; bytes beyond the end of the file are zero.
fn read_block(file: &File, block: BlockIndex, buf: &mut [u8]) -> std::io::Result<()> {
    buf.fill(0);
    let (mut filled, offset_bytes) = (0, block.offset().0);
    loop {
        match file.read_at(&mut buf[filled..], offset_bytes + filled as u64)? {
            0 => return Ok(()),
            count => filled += count,
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: changed_blocks OLD NEW";
    let old = File::open(args.next().ok_or(usage)?)?;
    let new = File::open(args.next().ok_or(usage)?)?;
    let device = Extent::whole(old.metadata()?.len().max(new.metadata()?.len()));

    let mut changed = BlockSet::new();
    let mut blocks = [[0; BLOCK_SIZE_BYTES as usize]; 2];
    for block in (0..device.end().0).map(BlockIndex) {
        read_block(&old, block, &mut blocks[0])?;
        read_block(&new, block, &mut blocks[1])?;
        if blocks[0] != blocks[1] {
            changed.insert(block);
        }
    }

    for extent in changed.extents() {
        println!("{extent}: {} bytes at {}", extent.len_bytes(), extent.offset_bytes());
    }
    let unchanged: u64 = changed.gaps_in(device).map(|gap| gap.len_blocks).sum();
    println!("{} blocks changed, {unchanged} unchanged", changed.len_blocks());
    println!("the set takes {} bytes", changed.serialized_len());
    Ok(())
}
