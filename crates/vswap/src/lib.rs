//! The public face of vswap: the virtual swap space and the pager, re-exported.
//!
//! A later release adds the Rust and C interfaces for embedding; today the two
//! crates below are the whole of it.
#![no_std]

pub use vswap_core as core;
pub use vswap_pager as pager;
