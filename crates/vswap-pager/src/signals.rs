//! The program's own idea of SIGBUS, under inline faults.
//!
//! The kernel has to call our handler for SIGBUS, and kills a thread that faults while it blocks
//! that signal. So libc's calls are hooked: the program's action for SIGBUS is kept here, reported
//! when asked for, and run for what is no fault of ours; SIGBUS is left out of each mask that the
//! program sets, for itself or for the time of a handler. A program that blocks SIGBUS gets it all
//! the same when somebody sends it one. Not seen are masks that waiting calls set meanwhile
//! (sigsuspend, ppoll, pselect, epoll_pwait), and calls made past libc.

use linux_raw_sys::general as k;

use crate::engine::Engine;
use crate::hook_stack;
use crate::lock::SpinLock;
use crate::mapping::Call;
use crate::sys::{Errno, result, task};
use crate::syscall;

/// The signal of inline faults.
pub const SIGBUS: usize = 7;
const SIGBUS_BIT: u64 = 1 << (SIGBUS - 1);
const SIGNALS: usize = 64;
/// Bytes of the kernel's signal mask.
const MASK_BYTES: usize = 8;

/// The kernel's `struct sigaction` (x86-64 and AArch64).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// A function, [`DEFAULT`](Self::DEFAULT) or [`IGNORE`](Self::IGNORE).
    pub handler: usize,
    /// SA_ bits.
    pub flags: u64,
    /// Returns from the handler.
    pub restorer: usize,
    /// Blocked while the handler runs.
    pub mask: u64,
}

impl Action {
    /// SIG_DFL.
    pub const DEFAULT: usize = 0;
    /// SIG_IGN.
    pub const IGNORE: usize = 1;
    /// The kernel's own.
    pub const NONE: Self = Self { handler: Self::DEFAULT, flags: 0, restorer: 0, mask: 0 };

    /// The mask that its handler runs with, in a thread whose mask is `before`.
    pub fn mask_during(&self, before: u64) -> u64 {
        // A handler may use paged memory like any other code.
        (before | self.mask) & !SIGBUS_BIT
    }
}

struct Kept {
    /// The program's action for SIGBUS, once the kernel has ours.
    sigbus: Option<Action>,
    /// Signals whose actions had SIGBUS in their masks.
    masking: u64,
}

/// Held with signals blocked, by nobody who touches the program's memory.
static KEPT: SpinLock<Kept> = SpinLock::new(Kept { sigbus: None, masking: 0 });

/// Whether a call is one that [`on_call`] knows.
pub fn is_signal_call(call: &Call) -> bool {
    matches!(call.number as u32, k::__NR_rt_sigaction | k::__NR_rt_sigprocmask)
}

/// Handles a signal call; gives what the program sees as its result. Runs on the program's stack,
/// because it reads the program's memory, which may fault.
pub fn on_call(engine: &Engine, call: Call) -> isize {
    match call.number as u32 {
        k::__NR_rt_sigaction => on_sigaction(engine, call),
        _ => on_sigprocmask(call),
    }
}

/// Lets the calling thread take SIGBUS: a mask outlives exec.
pub fn unblock() {
    let mask = SIGBUS_BIT;
    // SAFETY: the mask lives across the call.
    unsafe { syscall!(k::__NR_rt_sigprocmask, k::SIG_UNBLOCK, &raw const mask, 0, MASK_BYTES) };
}

/// The calling thread's mask.
pub fn mask() -> u64 {
    let mut mask = 0u64;
    // SAFETY: the mask lives across the call.
    unsafe { syscall!(k::__NR_rt_sigprocmask, k::SIG_BLOCK, 0, &raw mut mask, MASK_BYTES) };
    mask
}

/// Whether a mask blocks SIGBUS.
pub fn blocks_sigbus(mask: u64) -> bool {
    mask & SIGBUS_BIT != 0
}

/// Gives the kernel our action for SIGBUS, and keeps the program's.
///
/// # Errors
/// As rt_sigaction(2).
pub fn take_over(ours: &Action) -> Result<(), Errno> {
    let mut kept = KEPT.lock();
    let old = set_action(SIGBUS, Some(ours))?;
    // Ours is inherited by the child of a fork, and the program's with the memory.
    if old.handler != ours.handler {
        kept.sigbus = Some(old);
    }
    Ok(())
}

