//! Sizes as text: `8GiB`, `8G`, `1.5TiB`, `500MB`, `4096`.
//!
//! `K M G T P` and `KiB … PiB` are powers of 1024, `KB … PB` powers of 1000. Fractions are exact: a fraction
//! of a byte is refused, never rounded.

use blockd_extent::{BLOCK_SIZE_BYTES, MAX_VOLUME_BYTES};
use std::{fmt, str::FromStr};

/// Invalid size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// Not a number with a unit.
    #[error("{given:?} is not a size: expected a number and a unit, such as 8GiB, 512MiB, 1.5TiB or 4096")]
    NotASize {
        /// Given text.
        given: String,
    },
    /// Not a whole number of bytes.
    #[error("{given:?} is not a whole number of bytes: use a smaller unit")]
    NotWhole {
        /// Given text.
        given: String,
    },
    /// More than 64 bits.
    #[error("{given:?} is too large: at most 16 EiB can be written")]
    TooLarge {
        /// Given text.
        given: String,
    },
    /// Invalid size of a volume.
    #[error(
        "a volume of {given} is not possible: expected a multiple of 4096 bytes up to {}",
        ByteSize::from_bytes(MAX_VOLUME_BYTES)
    )]
    NotAVolumeSize {
        /// Given size.
        given: ByteSize,
    },
}

/// Number of bytes with a text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// Creates a size from bytes.
    pub const fn from_bytes(len_bytes: u64) -> Self {
        Self(len_bytes)
    }

    /// Returns the bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// Returns the shortest text that parses back to this size: `8GiB`, `1536MiB`, `4097`.
    pub fn to_exact_string(self) -> String {
        let exact = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        for (shift, unit) in [(50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if exact(shift) {
                return format!("{}{unit}", self.0 >> shift);
            }
        }
        self.0.to_string()
    }
}

impl fmt::Display for ByteSize {
    /// Formats the size rounded to one decimal: `8 GiB`, `1.5 TiB`, `400.6 MiB`, `17 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut shift = 0;
        let mut tenths = u128::from(self.0) * 10;
        for (step, unit) in UNITS.iter().enumerate() {
            shift = step;
            // Rounded to the nearest tenth; 1024.0 becomes 1 of the next unit.
            let half = if step == 0 { 0 } else { 1u128 << (10 * step - 1) };
            tenths = (u128::from(self.0) * 10 + half) >> (10 * step);
            if tenths < 10_240 || *unit == "EiB" {
                break;
            }
        }
        match tenths % 10 {
            0 => write!(f, "{} {}", tenths / 10, UNITS[shift]),
            tenth => write!(f, "{}.{tenth} {}", tenths / 10, UNITS[shift]),
        }
    }
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if matches!(unit.as_str(), "" | "b") {
        return Some(1);
    }
    let power = 1 + "kmgtp".find(unit.chars().next()?)? as u32;
    match &unit[1..] {
        "" | "i" | "ib" => Some(1u64 << (10 * power)),
        "b" => Some(1000u64.pow(power)),
        _ => None,
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let given = || text.to_owned();
        let not_a_size = || SizeError::NotASize { given: given() };
        let text = text.trim();
        let number_len = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(number_len);
        let unit = unit_bytes(unit.trim_start()).ok_or_else(not_a_size)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        // Eighteen digits keep the scaled number far below 128 bits.
        let bad = |digits: &str| digits.is_empty() || digits.contains('.');
        if bad(whole) || bad(fraction) {
            return Err(not_a_size());
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > 18 {
            return Err(SizeError::NotWhole { given: given() });
        }
        let too_large = || SizeError::TooLarge { given: given() };
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let scale = 10u128.pow(fraction.len() as u32);
        let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| not_a_size())? };
        // At most 2^64 * 10^18 + 10^18 < 2^125, and the unit is applied to the parts apart.
        let whole_bytes = u128::from(whole) * u128::from(unit);
        let part_scaled = part * u128::from(unit);
        if !part_scaled.is_multiple_of(scale) {
            return Err(SizeError::NotWhole { given: given() });
        }
        u64::try_from(whole_bytes + part_scaled / scale).map(Self).map_err(|_| too_large())
    }
}

