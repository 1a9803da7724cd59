//! Where the sockets of a user's runs are, and how one is found or made there.
//!
//! The first of these that can be used holds the socket of a new run; clients look in all of them:
//!
//! 1. `$XDG_RUNTIME_DIR/vswap`, if `$XDG_RUNTIME_DIR` is this user's and nobody else can enter it;
//! 2. `/run/vswap-UID`, which root can make;
//! 3. `/tmp/vswap-run-UID` (`/tmp/vswap-UID` holds the shared object, which others may read).
//!
//! A directory is used if it is this user's own and closed to everybody else. It is opened without
//! following a symbolic link, checked by descriptor, and from then on reached by that descriptor
//! only. A socket that refuses connections is what a run left behind that was killed. Who removes it
//! holds a lock on the directory, and so does who makes one, until it accepts connections.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{self, AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::geteuid;

/// Longest name of a run in bytes.
const NAME_MAX: usize = 64;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// How often, and how long each time, somebody waits for the lock of a directory. Who holds it makes
/// some system calls only.
const LOCK_TRIES: (usize, Duration) = (100, Duration::from_millis(20));

/// Checks that a run can have this name; what is wrong, and what to do, if not.
pub fn check_name(name: &str) -> Result<(), String> {
    let wrong = match name {
        "" => "a name cannot be empty",
        _ if name.len() > NAME_MAX => "the name is longer than 64 bytes",
        _ if name.contains(|c: char| c == '/' || c.is_control()) => {
            "a name cannot hold '/' or control characters"
        }
        _ if name.starts_with(['.', '-']) => "a name cannot begin with '.' or '-'",
        _ if name.bytes().all(|byte| byte.is_ascii_digit()) => {
            "a name of digits alone would be taken for a process ID"
        }
        _ => return Ok(()),
    };
    Err(format!("{wrong}; write for example --name nightly"))
}

/// A directory for sockets, open.
struct Place {
    directory: OwnedFd,
}

/// A run as its directory has it.
pub struct Entry {
    /// Process ID of its `vswap run`.
    pub pid: u32,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The run in it that is meant, by its name or process ID.
    pub group: Option<String>,
    place: Rc<Place>,
}

/// Why a run has no control socket.
#[derive(Debug)]
pub enum PublishError {
    /// A live run has the name.
    NameTaken,
    /// It cannot be made, for this reason.
    Unavailable(anyhow::Error),
}

/// A socket that clients can find. Its entries go with it.
pub struct Published {
    /// Accepts connections, nonblocking.
    pub listener: OwnedFd,
    place: Rc<Place>,
    pid: u32,
    name: Option<String>,
}

/// Makes the socket of this process.
pub fn publish(name: Option<&str>) -> Result<Published, PublishError> {
    // It may have its entry in another place, if it was started in another environment.
    if name.is_some() && runs().iter().any(|run| run.name.as_deref() == name) {
        return Err(PublishError::NameTaken);
    }
    let place = usable_place().map_err(PublishError::Unavailable)?;
    publish_in(&Rc::new(place), name, std::process::id())
}

fn publish_in(place: &Rc<Place>, name: Option<&str>, pid: u32) -> Result<Published, PublishError> {
    let _lock = place.lock().map_err(PublishError::Unavailable)?;
    // Only what is in the way: to ask every run that there is would make each start slower.
    if place.holds(&pid.to_string()) || name.is_some_and(|name| place.holds(name)) {
        place.sweep();
    }
    if name.is_some_and(|name| place.holds(name)) {
        return Err(PublishError::NameTaken);
    }
    let listener = place.listen(pid).map_err(PublishError::Unavailable)?;
    let mut published = Published { listener, place: Rc::clone(place), pid, name: None };
    if let Some(name) = name {
        fs::symlinkat(pid.to_string(), &place.directory, name)
            .context("cannot create a symbolic link")
            .map_err(PublishError::Unavailable)?;
        published.name = Some(name.to_owned());
    }
    Ok(published)
}

impl Drop for Published {
    fn drop(&mut self) {
        // Both are ours for as long as the listener is open. The name goes first: it would be stale.
        if let Some(name) = &self.name {
            self.place.remove(name);
        }
        self.place.remove(&self.pid.to_string());
    }
}

