//! The pager follows the program's credentials: it shares the program's memory, so a pager with
//! more rights would be a way up.

use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::general as k;

use crate::lock::SpinLock;
use crate::sys::{fd, result};
use crate::syscall;
use crate::text;

const GROUPS_MAX: usize = 64;

/// What /proc/PID/status says of a process's rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    user: [u32; 3],
    group: [u32; 3],
    groups: [u32; GROUPS_MAX],
    group_count: usize,
    permitted: u64,
    effective: u64,
}

/// The program's credentials as last seen, and how often they have changed.
#[derive(Debug)]
pub struct Followed {
    generation: AtomicU32,
    latest: SpinLock<Option<Credentials>>,
}

/// What the threads of the pager follow.
pub static FOLLOWED: Followed =
    Followed { generation: AtomicU32::new(0), latest: SpinLock::new(None) };

impl Followed {
    /// Looks at the program; `status` is the path of its status file.
    pub fn look(&self, status: &CStr) {
        let Some(now) = Credentials::read(status) else { return };
        let mut latest = self.latest.lock();
        if latest.is_some_and(|before| before != now) {
            self.generation.fetch_add(1, Ordering::Release);
        }
        *latest = Some(now);
    }

    /// Takes the program's credentials if they have changed since `seen`. Each thread of the pager
    /// has credentials of its own, and does this for itself.
    pub fn follow(&self, seen: &mut u32) {
        let generation = self.generation.load(Ordering::Acquire);
        if generation != *seen {
            *seen = generation;
            if let Some(credentials) = *self.latest.lock() {
                credentials.take();
            }
        }
    }
}

impl Credentials {
    fn read(status: &CStr) -> Option<Self> {
        let mut buffer = [0u8; 4096];
        let file = fd::open(status, k::O_RDONLY).ok()?;
        let len = fd::read(file.raw(), &mut buffer).ok()?;
        let mut credentials = Self {
            user: [0; 3],
            group: [0; 3],
            groups: [0; GROUPS_MAX],
            group_count: 0,
            permitted: 0,
            effective: 0,
        };
        for line in buffer[..len].split(|&byte| byte == b'\n') {
            credentials.read_line(line);
        }
        Some(credentials)
    }

    fn read_line(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { return };
        let (name, mut rest) = line.split_at(colon);
        match name {
            b"Uid" | b"Gid" => {
                let ids = if name == b"Uid" { &mut self.user } else { &mut self.group };
                for id in ids {
                    let Some((value, behind)) = text::number(rest) else { return };
                    *id = value as u32;
                    rest = behind;
                }
            }
            b"Groups" => {
                while let Some((value, behind)) = text::number(rest) {
                    if self.group_count == GROUPS_MAX {
                        return;
                    }
                    self.groups[self.group_count] = value as u32;
                    self.group_count += 1;
                    rest = behind;
                }
            }
            b"CapPrm" => self.permitted = hexadecimal(rest),
            b"CapEff" => self.effective = hexadecimal(rest),
            _ => {}
        }
    }

    /// Makes them the calling thread's. What it has no right to take any more it has lost already.
    fn take(&self) {
        const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
        let [ruid, euid, suid] = self.user;
        let [rgid, egid, sgid] = self.group;
        let header = [LINUX_CAPABILITY_VERSION_3, 0];
        let halves = [
            self.effective as u32,
            self.permitted as u32,
            0,
            (self.effective >> 32) as u32,
            (self.permitted >> 32) as u32,
            0,
        ];
        // SAFETY: the arrays live across the calls.
        let refused = unsafe {
            [
                syscall!(k::__NR_setgroups, self.group_count, self.groups.as_ptr()),
                syscall!(k::__NR_setresgid, rgid, egid, sgid),
                syscall!(k::__NR_setresuid, ruid, euid, suid),
                syscall!(k::__NR_capset, header.as_ptr(), halves.as_ptr()),
            ]
        };
        let _ = refused.map(result);
    }
}

fn hexadecimal(text: &[u8]) -> u64 {
    text.iter()
        .filter_map(|&byte| (byte as char).to_digit(16))
        .fold(0, |value, digit| value << 4 | u64::from(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_status_has_our_ids() {
        let credentials = Credentials::read(c"/proc/self/status").unwrap();
        // SAFETY: no memory is passed.
        let user = unsafe { syscall!(k::__NR_getuid) } as u32;
        assert_eq!(credentials.user[0], user);
    }

    #[test]
    fn capabilities_are_hexadecimal() {
        assert_eq!(hexadecimal(b"\t000001ffffffffff"), 0x1ff_ffff_ffff);
    }
}
