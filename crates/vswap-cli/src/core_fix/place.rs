//! Where the pages are kept that a core dump lacks.
//!
//! In a directory of the user's own below the first of [`PLACES`] that takes it: as large as what was
//! swapped out, they belong on a disk.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::process::geteuid;
use vswap_pager::pages_file::Identity;

use crate::control::open_own_directory;

const PLACES: [&str; 2] = ["/var/tmp", "/tmp"];

/// The directories that may have them.
fn directories() -> impl Iterator<Item = PathBuf> {
    let user = geteuid().as_raw();
    PLACES.iter().map(move |place| PathBuf::from(format!("{place}/vswap-core-{user}")))
}

fn name_of(identity: Identity) -> String {
    let random = u64::from_le_bytes(identity.random[..8].try_into().expect("eight bytes"));
    format!("{}.{random:016x}", identity.pid)
}

/// Where the pages of an address space may be.
pub fn candidates(identity: Identity) -> Vec<PathBuf> {
    directories().map(|directory| directory.join(name_of(identity))).collect()
}

/// What a file that is being written has behind its name.
const UNFINISHED: &str = ".partial";

/// The file with the pages of an address space, if there is one at `path`. One that is being written is
/// waited for.
pub fn open(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let mut unfinished = path.to_owned().into_os_string();
    unfinished.push(UNFINISHED);
    let being_written = File::open(unfinished)?;
    // Its writers hold the lock: the pager, and the coordinator that gives it its name then.
    flock(&being_written, FlockOperation::LockShared)?;
    File::open(path)
}

/// A file that a pager writes pages to. It is locked until all who have it open are done.
#[derive(Debug)]
pub struct PagesFile {
    directory: OwnedFd,
    /// For the pager.
    pub file: File,
    name: String,
}

impl PagesFile {
    /// Makes one, which goes when it is dropped.
    pub fn create(identity: Identity) -> anyhow::Result<Self> {
        let mut last = None;
        for directory in directories() {
            match create_in(&directory, identity) {
                Ok(file) => return Ok(file),
                Err(error) => last = Some(error.context(directory.display().to_string())),
            }
        }
        Err(last.expect("there are places"))
    }

    /// Gives it its name, now that it is whole. That of an earlier process with the same number and the same
    /// random bytes, which is of the same exec, is replaced.
    pub fn publish(self) -> anyhow::Result<()> {
        fs::renameat(&self.directory, self.unfinished(), &self.directory, &self.name)
            .context("cannot name the file")
    }

    fn unfinished(&self) -> String {
        format!("{}{UNFINISHED}", self.name)
    }
}

impl Drop for PagesFile {
    fn drop(&mut self) {
        // Nothing, if it has its name.
        let _ = fs::unlinkat(&self.directory, self.unfinished(), AtFlags::empty());
    }
}

fn create_in(path: &Path, identity: Identity) -> anyhow::Result<PagesFile> {
    match fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).context("cannot be created"),
    }
    let directory = open_own_directory(path, Mode::RWXG | Mode::RWXO)?;
    let name = name_of(identity);
    let unfinished = format!("{name}{UNFINISHED}");
    // Of a run that was killed.
    let _ = fs::unlinkat(&directory, &unfinished, AtFlags::empty());
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = fs::openat(&directory, unfinished, flags, Mode::RUSR | Mode::WUSR)
        .context("cannot be written to")?;
    let file = PagesFile { directory, file: file.into(), name };
    flock(&file.file, FlockOperation::NonBlockingLockExclusive).context("cannot lock a file")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    use super::*;

    const IDENTITY: Identity = Identity { pid: 4711, random: *b"0123456789abcdef" };

    #[test]
    fn a_file_is_waited_for_while_it_is_written() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("cores");
        let mut file = create_in(&directory, IDENTITY).unwrap();
        let path = directory.join(name_of(IDENTITY));
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            open(&path).unwrap().read_to_string(&mut text).unwrap();
            text
        });
        std::thread::sleep(Duration::from_millis(50));
        file.file.write_all(b"whole").unwrap();
        file.publish().unwrap();
        assert_eq!(reader.join().unwrap(), "whole");
    }

    #[test]
    fn a_file_that_is_given_up_is_gone() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("cores");
        drop(create_in(&directory, IDENTITY).unwrap());
        assert_eq!(directory.read_dir().unwrap().count(), 0);
        assert!(open(&directory.join(name_of(IDENTITY))).is_err());
    }
}
