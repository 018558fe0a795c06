//! Names of directories from untrusted text.

use std::fmt::Write as _;

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

/// Formats a time as the sortable prefix of snapshot names, such as `20261121T110605Z`. The year is limited
/// to 1970 to 9999.
pub fn time_name(unix_seconds: i64) -> String {
    let seconds = unix_seconds.clamp(0, 253_402_300_799);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Returns year, month and day for a number of days since 1970, by eras of 400 years that start in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        for (seconds, name) in [
            (0, "19700101T000000Z"),
            (951_826_799, "20000229T121959Z"),
            (1_795_259_165, "20261121T110605Z"),
            (-5, "19700101T000000Z"),
            (i64::MAX, "99991231T235959Z"),
        ] {
            assert_eq!(time_name(seconds), name);
        }
    }
}
