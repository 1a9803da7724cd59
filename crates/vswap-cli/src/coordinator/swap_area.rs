//! An existing swap area: a block device, or a file that `mkswap` formatted.
//!
//! It is opened so that nobody else uses it, and refused with one line where that cannot be had. A
//! block device is claimed (O_EXCL), as mount and swapon do; a file is locked (flock). Both last as
//! long as any process of the run holds the descriptor, and end with the last one however it ends.
//! Nothing is written here, and nothing at all to what has no header of a swap area.

use std::fmt::Display;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock, major, makedev, minor};
use rustix::io::Errno;
use vswap_core::PAGE_SIZE;
use vswap_pager::io::Geometry;

use crate::refusal::{Refusal, reason};
use crate::size::Size;

/// What kind of file an area is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaKind {
    /// A regular file. Holes in it are as good as blocks: they are filled when written.
    File,
    /// A block device.
    BlockDevice,
}

/// An open swap area that is this run's alone.
#[derive(Debug)]
pub struct Area<H> {
    /// The device or file.
    pub file: File,
    /// Which of both.
    pub kind: AreaKind,
    /// What the reader of headers made of the first page.
    pub header: H,
    /// How its I/O is aligned; direct where that works.
    pub geometry: Geometry,
    /// Whether space that is not used any more can be given back.
    pub discards: bool,
}

/// What a file is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// Device number of the block device itself.
    Device(u64),
    /// File system and inode.
    File(u64, u64),
}

impl Identity {
    fn of(found: &Metadata) -> Option<Self> {
        let kind = found.file_type();
        if kind.is_block_device() {
            Some(Self::Device(found.rdev()))
        } else {
            kind.is_file().then(|| Self::File(found.dev(), found.ino()))
        }
    }

    fn kind(self) -> AreaKind {
        match self {
            Self::Device(_) => AreaKind::BlockDevice,
            Self::File(..) => AreaKind::File,
        }
    }
}

/// Opens an existing area. `read_header` judges its first page, given also its length in pages.
pub fn open<H, E: Display>(
    path: &Path,
    read_header: impl FnOnce(&[u8; PAGE_SIZE], u64, AreaKind) -> Result<H, E>,
) -> Result<Area<H>, Refusal> {
    // A list that cannot be read (no /proc) lists nothing.
    open_unless_listed(path, &fs::read("/proc/swaps").unwrap_or_default(), read_header)
}

fn open_unless_listed<H, E: Display>(
    path: &Path,
    swaps: &[u8],
    read_header: impl FnOnce(&[u8; PAGE_SIZE], u64, AreaKind) -> Result<H, E>,
) -> Result<Area<H>, Refusal> {
    let shown = path.display();
    let identity = identify(path)?;
    if listed(swaps).any(|other| other == identity) {
        return Err(Refusal::usage(
            format!("--swap: {shown} is in use: the kernel swaps to it"),
            "name another place, or take it from the kernel by swapoff",
        ));
    }
    let mut file = claim(path, identity)?;
    let broken = |error: io::Error| failed(path, error);
    let len = file.seek(SeekFrom::End(0)).map_err(broken)?;
    let pages = len / PAGE_SIZE as u64;
    if pages < 2 {
        return Err(Refusal::usage(
            format!("--swap: {shown} has {len} bytes, which is too little"),
            format!("name an area of at least {}", Size(2 * PAGE_SIZE as u64)),
        ));
    }
    let mut first = [0; PAGE_SIZE];
    file.read_exact_at(&mut first, 0).map_err(broken)?;
    let header = read_header(&first, pages, identity.kind()).map_err(|found| {
        Refusal::usage(
            format!("--swap: {shown}: {found}"),
            "vswap leaves it alone: name an area that mkswap has formatted",
        )
    })?;
    let geometry = Geometry::prefer_direct(file.as_raw_fd())
        .map_err(|error| broken(io::Error::from_raw_os_error(error.0)))?;
    let discards = discards(&file, identity, len);
    Ok(Area { file, kind: identity.kind(), header, geometry, discards })
}

fn failed(path: &Path, error: io::Error) -> Refusal {
    let what = format!("--swap: cannot use {}: {}", path.display(), reason(error));
    Refusal::usage(what, "name another place")
}

fn in_use(path: &Path, who: &str) -> Refusal {
    let what = format!("--swap: {} is in use by {who}", path.display());
    Refusal::usage(what, "name another place, or end its other user")
}

