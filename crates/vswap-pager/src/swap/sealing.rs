//! Seals objects on their way to a device, and opens them on their way back.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vswap_core::SwapEntry;
use vswap_core::device::object::{Binding, Damaged, Nonce, Sealer, generation_of};
use vswap_core::device::space::Block;

use crate::run_devices::RunDevices;
use crate::swap::generations::Generation;

/// Seals with the run's key.
pub struct Sealing {
    sealer: UnsafeCell<Option<Sealer>>,
    made: AtomicBool,
    process: AtomicU32,
    writes: AtomicU64,
}

// SAFETY: the sealer is written once, before the first device is used; the rest is atomic.
unsafe impl Sync for Sealing {}

impl core::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Sealing").field("writes", &self.writes).finish_non_exhaustive()
    }
}

/// That of this process.
pub static SEALING: Sealing = Sealing {
    sealer: UnsafeCell::new(None),
    made: AtomicBool::new(false),
    process: AtomicU32::new(0),
    writes: AtomicU64::new(0),
};

/// Where an object is on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The run's number for the device.
    pub device: u8,
    /// The object's first block.
    pub block: Block,
}

impl Sealing {
    /// Takes the run's key, and a number that no other process of the run has: no nonce is used twice.
    ///
    /// # Safety
    /// On the thread that makes the pager, before any device of this process is used; in the child of a
    /// fork before any object is sealed.
    pub unsafe fn begin(&self, devices: &RunDevices) {
        self.process.store(devices.next_process(), Ordering::Relaxed);
        if !self.made.load(Ordering::Relaxed) {
            let (key, protection) = devices.protection();
            // SAFETY: nobody seals or opens yet, says the caller.
            unsafe { *self.sealer.get() = Some(Sealer::new(&key, protection)) };
            self.made.store(true, Ordering::Release);
        }
    }

    fn sealer(&self) -> Option<&Sealer> {
        // SAFETY: it does not change after `made` was set.
        self.made.load(Ordering::Acquire).then(|| unsafe { (*self.sealer.get()).as_ref() })?
    }

    /// Seals an object and gives the number of the write, modulo 256; `None` before [`Self::begin`].
    pub fn seal(&self, entry: SwapEntry, at: Address, bytes: &[u8], out: &mut [u8]) -> Option<u8> {
        let sealer = self.sealer()?;
        let nonce = Nonce {
            process: self.process.load(Ordering::Relaxed),
            counter: self.writes.fetch_add(1, Ordering::Relaxed),
        };
        let generation = nonce.generation();
        sealer.seal(at.binding(entry, generation), nonce, bytes, out);
        Some(generation)
    }

    /// Opens an object, of which `out` has the length.
    ///
    /// # Errors
    /// What does not match; `out` holds nothing of use then.
    pub fn open(
        &self,
        entry: SwapEntry,
        at: Address,
        generation: Generation,
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), Damaged> {
        let sealer = self.sealer().ok_or(Damaged::Check)?;
        let generation = generation.completed_by(generation_of(sealed));
        sealer.open(at.binding(entry, generation), sealed, out)
    }
}

impl Address {
    fn binding(self, entry: SwapEntry, generation: u8) -> Binding {
        Binding { entry, device: self.device, block: self.block, generation }
    }
}