/// Checks the size of a volume: a multiple of 4096 bytes, above 0, at most 64 TiB.
///
/// # Errors
/// It is not.
pub fn check_volume_size(size_bytes: u64) -> Result<(), SizeError> {
    match size_bytes {
        1..=MAX_VOLUME_BYTES if size_bytes.is_multiple_of(BLOCK_SIZE_BYTES) => Ok(()),
        _ => Err(SizeError::NotAVolumeSize { given: ByteSize(size_bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_parsed() {
        for (text, bytes) in [
            ("4096", 4096),
            ("0", 0),
            ("17B", 17),
            ("8GiB", 8 << 30),
            ("8G", 8 << 30),
            ("8g", 8 << 30),
            (" 8 GiB ", 8 << 30),
            ("512MiB", 512 << 20),
            ("1.5TiB", 3 << 39),
            ("0.5K", 512),
            ("1.0", 1),
            ("64T", 64 << 40),
            ("500MB", 500_000_000),
            ("1.25kB", 1250),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse::<ByteSize>().map(ByteSize::as_bytes), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn invalid_size_is_refused() {
        for text in [
            "", "x", "GiB", "-1", "+1", "8 G B", "8XiB", "8GiBs", "1.2.3", ".5G", "5.G", "1e9", "8ＧiB",
            "0x10",
        ] {
            assert!(matches!(text.parse::<ByteSize>(), Err(SizeError::NotASize { .. })), "{text:?}");
        }
        assert!(matches!("0.1GiB".parse::<ByteSize>(), Err(SizeError::NotWhole { .. })));
        assert!(matches!("1.5".parse::<ByteSize>(), Err(SizeError::NotWhole { .. })));
        assert!(matches!("0.0000000000000000001P".parse::<ByteSize>(), Err(SizeError::NotWhole { .. })));
        assert!(matches!("16384PiB".parse::<ByteSize>(), Err(SizeError::TooLarge { .. })));
        assert!(matches!("99999999999999999999".parse::<ByteSize>(), Err(SizeError::TooLarge { .. })));
        assert!(matches!("18446744073709551615PiB".parse::<ByteSize>(), Err(SizeError::TooLarge { .. })));
    }

    #[test]
    fn sizes_are_shown() {
        for (bytes, text) in [
            (0, "0 B"),
            (17, "17 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (4 << 30, "4 GiB"),
            (3 << 39, "1.5 TiB"),
            (420_044_800, "400.6 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(ByteSize(3 << 29).to_exact_string(), "1536MiB");
        assert_eq!(ByteSize(4097).to_exact_string(), "4097");
        assert_eq!(ByteSize(0).to_exact_string(), "0");
    }

    #[test]
    fn volumes_have_bounds() {
        assert!(check_volume_size(4096).is_ok() && check_volume_size(MAX_VOLUME_BYTES).is_ok());
        assert!(check_volume_size(0).is_err() && check_volume_size(4097).is_err());
        assert_eq!(
            check_volume_size(MAX_VOLUME_BYTES * 2).unwrap_err().to_string(),
            "a volume of 128 TiB is not possible: expected a multiple of 4096 bytes up to 64 TiB"
        );
    }

    proptest! {
        #[test]
        fn exact_text_parses_back(bytes in any::<u64>(), shift in 0u32..64) {
            let size = ByteSize(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_exact_string().parse(), Ok(size));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,30}|[0-9.]{0,30}[kKMGTPiB]{0,4}") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn fractions_are_exact(mib in 0u64..1 << 30, thousandths in 0u64..1000) {
            let text = format!("{mib}.{thousandths:03}MB");
            prop_assert_eq!(text.parse::<ByteSize>().map(ByteSize::as_bytes), Ok(mib * 1_000_000 + thousandths * 1000));
        }
    }
}
