//! The line that is said when a program's data does not fit: what filled, by how much, and what
//! helps.

use core::fmt;
use core::sync::atomic::Ordering;

use vswap_core::group::shared::Limit;
use vswap_core::page::PAGE_SIZE;

use crate::engine::Engine;
use crate::run_page::Member;
use crate::swap::{Refusal, SWAP_DEVICES};

const MIB: u64 = 1 << 20;

/// Where everything is when nothing more fits, in bytes. Shown as the line.
#[derive(Clone, Copy, Debug)]
pub struct Shortage {
    program: u32,
    allowance: u64,
    resident: u64,
    payload: u64,
    pool: u64,
    unmanaged: u64,
    swap: Swap,
}

/// What the swap file has to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swap {
    /// There is none.
    None,
    /// None may be written to.
    Forbidden,
    /// A group is at its limit.
    AtMaximum { used: u64, limit: u64 },
    /// It takes no more.
    Refuses { why: Refusal, used: u64, limit: u64 },
    /// It is not the reason.
    HasRoom { used: u64, limit: u64 },
}

impl Shortage {
    /// What is the case now.
    pub fn of(engine: &Engine) -> Self {
        let usage = engine.space.usage();
        let used = SWAP_DEVICES.used();
        let group = engine.member().map(Member::group).unwrap_or_default();
        let limit = engine.run_page().map_or(0, |run| run.swap_limit(group));
        let is_limited = engine.run_page().is_some_and(|run| {
            run.groups.tightest(group, Limit::Swap).is_some_and(|max| limit <= max)
        });
        let forbidden = engine.run_page().is_some_and(|run| !run.groups.writes_back(group));
        Self {
            program: engine.program.load(Ordering::Relaxed),
            allowance: engine.budget.allowance(),
            resident: engine.budget.resident_pages() * PAGE_SIZE as u64,
            payload: usage.payload as u64,
            pool: usage.pool_memory as u64,
            unmanaged: engine.budget.unmanaged(),
            swap: match SWAP_DEVICES.refusal() {
                _ if forbidden => Swap::Forbidden,
                _ if !SWAP_DEVICES.any() => Swap::None,
                Some(Refusal::Full) if is_limited => Swap::AtMaximum { used, limit },
                Some(why) => Swap::Refuses { why, used, limit },
                None => Swap::HasRoom { used, limit },
            },
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} was ended: its data does not fit: {} MiB resident, {} MiB compressed in \
             {} MiB, {} MiB unmanaged, of {} MiB, and ",
            self.program,
            self.resident / MIB,
            self.payload / MIB,
            self.pool / MIB,
            self.unmanaged / MIB,
            self.allowance / MIB,
        )?;
        match self.swap {
            Swap::None => write!(f, "there is no swap file; raise --ram or add --swap PATH"),
            Swap::Forbidden => {
                write!(f, "--no-writeback keeps it off swap devices; raise --ram or leave that out")
            }
            Swap::HasRoom { used, limit } => write!(
                f,
                "what is left cannot be swapped out (the swap file has room: {} of {} MiB in use); \
                 raise --ram",
                used / MIB,
                limit / MIB
            ),
            Swap::AtMaximum { used, limit } => write!(
                f,
                "the {} MiB that --swap-max allows on swap devices are taken ({} MiB of it by this \
                 process); raise --ram or --swap-max",
                limit / MIB,
                used / MIB
            ),
            Swap::Refuses { why, used, limit } => {
                let (used, limit) = (used / MIB, limit / MIB);
                match why {
                    Refusal::Full => write!(
                        f,
                        "the swap space of {limit} MiB is full ({used} MiB of it by this process); \
                         raise --ram or the size of --swap"
                    ),
                    Refusal::NoSpace => write!(
                        f,
                        "the file system of the swap file is full ({used} MiB of {limit} MiB were \
                         written); free some space there, name another place for --swap, or raise \
                         --ram"
                    ),
                    Refusal::Failed(error) => write!(
                        f,
                        "the swap file cannot be written (errno {error}, after {used} MiB of \
                         {limit} MiB); name another place for --swap, or raise --ram"
                    ),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::{String, ToString};

    use super::*;

    fn line(swap: Swap) -> String {
        let shortage = Shortage {
            program: 7,
            allowance: 64 * MIB,
            resident: 12 * MIB,
            payload: 38 * MIB,
            pool: 40 * MIB,
            unmanaged: 11 * MIB,
            swap,
        };
        let text = shortage.to_string();
        let all = "process 7 was ended: its data does not fit: 12 MiB resident, 38 MiB compressed in \
                   40 MiB, 11 MiB unmanaged, of 64 MiB, and ";
        text.strip_prefix(all).expect("what is in memory comes first").into()
    }

    fn refused(why: Refusal) -> String {
        line(Swap::Refuses { why, used: 100 * MIB, limit: 128 * MIB })
    }

    #[test]
    fn the_line_says_what_filled_and_what_helps() {
        assert_eq!(line(Swap::None), "there is no swap file; raise --ram or add --swap PATH");
        assert_eq!(
            line(Swap::Forbidden),
            "--no-writeback keeps it off swap devices; raise --ram or leave that out"
        );
        assert_eq!(
            line(Swap::HasRoom { used: MIB, limit: 128 * MIB }),
            "what is left cannot be swapped out (the swap file has room: 1 of 128 MiB in use); \
             raise --ram"
        );
        assert_eq!(
            line(Swap::AtMaximum { used: 5 * MIB, limit: 8 * MIB }),
            "the 8 MiB that --swap-max allows on swap devices are taken (5 MiB of it by this \
             process); raise --ram or --swap-max"
        );
        assert_eq!(
            refused(Refusal::Full),
            "the swap space of 128 MiB is full (100 MiB of it by this process); raise --ram or the \
             size of --swap"
        );
        assert_eq!(
            refused(Refusal::NoSpace),
            "the file system of the swap file is full (100 MiB of 128 MiB were written); free some \
             space there, name another place for --swap, or raise --ram"
        );
        assert_eq!(
            refused(Refusal::Failed(5)),
            "the swap file cannot be written (errno 5, after 100 MiB of 128 MiB); name another \
             place for --swap, or raise --ram"
        );
    }

    /// With the widest numbers it is still one packet.
    #[test]
    fn the_line_is_not_cut_off() {
        let why = Refusal::NoSpace;
        let widest = Shortage {
            program: u32::MAX,
            allowance: u64::MAX,
            resident: u64::MAX,
            payload: u64::MAX,
            pool: u64::MAX,
            unmanaged: u64::MAX,
            swap: Swap::Refuses { why, used: u64::MAX, limit: u64::MAX },
        };
        assert!(widest.to_string().len() < crate::wire::PACKET_MAX - 1);
    }
}