/// The program's action for a SIGBUS that it gets now. One that applies once is gone then.
pub fn action_for_delivery() -> Action {
    let mut kept = KEPT.lock();
    let action = kept.sigbus.unwrap_or(Action::NONE);
    if action.flags & u64::from(k::SA_RESETHAND) != 0 && action.handler > Action::IGNORE {
        kept.sigbus = Some(Action { handler: Action::DEFAULT, ..action });
    }
    action
}

/// Gives the kernel its own action for SIGBUS back: the program is to die of it.
pub fn give_up() {
    // SIGBUS can be set; nothing is left to do if not.
    let _ = set_action(SIGBUS, Some(&Action::NONE));
}

/// Frees the lock in the child of a fork.
pub fn reset_after_fork() {
    KEPT.reset_after_fork();
}

fn on_sigprocmask(mut call: Call) -> isize {
    let [how, set, _, bytes, ..] = call.args;
    if set == 0 || bytes != MASK_BYTES || how == k::SIG_UNBLOCK as usize {
        return call.pass();
    }
    // SAFETY: the program passes a mask to the kernel through this pointer; libc has read it.
    let mask = unsafe { (set as *const u64).read_unaligned() } & !SIGBUS_BIT;
    call.args[1] = (&raw const mask) as usize;
    call.pass()
}

struct Change {
    /// The caller shares this memory but not its signal actions: a child of vfork.
    in_child: bool,
    signal: usize,
    new: Option<Action>,
    result: Result<Action, Errno>,
}

fn on_sigaction(engine: &Engine, call: Call) -> isize {
    let [signal, new, old, bytes, ..] = call.args;
    if bytes != MASK_BYTES || signal == 0 || signal > SIGNALS {
        return call.pass();
    }
    let mut change = Change {
        in_child: task::process_id() != engine.program.load(core::sync::atomic::Ordering::Relaxed),
        signal,
        // SAFETY: the program passes an action to the kernel through this pointer.
        new: (new != 0).then(|| unsafe { (new as *const Action).read_unaligned() }),
        result: Err(Errno::EINVAL),
    };
    hook_stack::run(&mut change, |change| change.result = change.make());
    match change.result {
        Ok(action) => {
            if old != 0 {
                // SAFETY: the program asks the kernel to write an action there.
                unsafe { (old as *mut Action).write_unaligned(action) };
            }
            0
        }
        Err(errno) => -(errno.0 as isize),
    }
}

impl Change {
    fn make(&self) -> Result<Action, Errno> {
        let mut kept = KEPT.lock();
        match kept.sigbus {
            Some(old) if self.signal == SIGBUS => {
                self.change_sigbus(&mut kept);
                Ok(old)
            }
            _ => self.change_other(&mut kept),
        }
    }

    fn change_sigbus(&self, kept: &mut Kept) {
        match self.new {
            // Until it replaces itself the child faults as the program does; only what is
            // ignored stays so then.
            Some(new) if self.in_child && new.handler != Action::IGNORE => {}
            Some(new) if self.in_child => {
                let _ = set_action(SIGBUS, Some(&new));
            }
            Some(new) => kept.sigbus = Some(new),
            None => {}
        }
    }

    fn change_other(&self, kept: &mut Kept) -> Result<Action, Errno> {
        let bit = 1 << (self.signal - 1);
        let stripped = self.new.map(|new| Action { mask: new.mask & !SIGBUS_BIT, ..new });
        let mut old = set_action(self.signal, stripped.as_ref())?;
        if kept.masking & bit != 0 {
            old.mask |= SIGBUS_BIT;
        }
        if let Some(new) = self.new
            && !self.in_child
        {
            kept.masking &= !bit;
            kept.masking |= if blocks_sigbus(new.mask) { bit } else { 0 };
        }
        Ok(old)
    }
}

/// Sets an action in the kernel and gives the previous one.
fn set_action(signal: usize, new: Option<&Action>) -> Result<Action, Errno> {
    let mut old = Action::NONE;
    let new = new.map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: both structures live across the call. An action is the program's own, or ours.
    let value = unsafe { syscall!(k::__NR_rt_sigaction, signal, new, &raw mut old, MASK_BYTES) };
    result(value).map(|_| old)
}
