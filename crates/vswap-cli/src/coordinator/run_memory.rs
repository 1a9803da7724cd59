//! The memory shared with the members, mapped for as long as this process lives.

use std::os::fd::OwnedFd;
use std::ptr;

use anyhow::Context as _;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use vswap_pager::run_page::{RUN_PAGE_SIZE, RunPage};

/// Creates the memory; gives the descriptor that members get, and our view of it.
pub fn create() -> anyhow::Result<(OwnedFd, &'static RunPage)> {
    let memfd = memfd_create("vswap-run", MemfdFlags::CLOEXEC).context("memfd_create")?;
    ftruncate(&memfd, RUN_PAGE_SIZE as u64).context("cannot size the shared memory")?;
    // SAFETY: a new mapping at an address of the kernel's choice, of memory that this process has
    // no other reference to.
    let address = unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        mmap(ptr::null_mut(), RUN_PAGE_SIZE, protection, MapFlags::SHARED, &memfd, 0)
            .context("cannot map the shared memory")?
    };
    // SAFETY: the mapping has the size and alignment of a RunPage and is never unmapped; all its
    // fields are atomics, for which any bytes are valid, so others may write to it at any time.
    let page = unsafe { &*address.cast::<RunPage>() };
    Ok((memfd, page))
}
