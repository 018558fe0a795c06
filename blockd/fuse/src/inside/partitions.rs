//! Partitions of an image, from an untrusted GPT or MBR.

use blockd_extent::BlockSource;
use std::io;

/// Maximum number of partitions.
const MAX_PARTITIONS: usize = 128;
const MBR_LEN: usize = 512;
/// Sector sizes of disks, in bytes.
const SECTOR_SIZES: [u64; 2] = [512, 4096];

/// Partition of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partition {
    /// Number from 1, the same as in the kernel.
    pub number: u32,
    /// Start, in bytes.
    pub offset_bytes: u64,
    /// Size, in bytes.
    pub len_bytes: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a range; `None` if it is not inside the image.
fn read(image: &dyn BlockSource, offset_bytes: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
    match offset_bytes.checked_add(len as u64) {
        Some(end) if end <= image.size_bytes() => {
            let mut bytes = vec![0; len];
            image.read_at(offset_bytes, &mut bytes)?;
            Ok(Some(bytes))
        }
        _ => Ok(None),
    }
}

/// Returns the partitions of an image by number, without those that are not inside the image.
///
/// # Errors
/// The image cannot be read.
pub fn partitions(image: &dyn BlockSource) -> io::Result<Vec<Partition>> {
    let Some(mbr) = read(image, 0, MBR_LEN)? else { return Ok(Vec::new()) };
    if mbr[510..] != [0x55, 0xaa] {
        return Ok(Vec::new());
    }
    let entries = || mbr[446..510].chunks_exact(16);
    let mut found = if entries().any(|entry| entry[4] == 0xee) { gpt(image)? } else { Vec::new() };
    if found.is_empty() {
        found = mbr_partitions(image, entries())?;
    }
    let inside = |part: &Partition| {
        let end = part.offset_bytes.checked_add(part.len_bytes);
        part.len_bytes > 0 && end.is_some_and(|end| end <= image.size_bytes())
    };
    found.retain(inside);
    Ok(found)
}

fn gpt(image: &dyn BlockSource) -> io::Result<Vec<Partition>> {
    for sector in SECTOR_SIZES {
        // The backup GPT at the end of the disk is for repairs only.
        let Some(header) = read(image, sector, 92)? else { continue };
        if !header.starts_with(b"EFI PART") {
            continue;
        }
        let (Some(table_lba), Some(count), Some(entry_len)) =
            (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84))
        else {
            continue;
        };
        if !(128..=4096).contains(&entry_len) || !entry_len.is_power_of_two() {
            continue;
        }
        let count = (count as usize).min(MAX_PARTITIONS);
        let Some(at) = table_lba.checked_mul(sector) else { continue };
        let Some(table) = read(image, at, count * entry_len as usize)? else { continue };
        let entries = table.chunks_exact(entry_len as usize).zip(1..);
        let parts = entries.filter_map(|(entry, number)| {
            if entry[..16].iter().all(|byte| *byte == 0) {
                return None;
            }
            let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
            let sectors = last.checked_sub(first)?.checked_add(1)?;
            let (offset_bytes, len_bytes) = (first.checked_mul(sector)?, sectors.checked_mul(sector)?);
            Some(Partition { number, offset_bytes, len_bytes })
        });
        return Ok(parts.collect());
    }
    Ok(Vec::new())
}

/// Returns type, first sector and number of sectors of an entry; `None` if it is unused.
fn mbr_entry(entry: &[u8]) -> Option<(u8, u64, u64)> {
    let (kind, start, sectors) = (*entry.get(4)?, u32_at(entry, 8)?, u32_at(entry, 12)?);
    (kind != 0 && sectors != 0).then_some((kind, start.into(), sectors.into()))
}

