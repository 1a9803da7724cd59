//! Life of entries: single ones, runs, counts, the swap cache and groups.

use vswap_core::platform::MmapPlatform;
use vswap_core::{
    CacheError, CodecKind, Counter, DupError, GroupId, GroupLimits, Keep, Limits, LoadError,
    Origin, Page, StoreError, SwapEntry, VirtualSwap, Worker,
};

mod common;
use common::{page_of, pages};

type Space = VirtualSwap<MmapPlatform>;

fn space() -> Space {
    VirtualSwap::new(MmapPlatform, Limits::NONE)
}

fn worker(space: &Space) -> Worker {
    space.worker(CodecKind::Lz4).expect("memory for a worker")
}

fn load(space: &Space, worker: &mut Worker, entry: SwapEntry) -> (Origin, Page) {
    let mut page = Page::ZERO;
    let origin = space.load(worker, entry, &mut page).expect("the entry is stored");
    (origin, page)
}

#[test]
fn nothing_is_taken_before_the_first_eviction() {
    let space = space();
    let usage = space.usage();
    assert_eq!((usage.clusters, usage.pool_memory, usage.live_slots), (0, 0, 0));
    assert_eq!(usage.metadata.total(), usage.metadata.fixed + usage.metadata.pool);
    space.check();
}

#[test]
fn a_page_is_read_past_a_lock_that_stays() {
    let space = space();
    let mut worker = worker(&space);
    for page in pages(64) {
        let entry = space.swap_out(&mut worker, GroupId::ROOT, &page).expect("room");
        let mut past = |tries| {
            let mut back = Page::ZERO;
            // SAFETY: the pin below outlives the call, and nobody else has the space.
            let read = unsafe { space.load_past_lock(&mut worker, entry, &mut back, tries) };
            assert!(read.is_ok() && back.0 == page.0);
        };
        past(1);
        let dead = space.pin(entry).expect("the entry is stored");
        past(10);
        drop(dead);
        space.free(entry);
    }
    space.retire(worker);
    space.check();
}

#[test]
fn every_kind_of_page_comes_back() {
    let space = space();
    let mut worker = worker(&space);
    for (seed, page) in pages(64).enumerate() {
        let entry = space.swap_out(&mut worker, GroupId::ROOT, &page).expect("room");
        let (origin, back) = load(&space, &mut worker, entry);
        assert!(back.0 == page.0, "page {seed} from {origin:?}");
        space.check();
        space.free(entry);
        let mut page = Page::ZERO;
        assert_eq!(space.load(&mut worker, entry, &mut page), Err(LoadError::NoEntry));
    }
    let usage = space.usage();
    assert_eq!((usage.live_slots, usage.payload), (0, 0));
    for counter in [Counter::SwpoutZero, Counter::SameFilledOut, Counter::Zswpout] {
        assert!(usage.counter(counter) > 0, "{counter:?} never moved");
    }
    space.retire(worker);
    assert_eq!(space.usage().clusters, 0);
    space.check();
}

#[test]
fn counts_beyond_seven_are_exact() {
    let space = space();
    let mut worker = worker(&space);
    let entry = space.swap_out(&mut worker, GroupId::ROOT, &page_of(1)).expect("room");
    for count in 1..40 {
        assert_eq!(space.swap_count(entry), count);
        space.dup(entry).expect("live");
        space.check();
    }
    assert!(space.usage().metadata.side_tables > 0);
    for count in (0..40).rev() {
        space.free(entry);
        assert_eq!(space.swap_count(entry), count);
        space.check();
    }
    assert_eq!(space.dup(entry), Err(DupError::NoEntry));
    space.retire(worker);
    assert_eq!(space.usage().metadata.side_tables, 0);
}

#[test]
fn a_run_goes_out_and_comes_back_as_the_kernel_does_it() {
    let space = space();
    let mut worker = worker(&space);
    for n in [1, 2, 16, 512] {
        let mut contents: Vec<Page> = pages(n).collect();
        let first = space.alloc_run(&mut worker, GroupId::ROOT, n).expect("room");
        assert_eq!(first.raw() as usize % n, 0, "runs are naturally aligned");
        space.check();
        space.dup_run(first, n).expect("live");
        assert_eq!(space.cache_remove(first), Err(CacheError::NoBacking));
        let sources: Vec<&Page> = contents.iter().collect();
        space.store_run(&mut worker, first, &sources).expect("room");
        for index in 0..n {
            space.cache_remove(first.nth(index)).expect("stored");
        }
        space.check();
        let mut back = vec![Page::ZERO; n];
        for index in 0..n {
            space.cache_add(first.nth(index)).expect("not cached");
            assert_eq!(space.cache_add(first.nth(index)), Err(CacheError::Exists));
        }
        space.load_run(&mut worker, first, &mut back, Keep::Page, |_, result| {
            result.expect("stored");
        });
        space.check();
        assert!(contents.iter().zip(&back).all(|(there, back)| there.0 == back.0));
        // The pages are the only copies now, so loading finds nothing to read.
        assert_eq!(space.load(&mut worker, first, &mut contents[0]), Err(LoadError::Resident));
        space.free_run(first, n);
        for index in 0..n {
            space.cache_remove(first.nth(index)).expect("cached");
        }
        assert_eq!(space.usage().live_slots, 0);
        space.check();
    }
    space.retire(worker);
}

