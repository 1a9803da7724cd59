//! The sites of glibc's futex calls for priority-inheriting mutexes.
//!
//! They are inlined in functions of which only some are exported, so all of the thread library
//! around those is searched. None of these calls passes a value, which tells them from nearly all
//! others:
//!
//! ```text
//! 31 d2             xor edx, edx            ; at most so many bytes before, or between the others
//! b8 ca 00 00 00    mov eax, 202
//! 0f 05             syscall
//! ```
//!
//! Only the load becomes a jump; the stub tests the command and jumps back to the trap for all but
//! the few that need a hook. So a thread that waits does so in libc's code, as debuggers and the
//! unwinder (for cancellation) expect it, and what was taken for such a site by mistake costs a
//! nanosecond or two.

use linux_raw_sys::general as k;
use vswap_pager::sys::memory;

use super::{LOAD_BYTES, PAGE, STUB_BYTES, Stubs, address_of, careful_entry, relative};
use crate::futex;

/// Text that is searched before and behind the exported functions. `__futex_lock_pi64` is not
/// exported; in glibc 2.36 it lies 25 KiB before `pthread_mutex_lock`.
const BEFORE: usize = 40 << 10;
const BEHIND: usize = 4 << 10;
/// More than the functions themselves take (7 KiB in glibc 2.36); if they are further apart they
/// are not glibc's.
const BETWEEN_MAX: usize = 64 << 10;

/// How far before the load the third argument is cleared.
const CLEARED_WITHIN: usize = 16;

/// glibc 2.36 has eight.
const SITES_MAX: usize = 16;

const LOAD: [u8; LOAD_BYTES] = [0xb8, k::__NR_futex as u8, 0, 0, 0];
const CLEAR: [u8; 2] = [0x31, 0xd2];
const TRAP: [u8; 2] = [0x0f, 0x05];
const _: () = assert!(k::__NR_futex <= 0xff);

/// Where a load is, and the trap behind it.
#[derive(Clone, Copy)]
struct Site {
    load: usize,
    trap: usize,
}

/// Makes all sites that are found jump to stubs.
pub fn redirect_all(stubs: &mut Stubs) {
    // Before glibc 2.34 they are in a library of their own, which need not be there.
    let (lock, unlock) = (address_of!(pthread_mutex_lock), address_of!(pthread_mutex_unlock));
    if lock == 0 || unlock == 0 {
        return;
    }
    if lock.abs_diff(unlock) > BETWEEN_MAX {
        return;
    }
    let start = (lock.min(unlock) - BEFORE) & !(PAGE - 1);
    let len = (lock.max(unlock) + BEHIND).next_multiple_of(PAGE) - start;
    // Another object may have put functions of its own before libc's, with less text around them.
    // SAFETY: populating for reading does not change contents.
    if unsafe { memory::advise(start, len, k::MADV_POPULATE_READ) }.is_err() {
        return;
    }
    // SAFETY: the range was just read from, and text does not go away.
    let text = unsafe { core::slice::from_raw_parts(start as *const u8, len) };
    let mut found = [None; SITES_MAX];
    for (slot, site) in found.iter_mut().zip(sites(text)) {
        *slot = Some(Site { load: start + site.load, trap: start + site.trap });
    }
    let all = || found.iter().flatten();
    let (Some(first), Some(last)) = (all().next(), all().last()) else { return };
    // They share a few pages, so all become writable together.
    let start = first.load & !(PAGE - 1);
    let len = (last.trap + TRAP.len()).next_multiple_of(PAGE) - start;
    // SAFETY: as for the other sites.
    unsafe {
        if memory::protect(start, len, memory::READ_WRITE).is_ok() {
            all().for_each(|site| redirect(stubs, *site));
        }
        let _ = memory::protect(start, len, k::PROT_READ | k::PROT_EXEC);
    }
}

