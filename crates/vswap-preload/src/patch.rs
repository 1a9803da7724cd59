//! Hooks at the system call instructions of libc (x86-64).
//!
//! glibc's malloc calls its own mmap and brk, past symbol interposition. Their machine code loads
//! the call's number and traps at once,
//!
//! ```text
//! b8 NN NN NN NN    mov eax, NN
//! 0f 05             syscall
//! ```
//!
//! (the function `syscall` loads its last argument there instead) and the load is replaced by a
//! jump to a stub near libc. The stub calls [`hooks::on_call`](crate::hooks::on_call) and jumps back
//! behind the trap, with all registers as a system call leaves them. In musl the compiler has put up
//! to four instructions between the two, which move arguments from register to register: the stub
//! does the same before the hook. At sites in the middle of a function the first 128 bits of
//! the vector registers are kept too: compiled C holds values there, and libc is built for
//! processors without more. The other sites are in wrappers, which hold nothing there.
//!
//! The sites are looked for near the exported functions only, so start-up does not read libc whole.
//! Inline faults are the exception: for them all places count that block signals.
//! Those of the futex calls that need a hook are in [`futex_sites`].

mod futex_sites;

use core::arch::naked_asm;
use core::ops::Range;

use linux_raw_sys::general as k;
use vswap_pager::mapping::Call;
use vswap_pager::sys::{memory, proc_maps};

use crate::hooks;

/// A site is looked for in so many bytes from the start of its function.
const FUNCTION_REACH: usize = 96;
/// `clone3` is not exported; it lies near `clone`.
const CLONE3_REACH: usize = 8192;
const SITE_BYTES: usize = 7;
/// The instruction before the trap, which moves to the stub.
const LOAD_BYTES: usize = 5;
/// `mov r9, [rsp + 8]`, in the function `syscall`.
const LOAD_LAST_ARGUMENT: [u8; LOAD_BYTES] = [0x4c, 0x8b, 0x4c, 0x24, 0x08];
/// Longest stub, and a whole cache line.
const STUB_BYTES: usize = 64;
const STUBS_MAX: usize = 64;
const PAGE: usize = 4096;

/// Instructions between load and trap that a stub has room for.
const BETWEEN_MAX: usize = 16;

/// One of those defined by [`entry!`].
type Entry = extern "C" fn();