/// All runs of this user that can be found. What killed ones left is removed.
pub fn runs() -> Vec<Entry> {
    let mut runs = Vec::new();
    for place in candidates().iter().filter_map(|candidate| candidate.open(false).ok()) {
        let place = Rc::new(place);
        let stale = Place::entries(&place).iter().any(|entry| !place.is_live(entry.pid));
        if stale && let Ok(_lock) = place.lock() {
            place.sweep();
        }
        runs.extend(Place::entries(&place));
    }
    runs
}

impl Entry {
    /// Connects to the run.
    pub fn connect(&self) -> Result<OwnedFd, Errno> {
        self.place.connect(self.pid, SocketFlags::CLOEXEC)
    }
}

/// A place by its name, and how far it has to be closed to others.
struct Candidate {
    path: PathBuf,
    /// Rights that others must not have there.
    forbidden: Mode,
}

fn candidates() -> Vec<Candidate> {
    let user = geteuid().as_raw();
    let everything = Mode::RWXG | Mode::RWXO;
    let mut candidates = Vec::new();
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
        && open_own_directory(&runtime, everything).is_ok()
    {
        // Nobody else gets there, and the shared object may have been there first.
        let forbidden = Mode::WGRP | Mode::WOTH;
        candidates.push(Candidate { path: runtime.join("vswap"), forbidden });
    }
    for path in [format!("/run/vswap-{user}"), format!("/tmp/vswap-run-{user}")] {
        candidates.push(Candidate { path: path.into(), forbidden: everything });
    }
    candidates
}

fn usable_place() -> anyhow::Result<Place> {
    let mut failures = Vec::new();
    for candidate in candidates() {
        match candidate.open(true) {
            Ok(place) => return Ok(place),
            Err(error) => failures.push(format!("{}: {error:#}", candidate.path.display())),
        }
    }
    anyhow::bail!("{}", failures.join(", "))
}

impl Candidate {
    fn open(&self, create: bool) -> anyhow::Result<Place> {
        if create {
            match fs::mkdir(&self.path, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).context("cannot be created"),
            }
        }
        let directory = open_own_directory(&self.path, self.forbidden)?;
        Ok(Place { directory })
    }
}

/// Opens a directory of this user's own in which others have none of the forbidden rights.
pub fn open_own_directory(path: &Path, forbidden: Mode) -> anyhow::Result<OwnedFd> {
    anyhow::ensure!(path.is_absolute(), "is not an absolute path");
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = fs::open(path, flags, Mode::empty()).context("cannot be opened")?;
    let found = fs::fstat(&directory)?;
    anyhow::ensure!(found.st_uid == geteuid().as_raw(), "belongs to another user");
    let mode = Mode::from_raw_mode(found.st_mode);
    anyhow::ensure!(!mode.intersects(forbidden), "is open to other users");
    Ok(directory)
}