/// Offsets of the sites in a piece of text.
fn sites(text: &[u8]) -> impl Iterator<Item = Site> {
    loads(text).filter_map(|load| {
        let behind = text.get(load + LOAD_BYTES..)?;
        // With a REX prefix it is another register.
        let cleared_before = text[load.saturating_sub(CLEARED_WITHIN)..load]
            .windows(1 + CLEAR.len())
            .any(|window| window[1..] == CLEAR && window[0] & 0xf0 != 0x40);
        let between = if behind.starts_with(&CLEAR) { CLEAR.len() } else { 0 };
        let trap = load + LOAD_BYTES + between;
        let is_site = text[trap..].starts_with(&TRAP) && (cleared_before || between > 0);
        is_site.then_some(Site { load, trap })
    })
}

/// Offsets of [`LOAD`]. Its second byte is rare, so most blocks are passed over at once.
fn loads(text: &[u8]) -> impl Iterator<Item = usize> {
    const BLOCK: usize = 64;
    let has_number = |block: &[u8]| block.contains(&LOAD[1]);
    text.chunks(BLOCK).enumerate().filter(move |(_, block)| has_number(block)).flat_map(
        move |(index, block)| {
            (index * BLOCK..index * BLOCK + block.len())
                .filter_map(|number| number.checked_sub(1))
                .filter(|&load| text[load..].starts_with(&LOAD))
        },
    )
}

fn redirect(stubs: &mut Stubs, site: Site) {
    let Some(stub) = stubs.add(|stub| stub_code(stub, site)) else { return };
    let mut jump = [0xe9, 0, 0, 0, 0];
    jump[1..].copy_from_slice(&relative(site.load + LOAD_BYTES, stub));
    // SAFETY: the caller has made the text writable, and nobody else runs yet.
    unsafe { core::ptr::copy_nonoverlapping(jump.as_ptr(), site.load as *mut u8, jump.len()) };
}

/// ```text
///  0  b8 ca 00 00 00       mov eax, 202
///  5  31 d2                xor edx, edx       ; if it is between load and trap
///  7  89 f1                mov ecx, esi
///  9  81 e1 imm32          and ecx, COMMAND_MASK
/// 15  41 bb imm32          mov r11d, CANNOT_FAULT
/// 21  41 0f a3 cb          bt r11d, ecx       ; modulo 32: the hook looks again
/// 25  0f 83 rel32          jnc the trap
/// 31  48 8d 0d rel32       lea rcx, [the trap]
/// 38  ff 25 04 00 00 00    jmp [rip + 4]      ; the entry
/// 48  imm64                address of the entry
/// ```
///
/// A system call changes rcx and r11 anyway, so they are free here.
fn stub_code(stub: usize, site: Site) -> [u8; STUB_BYTES] {
    let mut code = [0x90; STUB_BYTES];
    code[..5].copy_from_slice(&LOAD);
    if site.trap > site.load + LOAD_BYTES {
        code[5..7].copy_from_slice(&CLEAR);
    }
    code[7..11].copy_from_slice(&[0x89, 0xf1, 0x81, 0xe1]);
    code[11..15].copy_from_slice(&futex::COMMAND_MASK.to_le_bytes());
    code[15..17].copy_from_slice(&[0x41, 0xbb]);
    code[17..21].copy_from_slice(&futex::CANNOT_FAULT.to_le_bytes());
    code[21..27].copy_from_slice(&[0x41, 0x0f, 0xa3, 0xcb, 0x0f, 0x83]);
    code[27..31].copy_from_slice(&relative(stub + 31, site.trap));
    code[31..34].copy_from_slice(&[0x48, 0x8d, 0x0d]);
    code[34..38].copy_from_slice(&relative(stub + 38, site.trap));
    code[38..44].copy_from_slice(&[0xff, 0x25, 4, 0, 0, 0]);
    code[48..56].copy_from_slice(&(careful_entry as *const () as usize).to_le_bytes());
    code
}
