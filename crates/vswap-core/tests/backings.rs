//! One suite for all backings: whatever holds the data, the space behaves the same.

mod common;

use std::sync::atomic::Ordering::Relaxed;

use common::backings::{RamBacking, TestDevice};
use common::{any_page, noise, page_of, pages};
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    Backing, BackingId, BackingState, CodecKind, Counter, Cursor, GroupId, GroupLimits, Limits,
    LoadError, Origin, Page, StoreError, SwapEntry, Target, Transfer, VirtualSwap, Worker,
};

type Space = VirtualSwap<MmapPlatform>;

/// A space in which everything that needs memory goes to one place.
fn only(backing: &'static dyn Backing) -> (Space, BackingId) {
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    space.set_pool_limit(0);
    let id = space.add_backing(backing).expect("the first");
    (space, id)
}

fn fill(space: &Space, worker: &mut Worker, n: usize) -> Vec<SwapEntry> {
    let entries = pages(n).map(|page| space.swap_out(worker, GroupId::ROOT, &page).expect("room"));
    entries.collect()
}

fn compare(space: &Space, worker: &mut Worker, entries: &[SwapEntry]) {
    let mut page = Page::ZERO;
    for (number, &entry) in entries.iter().enumerate() {
        space.load(worker, entry, &mut page).expect("stored");
        assert!(page.0 == any_page(number as u64).0, "page {number}");
    }
    space.check();
}

/// What every backing has to do.
fn suite(space: &Space, codec: CodecKind) {
    let mut worker = space.worker(codec).expect("memory");
    let entries = fill(space, &mut worker, 200);
    compare(space, &mut worker, &entries);
    // Shared, then freed in another order than stored.
    for &entry in &entries {
        space.dup(entry).expect("live");
    }
    space.free_many(&entries);
    compare(space, &mut worker, &entries);
    // Half of them come back for good.
    let mut page = Page::ZERO;
    for (number, &entry) in entries.iter().enumerate().step_by(2) {
        space.load_erasing(&mut worker, entry, &mut page).expect("stored");
        assert!(page.0 == any_page(number as u64).0);
        assert_eq!(space.load(&mut worker, entry, &mut page), Err(LoadError::Resident));
        space.store(&mut worker, entry, &any_page(number as u64)).expect("room again");
        space.cache_remove(entry).expect("stored");
    }
    compare(space, &mut worker, &entries);
    let (odd, even): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.raw() % 2 == 1);
    space.free_many(&odd);
    space.check();
    space.free_many(&even);
    space.retire(worker);
    space.check();
    let usage = space.usage();
    assert_eq!((usage.live_slots, usage.payload), (0, 0));
    assert_eq!((usage.external, usage.device, usage.pool_memory), (0, 0, 0));
}

#[test]
fn the_pool_passes_the_suite_with_each_codec() {
    for codec in [CodecKind::Lz4, CodecKind::Zstd(-1), CodecKind::Zstd(3), CodecKind::None] {
        suite(&VirtualSwap::new(MmapPlatform, Limits::NONE), codec);
    }
}

#[test]
fn a_ram_backing_passes_the_suite() {
    let (space, _) = only(RamBacking::new(u64::MAX));
    suite(&space, CodecKind::Lz4);
    let usage = space.usage();
    assert!(usage.counter(Counter::ExternalOut) > 0 && usage.counter(Counter::ExternalIn) > 0);
}

#[test]
fn a_device_passes_the_suite() {
    let (space, _) = only(TestDevice::new(1000));
    suite(&space, CodecKind::Lz4);
    let usage = space.usage();
    assert!(usage.counter(Counter::Pswpout) > 0 && usage.counter(Counter::Pswpin) > 0);
}

#[test]
fn all_places_together_pass_the_suite() {
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    space.set_pool_limit(64 << 10);
    space.add_backing(RamBacking::new(30_000)).expect("room");
    space.add_backing(TestDevice::new(1000)).expect("room");
    suite(&space, CodecKind::Lz4);
}

#[test]
fn what_shrinks_loses_nothing() {
    let ram = RamBacking::new(u64::MAX);
    let (space, id) = only(ram);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entries = fill(&space, &mut worker, 300);
    space.set_pool_limit(usize::MAX);
    for capacity in [100_000, 10_000, 0] {
        ram.set_capacity(capacity);
        let done = space.rehome(&mut worker, id, Cursor::START, usize::MAX).expect("known");
        assert!(done.moved > 0 && done.failed == 0 && done.next.is_none(), "{done:?}");
        assert!(ram.room().used <= capacity);
        compare(&space, &mut worker, &entries);
    }
    space.free_many(&entries);
    space.retire(worker);
}

