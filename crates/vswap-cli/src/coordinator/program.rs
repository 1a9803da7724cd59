//! The program: started as if nobody stood between it and its parent, and watched.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, getppid, waitid};
use vswap_pager::config::{Config, ENV_NAME};

use super::signals::{self, Signals};
use crate::inherited::Inherited;
use crate::preload;
use crate::refusal::{Refusal, reason};

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an exit code.
    Exited(u8),
    /// By a signal.
    Killed(libc::c_int),
}

/// What happened to the program since it was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// A signal stopped it.
    Stopped(libc::c_int),
    /// It goes on.
    Continued,
    /// It is gone.
    Ended(Outcome),
}

/// The process that was started.
pub struct Program {
    /// Its ID, valid until it was seen to end.
    pub pid: Pid,
    /// Whether it was stopped when last asked.
    stopped: bool,
}

impl Program {
    /// Starts `path` with `words`, the first of which is the name it was called by.
    pub fn start(
        path: &Path,
        words: &[OsString],
        object: &Path,
        config: &Config,
        inherited: &Inherited,
    ) -> anyhow::Result<Self> {
        // Through our own environment: `Command` would sort the variables and drop malformed ones.
        // SAFETY: this process has one thread.
        unsafe {
            std::env::set_var("LD_PRELOAD", preload::ld_preload(object));
            std::env::set_var(ENV_NAME, config.to_string());
        }
        let mut command = Command::new(path);
        command.arg0(&words[0]).args(&words[1..]);
        let (mask, ignored, parent) = (inherited.mask, inherited.ignored, getpid());
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(move || restore(&mask, &ignored, parent)) };
        let child = command.spawn().map_err(|error| refuse_start(&words[0], error))?;
        let pid = Pid::from_raw(child.id() as i32).context("a child without an ID")?;
        Ok(Self { pid, stopped: false })
    }

    /// What happened to it, if anything did.
    fn change(&mut self) -> Option<Change> {
        let options = WaitIdOptions::EXITED
            | WaitIdOptions::STOPPED
            | WaitIdOptions::CONTINUED
            | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::Pid(self.pid), options).ok()??;
        let change = if status.stopped() {
            Change::Stopped(status.stopping_signal()? as libc::c_int)
        } else if status.continued() {
            Change::Continued
        } else if let Some(code) = status.exit_status() {
            Change::Ended(Outcome::Exited(code as u8))
        } else {
            Change::Ended(Outcome::Killed(status.terminating_signal()? as libc::c_int))
        };
        self.stopped = matches!(change, Change::Stopped(_));
        Some(change)
    }
}

/// The program, and the signals that are meant for it.
pub struct Supervisor {
    pub program: Program,
    pub signals: Signals,
}

impl Supervisor {
    /// Acts on signals that have arrived; the outcome if the program has ended.
    pub fn take_signals(&mut self) -> Option<Outcome> {
        while let Some(info) = self.signals.next() {
            let mut was_stopped = false;
            while let Some(change) = self.program.change() {
                match change {
                    Change::Ended(outcome) => return Some(outcome),
                    Change::Stopped(signal) => {
                        signals::stop_like(signal);
                        was_stopped = true;
                    }
                    Change::Continued => {}
                }
            }
            match info.ssi_signo as libc::c_int {
                libc::SIGCHLD => {}
                // The shell continued the program together with us.
                libc::SIGCONT if !self.program.stopped => {}
                // It has stopped the program, and by now that goes on: it must not stop it again.
                libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU if was_stopped => {}
                _ => signals::forward(&info, self.program.pid),
            }
        }
        None
    }
}

/// In the child, last thing before exec: back to how vswap itself was started.
fn restore(mask: &libc::sigset_t, ignored: &[(libc::c_int, bool)], parent: Pid) -> io::Result<()> {
    // Killed before the program started, vswap must not leave one behind.
    if getppid() != Some(parent) {
        return Err(io::Error::other("vswap was killed"));
    }
    for &(signal, was_ignored) in ignored {
        let disposition = if was_ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: a valid signal with a disposition that is no handler.
        unsafe { libc::signal(signal, disposition) };
    }
    // SAFETY: the set was filled by the kernel.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
    Ok(())
}

fn refuse_start(name: &OsStr, error: io::Error) -> Refusal {
    let name = name.display();
    match error.kind() {
        // The program itself was found, so it is the interpreter or the dynamic linker.
        io::ErrorKind::NotFound => {
            Refusal::not_found(format!("{name}: its interpreter was not found"), "check the file")
        }
        io::ErrorKind::ArgumentListTooLong => {
            Refusal::cannot_run(format!("{name}: {}", reason(error)), "give it fewer arguments")
        }
        _ => Refusal::cannot_run(format!("{name}: {}", reason(error)), "check the file"),
    }
}
