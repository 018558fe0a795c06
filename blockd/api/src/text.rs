//! Times and durations in tables, errors with their causes, wildcards.

use jiff::Timestamp;
use std::fmt::Display;

/// Formats a time as `Wed, 16 Jan 2019 21:51:53 UTC`.
pub fn format_time(time: Timestamp) -> String {
    time.strftime("%a, %d %b %Y %H:%M:%S UTC").to_string()
}

/// Formats a duration as `1h2m3.456s`, to the millisecond; `0s` if shorter, negative or not a number.
pub fn format_duration(seconds: f64) -> String {
    // Saturates; not-a-number becomes zero.
    let all_ms = (seconds * 1000.0).round() as u64;
    let (hours, minutes) = (all_ms / 3_600_000, all_ms / 60_000 % 60);
    let (whole_s, rest_ms) = (all_ms / 1000 % 60, all_ms % 1000);
    let seconds = match rest_ms {
        0 => format!("{whole_s}s"),
        _ => format!("{}s", format!("{whole_s}.{rest_ms:03}").trim_end_matches('0')),
    };
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, _) => format!("{minutes}m{seconds}"),
        _ => format!("{hours}h{minutes}m{seconds}"),
    }
}

/// Maximum number of names in a message.
const MAX_NAMED: usize = 5;

/// Formats the first names of a list, and the number of the others: `a, b, c, d, e and 3 more`.
pub fn first_names<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    let mut all = all.into_iter();
    let first: Vec<String> = all.by_ref().take(MAX_NAMED).map(|name| name.to_string()).collect();
    match all.count() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Conversions of a type with a text form that serde needs: it is text in JSON.
macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = <Self as std::str::FromStr>::Err;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}
pub(crate) use as_text;

/// Formats an error and its causes in one line. A cause that the message of another error includes is left
/// out.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}

/// Returns true if `text` matches `pattern`, in which `*` stands for any number of characters.
pub fn matches_wildcard(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        // The first match is sufficient: it leaves the longest rest.
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// Error whose message includes its cause.
    #[derive(Debug, thiserror::Error)]
    #[error("cannot open x: {source}; try again")]
    struct Including {
        source: io::Error,
    }

    /// Error whose message leaves its cause to the chain.
    #[derive(Debug, thiserror::Error)]
    #[error("start failed on y")]
    struct Chained {
        source: Including,
    }

    #[test]
    fn wildcard_pattern_matches_any_characters() {
        for (pattern, text, expected) in [
            ("db", "db", true),
            ("db", "db1", false),
            ("db", "adb", false),
            ("db*", "db", true),
            ("db*", "db-1", true),
            ("*", "", true),
            ("*", "anything", true),
            ("*.example", "a.b.example", true),
            ("*.example", "a.example.org", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("a**a", "aa", true),
            ("", "", true),
            ("", "x", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(matches_wildcard(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn error_chain_prints_each_cause_once() {
        let cause = Including { source: io::Error::other("disk on fire") };
        assert_eq!(with_sources(&cause), "cannot open x: disk on fire; try again");
        let chained = Chained { source: cause };
        assert_eq!(with_sources(&chained), "start failed on y: cannot open x: disk on fire; try again");
    }

    #[test]
    fn names_beyond_five_are_counted() {
        assert_eq!(first_names(["nas"]), "nas");
        assert_eq!(first_names('a'..='e'), "a, b, c, d, e");
        assert_eq!(first_names('a'..='h'), "a, b, c, d, e and 3 more");
    }

    #[test]
    fn times_and_durations() {
        assert_eq!(format_time("2019-01-16T21:51:53.9Z".parse().unwrap()), "Wed, 16 Jan 2019 21:51:53 UTC");
        assert_eq!(format_time("2017-04-07T20:22:43Z".parse().unwrap()), "Fri, 07 Apr 2017 20:22:43 UTC");
        for (seconds, text) in [
            (0.0, "0s"),
            (0.0004, "0s"),
            (-1.0, "0s"),
            (f64::NAN, "0s"),
            (17.460_186_585, "17.46s"),
            (209.825_766_964, "3m29.826s"),
            (3600.0, "1h0m0s"),
            (7325.5, "2h2m5.5s"),
            (59.9999, "1m0s"),
        ] {
            assert_eq!(format_duration(seconds), text);
        }
        assert!(format_duration(f64::INFINITY).ends_with('s'));
    }
}