#[test]
fn a_device_is_emptied_in_steps_and_removed() {
    let device = TestDevice::new(1000);
    let (space, id) = only(device);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entries = fill(&space, &mut worker, 300);
    let before = device.used();
    assert!(space.remove_backing(id).is_err(), "it is in use");
    space.set_backing_state(id, BackingState::Draining).expect("known");
    // Nowhere to go: everything stays, and the device stays usable.
    let stuck = space.rehome(&mut worker, id, Cursor::START, usize::MAX).expect("known");
    assert_eq!((stuck.moved, stuck.failed, device.used()), (0, before, before));
    compare(&space, &mut worker, &entries);
    space.set_pool_limit(usize::MAX);
    let mut from = Some(Cursor::START);
    let mut steps = 0;
    while let Some(cursor) = from {
        let done = space.rehome(&mut worker, id, cursor, 10).expect("known");
        assert!(done.moved <= 10 && done.failed == 0);
        compare(&space, &mut worker, &entries[..20]);
        (from, steps) = (done.next, steps + 1);
    }
    assert!(steps > 5 && device.used() == 0);
    space.remove_backing(id).expect("empty");
    compare(&space, &mut worker, &entries);
    space.free_many(&entries);
    space.retire(worker);
}

#[test]
fn a_failing_store_falls_through() {
    let (bad, good) = (TestDevice::new(1000), TestDevice::new(1000));
    let (space, first) = only(bad);
    space.add_backing(good).expect("room");
    bad.fail_stores.store(true, Relaxed);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entries = fill(&space, &mut worker, 50);
    assert_eq!(space.backing_state(first), Some(BackingState::Failed), "it is not asked again");
    assert_eq!(space.usage().counter(Counter::WriteFail), 1);
    assert_eq!(bad.used(), 0);
    compare(&space, &mut worker, &entries);
    space.free_many(&entries);
    space.retire(worker);
}

#[test]
fn a_failing_load_keeps_the_entry() {
    let device = TestDevice::new(10);
    let (space, id) = only(device);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entry = space.swap_out(&mut worker, GroupId::ROOT, &page_of(1)).expect("room");
    let mut page = Page::ZERO;
    device.fail_loads.store(true, Relaxed);
    for _ in 0..2 {
        assert_eq!(space.load(&mut worker, entry, &mut page), Err(LoadError::Io(5)));
        assert_eq!(space.load_erasing(&mut worker, entry, &mut page), Err(LoadError::Io(5)));
        space.check();
    }
    assert_eq!(space.usage().counter(Counter::ReadFail), 4);
    device.fail_loads.store(false, Relaxed);
    assert_eq!(space.load(&mut worker, entry, &mut page), Ok(Origin::Backing(id)));
    assert!(page.0 == page_of(1).0);
    space.free(entry);
    space.retire(worker);
}

#[test]
fn a_damaged_object_is_an_error_and_never_a_page() {
    let ram = RamBacking::new(u64::MAX);
    let (space, _) = only(ram);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entry = space.swap_out(&mut worker, GroupId::ROOT, &page_of(1)).expect("room");
    assert!(ram.damage_one());
    let mut page = Page::ZERO;
    assert_eq!(space.load(&mut worker, entry, &mut page), Err(LoadError::Corrupt));
    assert_eq!(space.usage().counter(Counter::DecompressFail), 1);
    assert!(space.transfer(&mut worker, entry, Target::Pool).is_err(), "damage does not travel");
    space.poison(entry);
    assert_eq!(space.load(&mut worker, entry, &mut page), Err(LoadError::Poisoned));
    space.free(entry);
    space.check();
    space.retire(worker);
}

#[test]
fn a_store_of_a_run_that_fails_leaves_no_copy_behind() {
    const N: usize = 16;
    // Every page of the run needs the device, or every third: then the rest is zero or same-filled.
    for step in [1, 3] {
        let content = |index: usize, version: u64| match index % step {
            0 => noise(index as u64 + version),
            other => any_page(other as u64 - 1 + version % 8),
        };
        let needed = N.div_ceil(step);
        for (failing, had_copy) in (0..=needed).flat_map(|at| [(at, false), (at, true)]) {
            let device = TestDevice::new(1000);
            let (space, _) = only(device);
            let mut worker = space.worker(CodecKind::Lz4).expect("memory");
            let first = space.alloc_run(&mut worker, GroupId::ROOT, N).expect("room");
            space.dup_run(first, N).expect("live");
            let store = |worker: &mut Worker, version| {
                let contents: Vec<Page> = (0..N).map(|index| content(index, version)).collect();
                space.store_run(worker, first, &contents.iter().collect::<Vec<_>>())
            };
            if had_copy {
                store(&mut worker, 800).expect("room");
            }
            device.stores_left.store(failing, Relaxed);
            let stored = store(&mut worker, 1600);
            space.check();
            if failing == needed {
                stored.expect("room for all");
            } else {
                assert_eq!(stored, Err(StoreError::Full), "failing at {failing}");
                assert_eq!(device.used(), 0, "copies were left, failing at {failing}");
            }
            let mut page = Page::ZERO;
            for index in 0..N {
                let loaded = space.load(&mut worker, first.nth(index), &mut page);
                if failing == needed {
                    loaded.expect("stored");
                    assert!(page.0 == content(index, 1600).0, "page {index} is an old one");
                } else {
                    assert_eq!(loaded, Err(LoadError::Resident), "page {index}");
                }
            }
            space.retire(worker);
        }
    }
}