/// Address of a function of libc's; 0 where libc does not have it. As a plain reference it would
/// keep the object from being loaded there: glibc before 2.34 has no `_Fork`, musl no
/// `pkey_mprotect`.
macro_rules! address_of {
    ($function:ident) => {{
        let address: usize;
        // SAFETY: it reads an entry that the dynamic linker has filled.
        unsafe {
            core::arch::asm!(
                concat!(".weak ", stringify!($function)),
                concat!("mov {}, [rip + ", stringify!($function), "@GOTPCREL]"),
                out(reg) address,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        address
    }};
}
pub(crate) use address_of;

/// Function, how far its site may be, and the number of its call.
type Target = (usize, usize, u32);

fn targets() -> [Target; 19] {
    [
        (address_of!(mmap), FUNCTION_REACH, k::__NR_mmap),
        (address_of!(munmap), FUNCTION_REACH, k::__NR_munmap),
        (address_of!(mremap), FUNCTION_REACH, k::__NR_mremap),
        (address_of!(mprotect), FUNCTION_REACH, k::__NR_mprotect),
        (address_of!(pkey_mprotect), FUNCTION_REACH, k::__NR_pkey_mprotect),
        (address_of!(madvise), FUNCTION_REACH, k::__NR_madvise),
        (address_of!(posix_madvise), FUNCTION_REACH, k::__NR_madvise),
        (address_of!(brk), FUNCTION_REACH, k::__NR_brk),
        (address_of!(mlock), FUNCTION_REACH, k::__NR_mlock),
        (address_of!(mlock2), FUNCTION_REACH, k::__NR_mlock2),
        (address_of!(munlock), FUNCTION_REACH, k::__NR_munlock),
        (address_of!(mlockall), FUNCTION_REACH, k::__NR_mlockall),
        (address_of!(munlockall), FUNCTION_REACH, k::__NR_munlockall),
        (address_of!(ioctl), FUNCTION_REACH, k::__NR_ioctl),
        (address_of!(sigaltstack), FUNCTION_REACH, k::__NR_sigaltstack),
        (address_of!(clone), FUNCTION_REACH, k::__NR_clone),
        (address_of!(clone), CLONE3_REACH, k::__NR_clone3),
        (address_of!(_Fork), FUNCTION_REACH, k::__NR_clone),
        // That of musl.
        (address_of!(_Fork), FUNCTION_REACH, k::__NR_fork),
    ]
}

/// Whether the C library is glibc. In another one every site is amid other code.
pub fn is_glibc() -> bool {
    address_of!(gnu_get_libc_version) != 0
}

/// Replaces all sites. What is not found is left to userfaultfd's events.
pub fn install(inline: bool) {
    let libc = address_of!(mmap);
    if libc == 0 {
        return;
    }
    let Some(mut stubs) = Stubs::near(libc) else { return };
    // Found first: each changed page becomes a mapping of its own.
    let text = if inline { text_around(libc) } else { 0..0 };
    let entry = if is_glibc() { common_entry } else { careful_entry };
    for (function, reach, number) in targets() {
        if let Some(site) = find(function, reach, load_of(number)) {
            stubs.redirect(&site, entry);
        }
    }
    if let Some(site) = find(address_of!(syscall), FUNCTION_REACH, LOAD_LAST_ARGUMENT) {
        stubs.redirect(&site, entry);
    }
    if is_glibc() {
        // In musl's posix_spawn the child has a stack of 5 KiB.
        if let Some(site) = find(address_of!(execve), FUNCTION_REACH, load_of(k::__NR_execve)) {
            stubs.redirect(&site, entry);
        }
        futex_sites::redirect_all(&mut stubs);
    }
    redirect_signal_calls(&mut stubs, text);
    stubs.seal();
}

/// Redirects each site of a signal call in a part of libc: signals are blocked in the middle of
/// functions that are not exported, while the heap is in use (the end of a thread).
fn redirect_signal_calls(stubs: &mut Stubs, text: Range<usize>) {
    // The seven bytes of a call with a small number, which is the second of them.
    const ANY: u64 = u64::from_le_bytes([0xb8, 0, 0, 0, 0, 0x0f, 0x05, 0]);
    const MASK: u64 = u64::from_le_bytes([0xff, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    for site in text.start..text.end.saturating_sub(size_of::<u64>()) {
        // SAFETY: the eight bytes lie in a mapping of libc's that is never unmapped.
        let code = unsafe { (site as *const u64).read_unaligned() };
        let number = (code >> 8) as u8;
        if code & MASK == ANY
            && matches!(u32::from(number), k::__NR_rt_sigaction | k::__NR_rt_sigprocmask)
        {
            stubs.redirect(&Site { load: site, between: 0 }, careful_entry);
        }
    }
}

/// The executable mapping that an address is in; empty if /proc does not tell.
fn text_around(address: usize) -> Range<usize> {
    let mut text = address..address;
    // Without it, calls are hooked by name only.
    let _ = proc_maps::for_each(|mapping| {
        if (mapping.start..mapping.end).contains(&address) {
            text = mapping.start..mapping.end;
        }
    });
    text
}

/// `mov eax, number`.
fn load_of(number: u32) -> [u8; LOAD_BYTES] {
    let mut load = [0xb8, 0, 0, 0, 0];
    load[1..].copy_from_slice(&number.to_le_bytes());
    load
}

/// A system call in libc's code.
#[derive(Clone, Copy)]
struct Site {
    /// Where `load` is.
    load: usize,
    /// Bytes of the instructions between it and the trap.
    between: usize,
}

impl Site {
    fn end(&self) -> usize {
        self.load + SITE_BYTES + self.between
    }
}

/// The call that begins with `load`, within `reach` bytes of a function.
fn find(function: usize, reach: usize, load: [u8; LOAD_BYTES]) -> Option<Site> {
    if function == 0 {
        return None;
    }
    // SAFETY: libc's text goes on for far longer than the reach behind each of these functions.
    let code = unsafe { core::slice::from_raw_parts(function as *const u8, reach) };
    let mut loads = code.windows(LOAD_BYTES).enumerate().filter(|(_, window)| *window == load);
    loads.find_map(|(at, _)| {
        let between = before_trap(&code[at + LOAD_BYTES..])?;
        Some(Site { load: function + at, between })
    })
}

/// Bytes before the trap, if they are instructions that give the same result anywhere: their
/// operands are 64-bit registers and constants.
fn before_trap(code: &[u8]) -> Option<usize> {
    const REX_W: u8 = 0x48;
    let mut at = 0;
    while at <= BETWEEN_MAX {
        at += match *code.get(at..)? {
            [0x0f, 0x05, ..] => return Some(at),
            [rex, opcode, operands, ..] if rex & 0xf8 == REX_W && operands >= 0xc0 => {
                match opcode {
                    // mov, sub, xor
                    0x89 | 0x8b | 0x29 | 0x31 => 3,
                    // add, and, sub, with a constant of four bytes
                    0x81 => 7,
                    _ => return None,
                }
            }
            _ => return None,
        };
    }
    None
}

/// Memory for stubs within reach of a relative jump.
struct Stubs {
    base: usize,
    used: usize,
}

impl Stubs {
    fn near(target: usize) -> Option<Self> {
        const STEP: usize = 1 << 20;
        const TRIES: usize = 1024;
        let flags = k::MAP_PRIVATE | k::MAP_ANONYMOUS | k::MAP_FIXED_NOREPLACE;
        let size = (STUBS_MAX * STUB_BYTES).next_multiple_of(PAGE);
        (1..=TRIES).find_map(|step| {
            let hint = (target & !(PAGE - 1)).checked_sub(step * STEP)?;
            // SAFETY: with NOREPLACE no existing mapping changes.
            let got = unsafe {
                vswap_pager::syscall!(
                    k::__NR_mmap,
                    hint,
                    size,
                    memory::READ_WRITE,
                    flags,
                    -1isize,
                    0
                )
            };
            (got as usize == hint).then_some(Self { base: hint, used: 0 })
        })
    }

    /// Makes a stub, of what `code` gives for its address. Gives that address.
    fn add(&mut self, code: impl FnOnce(usize) -> [u8; STUB_BYTES]) -> Option<usize> {
        if self.used == STUBS_MAX {
            return None;
        }
        let stub = self.base + self.used * STUB_BYTES;
        self.used += 1;
        let code = code(stub);
        // SAFETY: the stub memory is ours and large enough.
        unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), stub as *mut u8, code.len()) };
        Some(stub)
    }

    /// Makes a stub for a site, and the site jump to it. What is behind the load stays: code that
    /// jumped there would make the call without its hook.
    fn redirect(&mut self, site: &Site, entry: Entry) {
        if is_redirected(site.load) {
            return;
        }
        let Some(stub) = self.add(|stub| stub_code(stub, site, entry)) else { return };
        let mut jump = [0xe9, 0, 0, 0, 0];
        jump[1..].copy_from_slice(&relative(site.load + LOAD_BYTES, stub));
        let page = site.load & !(PAGE - 1);
        let len = (site.load + LOAD_BYTES).next_multiple_of(PAGE) - page;
        // SAFETY: nobody else runs yet, and the bytes are the ones that were found. Until
        // all stubs are sealed the jump is not taken: we make our own system calls.
        unsafe {
            if memory::protect(page, len, memory::READ_WRITE).is_ok() {
                core::ptr::copy_nonoverlapping(jump.as_ptr(), site.load as *mut u8, jump.len());
            }
            // If the text could not be made executable again nothing would run; it was before.
            let _ = memory::protect(page, len, k::PROT_READ | k::PROT_EXEC);
        }
    }

    fn seal(self) {
        let size = (STUBS_MAX * STUB_BYTES).next_multiple_of(PAGE);
        // SAFETY: the memory is ours; from now on it is only run.
        let _ = unsafe { memory::protect(self.base, size, k::PROT_READ | k::PROT_EXEC) };
    }
}

fn is_redirected(site: usize) -> bool {
    // SAFETY: the site is in libc's text.
    unsafe { *(site as *const u8) == 0xe9 }
}

fn relative(from: usize, to: usize) -> [u8; 4] {
    (to.wrapping_sub(from) as i32).to_le_bytes()
}

/// ```text
///  0  b8 imm32             mov eax, number   ; the site's own first instruction
///  5  ..                                     ; and those between it and the trap, n bytes in all
///  n  48 8d 0d 06 00 00 00 lea rcx, [rip + 6]      ; the call below
///  7  ff 25 rel32          jmp [rip + rel]         ; the entry
/// 13  0f 05                syscall                 ; Next::Call comes here
/// 15  e9 rel32             jmp behind the trap     ; Next::Return comes here
/// 56  imm64                address of the entry    ; from the stub's start
/// ```
fn stub_code(stub: usize, site: &Site, entry: Entry) -> [u8; STUB_BYTES] {
    const ENTRY: usize = STUB_BYTES - 8;
    const _: () = assert!(LOAD_BYTES + BETWEEN_MAX + 20 <= ENTRY);
    let mut code = [0x90; STUB_BYTES];
    let n = LOAD_BYTES + site.between;
    // SAFETY: the site was found to be libc's code.
    let own = unsafe { core::slice::from_raw_parts(site.load as *const u8, n) };
    code[..n].copy_from_slice(own);
    code[n..n + 9].copy_from_slice(&[0x48, 0x8d, 0x0d, 6, 0, 0, 0, 0xff, 0x25]);
    code[n + 9..n + 13].copy_from_slice(&relative(n + 13, ENTRY));
    code[n + 13..n + 16].copy_from_slice(&[0x0f, 0x05, 0xe9]);
    code[n + 16..n + 20].copy_from_slice(&relative(stub + n + 20, site.end()));
    code[ENTRY..].copy_from_slice(&(entry as *const () as usize).to_le_bytes());
    code
}

/// Registers of a hooked call, as the common entry saves them.
#[repr(C)]
struct Frame {
    number: usize,
    args: [usize; 6],
}

/// Defines a function that is entered from a stub with the number in rax and the address of a trap
/// in rcx. It leaves to that address ([`hooks::Next::Call`]) or two bytes behind it, with rax as the
/// result and all registers but rcx and r11 as they were.
macro_rules! entry {
    ($(#[$doc:meta])* $name:ident => $hook:path) => {
        $(#[$doc])*
        #[unsafe(naked)]
        extern "C" fn $name() {
            naked_asm!(
                // The interrupted function may use the red zone below its stack pointer.
                "lea rsp, [rsp - 128]",
                "push rcx",
                "push rbp",
                "push rbx",
                "mov rbp, rsp",
                "push r9",
                "push r8",
                "push r10",
                "push rdx",
                "push rsi",
                "push rdi",
                "push rax",
                "mov rdi, rsp",
                "mov rbx, rsp",
                "and rsp, -16",
                "call {hook}",
                "mov rsp, rbx",
                "mov rcx, rax",
                "pop rax",
                "pop rdi",
                "pop rsi",
                "pop rdx",
                "pop r10",
                "pop r8",
                "pop r9",
                "pop rbx",
                "pop rbp",
                // Next::Call is 1: behind the stub's call if it was not asked for.
                "pop r11",
                "lea rsp, [rsp + 128]",
                "test rcx, rcx",
                "jnz 2f",
                "add r11, 2",
                "2:",
                "jmp r11",
                hook = sym $hook,
            )
        }
    };
}

entry! {
    /// For sites where vector registers hold nothing; those are as the hook leaves them.
    common_entry => hook
}

entry! {
    /// For sites amid other code, whose vector registers are kept.
    careful_entry => hook_keeping_vectors
}

/// Calls [`hook`] with xmm0 to xmm15 kept. It is compiled for SSE2, so the rest of the vector
/// registers stays as it is.
#[unsafe(naked)]
extern "C" fn hook_keeping_vectors(frame: &mut Frame) -> hooks::Next {
    naked_asm!(
        "sub rsp, 264",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movaps [rsp + 16 * \\i], xmm\\i",
        ".endr",
        "call {hook}",
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movaps xmm\\i, [rsp + 16 * \\i]",
        ".endr",
        "add rsp, 264",
        "ret",
        hook = sym hook,
    )
}

extern "C" fn hook(frame: &mut Frame) -> hooks::Next {
    let call = Call { number: frame.number, args: frame.args };
    let mut result = 0;
    let next = hooks::on_call(call, &mut result);
    if next == hooks::Next::Return {
        frame.number = result as usize;
    }
    next
}
