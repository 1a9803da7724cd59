//! Why a device takes no more.

use vswap_core::BackingError;

use crate::io::IoError;
use crate::sys::Errno;

/// Why a device takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All of it is in use.
    Full,
    /// The file system has no room for what was leased.
    NoSpace,
    /// A write failed, with this error number.
    Failed(i32),
}

/// No [`Refusal`], as a word; any other that is not [`FULL`] is an error number.
pub(super) const NOT_REFUSED: u32 = 0;
const FULL: u32 = u32::MAX;

impl Refusal {
    pub(super) fn to_word(self) -> u32 {
        match self {
            Self::Full => FULL,
            Self::NoSpace => Errno::ENOSPC.0 as u32,
            Self::Failed(error) => error as u32,
        }
    }

    pub(super) fn from_word(word: u32) -> Option<Self> {
        match word {
            NOT_REFUSED => None,
            FULL => Some(Self::Full),
            error if error == Errno::ENOSPC.0 as u32 => Some(Self::NoSpace),
            error => Some(Self::Failed(error as i32)),
        }
    }

    pub(super) fn of(error: IoError) -> Self {
        match error {
            IoError::Failed(Errno::ENOSPC) | IoError::Short(_) => Self::NoSpace,
            IoError::Failed(error) => Self::Failed(error.0),
            IoError::TimedOut => Self::Failed(Errno::ETIME.0),
            IoError::NotSubmitted => Self::Failed(Errno::EIO.0),
        }
    }

    /// What the swap space is told: whether to try again later.
    pub(super) fn error(self) -> BackingError {
        match self {
            Self::Failed(error) => BackingError::Io(error),
            Self::Full | Self::NoSpace => BackingError::Full,
        }
    }
}
