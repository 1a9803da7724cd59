//! A device as what compaction moves objects on.

use vswap_core::device::space::{Block, Fill, Fragmentation};
use vswap_core::{BackingError, Handle, Outgoing, Relocation};

use super::{Refusal, SwapDevice};

impl SwapDevice {
    /// How much compaction would gain.
    pub fn fragmentation(&self) -> Fragmentation {
        self.attached().map_or(Fragmentation::default(), |attached| attached.slots.fragmentation())
    }

    /// Chooses what is to be moved, from now on.
    pub fn begin_compaction(&self) -> Fragmentation {
        let mut local = self.local.lock();
        match (self.attached(), local.as_mut()) {
            (Some(attached), Some(local)) => attached.slots.begin_compaction(local),
            _ => Fragmentation::default(),
        }
    }

    /// Whether what was chosen still is to be moved: it is not when room ran out.
    pub fn is_compacting(&self) -> bool {
        self.attached().is_some_and(|attached| attached.slots.is_compacting())
    }

    /// What could not be moved stays.
    pub fn end_compaction(&self) {
        if let Some(attached) = self.attached() {
            attached.slots.end_compaction();
        }
    }
}

impl Relocation for SwapDevice {
    fn is_leaving(&self, handle: Handle) -> bool {
        let (attached, block) = (self.attached(), Block::new(handle.raw()));
        attached.zip(block).is_some_and(|(attached, block)| attached.slots.is_leaving(block))
    }

    /// That there is no hole for an object does not make the device a full one.
    fn store_elsewhere(
        &self,
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
    ) -> Result<(), BackingError> {
        let stored = self.write(objects, handles, Fill::Holes);
        if let Err(refusal @ Refusal::Failed(_)) = stored {
            self.set_refusal(Some(refusal));
        }
        stored.map_err(Refusal::error)
    }
}
