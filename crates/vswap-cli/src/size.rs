//! Amounts of memory as people write and read them. All units are powers of 1024.

use std::fmt;
use std::str::FromStr;

/// An amount of memory in bytes, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Any number of bytes as people read it, none included.
    pub fn text(bytes: u64) -> String {
        if bytes == 0 { "0".to_owned() } else { Self(bytes).to_string() }
    }
}

/// Why a text is not a [`Size`]. Each variant says what is wrong and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// No digits where a number has to be.
    NotANumber(String),
    /// The number is followed by something that is no unit.
    UnknownSuffix(String),
    /// Nothing.
    Zero,
    /// More than 64 bits of bytes.
    TooLarge(String),
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotANumber(text) => {
                write!(f, "'{text}' is not a size; write for example 2G or 512M")
            }
            Self::UnknownSuffix(suffix) => {
                write!(f, "unknown suffix '{suffix}'; use K, M, G or T, as in 2G or 1.5GiB")
            }
            Self::Zero => f.write_str("the size is 0; give at least 16M"),
            Self::TooLarge(text) => {
                write!(f, "'{text}' is too large; write for example 2G or 512M")
            }
        }
    }
}

impl std::error::Error for SizeError {}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(SizeError::NotANumber(text.to_owned()));
        }
        let unit = unit(suffix).ok_or_else(|| SizeError::UnknownSuffix(suffix.to_owned()))?;
        let too_large = || SizeError::TooLarge(text.to_owned());
        let whole: u64 =
            if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large())? };
        let bytes = whole.checked_mul(unit).and_then(|n| n.checked_add(part(fraction, unit)));
        match bytes {
            None => Err(too_large()),
            Some(0) => Err(SizeError::Zero),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

/// Bytes of one unit; `None` if it is unknown.
fn unit(suffix: &str) -> Option<u64> {
    let lower = suffix.to_ascii_lowercase();
    let letter = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    match letter {
        "" if lower != "ib" => Some(1),
        "k" => Some(1 << 10),
        "m" => Some(1 << 20),
        "g" => Some(1 << 30),
        "t" => Some(1 << 40),
        _ => None,
    }
}

/// Bytes of a decimal fraction of a unit, rounded down. Digits beyond the twelfth are less than a
/// byte of any unit.
fn part(fraction: &str, unit: u64) -> u64 {
    let digits = &fraction[..fraction.len().min(12)];
    let numerator: u128 = digits.parse().unwrap_or(0);
    (numerator * u128::from(unit) / 10u128.pow(digits.len() as u32)) as u64
}

/// Three digits and a unit: `64M`, `1.50G`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];
        let power = (0..4).rev().map(|n| n + 1).find(|n| self.0 >> (10 * n) != 0).unwrap_or(0);
        let amount = self.0 as f64 / (1u64 << (10 * power)) as f64;
        let decimals = match amount {
            _ if amount.fract() == 0.0 => 0,
            a if a < 10.0 => 2,
            a if a < 100.0 => 1,
            _ => 0,
        };
        write!(f, "{amount:.decimals$}{}", UNITS[power])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("1", 1),
            ("4096B", 4096),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64M", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5G", 3 << 29),
            (".5T", 1 << 39),
            ("2.G", 2 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_named() {
        let error = |text: &str| text.parse::<Size>().unwrap_err();
        for zero in ["0", "0G", "0.0M", "0.0000001K"] {
            assert_eq!(error(zero), SizeError::Zero, "{zero}");
        }
        for text in ["", "M", "-1G", ".", "1.2.3", "G1"] {
            assert_eq!(error(text), SizeError::NotANumber(text.into()), "{text}");
        }
        for (text, suffix) in
            [("1X", "X"), ("1 G", " G"), ("1iB", "iB"), ("1GG", "GG"), ("1é", "é")]
        {
            assert_eq!(error(text), SizeError::UnknownSuffix(suffix.into()), "{text}");
        }
        for text in ["16777216T", "99999999999999999999"] {
            assert_eq!(error(text), SizeError::TooLarge(text.into()), "{text}");
        }
    }

    #[test]
    fn sizes_as_people_read_them() {
        for (bytes, text) in [
            (1, "1"),
            (1 << 26, "64M"),
            (3 << 29, "1.50G"),
            (100 << 40, "100T"),
            (1_234_567, "1.18M"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in "\\PC{0,12}") {
            if let Ok(size) = text.parse::<Size>() {
                prop_assert!(size.0 > 0);
            }
        }

        #[test]
        fn a_fraction_is_exact_to_the_byte(whole in 0u64..4000, milli in 0u64..1000, power in 1u32..5) {
            let unit = 1u64 << (10 * power);
            let text = format!("{whole}.{milli:03}{}", ["K", "M", "G", "T"][power as usize - 1]);
            let bytes = u128::from(whole * 1000 + milli) * u128::from(unit) / 1000;
            match text.parse::<Size>() {
                Ok(size) => prop_assert_eq!(u128::from(size.0), bytes),
                Err(error) => prop_assert_eq!((error, bytes), (SizeError::Zero, 0)),
            }
        }
    }
}