/// Before it is opened: opening a fifo or a tape does things.
fn identify(path: &Path) -> Result<Identity, Refusal> {
    let found = fs::metadata(path).map_err(|error| failed(path, error))?;
    Identity::of(&found).ok_or_else(|| {
        let what = format!("--swap: {} is neither a file nor a block device", path.display());
        Refusal::usage(what, "name one of them")
    })
}

/// Opens the area so that nobody else has it, or opens it later.
fn claim(path: &Path, identity: Identity) -> Result<File, Refusal> {
    let exclusive = match identity.kind() {
        AreaKind::BlockDevice => OFlags::EXCL,
        AreaKind::File => OFlags::empty(),
    };
    let flags = exclusive | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => in_use(path, "a mount or another program"),
            _ => failed(path, error),
        })?;
    let found = file.metadata().map_err(|error| failed(path, error))?;
    if Identity::of(&found) != Some(identity) {
        return Err(in_use(path, "somebody who replaced it just now"));
    }
    if identity.kind() == AreaKind::File {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(in_use(path, "another run")),
            // NFS without a lock server: as good as it gets there.
            Err(Errno::NOLCK | Errno::OPNOTSUPP) => {}
            result => result.map_err(|error| failed(path, error.into()))?,
        }
    }
    Ok(file)
}

/// What is listed in a /proc/swaps. Names are of the kernel's choice (`/dev/dm-0`), so only what
/// they lead to counts.
fn listed(swaps: &[u8]) -> impl Iterator<Item = Identity> {
    let areas = swaps.split(|&byte| byte == b'\n').skip(1);
    areas.filter_map(|line| line.split(u8::is_ascii_whitespace).next()).filter_map(|name| {
        let path = PathBuf::from(std::ffi::OsString::from_vec(unescape(name)));
        match fs::metadata(&path) {
            Ok(found) => Identity::of(&found),
            // A container often has no node for a device of the host's.
            Err(_) => device_by_name(&path).map(Identity::Device),
        }
    })
}

fn device_by_name(path: &Path) -> Option<u64> {
    let number =
        fs::read_to_string(Path::new("/sys/class/block").join(path.file_name()?).join("dev"));
    let number = number.ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The kernel writes blanks and backslashes of a name as three octal digits.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, behind)) = rest.split_first() {
        let octal = behind.first_chunk::<3>().filter(|_| byte == b'\\');
        let code = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    plain
}

