//! A child that does part of the measured program's work.

use std::io::Write as _;
use std::os::fd::BorrowedFd;

use rustix::process::{Pid, WaitOptions, waitpid};

use super::super::contents::WrongBytes;
use super::WorkError;

/// Held while a test has a child, for those that count the memory of this process.
#[cfg(test)]
pub static FORKS: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Runs `work` in a forked child and waits for it. The child may have been forked from a program
/// with other threads, so `work` neither allocates nor locks anything.
///
/// # Errors
/// The child could not be forked, found wrong bytes (and printed which), or died.
pub fn in_child(work: impl FnOnce() -> Result<(), WrongBytes>) -> Result<(), WorkError> {
    #[cfg(test)]
    let _lock = FORKS.lock();
    // SAFETY: the child does nothing but what is safe after fork: `work`, by its contract, one
    // write, and `_exit`.
    let child = match unsafe { libc::fork() } {
        0 => {
            let result = work();
            if let Err(wrong) = &result {
                complain(wrong);
            }
            // SAFETY: it takes a number, and runs nothing of what the parent means to run at exit.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        child => child,
    };
    let Some(child) = Pid::from_raw(child).filter(|_| child > 0) else {
        return Err(WorkError::Fork(std::io::Error::last_os_error()));
    };
    let status = loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(WorkError::Fork(error.into())),
        }
    };
    if status.exit_status() == Some(0) { Ok(()) } else { Err(WorkError::Child(status.as_raw())) }
}

/// From a buffer on the stack, since the child's heap may be locked.
fn complain(wrong: &WrongBytes) {
    let mut line = [0u8; 256];
    let mut rest = &mut line[..];
    let _ = writeln!(rest, "in the forked child: {wrong}");
    let unused = rest.len();
    // SAFETY: the descriptor is open for the program's life, or the write fails.
    let stderr = unsafe { BorrowedFd::borrow_raw(2) };
    // There is nobody else to tell.
    let _ = rustix::io::write(stderr, &line[..line.len() - unused]);
}

#[cfg(test)]
mod tests {
    use super::super::super::contents::{Contents, Mix, PAGE_WORDS};
    use super::*;

    #[test]
    fn the_childs_finding_is_the_parents() {
        let contents = Contents::new(Mix::Heap);
        let mut page = [0; PAGE_WORDS];
        contents.fill(&mut page, 3);
        in_child(|| contents.check(&page, 3, 0)).unwrap();
        let wrong = in_child(|| contents.check(&page, 4, 0)).unwrap_err();
        assert!(matches!(wrong, WorkError::Child(status) if status == 1 << 8), "{wrong}");
    }
}
