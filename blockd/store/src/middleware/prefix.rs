//! Prefixes that confine requests to a part of a store.

use crate::check_key;

/// The longest prefix, in bytes: what lies below it has room for its own keys.
const MAX_PREFIX_BYTES: usize = 512;

/// A text that is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no prefix: expected up to {MAX_PREFIX_BYTES} letters, digits, '-', '_' and '.' in parts separated by '/' that are not empty and do not begin with a dot, such as demo or hosts/a"
)]
pub struct BadPrefix {
    /// The text as it was given.
    pub given: String,
}

/// A prefix as it is kept, without slashes around it; none if nothing else is in it.
///
/// # Errors
/// Not every store would take keys below it.
pub fn plain_prefix(given: &str) -> Result<Option<String>, BadPrefix> {
    let plain = given.trim_matches('/');
    if plain.is_empty() {
        return Ok(None);
    }
    match check_key(plain) && plain.len() <= MAX_PREFIX_BYTES {
        true => Ok(Some(plain.to_owned())),
        false => Err(BadPrefix { given: given.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_kept_without_slashes_and_checked() {
        for (given, plain) in [("demo", "demo"), ("/demo/", "demo"), ("a/b.c/d-1_2/", "a/b.c/d-1_2")] {
            assert_eq!(plain_prefix(given).unwrap().as_deref(), Some(plain));
        }
        assert_eq!(plain_prefix("").unwrap(), None);
        assert_eq!(plain_prefix("//").unwrap(), None);
        let long = ["x"; 257].join("/");
        for bad in ["a//b", "a/../b", ".", "a/.b", "a b", "ä", "a\\b", &long] {
            assert!(plain_prefix(bad).is_err(), "{bad}");
        }
    }
}
