//! The extents of a device that this process holds: where its slots come from.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vswap_core::device::space::{Extent, ExtentSource};

use crate::engine::engine;
use crate::run_devices::{EXTENTS_MAX, RunDevice};

/// Forks whose child has not said yet what it holds.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The leases of one device.
#[derive(Debug)]
pub struct Leases {
    number: usize,
    /// What was given back while a child was being made, which may hold it too.
    owed: [AtomicU64; EXTENTS_MAX / 64],
}

impl Leases {
    /// No leases on the device of this number.
    pub const fn new(number: usize) -> Self {
        Self { number, owed: [const { AtomicU64::new(0) }; EXTENTS_MAX / 64] }
    }

    fn device(&self) -> Option<(&'static RunDevice, usize)> {
        let (run, member) = (engine().run_page()?, engine().member()?);
        Some((run.devices.get(self.number)?, run.number_of(member)?))
    }

    /// Gives back what is owed, once no child is being made.
    fn settle(&self) {
        for (index, word) in self.owed.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut owed = word.swap(0, Ordering::Relaxed);
            while owed != 0 {
                self.return_now(Extent((index * 64) as u32 + owed.trailing_zeros()));
                owed &= owed - 1;
            }
        }
    }

    fn return_now(&self, extent: Extent) {
        if let Some((device, member)) = self.device() {
            device.give_back(extent, member);
        }
    }

    /// In the child of a fork: holds what its parent held. What the parent owed is the parent's.
    pub fn hold_inherited(&self, extents: impl Iterator<Item = Extent>) {
        self.owed.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        if let Some((device, member)) = self.device() {
            extents.for_each(|extent| device.hold(extent, member));
        }
    }
}

impl ExtentSource for &Leases {
    fn lease(&self) -> Option<Extent> {
        let (run, member) = (engine().run_page()?, engine().member()?);
        run.lease(self.number, member)
    }

    /// While a child is being made it may be one of them, though it has not said so.
    fn holders(&self, extent: Extent) -> u32 {
        let holders = self.device().map_or(1, |(device, _)| device.holders(extent));
        holders + FORKS.load(Ordering::SeqCst)
    }

    fn give_back(&self, extent: Extent) {
        if FORKS.load(Ordering::SeqCst) > 0 {
            let (word, bit) = (extent.0 as usize / 64, 1 << (extent.0 % 64));
            self.owed[word].fetch_or(bit, Ordering::Relaxed);
        } else {
            self.return_now(extent);
        }
    }
}

/// A fork under way: nothing goes back that the child may hold, until it has said so.
#[derive(Debug)]
pub struct Forking(());

impl Forking {
    /// Before the fork.
    pub fn begin() -> Self {
        FORKS.fetch_add(1, Ordering::SeqCst);
        Self(())
    }

    /// In the child, which makes none.
    pub fn reset_after_fork() {
        FORKS.store(0, Ordering::SeqCst);
    }

    /// In the parent, when the child has said what it holds, or is gone.
    pub fn end<'a>(self, all: impl Iterator<Item = &'a Leases>) {
        // With another fork under way they stay owed until its end.
        if FORKS.fetch_sub(1, Ordering::SeqCst) == 1 {
            all.for_each(Leases::settle);
        }
    }
}
