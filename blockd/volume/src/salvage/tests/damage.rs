//! Damage of files.

use super::*;

#[derive(Clone, Copy, Debug)]
pub(super) enum Damage {
    Remove,
    /// Truncates to this permille of the length.
    Cut(u64),
    /// Flips a bit at this permille of the length.
    Flip(u64),
    /// Flips two bits.
    FlipTwo(u64),
}

pub(super) fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        Just(Damage::Remove),
        (0..1000u64).prop_map(Damage::Cut),
        (0..1000u64).prop_map(Damage::Flip),
        (0..1000u64).prop_map(Damage::FlipTwo),
    ]
}

pub(super) fn flip(path: &Path, bits: &[u64]) {
    let file = How::new().read(true).write(true).open(path).unwrap();
    for bit in bits {
        let mut byte = [0];
        file.read_exact_at(&mut byte, bit / 8).unwrap();
        byte[0] ^= 1 << (bit % 8);
        file.write_all_at(&byte, bit / 8).unwrap();
    }
}

pub(super) fn cut(path: &Path, len_bytes: u64) {
    How::new().write(true).open(path).unwrap().set_len(len_bytes).unwrap();
}

pub(super) fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

pub(super) fn at_part(path: &Path, part: u64) -> u64 {
    len(path) * part / 1000
}

/// Flips bits of a file with a checksum; returns their number.
pub(super) fn flip_some(path: &Path, damage: Damage) -> usize {
    let (Damage::Flip(part) | Damage::FlipTwo(part)) = damage else { return 0 };
    let bit = at_part(path, part) * 8;
    let two = matches!(damage, Damage::FlipTwo(_));
    let bits = if two { vec![bit, bit + 3] } else { vec![bit] };
    flip(path, &bits);
    bits.len()
}
