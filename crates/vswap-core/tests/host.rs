//! What the space asks of its host: memory that may be refused at any time and that all goes back,
//! and a fork that finds it consistent.

mod common;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::{any_page, pages};
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    CodecKind, Cursor, DupError, GroupId, GroupLimits, Limits, Page, Platform, StoreError,
    SwapEntry, VirtualSwap,
};

/// Counts what is reserved, and refuses after a number of reservations.
#[derive(Debug)]
struct Host {
    reserved: AtomicUsize,
    left: AtomicUsize,
}

impl Host {
    fn new(left: usize) -> Self {
        Self { reserved: 0.into(), left: left.into() }
    }
}

impl Platform for Host {
    fn reserve(&self, len: usize, align: usize) -> Option<NonNull<u8>> {
        let left = self.left.load(Relaxed).checked_sub(1)?;
        self.left.store(left, Relaxed);
        self.reserved.fetch_add(len, Relaxed);
        MmapPlatform.reserve(len, align)
    }

    unsafe fn discard(&self, ptr: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { MmapPlatform.discard(ptr, len) }
    }

    unsafe fn unreserve(&self, ptr: NonNull<u8>, len: usize) {
        self.reserved.fetch_sub(len, Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { MmapPlatform.unreserve(ptr, len) }
    }

    fn relax(&self, spins: u32) {
        MmapPlatform.relax(spins);
    }
}

/// Uses everything that needs memory. `false` if the host refused some.
fn exercise(host: &Host) -> bool {
    let space = VirtualSwap::new(host, Limits::NONE);
    let mut complete = space.create_group(GroupId::ROOT, GroupLimits::default()).is_ok();
    let Ok(mut worker) = space.worker(CodecKind::Lz4) else { return false };
    let mut stored: Vec<(u64, SwapEntry)> = Vec::new();
    for (number, page) in pages(24).enumerate() {
        match space.swap_out(&mut worker, GroupId::ROOT, &page) {
            Ok(entry) => stored.push((number as u64, entry)),
            Err(StoreError::OutOfMemory(_) | StoreError::Full) => complete = false,
            Err(error) => panic!("{error}"),
        }
        space.check();
    }
    if let Some(&(_, entry)) = stored.first() {
        let counted = (0..20)
            .take_while(|_| match space.dup(entry) {
                Ok(()) => true,
                Err(DupError::OutOfMemory(_)) => false,
                Err(error) => panic!("{error}"),
            })
            .count();
        complete &= counted == 20;
        space.check();
        (0..counted).for_each(|_| space.free(entry));
    }
    let recompressed = space.recompress(&mut worker, Cursor::START, 100, CodecKind::Zstd(1));
    complete &= recompressed.is_ok();
    space.check();
    let mut page = Page::ZERO;
    for (number, entry) in stored {
        space.load(&mut worker, entry, &mut page).expect("stored");
        assert!(page.0 == any_page(number).0, "page {number}");
        space.free(entry);
    }
    space.check();
    space.retire(worker);
    complete
}

#[test]
fn memory_refused_at_any_point_is_an_error_and_no_loss() {
    let points = (0..100).take_while(|&left| {
        let host = Host::new(left);
        let complete = exercise(&host);
        assert_eq!(host.reserved.load(Relaxed), 0, "memory was lost, refusing after {left}");
        !complete
    });
    assert!((10..100).contains(&points.count()), "each reservation was refused once");
}

#[test]
fn a_copy_made_by_fork_is_consistent_and_independent() {
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entries: Vec<SwapEntry> = pages(300)
        .map(|page| space.swap_out(&mut worker, GroupId::ROOT, &page).expect("room"))
        .collect();
    let mut intact = |entries: &[SwapEntry]| {
        let mut page = Page::ZERO;
        entries.iter().enumerate().all(|(number, &entry)| {
            space.load(&mut worker, entry, &mut page).is_ok() && page.0 == any_page(number as u64).0
        })
    };
    // SAFETY: the child touches the space and nothing that another thread may have locked, and
    // ends without running anything of the test harness.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let before = intact(&entries);
        space.free_many(&entries[..100]);
        let gone = space.usage().live_slots == 200 && !intact(&entries[..1]);
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!(before && gone))) };
    }
    assert!(child > 0, "fork failed");
    let mut status = 0;
    // SAFETY: our child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child did not see what was stored");
    assert!(intact(&entries), "the child changed its parent's entries");
    space.check();
    space.free_many(&entries);
    space.retire(worker);
    space.check();
}
