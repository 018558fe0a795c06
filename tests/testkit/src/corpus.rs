//! Replay of the fuzz corpus: a line of `tests/fuzz/corpus/TARGET.hex` is an input, its name and its bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a damaged corpus is to be found")]

use std::{fs, path::Path};

/// Runs a target on each of its inputs.
///
/// # Panics
/// If there are none, if one cannot be read, or if the target panics.
pub fn replay(target: &str, mut run: impl FnMut(&[u8])) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(format!("{target}.hex"));
    let inputs = fs::read_to_string(&path).unwrap();
    assert!(!inputs.is_empty(), "no inputs in {}", path.display());
    for line in inputs.lines() {
        let (name, hex) = line.split_once(' ').expect("a name and hexadecimal digits");
        // The last printed input is the one that fails.
        println!("{target}: {name}");
        let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        run(&digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect::<Vec<u8>>());
    }
}
