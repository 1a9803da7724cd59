//! The atomics of this crate, and its one lock.
//!
//! Nothing else in the crate names an atomic type, so that three builds share one source:
//!
//! - normally these are the atomics of `core`;
//! - `--cfg loom` takes loom's, which explore weak orderings. They cannot lie in zeroed memory, so
//!   only the pieces that are built by value (descriptor, cluster header, lock) exist then;
//! - `--cfg shuttle` wraps those of `core` so that each access is a point where shuttle may switch
//!   threads. Their layout stays that of an integer, so whole operations run unchanged.

#[cfg(not(any(loom, shuttle)))]
pub use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(loom)]
pub use loom::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(all(shuttle, not(loom)))]
mod switching;
#[cfg(all(shuttle, not(loom)))]
pub use switching::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

mod spin;
pub use spin::{RawSpinLock, SpinGuard, SpinLock};

/// Keeps what several threads write apart from its neighbours in the cache.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct CacheLine<T>(pub T);
