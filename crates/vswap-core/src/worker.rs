//! What one thread needs to work on the space without getting in the way of others.

mod coder;

pub(crate) use coder::{Coder, encoding_of};

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use crate::codec::CodecKind;
use crate::counters::{Counters, RecordId};
use crate::error::OutOfMemory;
use crate::page::{PAGE_SIZE, Page};
use crate::platform::Platform;
use crate::pool::PoolLocal;
use crate::slots::Owned;

/// A thread's context: the cluster that it fills, its part of the pool, codec memory, counters.
///
/// It belongs to the space that made it and goes back with [`crate::VirtualSwap::retire`]; one
/// that is dropped keeps a cluster and a few pages from ever being used again.
#[derive(Debug)]
#[must_use = "a worker has to be retired"]
pub struct Worker {
    /// Cluster from which single slots come.
    pub(crate) single: Option<Owned>,
    /// Cluster from which runs come; apart, so that single slots do not break its alignment.
    pub(crate) runs: Option<Owned>,
    pub(crate) pool: PoolLocal,
    pub(crate) record: RecordId,
    pub(crate) coder: Coder,
    /// A page that an object is decoded into on its way to another place.
    pub(crate) page: Block<Page>,
}

// A worker may be made by one thread and used by another.
const _: () = {
    const fn assert_send<T: Send>() {}
    assert_send::<Worker>();
};

impl Worker {
    /// A worker with memory and a record of its own; `pool` makes its part of the pool.
    pub(crate) fn new<P: Platform>(
        platform: &P,
        counters: &Counters,
        pool: impl FnOnce() -> PoolLocal,
        codec: CodecKind,
    ) -> Result<Self, OutOfMemory> {
        let coder = Coder::new(platform, codec)?;
        let page = match Block::new(platform) {
            Ok(page) => page,
            Err(error) => {
                coder.release(platform);
                return Err(error);
            }
        };
        match counters.take(platform) {
            Ok(record) => Ok(Self { single: None, runs: None, pool: pool(), record, coder, page }),
            Err(error) => {
                coder.release(platform);
                page.release(platform);
                Err(error)
            }
        }
    }
}

/// Types of which any bytes are a value.
///
/// # Safety
/// All bit patterns of the type are valid, and dropping it does nothing.
pub(crate) unsafe trait AnyBytes {}

// SAFETY: bytes.
unsafe impl AnyBytes for Page {}
// SAFETY: bytes.
unsafe impl AnyBytes for [u8; PAGE_SIZE] {}

/// A page-sized value in memory of its own. It goes back with [`Block::release`].
#[derive(Debug)]
pub(crate) struct Block<T: AnyBytes>(NonNull<T>);

// SAFETY: the memory is referred to by this value only, and holds plain bytes.
unsafe impl<T: AnyBytes> Send for Block<T> {}

impl<T: AnyBytes> Block<T> {
    const BYTES: usize = size_of::<T>().next_multiple_of(PAGE_SIZE);

    pub(crate) fn new<P: Platform>(platform: &P) -> Result<Self, OutOfMemory> {
        let memory = platform.reserve(Self::BYTES, PAGE_SIZE).ok_or(OutOfMemory)?;
        Ok(Self(memory.cast()))
    }

    pub(crate) fn release<P: Platform>(self, platform: &P) {
        // SAFETY: reserved in `new` with this length, and nobody else refers to it.
        unsafe { platform.unreserve(self.0.cast(), Self::BYTES) };
    }
}

impl<T: AnyBytes> Deref for Block<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the memory is ours alone, large and aligned enough, and any bytes are a value.
        unsafe { self.0.as_ref() }
    }
}

impl<T: AnyBytes> DerefMut for Block<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { self.0.as_mut() }
    }
}
