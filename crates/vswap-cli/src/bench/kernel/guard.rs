//! Putting the machine back, whatever happens to the bench.
//!
//! The *guard* is a process in a process group of its own, so that a Ctrl-C for the bench does not
//! reach it. The bench writes a line to it before each change (how to undo it) and after each
//! undoing. At the end of the pipe, which comes when the bench is done, panics or is killed, the
//! guard undoes what is left, last change first. It also holds the bench's lock, so that the next
//! bench starts on a machine that has been put back.
//!
//! An undo may come twice, or before the change was made: all of them take "it is so already" for
//! success.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use super::{Context as _, KernelError, cgroup, swap_file, write, zram};

/// Where everyone can lock, root or not.
const LOCK: &str = "/tmp/vswap-bench.lock";

/// How to take back one change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Undo {
    /// Write the old value of a parameter.
    Write {
        /// The parameter.
        path: PathBuf,
        /// Its value before.
        value: String,
    },
    /// Turn a swap area off.
    SwapOff(PathBuf),
    /// Remove a zram device.
    ZramDevice(u32),
    /// Remove a swap file.
    SwapFile(PathBuf),
    /// Remove a directory with all that is in it.
    Directory(PathBuf),
    /// Kill what is in a memory cgroup and remove it.
    Group(PathBuf),
}

impl Undo {
    fn apply(&self) -> Result<(), KernelError> {
        match self {
            Self::Write { path, value } => write(path, value),
            Self::SwapOff(path) => swap_file::swap_off(path),
            Self::ZramDevice(id) => zram::remove_device(*id),
            Self::SwapFile(path) => match std::fs::remove_file(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result.context("removing", path),
            },
            Self::Directory(dir) => match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result.context("removing", dir),
            },
            Self::Group(dir) => cgroup::remove(dir),
        }
    }
}

/// A line from the bench to the guard.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Doing(u32, Undo),
    Undone(u32),
}

/// The bench's end of the guard.
pub struct Journal {
    pipe: RefCell<ChildStdin>,
    guard: Child,
    next: Cell<u32>,
}

impl Journal {
    /// Takes the lock and starts the guard, which is `program` called with `args`.
    ///
    /// # Errors
    /// Another bench is running, or the guard cannot be started.
    pub fn start(program: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let lock = lock(Path::new(LOCK))?;
        let mut guard = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            // It writes nothing there; this is how it comes to hold the lock.
            .stdout(Stdio::from(lock))
            .process_group(0)
            .spawn()?;
        let pipe = guard.stdin.take().expect("its standard input is a pipe");
        Ok(Self { pipe: RefCell::new(pipe), guard, next: Cell::new(0) })
    }

    /// Tells the guard of a change that is about to be made.
    pub(super) fn record(&self, undo: Undo) -> Result<Change<'_>, KernelError> {
        let id = self.next.replace(self.next.get() + 1);
        self.send(&Line::Doing(id, undo.clone())).map_err(KernelError::NoGuard)?;
        Ok(Change { journal: self, id, undo })
    }

    fn send(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // One write, so that a bench that is killed leaves no half line.
        self.pipe.borrow_mut().write_all(&text)
    }

    /// Lets the guard undo what is left, and waits for it.
    ///
    /// # Errors
    /// Something could not be undone; the guard has said what on standard error.
    pub fn finish(self) -> anyhow::Result<()> {
        let Self { pipe, mut guard, .. } = self;
        drop(pipe);
        let status = guard.wait()?;
        anyhow::ensure!(status.success(), "the machine is not as it was before: see above");
        Ok(())
    }
}

/// A change to the machine, undone when dropped.
pub struct Change<'j> {
    journal: &'j Journal,
    id: u32,
    undo: Undo,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        // What fails here stays in the guard's list; it tries again at the end and says so.
        if self.undo.apply().is_ok() {
            // If the guard is gone there is nobody to tell, and no more to undo.
            let _ = self.journal.send(&Line::Undone(self.id));
        }
    }
}

/// Takes the lock that keeps two benches from changing the machine at once.
fn lock(path: &Path) -> anyhow::Result<File> {
    let options = |create| {
        let mut options = File::options();
        options.read(true).write(create).create(create).mode(0o644);
        options.custom_flags(OFlags::NOFOLLOW.bits() as i32);
        options
    };
    // Opened without O_CREAT first: in a sticky directory not even root may "create" a file that
    // is another user's (fs.protected_regular).
    let file = match options(false).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => options(true).open(path),
        result => result,
    }
    .context("opening", path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            anyhow::bail!("another vswap bench is running ({} is locked)", path.display())
        }
        Err(error) => Err(error).context("locking", path)?,
    }
}

/// The guard's main loop: reads the journal from standard input, and undoes what is left at its end.
///
/// # Errors
/// Something could not be undone; each such thing was printed.
pub fn run() -> anyhow::Result<()> {
    let mut left = BTreeMap::new();
    for line in io::stdin().lock().lines() {
        match serde_json::from_str(&line?)? {
            Line::Doing(id, undo) => drop(left.insert(id, undo)),
            Line::Undone(id) => drop(left.remove(&id)),
        }
    }
    let mut failed = 0;
    for undo in left.values().rev() {
        if let Err(error) = undo.apply() {
            eprintln!("vswap bench: cannot restore the machine: {error}");
            failed += 1;
        }
    }
    anyhow::ensure!(failed == 0, "{failed} changes to the machine are left");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_bench_is_refused() {
        let path = std::env::temp_dir().join(format!("vswap-bench-lock-{}", std::process::id()));
        let held = lock(&path).unwrap();
        assert!(lock(&path).unwrap_err().to_string().contains("another vswap bench"));
        drop(held);
        lock(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