#[test]
fn dup_of_a_run_takes_its_prefix_back_when_it_fails() {
    let space = space();
    let mut worker = worker(&space);
    let first = space.alloc_run(&mut worker, GroupId::ROOT, 8).expect("room");
    space.dup_run(first, 8).expect("live");
    space.store_run(&mut worker, first, &[&page_of(3); 8]).expect("room");
    for index in 0..8 {
        space.cache_remove(first.nth(index)).expect("stored");
    }
    space.free(first.nth(5));
    assert_eq!(space.dup_run(first, 8), Err(DupError::NoEntry));
    for index in (0..8).filter(|&index| index != 5) {
        assert_eq!(space.swap_count(first.nth(index)), 1, "entry {index}");
    }
    space.check();
    space.retire(worker);
}

#[test]
fn an_entry_that_is_pinned_outlives_its_last_reference() {
    let space = space();
    let mut worker = worker(&space);
    let entry = space.swap_out(&mut worker, GroupId::ROOT, &page_of(2)).expect("room");
    let pin = space.pin(entry).expect("live");
    let object = pin.object().expect("compressed").to_vec();
    space.free(entry);
    assert_eq!(space.dup(entry), Err(DupError::NoEntry), "the entry is dead at once");
    assert_eq!(pin.object(), Some(&object[..]), "but its object is not");
    drop(pin);
    assert_eq!(space.usage().payload, 0);
    space.check();
    assert!(space.pin(entry).is_none());
    space.retire(worker);
}

#[test]
fn limits_refuse_and_count() {
    let space = VirtualSwap::new(MmapPlatform, Limits { slots: 1024 });
    let mut worker = worker(&space);
    let entries: Vec<_> = (0..1024)
        .map(|_| space.swap_out(&mut worker, GroupId::ROOT, &Page::ZERO).expect("below the limit"))
        .collect();
    for _ in 0..2 {
        let refused = space.swap_out(&mut worker, GroupId::ROOT, &Page::ZERO);
        assert_eq!(refused, Err(StoreError::NoSlots));
    }
    assert_eq!(space.usage().refused(), 2);
    space.free(entries[700]);
    space.swap_out(&mut worker, GroupId::ROOT, &Page::ZERO).expect("a slot is free again");
    space.check();
    space.set_pool_limit(0);
    space.free(entries[0]);
    let refused = space.swap_out(&mut worker, GroupId::ROOT, &page_of(4));
    assert_eq!(refused, Err(StoreError::Full));
    assert_eq!(space.usage().counter(Counter::PoolLimitHit), 1);
    space.check();
    space.retire(worker);
}

#[test]
fn groups_are_charged_up_to_the_root() {
    let space = space();
    let mut worker = worker(&space);
    let limits = GroupLimits { zswap_max: 3000, ..GroupLimits::default() };
    let parent = space.create_group(GroupId::ROOT, limits).expect("room");
    let child = space.create_group(parent, GroupLimits::default()).expect("room");
    let mut entries = Vec::new();
    let refusal = loop {
        match space.swap_out(&mut worker, child, &page_of(entries.len() as u64)) {
            Ok(entry) => entries.push(entry),
            Err(error) => break error,
        }
        space.check();
    };
    assert!(!entries.is_empty() && matches!(refusal, StoreError::Full | StoreError::GroupLimit));
    let (of_parent, of_child) =
        (space.group_usage(parent).expect("exists"), space.group_usage(child).expect("exists"));
    assert_eq!(of_parent.zswap, of_child.zswap);
    assert!(of_parent.zswap <= 3000 && of_parent.zswap_max_events > 0);
    assert!(space.usage().counter(Counter::ZswapMax) > 0);
    assert!(space.remove_group(child).is_err(), "it has entries");
    space.free_many(&entries);
    space.check();
    assert!(space.remove_group(parent).is_err(), "it has a child");
    space.remove_group(child).expect("empty");
    space.remove_group(parent).expect("empty");
    space.retire(worker);
}

#[test]
fn a_hundred_thousand_workers_leave_nothing_behind() {
    let space = space();
    let mut entries = Vec::new();
    for round in 0..100_000u32 {
        let mut worker = space.worker(CodecKind::None).expect("memory for a worker");
        let entry = space.swap_out(&mut worker, GroupId::ROOT, &Page::ZERO).expect("room");
        space.retire(worker);
        if round % 1000 == 0 {
            entries.push(entry);
        } else {
            space.free(entry);
        }
    }
    assert_eq!(space.usage().clusters, 1, "100 live slots need one cluster");
    space.free_many(&entries);
    assert_eq!(space.usage().clusters, 0);
    space.check();
}

#[test]
fn a_page_that_is_unchanged_is_evicted_again_without_a_copy() {
    let space = space();
    let mut worker = worker(&space);
    let (page, other) = (page_of(1), page_of(2));
    let first = space.swap_out(&mut worker, GroupId::ROOT, &page).expect("room");
    let held = space.usage();
    assert!(space.holds(&mut worker, first, &page) && !space.holds(&mut worker, first, &other));
    let second = space.renew(&mut worker, first);
    assert_ne!(first, second);
    let mut gone = Page::ZERO;
    assert_eq!(space.load(&mut worker, first, &mut gone), Err(LoadError::NoEntry));
    assert!(load(&space, &mut worker, second).1.0 == page.0);
    let now = space.usage();
    assert_eq!((now.payload, now.live_slots), (held.payload, held.live_slots));
    assert_eq!(now.counter(Counter::Zswpout), 1);
    space.check();

    // Somebody else's reference is to this entry, and stays good.
    space.dup(second).expect("live");
    assert_eq!(space.renew(&mut worker, second), second);
    space.free(second);
    space.free(second);
    assert!(!space.holds(&mut worker, second, &page));
    assert_eq!(space.usage().live_slots, 0);
    space.retire(worker);
    space.check();
}
