//! Key prefixes that confine requests to a part of a store.

use crate::check_key;

/// Maximum length of a prefix in bytes, which leaves room for the keys below it.
const MAX_PREFIX_BYTES: usize = 512;

/// Invalid prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid prefix {given:?}: expected up to {MAX_PREFIX_BYTES} letters, digits, '-', '_' and '.' in nonempty parts separated by '/' that do not begin with a dot, such as demo or hosts/a"
)]
pub struct BadPrefix {
    /// Given text.
    pub given: String,
}

/// Returns a prefix without leading and trailing slashes; `None` if nothing remains.
///
/// # Errors
/// [`BadPrefix`] for a prefix that not every store accepts.
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
