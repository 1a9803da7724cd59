//! Swap devices: where pages go that the pool has no room for, or that do not compress.
//!
//! | | |
//! |---|---|
//! | [`devices`] | all devices of the run, as this process uses them, and which is next |
//! | [`device`] | one device as a backing of the virtual swap space |
//! | [`leases`] | the parts of a device that this process holds |
//! | [`sealing`] | the check and the encryption of objects |
//! | [`generations`] | which write of a place is the last one |
//! | [`fingerprints`] | what pages were like when they came in, so that they can go for nothing |
//! | [`read_ahead`] | what was read behind an object that was asked for |
//! | [`compaction`] | what lies far apart on a device is moved together |
//! | [`fetched`] | what the window of a fault is made of, read with one batch |
//! | [`transfer`] | who carries out transfers, and for how long |
//! | [`draining`] | swapon and swapoff while the program runs |
//! | [`tiers`] | what moves from fast devices to slow ones, and back |
//! | [`share`] | how much of the reclaimer's time such work has |
//! | [`writeback`] | what moves from the pool to devices, and when |
//! | [`idle_age`] | the same, because it has been there for long |
//!
//! Slots and their policy are the core's ([`vswap_core::device`]), input and output that of
//! [`io`](crate::io).

pub mod compaction;
pub mod device;
pub mod devices;
pub mod draining;
pub mod fetched;
pub mod fingerprints;
pub mod generations;
pub mod idle_age;
pub mod leases;
pub mod read_ahead;
pub mod sealing;
pub mod share;
pub mod tiers;
pub mod transfer;
pub mod writeback;

pub use device::{Refusal, SwapDevice};
pub use devices::SWAP_DEVICES;
