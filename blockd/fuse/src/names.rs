//! Names of directories from untrusted text.

use jiff::Timestamp;
use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

/// Maximum length of an escaped name, in bytes: `NAME_MAX` less space for prefixes and suffixes.
const MAX_NAME_LEN: usize = 200;

/// Escapes text for use as a file name: each byte of characters with a meaning to the system, a terminal or a
/// shell becomes `%` and two hexadecimal digits, as does `%` itself. Different texts have different names
/// unless they are truncated to 200 bytes.
pub fn escape(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let plain = c.is_alphanumeric() || matches!(c, '_' | '-' | '+' | '@' | '=' | ',' | ':' | '.' | '~');
        let first = at == 0 && matches!(c, '.' | '-' | '~');
        if plain && !first {
            name.push(c);
        } else {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                // Writing to a string does not fail.
                let _ = write!(name, "%{byte:02X}");
            }
        }
    }
    if name.is_empty() {
        return "%".into();
    }
    if name.len() > MAX_NAME_LEN {
        let mut end = MAX_NAME_LEN;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
    }
    name
}

/// Formats a time as the sortable prefix of snapshot names, such as `20261121T110605.250000Z`. Microseconds
/// keep the order of snapshots within a second. Times before 1970 and after 9999 become the nearest of that
/// range.
pub(crate) fn time_name(time: SystemTime) -> String {
    let time = match time.duration_since(UNIX_EPOCH) {
        Ok(_) => Timestamp::try_from(time).unwrap_or(Timestamp::MAX),
        Err(_) => Timestamp::UNIX_EPOCH,
    };
    time.strftime("%Y%m%dT%H%M%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn special_characters_are_escaped() {
        for (text, name) in [
            ("pgdata", "pgdata"),
            ("a.b_c-d@e", "a.b_c-d@e"),
            ("..", "%2E."),
            (".", "%2E"),
            ("", "%"),
            ("a/b", "a%2Fb"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            ("-rf", "%2Drf"),
            ("50%", "50%25"),
            ("a\nb\x1b[31m\0", "a%0Ab%1B%5B31m%00"),
            ("größe", "größe"),
            ("a b", "a%20b"),
            ("a\u{202e}b", "a%E2%80%AEb"),
        ] {
            assert_eq!(escape(text), name);
        }
    }

    proptest! {
        #[test]
        fn different_texts_have_different_names(a in "\\PC{0,12}|[./%~\\x00-\\x1f-]{0,6}", b in "\\PC{0,12}|[./%~\\x00-\\x1f-]{0,6}") {
            prop_assert_eq!(a == b, escape(&a) == escape(&b));
        }

        #[test]
        fn arbitrary_text_has_a_valid_file_name(text in any::<String>()) {
            let name = escape(&text);
            prop_assert!(!name.is_empty() && name.len() <= MAX_NAME_LEN);
            prop_assert!(!name.contains(['/', '\0']) && !name.starts_with(['.', '-']));
            prop_assert!(!name.chars().any(char::is_control));
        }
    }

    #[test]
    fn times_are_formatted_and_clamped() {
        let after = |micros| UNIX_EPOCH + Duration::from_micros(micros);
        for (time, name) in [
            (UNIX_EPOCH, "19700101T000000.000000Z"),
            (after(951_826_799_999_999), "20000229T121959.999999Z"),
            (after(1_795_259_165_000_250), "20261121T110605.000250Z"),
            (UNIX_EPOCH - Duration::from_secs(5), "19700101T000000.000000Z"),
            (UNIX_EPOCH + Duration::from_secs(1 << 62), "99991230T220000.999999Z"),
        ] {
            assert_eq!(time_name(time), name);
        }
    }
}
