//! The virtual swap space.
//!
//! A page that leaves memory gets a virtual slot, and whoever had the page holds its
//! [`SwapEntry`]. What the slot stands for (zeros, one repeated word, a compressed object, a place
//! on a device) is decided here, and changes without the holder noticing. [`VirtualSwap`] is the
//! space; its module describes the protocol.
//!
//! The crate makes no system calls, starts no threads and has no allocator: it can serve a page
//! fault without libc, run in a simulator, or sit in a kernel. Memory comes in through
//! [`Platform`], storage through [`Backing`].
//!
//! | module | what is there |
//! |---|---|
//! | [`vswap`] | the space and its operations |
//! | [`descriptor`] | the packed record of a slot, its legal states and transitions |
//! | [`pool`], [`codec`], [`same_filled`] | compressed objects in RAM |
//! | [`backing`] | the interface for places beside the pool |
//! | [`device`] | swap devices: headers, physical slots, order of use |
//! | [`group`] | who is charged |
//! | [`counters`] | what is counted, under the kernel's names |
//! | [`platform`], [`sync`] | what the host provides |
#![cfg_attr(not(any(loom, shuttle)), no_std)]
// Under loom only the pieces that it can run are built, so much has no user.
#![cfg_attr(loom, allow(dead_code, unused_imports))]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod backing;
#[cfg(not(loom))]
mod backings;
#[cfg(not(loom))]
pub mod codec;
#[cfg(not(loom))]
pub mod counters;
pub mod descriptor;
#[cfg(not(loom))]
pub mod device;
mod entry;
pub mod error;
#[cfg(not(loom))]
pub mod fingerprint;
#[cfg(not(loom))]
pub mod group;
#[cfg(loom)]
#[path = "slots/header.rs"]
mod header;
#[cfg(all(loom, test))]
mod loom_tests;
pub mod page;
#[cfg(not(loom))]
mod pieces;
pub mod platform;
#[cfg(not(loom))]
pub mod pool;
#[cfg(loom)]
#[path = "pool/loom.rs"]
mod pool;
pub mod same_filled;
#[cfg(not(loom))]
mod slots;
pub mod sync;
#[cfg(not(loom))]
pub mod vswap;
#[cfg(not(loom))]
mod worker;

pub use backing::{Backing, BackingError, Form, Medium, Outgoing, Relocation, Room};
pub use entry::{BackingId, CLUSTER_SLOTS, GroupId, Handle, SwapEntry};
pub use error::{
    BackingSetError, CacheError, DupError, GroupError, LoadError, OutOfMemory, StoreError,
    TransferError,
};
pub use page::{PAGE_SHIFT, PAGE_SIZE, Page};
pub use platform::Platform;

#[cfg(not(loom))]
pub use backings::BackingState;
#[cfg(not(loom))]
pub use codec::CodecKind;
#[cfg(not(loom))]
pub use counters::Counter;
#[cfg(not(loom))]
pub use group::{GroupLimits, GroupUsage};
#[cfg(not(loom))]
pub use vswap::{
    Cursor, Keep, Limits, Metadata, Origin, Pinned, Pooled, Recompression, Rehoming, Relocated,
    Target, Transfer, Usage, VirtualSwap, WRITE_BACK_BATCH, WriteBack,
};
#[cfg(not(loom))]
pub use worker::Worker;
