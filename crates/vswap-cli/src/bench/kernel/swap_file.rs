//! Swap areas: the header that makes a file or device one, turning them on and off, and a swap file.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use super::super::contents::PAGE_BYTES;
use super::{Change, Context as _, Journal, KernelError, Undo, read};

/// From the kernel's `linux/swap.h`: the low bits of the flags are a priority.
const SWAP_FLAG_PREFER: i32 = 0x8000;
/// Where an area of ours stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// The highest that there is, so that this area is filled before any other.
    First,
    /// What does not fit into the first goes here before it goes anywhere else.
    Second,
}

impl Priority {
    const fn number(self) -> i32 {
        match self {
            Self::First => 0x7fff,
            Self::Second => 0x7ffe,
        }
    }
}

/// A swap file that is in use until dropped.
pub struct SwapFile<'j> {
    path: PathBuf,
    _on: Change<'j>,
    _file: Change<'j>,
}

impl<'j> SwapFile<'j> {
    /// Creates a swap file in a directory and turns it on.
    ///
    /// # Errors
    /// [`KernelError`] if the directory's file system is full or takes no swap files.
    pub fn on(
        journal: &'j Journal,
        dir: &Path,
        bytes: u64,
        priority: Priority,
    ) -> Result<Self, KernelError> {
        let path = dir.join(format!("vswap-bench-{}.swap", std::process::id()));
        let undo = journal.record(Undo::SwapFile(path.clone()))?;
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .context("creating", &path)?;
        fallocate(&file, FallocateFlags::empty(), 0, bytes).context("allocating", &path)?;
        write_header(&file, bytes).context("writing", &path)?;
        file.sync_all().context("writing", &path)?;
        Ok(Self { _on: swap_on(journal, &path, priority)?, _file: undo, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A file for a swap area that is not the kernel's, removed when dropped.
pub struct AreaFile<'j> {
    /// The file, for direct input and output.
    pub file: File,
    path: PathBuf,
    _file: Change<'j>,
}

impl<'j> AreaFile<'j> {
    /// Creates it with room for so many bytes.
    ///
    /// # Errors
    /// [`KernelError`] if the directory's file system is full or has no direct I/O.
    pub fn create(journal: &'j Journal, dir: &Path, bytes: u64) -> Result<Self, KernelError> {
        let path = dir.join(format!("vswap-bench-{}.area", std::process::id()));
        let undo = journal.record(Undo::SwapFile(path.clone()))?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .context("creating", &path)?;
        fallocate(&file, FallocateFlags::empty(), 0, bytes).context("allocating", &path)?;
        Ok(Self { file, path, _file: undo })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an empty swap area of it.
    ///
    /// # Errors
    /// [`KernelError`] if it cannot be written.
    pub fn format(&self) -> Result<(), KernelError> {
        let file = File::options().write(true).open(&self.path).context("opening", &self.path)?;
        let len = file.metadata().context("looking at", &self.path)?.len();
        write_header(&file, len).context("writing", &self.path)?;
        // Or it would be written back over what direct writes have put there.
        file.sync_all().context("writing", &self.path)
    }
}

/// Makes a file or device of this size a swap area, as mkswap does (the kernel's
/// `union swap_header`, version 1).
pub fn write_header(file: &File, bytes: u64) -> io::Result<()> {
    let mut header = [0; PAGE_BYTES];
    let last_page = (bytes / PAGE_BYTES as u64 - 1) as u32;
    header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
    header[PAGE_BYTES - 10..].copy_from_slice(b"SWAPSPACE2");
    file.write_all_at(&header, 0)
}

/// Turns a swap area on.
///
/// # Errors
/// [`KernelError`] if other swap is at its priority, or the kernel refuses.
pub fn swap_on<'j>(
    journal: &'j Journal,
    path: &Path,
    priority: Priority,
) -> Result<Change<'j>, KernelError> {
    let swaps = read(Path::new("/proc/swaps"))?;
    if let Some(other) = area_at(&swaps, priority) {
        return Err(KernelError::OtherSwapFirst(other));
    }
    let name = c_path(path)?;
    let change = journal.record(Undo::SwapOff(path.into()))?;
    // SAFETY: `name` is a string that outlives the call; swapon touches no other memory of ours.
    let result = unsafe { libc::swapon(name.as_ptr(), SWAP_FLAG_PREFER | priority.number()) };
    if result == 0 { Ok(change) } else { Err(last_error("turning on swap at", path)) }
}

/// Turns a swap area off; one that is off, or gone, is success.
pub fn swap_off(path: &Path) -> Result<(), KernelError> {
    let name = c_path(path)?;
    // SAFETY: `name` is a string that outlives the call; swapoff touches no other memory of ours.
    if unsafe { libc::swapoff(name.as_ptr()) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EINVAL | libc::ENOENT) => Ok(()),
        _ => Err(last_error("turning off swap at", path)),
    }
}

fn last_error(action: &'static str, path: &Path) -> KernelError {
    KernelError::Io { action, path: path.into(), source: io::Error::last_os_error() }
}

fn c_path(path: &Path) -> Result<CString, KernelError> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from).context("naming", path)
}

/// Bytes in use in an area, by everyone; none if it is off.
///
/// # Errors
/// [`KernelError`] if /proc/swaps cannot be read.
pub fn used(area: &Path) -> Result<u64, KernelError> {
    let swaps = read(Path::new("/proc/swaps"))?;
    Ok(used_in(&swaps, area).unwrap_or(0))
}

/// The second number after the path and the type, in KiB.
fn used_in(swaps: &str, area: &Path) -> Option<u64> {
    let mut areas = swaps.lines().skip(1).map(str::split_whitespace);
    let mut fields =
        areas.find_map(|mut fields| (Path::new(fields.next()?) == area).then_some(fields))?;
    Some(fields.nth(2)?.parse::<u64>().ok()? << 10)
}

/// The area in this /proc/swaps that would share its priority with ours.
fn area_at(swaps: &str, priority: Priority) -> Option<PathBuf> {
    let priority = priority.number().to_string();
    let areas = swaps.lines().skip(1);
    areas.map(str::split_whitespace).find_map(|mut fields| {
        let path = fields.next()?;
        (fields.next_back()? == priority).then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

    #[test]
    fn only_swap_at_the_highest_priority_is_in_the_way() {
        let low = format!("{HEADING}/dev/vdb partition\t1048572\t\t0\t\t-2\n");
        assert_eq!(area_at(HEADING, Priority::First), None);
        assert_eq!(area_at(&low, Priority::First), None);
        let high = format!("{low}/swap/a\tfile\t\t1048572\t\t12\t\t32767\n");
        assert_eq!(area_at(&high, Priority::First), Some("/swap/a".into()));
        assert_eq!(area_at(&high, Priority::Second), None);
        assert_eq!(used_in(&high, Path::new("/swap/a")), Some(12 << 10));
        assert_eq!(used_in(&high, Path::new("/swap")), None);
    }
}