fn mbr_partitions<'a>(
    image: &dyn BlockSource,
    entries: impl Iterator<Item = &'a [u8]>,
) -> io::Result<Vec<Partition>> {
    let part = |number, start: u64, sectors: u64| Partition {
        number,
        offset_bytes: start * 512,
        len_bytes: sectors * 512,
    };
    let mut found = Vec::new();
    let mut extended = None;
    for (entry, number) in entries.zip(1..) {
        match mbr_entry(entry) {
            Some((0x05 | 0x0f | 0x85, start, _)) => extended = extended.or(Some(start)),
            Some((_, start, sectors)) => found.push(part(number, start, sectors)),
            None => {}
        }
    }
    let Some(base) = extended else { return Ok(found) };
    // Each extended boot record names a logical partition and the next record. The records must be in
    // ascending order, which excludes loops.
    let (mut at, mut number) = (base, 5);
    // The limit includes records without a partition: each record may be a request to a store.
    for _ in 0..MAX_PARTITIONS {
        if found.len() >= MAX_PARTITIONS {
            break;
        }
        let Some(record) = read(image, at * 512, MBR_LEN)? else { break };
        if record[510..] != [0x55, 0xaa] {
            break;
        }
        if let Some((_, start, sectors)) = mbr_entry(&record[446..462]) {
            found.push(part(number, at + start, sectors));
        }
        number += 1;
        match mbr_entry(&record[462..478]) {
            Some((0x05 | 0x0f | 0x85, start, _)) if base + start > at => at = base + start,
            _ => break,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_testkit::Image;
    use proptest::prelude::*;

    fn entry(kind: u8, start: u32, sectors: u32) -> [u8; 16] {
        let mut entry = [0; 16];
        entry[4] = kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
        entry
    }

    fn record(image: &mut [u8], sector: usize, entries: &[[u8; 16]]) {
        let record = &mut image[sector * 512..][..512];
        record[510..].copy_from_slice(&[0x55, 0xaa]);
        for (i, entry) in entries.iter().enumerate() {
            record[446 + i * 16..][..16].copy_from_slice(entry);
        }
    }

    fn found(image: &[u8]) -> Vec<(u32, u64, u64)> {
        let parts = partitions(&Image(image.to_vec())).unwrap();
        parts.iter().map(|part| (part.number, part.offset_bytes / 512, part.len_bytes / 512)).collect()
    }

    #[test]
    fn mbr_logical_partitions_are_listed() {
        let mut image = vec![0; 1000 * 512];
        record(&mut image, 0, &[entry(0x83, 10, 50), entry(0x05, 100, 800), entry(0x83, 990, 100)]);
        record(&mut image, 100, &[entry(0x83, 2, 20), entry(0x05, 200, 100)]);
        record(&mut image, 300, &[entry(0x83, 2, 30)]);
        assert_eq!(
            found(&image),
            [(1, 10, 50), (5, 102, 20), (6, 302, 30)],
            "the third partition exceeds the image"
        );
        // Loops of records.
        record(&mut image, 300, &[entry(0x83, 2, 30), entry(0x05, 0, 100)]);
        assert_eq!(found(&image).len(), 3);
        record(&mut image, 300, &[entry(0x83, 2, 30), entry(0x05, 200, 100)]);
        assert_eq!(found(&image).len(), 3);
    }

    #[test]
    fn long_chain_of_empty_records_ends() {
        let mut image = vec![0; 1000 * 512];
        record(&mut image, 0, &[entry(0x05, 1, 900)]);
        for sector in 1..900 {
            record(&mut image, sector, &[entry(0, 0, 0), entry(0x05, sector as u32, 1)]);
        }
        record(&mut image, 900, &[entry(0x83, 2, 30)]);
        assert_eq!(found(&image), []);
    }

    fn gpt_image() -> Vec<u8> {
        let mut image = vec![0; 1000 * 512];
        record(&mut image, 0, &[entry(0xee, 1, 999)]);
        image[512..520].copy_from_slice(b"EFI PART");
        image[512 + 72..][..8].copy_from_slice(&2u64.to_le_bytes());
        image[512 + 80..][..4].copy_from_slice(&128u32.to_le_bytes());
        image[512 + 84..][..4].copy_from_slice(&128u32.to_le_bytes());
        for (slot, first, last) in [(0u64, 40u64, 99u64), (2, 100, 899), (3, 900, 5000), (4, 60, 50)] {
            let at = 1024 + slot as usize * 128;
            image[at] = 1;
            image[at + 32..][..8].copy_from_slice(&first.to_le_bytes());
            image[at + 40..][..8].copy_from_slice(&last.to_le_bytes());
        }
        image
    }

    #[test]
    fn gpt_partitions_are_listed() {
        assert_eq!(found(&gpt_image()), [(1, 40, 60), (3, 100, 800)], "invalid entries are skipped");
        assert_eq!(found(&[0; 4096]), []);
        assert_eq!(found(&[0; 100]), []);
    }

    proptest! {
        #[test]
        fn arbitrary_partition_tables_end_without_a_panic(flips in prop::collection::vec((0usize..2048, any::<u8>()), 1..40), logical in any::<bool>()) {
            let mut image = gpt_image();
            if logical {
                record(&mut image, 0, &[entry(0x05, 1, 900)]);
                record(&mut image, 1, &[entry(0x83, 2, 30), entry(0x05, 1, 100)]);
                record(&mut image, 2, &[entry(0x83, 2, 30), entry(0x05, 2, 100)]);
            }
            for (at, byte) in flips {
                image[at] = byte;
            }
            for part in partitions(&Image(image.clone())).unwrap() {
                prop_assert!(part.offset_bytes + part.len_bytes <= image.len() as u64);
            }
        }
    }
}