/// Whether unused space can be given back, found out without giving any back.
fn discards(file: &File, identity: Identity, len: u64) -> bool {
    match identity {
        Identity::Device(number) => {
            let device = format!("/sys/dev/block/{}:{}", major(number), minor(number));
            // A partition has no queue of its own.
            ["queue", "../queue"].iter().any(|queue| {
                fs::read_to_string(format!("{device}/{queue}/discard_max_bytes"))
                    .is_ok_and(|bytes| bytes.trim() != "0")
            })
        }
        Identity::File(..) => {
            // Behind the end there is nothing to lose.
            let end = len.next_multiple_of(PAGE_SIZE as u64);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, flags, end, PAGE_SIZE as u64).is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use tempfile::{NamedTempFile, TempDir};

    use super::*;

    const LEN: u64 = 1 << 20;

    /// A stand-in for the parser of headers: the signature alone.
    fn header(first: &[u8; PAGE_SIZE], pages: u64, kind: AreaKind) -> Result<AreaKind, String> {
        assert_eq!(pages, LEN / PAGE_SIZE as u64);
        let signed = first.ends_with(b"SWAPSPACE2");
        signed.then_some(kind).ok_or_else(|| "not a swap area".to_owned())
    }

    fn refusal<H>(result: Result<Area<H>, Refusal>) -> String {
        let Err(refusal) = result else { panic!("it was opened") };
        let line = refusal.to_string();
        assert!(!line.contains('\n'), "one line: {line}");
        line
    }

    /// A file of one hole with a signature in it.
    fn sparse(path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(LEN).unwrap();
        file.write_all_at(b"SWAPSPACE2", PAGE_SIZE as u64 - 10).unwrap();
    }

    fn area() -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        sparse(file.path());
        file
    }

    /// Whether files here can be punched, tried on one that holds something.
    fn takes_holes() -> bool {
        let file = area();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, flags, 0, PAGE_SIZE as u64).is_ok()
    }

    #[test]
    fn a_file_of_mkswap_is_taken_holes_and_all() {
        let file = area();
        let made = Command::new("mkswap").arg(file.path()).output();
        if !made.is_ok_and(|made| made.status.success()) {
            eprintln!("without mkswap: a signature alone");
        }
        let before = fs::read(file.path()).unwrap();
        let opened = open(file.path(), header).unwrap();
        assert_eq!((opened.kind, opened.header), (AreaKind::File, AreaKind::File));
        assert_eq!(opened.file.metadata().unwrap().ino(), file.as_file().metadata().unwrap().ino());
        assert_eq!(opened.discards, takes_holes());
        drop(opened);
        assert!(fs::read(file.path()).unwrap() == before, "opening writes nothing");
    }

    #[test]
    fn a_file_has_one_user_at_a_time() {
        let file = area();
        let first = open(file.path(), header).unwrap();
        let second = file.path().with_extension("link");
        fs::hard_link(file.path(), &second).unwrap();
        for path in [file.path(), &second] {
            let line = refusal(open(path, header));
            assert!(line.contains("in use by another run"), "{line}");
        }
        fs::remove_file(second).unwrap();
        drop(first);
        open(file.path(), header).unwrap();
    }

    #[test]
    fn what_is_no_swap_area_is_left_alone() {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&vec![0x5a; LEN as usize]).unwrap();
        let line = refusal(open(file.path(), header));
        assert!(line.contains("not a swap area; vswap leaves it alone"), "{line}");
        assert!(fs::read(file.path()).unwrap().iter().all(|&byte| byte == 0x5a));
        file.as_file().set_len(PAGE_SIZE as u64 + 1).unwrap();
        let line = refusal(open(file.path(), header));
        assert!(line.contains("4097 bytes, which is too little"), "{line}");
    }

    #[test]
    fn what_cannot_be_one_is_named() {
        let directory = TempDir::new().unwrap();
        for (path, expected) in [
            (directory.path(), "neither a file nor a block device"),
            (Path::new("/dev/null"), "neither a file nor a block device"),
            (&directory.path().join("missing"), "no such file"),
            (Path::new("/dev/null/file"), "not a directory"),
        ] {
            let line = refusal(open(path, header));
            assert!(line.contains(expected), "{line}");
        }
    }

    #[test]
    fn swap_of_the_kernel_is_known_by_inode() {
        let directory = TempDir::new().unwrap();
        let named = directory.path().join("a name with\tblanks \\ 040");
        sparse(&named);
        let link = directory.path().join("link");
        fs::hard_link(&named, &link).unwrap();
        let escape = |c: char| match c {
            ' ' | '\t' | '\\' => format!("\\{:03o}", c as u32),
            c => c.to_string(),
        };
        let escaped: String = named.to_str().unwrap().chars().map(escape).collect();
        let swaps = format!("Filename\tType\n{escaped}   file\t1024\t0\t-2\n/gone file 1 0 -3\n");
        let line = refusal(open_unless_listed(&link, swaps.as_bytes(), header));
        assert!(line.contains("the kernel swaps to it"), "{line}");
        let other = area();
        open_unless_listed(other.path(), swaps.as_bytes(), header).unwrap();
        open_unless_listed(&link, b"Filename\tType\n", header).unwrap();
    }

    /// A loop device over a file, gone when dropped.
    struct Loop(PathBuf, #[allow(dead_code, reason = "removed when dropped")] NamedTempFile);

    impl Loop {
        fn new() -> Option<Self> {
            let file = area();
            let mut setup = Command::new("losetup");
            let made = setup.args(["--find", "--show"]).arg(file.path()).output().ok()?;
            if !made.status.success() {
                eprintln!("skipped: no loop device: {}", String::from_utf8_lossy(&made.stderr));
                return None;
            }
            let name = String::from_utf8(made.stdout).unwrap();
            Some(Self(name.trim().into(), file))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
        }
    }

    #[test]
    fn a_block_device_is_claimed() {
        let Some(device) = Loop::new() else { return };
        let opened = open(&device.0, header).unwrap();
        assert_eq!(opened.kind, AreaKind::BlockDevice);
        assert_eq!(opened.geometry, Geometry { direct: true, block: 512 });
        assert_eq!(opened.discards, takes_holes(), "a loop device passes it on");
        let line = refusal(open(&device.0, header));
        assert!(line.contains("in use by a mount or another program"), "{line}");
        drop(opened);

        let name = device.0.file_name().unwrap().to_str().unwrap();
        // Whatever directory the kernel's name for it has.
        for listed in [device.0.display().to_string(), format!("/nowhere/{name}")] {
            let swaps = format!("Filename\n{listed} partition 1024 0 -2\n");
            let line = refusal(open_unless_listed(&device.0, swaps.as_bytes(), header));
            assert!(line.contains("the kernel swaps to it"), "{line}");
        }
    }
}