#[test]
fn groups_decide_which_places_are_allowed() {
    let device = TestDevice::new(1000);
    let (space, _) = only(device);
    space.set_pool_limit(usize::MAX);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let limits = GroupLimits { zswap_max: 0, swap_max: 4 << 12, zswap_writeback: true };
    let group = space.create_group(GroupId::ROOT, limits).expect("room");
    let entries: Vec<_> =
        (0..4).map(|n| space.swap_out(&mut worker, group, &page_of(n)).expect("room")).collect();
    assert_eq!(device.used(), 4, "no zswap is allowed, so pages go to the device");
    let refused = space.swap_out(&mut worker, group, &page_of(9));
    assert_eq!(refused, Err(StoreError::GroupLimit));
    assert_eq!(space.usage().counter(Counter::SwapMax), 1);
    let usage = space.group_usage(group).expect("exists");
    assert_eq!((usage.zswap, usage.swap, usage.entries), (0, 4 << 12, 4));
    // With zswap allowed and writeback forbidden it is the other way round.
    let limits = GroupLimits { zswap_writeback: false, ..GroupLimits::default() };
    space.set_group_limits(group, limits).expect("exists");
    let pooled = space.swap_out(&mut worker, group, &page_of(9)).expect("room");
    let id = Target::Backing(space.add_backing(TestDevice::new(9)).expect("room"));
    assert!(space.transfer(&mut worker, pooled, id).is_err(), "writeback is forbidden");
    let raw = space.swap_out(&mut worker, group, &noise(1)).expect("room");
    assert_eq!(space.usage().stored_incompressible_pages, 1);
    for &entry in &entries {
        assert_eq!(space.transfer(&mut worker, entry, Target::Pool), Ok(Transfer::Moved));
    }
    assert_eq!((device.used(), space.group_usage(group).expect("exists").swap), (0, 0));
    space.check();
    space.free_many(&entries);
    space.free_many(&[pooled, raw]);
    assert_eq!(space.usage().stored_incompressible_pages, 0);
    space.check();
    space.retire(worker);
}

#[test]
fn writeback_keeps_every_page() {
    let device = TestDevice::new(1000);
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entries = fill(&space, &mut worker, 100);
    let id = space.add_backing(device).expect("room");
    for &entry in &entries {
        space.transfer(&mut worker, entry, Target::Backing(id)).expect("room");
    }
    let usage = space.usage();
    assert_eq!(usage.counter(Counter::WrittenBackPages), device.used() as u64);
    assert!(device.used() > 30);
    compare(&space, &mut worker, &entries);
    for &entry in &entries {
        space.transfer(&mut worker, entry, Target::Anywhere).expect("room");
    }
    assert_eq!(device.used(), 0);
    compare(&space, &mut worker, &entries);
    space.free_many(&entries);
    space.retire(worker);
}

#[test]
fn recompression_saves_and_keeps_every_page() {
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entries = fill(&space, &mut worker, 400);
    let before = space.usage().payload;
    let (mut from, mut saved, mut tried) = (Some(Cursor::START), 0, 0);
    while let Some(cursor) = from {
        let done = space.recompress(&mut worker, cursor, 16, CodecKind::Zstd(1)).expect("memory");
        assert!(done.tried <= 16);
        (from, saved, tried) = (done.next, saved + done.saved, tried + done.tried);
    }
    assert!(saved > 0 && tried > 100);
    assert_eq!(space.usage().payload, before - saved);
    assert!(space.usage().counter(Counter::Recompressed) > 0);
    compare(&space, &mut worker, &entries);
    space.free_many(&entries);
    space.retire(worker);
}

/// Bytes that a bounded step of compaction may move.
const STEP: usize = 1 << 20;

#[test]
fn compaction_gives_memory_back_and_keeps_every_page() {
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entries: Vec<_> = (0..8000)
        .map(|n| space.swap_out(&mut worker, GroupId::ROOT, &page_of(n)).expect("room"))
        .collect();
    for (n, &entry) in entries.iter().enumerate() {
        if n % 5 > 0 {
            space.free(entry);
        }
    }
    space.idle(&mut worker);
    let before = space.usage();
    // A bounded step moves about as much as it may, and gives something back for it.
    let mut given = space.compact(&mut worker, STEP);
    let moved = space.usage().counter(Counter::Compacted) * before.payload as u64 / 1600;
    assert!(given > 0 && moved < 2 * STEP as u64, "{moved} bytes moved");
    given += space.compact(&mut worker, usize::MAX);
    let after = space.usage();
    assert_eq!(given, before.pool_memory - after.pool_memory);
    assert_eq!(before.payload, after.payload);
    let fill = after.payload as f64 / after.pool_memory as f64;
    assert!(fill > 0.8, "payload / memory is {fill:.3} after compaction");
    assert!(after.counter(Counter::Compacted) > 0);
    let mut page = Page::ZERO;
    for (n, &entry) in entries.iter().enumerate().step_by(5) {
        space.load(&mut worker, entry, &mut page).expect("stored");
        assert!(page.0 == page_of(n as u64).0);
        space.free(entry);
    }
    space.check();
    space.retire(worker);
}
