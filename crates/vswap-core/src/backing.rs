//! The interface for places beside the pool: swap devices, compressed CXL memory, remote memory.
//!
//! A new kind of place is one file: it implements [`Backing`] and is added with
//! [`crate::VirtualSwap::add_backing`]. The space decides what is stored where, keeps the handle
//! and the length in the slot's descriptor, charges groups, and moves objects on when a backing
//! shrinks or goes away. The backing only keeps bytes.

use crate::entry::{Handle, SwapEntry};

/// What a backing is made of, which decides who is charged for it and what goes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// RAM of some sort. Charged by the byte, as the pool is.
    Ram,
    /// Storage. Charged by the page (`swap.max`), and the first choice for what compresses badly.
    Device,
}

/// What a backing wants to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Whole pages, as they are.
    Pages,
    /// Objects of any length up to a page: compressed pages are given as they are stored.
    Objects,
}

/// Why a backing did not take an object or did not give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackingError {
    /// There is no room. The object goes elsewhere; the backing is asked again next time.
    #[error("the backing is full")]
    Full,
    /// It failed, with an error number of the operating system or 0.
    #[error("the backing failed (error {0})")]
    Io(i32),
}

/// An object on its way to a backing.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Whose data it is. The same is said when it is loaded, so that a check can bind the two.
    pub entry: SwapEntry,
    /// The object, 1 byte to a page long.
    pub bytes: &'a [u8],
}

/// A place for objects.
///
/// Calls come from several threads at a time, with the entry's lock held, so the space never asks
/// for an object while it is being freed, save in [`crate::VirtualSwap::relocate`]. An implementation must not call back into the space, and
/// one that can be reached from a page fault must neither allocate from the program's allocator
/// nor take locks that a faulting thread can hold.
pub trait Backing: Sync {
    /// What the backing is made of.
    fn medium(&self) -> Medium;

    /// What it wants to be given.
    fn form(&self) -> Form;

    /// Keeps a copy of an object.
    ///
    /// # Errors
    /// [`BackingError::Full`], or [`BackingError::Io`], after which no more is stored here.
    fn store(&self, object: Outgoing<'_>) -> Result<Handle, BackingError>;

    /// Keeps copies of several objects, all or none, and names them in `handles`, which is as long.
    /// A device puts them side by side and writes them at once.
    ///
    /// # Errors
    /// As for [`Self::store`]; nothing is kept then.
    fn store_many(
        &self,
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
    ) -> Result<(), BackingError> {
        for (index, object) in objects.iter().enumerate() {
            match self.store(*object) {
                Ok(handle) => handles[index] = handle,
                Err(error) => {
                    for (handle, object) in handles.iter().zip(&objects[..index]) {
                        self.free(*handle, object.bytes.len());
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reads an object back. `out` is as long as the object.
    ///
    /// # Errors
    /// [`BackingError::Io`]. The object stays, and may be asked for again.
    fn load(&self, entry: SwapEntry, handle: Handle, out: &mut [u8]) -> Result<(), BackingError>;

    /// Forgets an object of this length.
    fn free(&self, handle: Handle, length: usize);

    /// How much the backing holds and may hold.
    fn room(&self) -> Room;
}

/// A backing whose objects can be moved closer together, by [`crate::VirtualSwap::relocate`].
///
/// Which places are to be emptied is chosen by who calls that, between two calls. Until the choice ends,
/// which may be at any time, no object is put into them.
pub trait Relocation: Sync {
    /// Whether the place is to be emptied.
    fn is_leaving(&self, handle: Handle) -> bool;

    /// [`Backing::store_many`] where objects can stay. It is asked for objects of such places, of which
    /// some may have been freed meanwhile.
    ///
    /// # Errors
    /// As there.
    fn store_elsewhere(
        &self,
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
    ) -> Result<(), BackingError>;
}

/// How much a backing holds and may hold, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What it may hold. Less than `used` after the capacity has shrunk, until objects moved on.
    pub capacity: u64,
    /// What it holds.
    pub used: u64,
    /// Memory that its bookkeeping takes.
    pub metadata: u64,
}

impl Room {
    /// By how much the backing holds more than it may.
    pub fn excess(self) -> u64 {
        self.used.saturating_sub(self.capacity)
    }
}
