//! exec of a program that cannot be paged.
//!
//! The engine comes into a program through its dynamic linker. A static program has none, that of a
//! 32-bit program complains about a 64-bit object, and for a set-uid program the linker ignores
//! `LD_PRELOAD`. Inside a tree such programs run unmanaged: the user is told, and the first kind of
//! noise is avoided. Runs on a thread of the program (also in the child of a vfork, whose memory is
//! its parent's), on its stack, and holds no lock, so nothing has to be undone if the exec succeeds.

use core::ffi::{CStr, c_char};
use core::sync::atomic::Ordering;

use linux_raw_sys::general as k;

use crate::core_dump;
use crate::engine::Engine;
use crate::mapping::Call;
use crate::sys::{fd, socket, task};
use crate::text::Line;
use crate::wire::{self, Unmanaged};

/// As many `#!` lines as the kernel follows.
const INTERPRETERS_MAX: u32 = 5;

/// Longest path of an interpreter that is followed.
const PATH_MAX: usize = 256;

/// What is read of a program: headers lie at its front.
const HEAD: usize = 1024;

/// Variables, and bytes of `LD_PRELOAD`, beyond which an environment is left as it is.
const VARIABLES_MAX: usize = 512;
const PRELOAD_MAX: usize = 512;

/// What the file name of each version of the preload object begins with.
const OBJECT_PREFIX: &[u8] = b"libvswap";

/// How long the coordinator may take to hear of it, in milliseconds.
const PATIENCE_MS: i64 = 200;

/// The hook of `execve`.
pub fn on_exec(engine: &Engine, call: &Call) -> isize {
    let is_program = task::process_id() == engine.program.load(Ordering::Relaxed);
    if is_program {
        core_dump::expect(false);
    }
    let value = exec(engine, call);
    if is_program {
        core_dump::expect(true);
    }
    value
}

fn exec(engine: &Engine, call: &Call) -> isize {
    let path = call.args[0] as *const c_char;
    let Some(kind) = unmanaged(path) else { return call.pass() };
    // SAFETY: the kernel has just read a path there.
    tell(engine, kind, unsafe { CStr::from_ptr(path) });
    if kind == Unmanaged::Foreign { exec_without_object(call) } else { call.pass() }
}

/// Why a program cannot be paged; `None` also where exec will fail.
fn unmanaged(path: *const c_char) -> Option<Unmanaged> {
    let mut head = [0; HEAD];
    let mut interpreter;
    let mut path = path;
    for _ in 0..INTERPRETERS_MAX {
        // SAFETY: the kernel checks the pointer.
        let file = unsafe { fd::open_at(path, k::O_RDONLY) }.ok()?;
        let length = fd::pread(file.raw(), &mut head, 0).ok()?;
        let head = &head[..length];
        if let Some(rest) = head.strip_prefix(b"#!") {
            interpreter = interpreter_of(rest)?;
            path = interpreter.as_ptr().cast();
            continue;
        }
        if !head.starts_with(b"\x7fELF") {
            return None;
        }
        if fd::changes_credentials(file.raw()) {
            return Some(Unmanaged::Privileged);
        }
        // SAFETY: the kernel has just read a path there.
        return of_elf(head, unsafe { CStr::from_ptr(path) });
    }
    None
}

/// The NUL-terminated path behind `#!`.
fn interpreter_of(line: &[u8]) -> Option<[u8; PATH_MAX]> {
    let line = line.split(|&byte| byte == b'\n').next()?;
    let word = line.split(|byte| b" \t".contains(byte)).find(|word| !word.is_empty())?;
    let mut path = [0; PATH_MAX];
    path[..PATH_MAX - 1].get_mut(..word.len())?.copy_from_slice(word);
    Some(path)
}

fn of_elf(head: &[u8], path: &CStr) -> Option<Unmanaged> {
    const CLASS_64: u8 = 2;
    const PT_INTERP: u32 = 3;
    #[cfg(target_arch = "x86_64")]
    const MACHINE: u16 = 62;
    #[cfg(target_arch = "aarch64")]
    const MACHINE: u16 = 183;
    if *head.get(4)? != CLASS_64 || u16_at(head, 18)? != MACHINE {
        return Some(Unmanaged::Foreign);
    }
    let table = u64::from_le_bytes(head.get(32..40)?.try_into().ok()?) as usize;
    let (size, count) = (u16_at(head, 54)?, u16_at(head, 56)?);
    for index in 0..usize::from(count) {
        let at = table.checked_add(index * usize::from(size))?;
        // A table elsewhere is not one that a linker made: say nothing.
        let kind = head.get(at..at.checked_add(4)?)?;
        if kind == PT_INTERP.to_le_bytes() {
            return None;
        }
    }
    // A dynamic linker that is called by its name loads the object.
    let name = path.to_bytes().rsplit(|&byte| byte == b'/').next()?;
    (!name.starts_with(b"ld-")).then_some(Unmanaged::Static)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Tells the coordinator, which says it once for each kind, and waits until it has heard: the
/// program, and with it the run, may be at its end at once.
fn tell(engine: &Engine, kind: Unmanaged, path: &CStr) {
    let Some(config) = engine.config() else { return };
    let Ok(socket) = socket::connect(config.socket.as_str()) else { return };
    let path = path.to_bytes();
    let mut packet = [0; wire::PACKET_MAX];
    packet[..2].copy_from_slice(&[wire::UNMANAGED, kind as u8]);
    let length = path.len().min(packet.len() - 2);
    packet[2..2 + length].copy_from_slice(&path[..length]);
    if socket::send(socket.raw(), &packet[..2 + length], None).is_ok() {
        let _ = fd::wait_readable([socket.raw()], PATIENCE_MS);
    }
}

/// The exec with an environment whose `LD_PRELOAD` does not name the object.
#[inline(never)]
fn exec_without_object(call: &Call) -> isize {
    let mut variables = [core::ptr::null::<c_char>(); VARIABLES_MAX + 1];
    let mut preload;
    let mut entry = call.args[2] as *const *const c_char;
    let mut count = 0;
    // SAFETY: the program passes an environment, or nothing, which the kernel is about to read.
    while let Some(&variable) = unsafe { entry.as_ref() }
        && !variable.is_null()
    {
        if count == VARIABLES_MAX {
            return call.pass();
        }
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(variable) };
        variables[count] = variable;
        if let Some(objects) = text.to_bytes().strip_prefix(b"LD_PRELOAD=") {
            if objects.len() + 16 > PRELOAD_MAX {
                return call.pass();
            }
            preload = without_object(objects);
            variables[count] = preload.as_c_str().as_ptr();
        }
        count += 1;
        // SAFETY: this entry was not the end.
        entry = unsafe { entry.add(1) };
    }
    let mut call = *call;
    call.args[2] = variables.as_ptr() as usize;
    call.pass()
}

fn without_object(objects: &[u8]) -> Line<PRELOAD_MAX> {
    let is_ours = |entry: &[u8]| {
        entry
            .rsplit(|&byte| byte == b'/')
            .next()
            .is_some_and(|name| name.starts_with(OBJECT_PREFIX))
    };
    let mut line = Line::default();
    line.push(b"LD_PRELOAD=");
    let others = objects.split(|byte| b": ".contains(byte)).filter(|entry| !is_ours(entry));
    for (index, entry) in others.enumerate() {
        line.push(if index > 0 { b":" } else { b"" });
        line.push(entry);
    }
    line
}
