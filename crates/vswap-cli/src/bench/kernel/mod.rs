//! The kernel's own swap, set up for a row of the bench and put back afterwards.
//!
//! Everything here changes the state of the whole machine. So each change goes through a
//! [`Journal`]: the guard process is told how to undo it *before* it is made, and a [`Change`] undoes
//! it when dropped and tells the guard that it did. Whatever way the bench ends, the changes that
//! are then left are undone by the guard (see [`guard`]).
//!
//! Swap that is on already is left alone: ours gets the highest priority, so that the measured
//! program's pages go to it, and its size leaves nothing to spill over. zram gets a device of its
//! own, which is removed again.

pub mod cgroup;
pub mod guard;
pub mod scratch;
pub mod swap_file;
pub mod zram;
pub mod zswap;

use std::io;
use std::path::{Path, PathBuf};

pub use guard::{Change, Journal, Undo};

const PAGE_CLUSTER: &str = "/proc/sys/vm/page-cluster";

/// Why the kernel's swap could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A file of the kernel's could not be read or written, or a system call failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// This kernel was built without it, or it is not mounted.
    #[error("this machine has no {0}")]
    Missing(String),
    /// There is not as much as is needed.
    #[error("this machine has {0} only")]
    TooLittle(String),
    /// The pool cannot be kept within the bench's RAM.
    #[error("zswap's pool can be limited by whole per cents of this machine's memory only, so not to {} MiB", .0 >> 20)]
    NoPoolLimit(u64),
    /// A file of the kernel's does not read as it should.
    #[error("{} holds {text:?}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// Other swap would be filled before ours, or with it.
    #[error("swap is already on at the priority that the bench needs: {}; swapoff it first", .0.display())]
    OtherSwapFirst(PathBuf),
    /// Nobody would undo our changes.
    #[error("the guard process that restores the machine is gone")]
    NoGuard(#[source] io::Error),
}

impl KernelError {
    /// True if this machine or user cannot have it, as opposed to something that went wrong.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Missing(_)
            | Self::TooLittle(_)
            | Self::OtherSwapFirst(_)
            | Self::NoPoolLimit(_) => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::NotFound
            ),
            Self::Malformed { .. } | Self::NoGuard(_) => false,
        }
    }
}

/// Names the file and the action in an I/O error.
trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, KernelError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, KernelError> {
        self.map_err(|error| KernelError::Io { action, path: path.into(), source: error.into() })
    }
}

fn read(path: &Path) -> Result<String, KernelError> {
    let text = std::fs::read_to_string(path).context("reading", path)?;
    Ok(text.trim_end().to_owned())
}

fn write(path: &Path, value: &str) -> Result<(), KernelError> {
    std::fs::write(path, value).context("writing", path)
}

fn read_number(path: &Path) -> Result<u64, KernelError> {
    let text = read(path)?;
    text.parse().map_err(|_| KernelError::Malformed { path: path.into(), text })
}

/// Bytes that the machine could give a program without swapping.
///
/// # Errors
/// [`KernelError`] if /proc/meminfo cannot be read.
pub fn available_memory() -> Result<u64, KernelError> {
    meminfo("MemAvailable:")
}

fn meminfo(field: &str) -> Result<u64, KernelError> {
    let path = Path::new("/proc/meminfo");
    let text = read(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or(KernelError::Malformed { path: path.into(), text: field.into() })
}

/// Sets a parameter of the kernel's until the change is dropped.
fn set_parameter<'j>(
    journal: &'j Journal,
    path: &Path,
    value: &str,
) -> Result<Change<'j>, KernelError> {
    let before = read(path)?;
    let change = journal.record(Undo::Write { path: path.into(), value: before })?;
    write(path, value)?;
    Ok(change)
}

/// Sets how many pages (2 to its power) the kernel reads ahead from swap.
///
/// # Errors
/// [`KernelError`] if the parameter cannot be read or written.
pub fn set_page_cluster(journal: &Journal, value: u8) -> Result<Change<'_>, KernelError> {
    set_parameter(journal, Path::new(PAGE_CLUSTER), &value.to_string())
}
