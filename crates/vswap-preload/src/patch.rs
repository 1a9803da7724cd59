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
//! (the function `syscall` loads its last argument there instead) and these seven bytes are
//! replaced by a jump to a stub near libc. The stub calls
//! [`hooks::on_call`](crate::hooks::on_call) and jumps back behind the seven bytes, with all
//! registers as a system call leaves them. At sites in the middle of a function the first 128 bits of
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

unsafe extern "C" {
    fn mmap();
    fn munmap();
    fn mremap();
    fn mprotect();
    fn pkey_mprotect();
    fn madvise();
    fn posix_madvise();
    fn brk();
    fn mlock();
    fn mlock2();
    fn munlock();
    fn mlockall();
    fn munlockall();
    fn sigaltstack();
    fn clone();
    fn _Fork();
    fn syscall();
}

/// One of those defined by [`entry!`].
type Entry = extern "C" fn();

/// Function, how far its site may be, and the number of its call.
type Target = (unsafe extern "C" fn(), usize, u32);

const TARGETS: [Target; 17] = [
    (mmap, FUNCTION_REACH, k::__NR_mmap),
    (munmap, FUNCTION_REACH, k::__NR_munmap),
    (mremap, FUNCTION_REACH, k::__NR_mremap),
    (mprotect, FUNCTION_REACH, k::__NR_mprotect),
    (pkey_mprotect, FUNCTION_REACH, k::__NR_pkey_mprotect),
    (madvise, FUNCTION_REACH, k::__NR_madvise),
    (posix_madvise, FUNCTION_REACH, k::__NR_madvise),
    (brk, FUNCTION_REACH, k::__NR_brk),
    (mlock, FUNCTION_REACH, k::__NR_mlock),
    (mlock2, FUNCTION_REACH, k::__NR_mlock2),
    (munlock, FUNCTION_REACH, k::__NR_munlock),
    (mlockall, FUNCTION_REACH, k::__NR_mlockall),
    (munlockall, FUNCTION_REACH, k::__NR_munlockall),
    (sigaltstack, FUNCTION_REACH, k::__NR_sigaltstack),
    (clone, FUNCTION_REACH, k::__NR_clone),
    (clone, CLONE3_REACH, k::__NR_clone3),
    (_Fork, FUNCTION_REACH, k::__NR_clone),
];

/// Replaces all sites. What is not found is left to userfaultfd's events.
pub fn install(inline: bool) {
    let Some(mut stubs) = Stubs::near(mmap as *const () as usize) else { return };
    // Found first: each changed page becomes a mapping of its own.
    let text = if inline { text_around(mmap as *const () as usize) } else { 0..0 };
    for (function, reach, number) in TARGETS {
        if let Some(site) = find(function as *const () as usize, reach, load_of(number)) {
            stubs.redirect(site, common_entry);
        }
    }
    if let Some(site) = find(syscall as *const () as usize, FUNCTION_REACH, LOAD_LAST_ARGUMENT) {
        stubs.redirect(site, common_entry);
    }
    futex_sites::redirect_all(&mut stubs);
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
            stubs.redirect(site, careful_entry);
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

/// The seven bytes of a call, which begin with `load`, within `reach` bytes of a function.
fn find(function: usize, reach: usize, load: [u8; LOAD_BYTES]) -> Option<usize> {
    let mut pattern = [0, 0, 0, 0, 0, 0x0f, 0x05];
    pattern[..LOAD_BYTES].copy_from_slice(&load);
    // SAFETY: libc's text goes on for far longer than the reach behind each of these functions.
    let code = unsafe { core::slice::from_raw_parts(function as *const u8, reach) };
    code.windows(SITE_BYTES).position(|window| window == pattern).map(|at| function + at)
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

    /// Makes a stub for a site, and the site jump to it.
    fn redirect(&mut self, site: usize, entry: Entry) {
        if is_redirected(site) {
            return;
        }
        let Some(stub) = self.add(|stub| stub_code(stub, site, entry)) else { return };
        let mut jump = [0xe9, 0, 0, 0, 0, 0x66, 0x90];
        jump[1..5].copy_from_slice(&relative(site + 5, stub));
        let page = site & !(PAGE - 1);
        let len = (site + SITE_BYTES).next_multiple_of(PAGE) - page;
        // SAFETY: nobody else runs yet, and the seven bytes are the ones that were found. Until
        // all stubs are sealed the jump is not taken: we make our own system calls.
        unsafe {
            if memory::protect(page, len, memory::READ_WRITE).is_ok() {
                core::ptr::copy_nonoverlapping(jump.as_ptr(), site as *mut u8, jump.len());
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
///  5  48 8d 0d 06 00 00 00 lea rcx, [rip + 6]      ; the call below
/// 12  ff 25 0a 00 00 00    jmp [rip + 10]          ; the entry
/// 18  0f 05                syscall                 ; Next::Call comes here
/// 20  e9 rel32             jmp site + 7            ; Next::Return comes here
/// 28  imm64                address of the entry
/// ```
fn stub_code(stub: usize, site: usize, entry: Entry) -> [u8; STUB_BYTES] {
    let mut code = [0x90; STUB_BYTES];
    // SAFETY: the site was found to be libc's code.
    let load = unsafe { core::slice::from_raw_parts(site as *const u8, LOAD_BYTES) };
    code[..LOAD_BYTES].copy_from_slice(load);
    code[5..12].copy_from_slice(&[0x48, 0x8d, 0x0d, 6, 0, 0, 0]);
    code[12..18].copy_from_slice(&[0xff, 0x25, 10, 0, 0, 0]);
    code[18..21].copy_from_slice(&[0x0f, 0x05, 0xe9]);
    code[21..25].copy_from_slice(&relative(stub + 25, site + SITE_BYTES));
    code[28..36].copy_from_slice(&(entry as *const () as usize).to_le_bytes());
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
