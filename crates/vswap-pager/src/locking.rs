//! Memory that the program locks: its pages stay, and those of the engine do not.
//!
//! Locked pages are not moved by UFFDIO_MOVE, and locked memory is neither dropped by MADV_DONTNEED
//! nor left unfilled, so a tray, the pool or a table must never be locked. The kernel locks a whole
//! address space by `mlockall`, the engine's part with it; here that is done mapping by mapping, and
//! what the engine maps under MCL_FUTURE is unlocked at once ([`memory::map_anonymous`]).

use linux_raw_sys::errno::{ENOMEM, EPERM};
use linux_raw_sys::general as k;
use vswap_core::page::PAGE_SIZE;

use crate::address::{PageNumber, PageRange};
use crate::arena::Arena;
use crate::engine::{Engine, Phase};
use crate::mapping::Call;
use crate::sys::{memory, proc_maps};
use crate::syscall;

/// The hook of `mlock`, `mlock2` and `munlock`.
pub fn on_mlock(engine: &Engine, call: Call) -> isize {
    let [address, len, ..] = call.args;
    // The kernel brings the pages in through ordinary faults, so no lock may be held.
    let value = call.pass();
    if engine.phase() == Phase::Active && value == 0 {
        let locked = call.number as u32 != k::__NR_munlock;
        let mut maps = engine.lock_maps();
        let closed = engine.gate.close();
        let _ = engine
            .regions_mut(&mut maps, &closed)
            .change(PageRange::touching(address, len), |attributes| attributes.locked = locked);
    }
    value
}

/// The hook of `mlockall` and `munlockall`.
pub fn on_mlockall(engine: &Engine, call: Call) -> isize {
    let flags = if call.number as u32 == k::__NR_mlockall { call.args[0] as u32 } else { 0 };
    let before = memory::new_is_locked();
    memory::set_new_is_locked(before || flags & k::MCL_FUTURE != 0);
    // While idle the engine has next to no memory.
    let piecewise = engine.phase() != Phase::Idle && flags & k::MCL_CURRENT != 0;
    let value = if piecewise { lock_program(call) } else { call.pass() };
    // Piece by piece an earlier wish for later mappings is not taken back.
    let future = value == 0 && flags & k::MCL_FUTURE != 0 || before && (piecewise || value != 0);
    memory::set_new_is_locked(future);
    // What is there already stays as it is if only later mappings are to be locked.
    let concerns_all = flags & k::MCL_CURRENT != 0 || flags == 0;
    if engine.phase() == Phase::Active && value == 0 && concerns_all {
        let locked = flags & k::MCL_CURRENT != 0;
        let mut maps = engine.lock_maps();
        let closed = engine.gate.close();
        let all = PageRange { start: PageNumber(0), end: PageNumber(usize::MAX / PAGE_SIZE) };
        let _ = engine
            .regions_mut(&mut maps, &closed)
            .change(all, |attributes| attributes.locked = locked);
    }
    value
}

/// `mlockall` of what is mapped, but for the engine's memory: locked, that could not be dropped, and
/// the kernel would fill its reservations.
fn lock_program(mut call: Call) -> isize {
    let flags = call.args[0] as u32;
    let on_fault = if flags & k::MCL_ONFAULT != 0 { k::MLOCK_ONFAULT } else { 0 };
    let mut denied = 0;
    // As in mlockall, a mapping that cannot be filled (without access, or behind a file's end) is
    // none the less locked, and no error.
    let read = proc_maps::for_each(|mapping| {
        let (start, len) = (mapping.start, mapping.end - mapping.start);
        if !Arena::owns(start) {
            // SAFETY: locking changes no contents.
            let value = unsafe { syscall!(k::__NR_mlock2, start, len, on_fault) };
            if value == -(EPERM as isize) {
                denied = value;
            }
        }
    });
    if denied != 0 || read.is_err() {
        return if denied != 0 { denied } else { -(ENOMEM as isize) };
    }
    if flags & k::MCL_FUTURE == 0 {
        return 0;
    }
    call.args[0] &= !(k::MCL_CURRENT as usize);
    call.pass()
}
