//! Where the tests do their I/O: a file on a disk, one on tmpfs, a loop device.

extern crate std;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::string::{String, ToString as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::vec::Vec;
use std::{eprintln, format};

use super::super::{Device, Geometry, Health};
use crate::sys::task;

/// Bytes of each place.
pub const LEN: u64 = 4 << 20;

/// An open place; it is gone when dropped.
pub struct Place {
    pub name: String,
    pub file: File,
    pub geometry: Geometry,
    pub health: Health,
    _clean: Vec<Clean>,
}

impl Place {
    pub fn device(&self) -> Device<'_> {
        let fd = self.file.as_raw_fd();
        Device { fd, id: 7, geometry: self.geometry, health: &self.health }
    }

    fn open(name: &str, path: &Path, clean: Vec<Clean>, direct: bool) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let fd = file.as_raw_fd();
        let geometry = if direct { Geometry::prefer_direct(fd) } else { Geometry::of(fd) }.unwrap();
        let name = format!("{name} {geometry:?}");
        Self { name, file, geometry, health: Health::new(), _clean: clean }
    }

    fn file(name: &str, directory: &Path, direct: bool) -> Self {
        let path = new_file(directory);
        let clean = Vec::from([Clean::File(path.clone())]);
        Self::open(name, &path, clean, direct)
    }

    fn loop_device() -> Option<Self> {
        let path = new_file(&std::env::temp_dir());
        let mut clean = Vec::from([Clean::File(path.clone())]);
        let made = Command::new("losetup").args(["--find", "--show"]).arg(&path).output().ok()?;
        let device = String::from_utf8(made.stdout).unwrap().trim().to_string();
        if !made.status.success() {
            eprintln!("skipped: no loop device: {}", String::from_utf8_lossy(&made.stderr));
            return None;
        }
        clean.insert(0, Clean::Loop(device.clone()));
        Some(Self::open("loop", Path::new(&device), clean, true))
    }

    /// All that this machine has.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::from([
            Self::file("disk", &std::env::temp_dir(), true),
            Self::file("disk, buffered", &std::env::temp_dir(), false),
        ]);
        if Path::new("/dev/shm").is_dir() {
            all.push(Self::file("tmpfs", Path::new("/dev/shm"), false));
        }
        all.extend(Self::loop_device());
        all
    }
}

fn new_file(directory: &Path) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("vswap-io-test-{}-{number}", task::process_id()));
    File::create_new(&path).unwrap().set_len(LEN).unwrap();
    path
}

/// What is to be undone, also after a test failed.
enum Clean {
    File(PathBuf),
    Loop(String),
}

impl Drop for Clean {
    fn drop(&mut self) {
        match self {
            Self::File(path) => drop(std::fs::remove_file(path)),
            Self::Loop(device) => drop(Command::new("losetup").args(["-d", device]).status()),
        }
    }
}