impl Place {
    /// Keeps others from making and removing entries while it is held.
    fn lock(&self) -> anyhow::Result<OwnedFd> {
        // A lock belongs to an open file, so that of this one goes when it is closed.
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = fs::openat(&self.directory, ".", flags, Mode::empty())?;
        let (tries, pause) = LOCK_TRIES;
        for _ in 0..tries {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => std::thread::sleep(pause),
                result => return result.map(|()| lock).context("cannot be locked"),
            }
        }
        anyhow::bail!("another vswap holds its lock")
    }

    /// The sockets, with the names that lead to them.
    fn entries(place: &Rc<Self>) -> Vec<Entry> {
        let files = place.files();
        let mut entries: Vec<Entry> = files
            .iter()
            .filter(|(_, kind)| *kind == FileType::Socket)
            .filter_map(|(file, _)| file.parse().ok())
            .map(|pid| Entry { pid, name: None, group: None, place: Rc::clone(place) })
            .collect();
        for (name, _) in files.iter().filter(|(_, kind)| *kind == FileType::Symlink) {
            let pid = place.target(name);
            if let Some(entry) = entries.iter_mut().find(|entry| Some(entry.pid) == pid) {
                entry.name = Some(name.clone());
            }
        }
        entries.sort_by_key(|entry| entry.pid);
        entries
    }

    fn files(&self) -> Vec<(String, FileType)> {
        let Ok(directory) = Dir::read_from(&self.directory) else { return Vec::new() };
        directory
            .flatten()
            .filter_map(|file| {
                let name = file.file_name().to_str().ok()?.to_owned();
                let found = fs::statat(&self.directory, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
                Some((name, FileType::from_raw_mode(found.st_mode)))
            })
            .collect()
    }

    /// The run that a name leads to.
    fn target(&self, name: &str) -> Option<u32> {
        fs::readlinkat(&self.directory, name, Vec::new()).ok()?.to_str().ok()?.parse().ok()
    }

    fn holds(&self, file: &str) -> bool {
        fs::statat(&self.directory, file, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn remove(&self, file: &str) {
        let _ = fs::unlinkat(&self.directory, file, AtFlags::empty());
    }

    /// Removes what killed runs left. With the lock held.
    fn sweep(&self) {
        for (file, kind) in self.files() {
            let pid = match kind {
                FileType::Socket => file.parse().ok(),
                FileType::Symlink => self.target(&file),
                _ => None,
            };
            if pid.is_some_and(|pid| !self.is_live(pid)) {
                self.remove(&file);
            }
        }
    }

    /// Whether somebody listens, or cannot be asked.
    fn is_live(&self, pid: u32) -> bool {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        !matches!(self.connect(pid, flags), Err(Errno::CONNREFUSED | Errno::NOENT))
    }

    fn connect(&self, pid: u32, flags: SocketFlags) -> Result<OwnedFd, Errno> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &self.address(pid)?)?;
        Ok(socket)
    }

    fn listen(&self, pid: u32) -> anyhow::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&socket, &self.address(pid)?).context("cannot create a socket there")?;
        let listening = listen(&socket, BACKLOG);
        if listening.is_err() {
            self.remove(&pid.to_string());
        }
        listening.context("cannot listen on a socket there")?;
        Ok(socket)
    }

    /// By the open directory: what its path leads to now may be another, and paths of sockets are
    /// short.
    fn address(&self, pid: u32) -> Result<SocketAddrUnix, Errno> {
        SocketAddrUnix::new(format!("/proc/self/fd/{}/{pid}", self.directory.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn place(directory: &Path) -> Rc<Place> {
        Rc::new(Place { directory: open_own_directory(directory, Mode::empty()).unwrap() })
    }

    fn count(directory: &Path) -> usize {
        directory.read_dir().unwrap().count()
    }

    #[test]
    fn names_are_file_names_that_are_no_process_ids() {
        let long = "x".repeat(NAME_MAX);
        for name in ["a", "nightly run", "1st", "µ", &long] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let longer = "x".repeat(NAME_MAX + 1);
        for name in ["", ".", "..", ".hidden", "-v", "a/b", "a\0b", "a\nb", "4711", &longer] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_run_is_found_until_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        let run = publish_in(&place, Some("one"), 77).unwrap();
        let entries = Place::entries(&place);
        assert_eq!(
            (entries.len(), entries[0].pid, entries[0].name.as_deref()),
            (1, 77, Some("one"))
        );
        assert!(entries[0].connect().is_ok());
        let second = publish_in(&place, Some("one"), 78);
        assert!(matches!(second, Err(PublishError::NameTaken)));
        // In another PID namespace.
        assert!(matches!(publish_in(&place, None, 77), Err(PublishError::Unavailable(_))));
        assert_eq!(Place::entries(&place).len(), 1);
        drop(run);
        assert_eq!(count(directory.path()), 0);
    }

    #[test]
    fn what_a_killed_run_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        drop(place.listen(77).unwrap());
        symlink("77", directory.path().join("one")).unwrap();
        symlink("78", directory.path().join("two")).unwrap();
        let run = publish_in(&place, Some("one"), 77).unwrap();
        assert_eq!(Place::entries(&place).len(), 1);
        assert_eq!(count(directory.path()), 2, "a name that leads nowhere is left");
        drop(run);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        std::fs::write(directory.path().join("libvswap-0.so"), "").unwrap();
        std::fs::write(directory.path().join("99"), "").unwrap();
        symlink("libvswap-0.so", directory.path().join("link")).unwrap();
        place.sweep();
        assert_eq!((count(directory.path()), Place::entries(&place).len()), (3, 0));
        assert!(matches!(publish_in(&place, Some("link"), 1), Err(PublishError::NameTaken)));
    }

    #[test]
    fn a_directory_that_others_can_enter_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("place");
        let candidate = Candidate { path: path.clone(), forbidden: Mode::RWXG | Mode::RWXO };
        assert!(candidate.open(false).is_err());
        assert!(candidate.open(true).is_ok());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(candidate.open(true).is_err());
        let link = directory.path().join("link");
        symlink(directory.path(), &link).unwrap();
        assert!(Candidate { path: link, forbidden: Mode::empty() }.open(true).is_err());
    }
}
