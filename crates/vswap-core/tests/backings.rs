//! One suite for all backings: whatever holds the data, the space behaves the same.

mod common;

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use common::backings::{RamBacking, TestDevice};
use common::{any_page, noise, page_of, pages};
use vswap_core::descriptor::{Kind, Place};
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    Backing, BackingError, BackingId, BackingState, CodecKind, Counter, Cursor, Form, GroupId,
    GroupLimits, Handle, Limits, LoadError, Medium, Origin, Outgoing, PAGE_SIZE, Page, Pooled,
    Room, StoreError, SwapEntry, Target, Transfer, VirtualSwap, Worker,
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
fn a_batch_does_not_go_to_a_backing_that_lost_its_number_to_another() {
    let (gone, new) = (TestDevice::new(1000), TestDevice::new(1000));
    let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
    let id = space.add_backing(gone).expect("room");
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entries = fill(&space, &mut worker, 20);
    let mut buffer = vec![0; 20 * PAGE_SIZE];
    let meddle = |_: Pooled| {
        if space.set_backing_state(id, BackingState::Draining).is_ok()
            && space.remove_backing(id).is_ok()
        {
            assert_eq!(space.add_backing(new), Ok(id));
        }
        true
    };
    let mut replaced = false;
    let wanted = |object: Pooled| std::mem::replace(&mut replaced, true) || meddle(object);
    let all = Cursor::START..Cursor::END;
    let done = space.write_back(&mut worker, id, all, &mut buffer, wanted).expect("known");
    assert_eq!((done.written, done.refused), (0, Some(BackingError::Full)));
    assert_eq!((gone.used(), new.used()), (0, 0));
    compare(&space, &mut worker, &entries);
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

/// Writes everything back, batch by batch, and gives the number of objects that moved.
fn write_all_back(space: &Space, worker: &mut Worker, id: BackingId) -> usize {
    let (mut from, mut written) = (Some(Cursor::START), 0);
    let mut buffer = vec![0; 7 * PAGE_SIZE];
    while let Some(cursor) = from {
        let done = space.write_back(worker, id, cursor..Cursor::END, &mut buffer, |_| true);
        let done = done.expect("known");
        assert_eq!((done.raced, done.refused), (0, None));
        (from, written) = (done.next, written + done.written);
    }
    written
}

#[test]
fn batches_of_writeback_keep_every_page() {
    let backings: [&'static dyn Backing; 2] = [TestDevice::new(1000), RamBacking::new(u64::MAX)];
    for backing in backings {
        let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
        let mut worker = space.worker(CodecKind::Lz4).expect("memory");
        let entries = fill(&space, &mut worker, 300);
        let id = space.add_backing(backing).expect("room");
        let pooled = space.usage().counter(Counter::Zswpout);
        assert_eq!(write_all_back(&space, &mut worker, id), pooled as usize);
        assert_eq!(write_all_back(&space, &mut worker, id), 0, "nothing is left to write");
        compare(&space, &mut worker, &entries);
        let words = entries.iter().filter(|&&entry| space.peek(entry).kind() == Kind::SameFilled);
        assert_eq!(space.usage().payload, 8 * words.clone().count() - inline_words(&space, words));
        space.free_many(&entries);
        assert_eq!(backing.room().used, 0);
        space.retire(worker);
        space.check();
    }
}

/// Bytes that same-filled entries would take in the pool if their words were not in the descriptor.
fn inline_words<'a>(space: &Space, entries: impl Iterator<Item = &'a SwapEntry>) -> usize {
    let in_pool = |entry: &&SwapEntry| {
        matches!(space.peek(**entry).place(), Some(Place::SameFilledInPool(_)))
    };
    entries.filter(|entry| !in_pool(entry)).count() * 8
}

/// A batch that fails at any of its objects leaves all of them where they were, and no charge.
#[test]
fn writeback_is_all_or_nothing() {
    for failing in 0..5 {
        let device = TestDevice::new(1000);
        let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
        let mut worker = space.worker(CodecKind::Lz4).expect("memory");
        let group = space.create_group(GroupId::ROOT, GroupLimits::default()).expect("room");
        let store = |n| space.swap_out(&mut worker, group, &page_of(n)).expect("room");
        let entries: Vec<_> = (0..5).map(store).collect();
        let id = space.add_backing(device).expect("room");
        device.stores_left.store(failing, Relaxed);
        let mut buffer = vec![0; 8 * PAGE_SIZE];
        let mut write = |wanted: fn(Pooled) -> bool| {
            let all = Cursor::START..Cursor::END;
            space.write_back(&mut worker, id, all, &mut buffer, wanted).expect("known")
        };
        let done = write(|_| true);
        assert_eq!((done.written, done.refused), (0, Some(BackingError::Full)));
        assert_eq!((device.used(), space.group_usage(group).expect("exists").swap), (0, 0));
        assert_eq!(write(|_| false).written, 0, "what is not wanted stays");
        // A limit stops each object by itself.
        device.stores_left.store(usize::MAX, Relaxed);
        let limits = GroupLimits { swap_max: 2 * PAGE_SIZE as u64, ..GroupLimits::default() };
        space.set_group_limits(group, limits).expect("exists");
        assert_eq!((write(|_| true).written, device.used()), (2, 2));
        space.check();
        for (number, &entry) in entries.iter().enumerate() {
            let mut page = Page::ZERO;
            space.load(&mut worker, entry, &mut page).expect("stored");
            assert!(page.0 == page_of(number as u64).0);
        }
        space.free_many(&entries);
        assert_eq!((device.used(), space.group_usage(group).expect("exists").swap), (0, 0));
        space.retire(worker);
        space.check();
    }
}

/// A device during whose writes other threads get on, here with `meddle`.
struct Meddling {
    device: &'static TestDevice,
    meddle: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Backing for Meddling {
    fn medium(&self) -> Medium {
        self.device.medium()
    }

    fn form(&self) -> Form {
        self.device.form()
    }

    fn store(&self, object: Outgoing<'_>) -> Result<Handle, BackingError> {
        if let Some(meddle) = self.meddle.lock().unwrap().take() {
            meddle();
        }
        self.device.store(object)
    }

    fn load(&self, entry: SwapEntry, handle: Handle, out: &mut [u8]) -> Result<(), BackingError> {
        self.device.load(entry, handle, out)
    }

    fn free(&self, handle: Handle, length: usize) {
        self.device.free(handle, length);
    }

    fn room(&self) -> Room {
        self.device.room()
    }
}

/// Entries that are freed, reused for another page at the same place, or changed while they are being
/// written stay what they have become.
#[test]
fn what_changes_while_it_is_written_back_stays_as_it_is() {
    let space: &'static Space = Box::leak(Box::new(Space::new(MmapPlatform, Limits::NONE)));
    let worker = || space.worker(CodecKind::Lz4).expect("memory");
    let backing: &'static Meddling =
        Box::leak(Box::new(Meddling { device: TestDevice::new(1000), meddle: Mutex::new(None) }));
    // One worker stores, so that it has the segment in which places are reused; the other writes.
    let (mut other, mut writer) = (worker(), worker());
    let mut store = |page: &Page| {
        let entry = space.alloc_run(&mut other, GroupId::ROOT, 1).expect("room");
        space.dup(entry).expect("live");
        space.store(&mut other, entry, page).expect("room");
        entry
    };
    let length = |entry| space.pin(entry).and_then(|pin| Some(pin.object()?.len()));
    let entries: Vec<_> = (0..4).map(|n| store(&page_of(n))).collect();
    let (stays, freed, rewritten, poisoned) = (entries[0], entries[1], entries[2], entries[3]);
    let changed = (0..PAGE_SIZE).find_map(|index| {
        let mut page = page_of(2);
        page.0[index] ^= 1;
        let entry = store(&page);
        let fits = length(entry) == length(rewritten);
        space.free(entry);
        space.cache_remove(entry).expect("cached");
        fits.then_some(page)
    });
    let changed = changed.expect("some other page is as long when it is compressed");
    let id = space.add_backing(backing).expect("room");
    let (place, newer) = (space.peek(rewritten).place(), Page(changed.0));
    *backing.meddle.lock().unwrap() = Some(Box::new(move || {
        space.free(freed);
        space.cache_remove(freed).expect("cached");
        // The pool gives the place that was freed last, so the new page is where the old one was.
        space.store(&mut other, rewritten, &newer).expect("room");
        space.poison(poisoned);
        space.retire(other);
    }));
    let mut buffer = vec![0; 8 * PAGE_SIZE];
    let all = Cursor::START..Cursor::END;
    let done = space.write_back(&mut writer, id, all, &mut buffer, |_| true).expect("known");
    assert_eq!(place, space.peek(rewritten).place(), "the test is about a place that is reused");
    assert_eq!((done.written, done.raced), (1, 3));
    assert_eq!(backing.device.used(), 1);
    let mut page = Page::ZERO;
    assert_eq!(space.load(&mut writer, stays, &mut page), Ok(Origin::Backing(id)));
    assert!(page.0 == page_of(0).0);
    assert_eq!(space.load(&mut writer, rewritten, &mut page), Ok(Origin::Pool));
    assert!(page.0 == changed.0);
    assert_eq!(space.load(&mut writer, poisoned, &mut page), Err(LoadError::Poisoned));
    assert_eq!(space.load(&mut writer, freed, &mut page), Err(LoadError::NoEntry));
    space.retire(writer);
    space.check();
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
