//! Swap devices on the command line.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::refuse_size;
use crate::refusal::Refusal;
use crate::size::{Size, SizeError};

/// Bytes of a tier's name.
const TIER_NAME_MAX: usize = 32;

/// A swap device, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapPlace {
    /// A swap area, a directory, or the name of a file that does not exist.
    pub path: PathBuf,
    /// Limit, if one was given.
    pub size: Option<Size>,
    /// Priority, if one was given.
    pub priority: Option<i16>,
    /// Name of its tier, if one was given.
    pub tier: Option<String>,
}

impl SwapPlace {
    /// Reads `PATH[:SIZE][,prio=N][,tier=NAME]`. What follows the last colon is a size if it looks like
    /// one, that is, if it begins with a digit; otherwise it belongs to the path.
    pub fn parse(text: &OsStr) -> Result<Self, Refusal> {
        let (mut priority, mut tier) = (None, None);
        let Some(mut text) = text.to_str() else {
            return Ok(Self { path: PathBuf::from(text), size: None, priority, tier });
        };
        while let Some((before, option)) = text.rsplit_once(',') {
            match option.split_once('=') {
                Some(("prio", number)) if priority.is_none() => {
                    priority = Some(parse_priority(number)?);
                }
                Some(("tier", name)) if tier.is_none() => {
                    let remedy = "as in --swap /dev/nvme1n1,tier=fast";
                    let name = parse_tier(name);
                    let name =
                        name.map_err(|what| Refusal::usage(format!("--swap: {what}"), remedy));
                    tier = Some(name?);
                }
                // A comma of the path.
                _ => break,
            }
            text = before;
        }
        let (path, size) = match text.rsplit_once(':') {
            Some((path, size)) if size.starts_with(|c: char| c.is_ascii_digit()) => {
                let size = size.parse().map_err(|e: SizeError| refuse_size("--swap", &e))?;
                (path, Some(size))
            }
            Some((_, "")) => {
                return Err(refuse_size("--swap", &SizeError::NotANumber(String::new())));
            }
            _ => (text, None),
        };
        if path.is_empty() {
            return Err(Refusal::usage(
                "--swap has no path",
                "write for example --swap /var/tmp:10G",
            ));
        }
        Ok(Self { path: PathBuf::from(path), size, priority, tier })
    }
}

fn parse_priority(number: &str) -> Result<i16, Refusal> {
    number.parse().ok().filter(|&priority| priority >= -1).ok_or_else(|| {
        Refusal::usage(
            format!("--swap: '{number}' is no priority"),
            "give a number from -1 to 32767, as in --swap /dev/vdb,prio=5",
        )
    })
}

/// Reads the name of a tier.
pub fn parse_tier(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > TIER_NAME_MAX || !name.chars().all(fits) {
        let most = TIER_NAME_MAX;
        return Err(format!("'{name}' is no name of a tier; use up to {most} of A-Z a-z 0-9 - _"));
    }
    Ok(name.to_owned())
}
