//! The swap file: one file without a name, so that it is gone with its last user.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ftruncate, open, statvfs, unlinkat};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use vswap_core::device::space::EXTENT_BYTES_SHIFT;

use crate::args::SwapPlace;
use crate::refusal::{Refusal, reason};
use crate::size::Size;

/// Granularity of what members get of the file, in bytes.
const EXTENT_SIZE: u64 = 1 << EXTENT_BYTES_SHIFT;

/// An open swap file and the most that may be written to it.
#[derive(Debug)]
pub struct SwapFile {
    /// The file. It has its full length, without any blocks.
    pub file: OwnedFd,
    /// Limit in bytes, a multiple of [`EXTENT_SIZE`].
    pub limit: u64,
    /// Whether it is on tmpfs, that is, in RAM after all.
    pub in_ram: bool,
}

/// Creates the swap file.
pub fn create(place: &SwapPlace) -> Result<SwapFile, Refusal> {
    let refuse = |what: String| Refusal::usage(format!("--swap: {what}"), "name another place");
    let path = place.path.display();
    let (directory, name) = locate(&place.path)?;
    let shown = directory.display();
    match directory.metadata() {
        Ok(found) if !found.is_dir() => return Err(refuse(format!("{shown} is not a directory"))),
        Ok(_) => {}
        Err(error) => return Err(refuse(format!("{shown}: {}", reason(error)))),
    }
    let file = open_nameless(directory, name)
        .map_err(|error| refuse(format!("cannot create a file in {shown}: {}", reason(error))))?;
    let space = statvfs(directory).map_err(|e| refuse(format!("{path}: {}", reason(e))))?;
    let free = space.f_bavail * space.f_frsize;
    let wanted = match place.size {
        Some(Size(bytes)) if bytes > free => {
            let what =
                format!("--swap: {shown} has {} free, less than {}", Size(free), Size(bytes));
            return Err(Refusal::usage(
                what,
                "free some space, ask for less, or name another place",
            ));
        }
        Some(Size(bytes)) => bytes,
        // A file system filled to the brim takes its other users down.
        None => free / 10 * 9,
    };
    // Past this limit a write would end the program by SIGXFSZ.
    let file_size_limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
    let limit = wanted.min(file_size_limit) / EXTENT_SIZE * EXTENT_SIZE;
    if limit == 0 {
        let what = format!("--swap: {} is too little", Size(wanted.min(file_size_limit).max(1)));
        let remedy = format!("give at least {}, in a place that has it", Size(EXTENT_SIZE));
        return Err(Refusal::usage(what, remedy));
    }
    ftruncate(&file, limit).map_err(|error| {
        let size = Size(limit);
        refuse(format!("{shown} cannot hold a file of {size}: {}", reason(error)))
    })?;
    Ok(SwapFile { in_ram: is_tmpfs(&file), file, limit })
}

/// The directory for the file, and the name it may have for a moment where it cannot do without.
fn locate(path: &Path) -> Result<(&Path, Option<&Path>), Refusal> {
    if path.is_dir() {
        return Ok((path, None));
    }
    if path.symlink_metadata().is_ok() {
        return Err(Refusal::usage(
            format!("--swap: {} is a symbolic link that leads nowhere", path.display()),
            "name a directory, a new file, or what mkswap has formatted",
        ));
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    Ok((directory, Some(path)))
}

fn open_nameless(directory: &Path, name: Option<&Path>) -> Result<OwnedFd, Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match open(directory, flags | OFlags::TMPFILE, mode) {
        // Overlays of old kernels, NFS and FUSE have no files without a name.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let own = directory.join(format!(".vswap-{}", std::process::id()));
            let name = name.unwrap_or(&own);
            let file = open(name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
            unlinkat(CWD, name, AtFlags::empty())?;
            Ok(file)
        }
        result => result,
    }
}

fn is_tmpfs(file: &OwnedFd) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn place(path: &Path, size: Option<u64>) -> SwapPlace {
        SwapPlace { path: path.to_owned(), size: size.map(Size), priority: None, tier: None }
    }

    #[test]
    fn the_file_has_no_name_and_its_full_length() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path().to_owned(), directory.path().join("new")] {
            let swap = create(&place(&path, Some(EXTENT_SIZE * 3 + 1))).unwrap();
            assert_eq!(swap.limit, EXTENT_SIZE * 3);
            assert_eq!(File::from(swap.file).metadata().unwrap().len(), swap.limit);
            assert_eq!(directory.path().read_dir().unwrap().count(), 0, "{}", path.display());
        }
    }

    #[test]
    fn nothing_is_created_behind_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("gone"), &link).unwrap();
        let error = create(&place(&link, None)).unwrap_err().to_string();
        assert!(error.contains("leads nowhere"), "{error}");
    }

    #[test]
    fn too_much_and_too_little_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for (size, expected) in [(1 << 60, "free, less than"), (4096, "is too little")] {
            let error = create(&place(directory.path(), Some(size))).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
