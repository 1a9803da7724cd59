//! Whole operations under random schedules: shuttle may switch threads at every atomic access.
//!
//!     RUSTFLAGS="--cfg shuttle" cargo test -p vswap-core --test shuttle
//!
//! A failing schedule is printed, and can be replayed with `shuttle::replay`.

#![cfg(shuttle)]

mod common;

use std::sync::Arc;

use common::backings::RamBacking;
use common::{noise, page_of};
use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, Runner, thread};
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    CodecKind, Cursor, GroupId, GroupLimits, Limits, LoadError, PAGE_SIZE, Page, SwapEntry, Target,
    VirtualSwap, Worker,
};

type Space = VirtualSwap<MmapPlatform>;

/// Explores schedules of `test`, for a bounded time.
fn explore(test: impl Fn() + Send + Sync + 'static) {
    let long = std::env::var_os("VSWAP_TEST_LONG").is_some();
    let mut config = Config::new();
    // Codecs want more stack than shuttle's threads have.
    config.stack_size = 1 << 20;
    Runner::new(RandomScheduler::new(if long { 20_000 } else { 300 }), config).run(test);
}

fn space() -> Arc<Space> {
    Arc::new(VirtualSwap::new(MmapPlatform, Limits::NONE))
}

/// Runs `work` in a thread of its own, with a worker of its own.
fn with_worker(
    space: &Arc<Space>,
    work: impl FnOnce(&Space, &mut Worker) + Send + 'static,
) -> thread::JoinHandle<()> {
    let space = space.clone();
    thread::spawn(move || {
        let mut worker = space.worker(CodecKind::Lz4).expect("memory");
        work(&space, &mut worker);
        space.retire(worker);
    })
}

/// Stores pages with the numbers 0 to `n`.
fn fill(space: &Space, n: u64) -> Vec<SwapEntry> {
    let mut worker = space.worker(CodecKind::Lz4).expect("memory");
    let entries =
        (0..n).map(|n| space.swap_out(&mut worker, GroupId::ROOT, &page_of(n)).expect("room"));
    let entries = entries.collect();
    space.retire(worker);
    entries
}

fn verify(space: &Space, worker: &mut Worker, entry: SwapEntry, number: u64) {
    let mut page = Page::ZERO;
    space.load(worker, entry, &mut page).expect("live");
    assert!(page.0 == page_of(number).0, "{entry:?} is not page {number}");
}

fn assert_empty(space: &Space) {
    space.check();
    let usage = space.usage();
    assert_eq!((usage.live_slots, usage.clusters, usage.pool_memory), (0, 0, 0));
}

#[test]
fn a_load_and_the_last_free() {
    explore(|| {
        let space = space();
        let entry = fill(&space, 1)[0];
        let load = with_worker(&space, move |space, worker| {
            let mut page = Page::ZERO;
            match space.load(worker, entry, &mut page) {
                Ok(_) => assert!(page.0 == page_of(0).0),
                Err(error) => assert_eq!(error, LoadError::NoEntry),
            }
        });
        space.free(entry);
        load.join().unwrap();
        assert_empty(&space);
    });
}

#[test]
fn housekeeping_and_readers() {
    explore(|| {
        let space = space();
        let ram = RamBacking::new(1 << 20);
        let id = space.add_backing(ram).expect("room");
        let entries = fill(&space, 6);
        let movers = [
            with_worker(&space, {
                let entries = entries.clone();
                move |space, worker| {
                    for (number, &entry) in entries[..3].iter().enumerate() {
                        let moved = space.transfer(worker, entry, Target::Backing(id));
                        assert!(moved.is_ok() || number == 2, "only the third may be freed");
                    }
                    ram.set_capacity(0);
                    space.rehome(worker, id, Cursor::START, 10).expect("known");
                }
            }),
            with_worker(&space, move |space, worker| {
                space.recompress(worker, Cursor::START, 10, CodecKind::Zstd(1)).expect("memory");
                let mut buffer = [0; 2 * PAGE_SIZE];
                let all = Cursor::START..Cursor::END;
                space.write_back(worker, id, all, &mut buffer, |_| true).expect("known");
                space.compact(worker, usize::MAX);
            }),
        ];
        let mut worker = space.worker(CodecKind::Lz4).expect("memory");
        for (number, &entry) in entries.iter().enumerate() {
            verify(&space, &mut worker, entry, number as u64);
        }
        space.free_many(&entries[2..4]);
        for mover in movers {
            mover.join().unwrap();
        }
        for number in [0, 1, 4, 5] {
            verify(&space, &mut worker, entries[number], number as u64);
            space.free(entries[number]);
        }
        space.retire(worker);
        assert_empty(&space);
    });
}

#[test]
fn two_faults_on_one_entry() {
    explore(|| {
        let space = space();
        let entry = fill(&space, 1)[0];
        space.dup(entry).expect("live");
        let fault = move |space: &Space, worker: &mut Worker| {
            if space.cache_add(entry).is_ok() {
                let mut page = Page::ZERO;
                space.load_erasing(worker, entry, &mut page).expect("stored");
                assert!(page.0 == page_of(0).0);
                space.store(worker, entry, &page_of(0)).expect("room");
                space.cache_remove(entry).expect("stored");
            }
            space.free(entry);
        };
        let other = with_worker(&space, fault);
        with_worker(&space, fault).join().unwrap();
        other.join().unwrap();
        assert_empty(&space);
    });
}

#[test]
fn stores_and_frees_from_three_sides() {
    explore(|| {
        let space = space();
        let group = space.create_group(GroupId::ROOT, GroupLimits::default()).expect("room");
        let entries = fill(&space, 4);
        let side = |at: usize| {
            let entries = entries.clone();
            with_worker(&space, move |space, worker| {
                let own = space.swap_out(worker, group, &noise(at as u64)).expect("room");
                space.free_many(&entries[at * 2..at * 2 + 2]);
                let mut page = Page::ZERO;
                space.load(worker, own, &mut page).expect("stored");
                assert!(page.0 == noise(at as u64).0);
                space.free(own);
            })
        };
        let sides = [side(0), side(1)];
        let mut worker = space.worker(CodecKind::Lz4).expect("memory");
        let first = space.alloc_run(&mut worker, group, 4).expect("room");
        space.store_run(&mut worker, first, &[&page_of(1); 4]).expect("room");
        for index in 0..4 {
            space.cache_remove(first.nth(index)).expect("cached");
        }
        space.retire(worker);
        for side in sides {
            side.join().unwrap();
        }
        assert_empty(&space);
        space.remove_group(group).expect("unused");
    });
}

#[test]
fn large_counts_from_two_sides() {
    explore(|| {
        let space = space();
        let entry = fill(&space, 1)[0];
        for _ in 0..5 {
            space.dup(entry).expect("live");
        }
        let side = move |space: &Space, _: &mut Worker| {
            for _ in 0..3 {
                space.dup(entry).expect("live");
            }
            for _ in 0..3 {
                space.free(entry);
            }
        };
        let other = with_worker(&space, side);
        with_worker(&space, side).join().unwrap();
        other.join().unwrap();
        assert_eq!(space.swap_count(entry), 6);
        space.check();
        for _ in 0..6 {
            space.free(entry);
        }
        assert_empty(&space);
    });
}
