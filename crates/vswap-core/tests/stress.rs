//! Several threads at once, verifying every page they read.
//!
//! `VSWAP_TEST_LONG=1` runs fifty times as long.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use common::backings::{RamBacking, TestDevice};
use common::{Random, page_of};
use vswap_core::platform::MmapPlatform;
use vswap_core::{
    BackingId, BackingState, CodecKind, Cursor, Form, GroupId, Limits, LoadError, PAGE_SIZE, Page,
    SwapEntry, Target, VirtualSwap, Worker,
};

const THREADS: u64 = 3;
const CELLS: usize = 400;
const STEPS: usize = 12_000;
const SLOTS: usize = 10_000;

/// A page that says which one it is: its number is in the last 8 bytes, and decides the rest.
fn tagged(number: u64) -> Page {
    let mut page = match number % 4 {
        0 => Page::ZERO,
        _ => page_of(number % 64),
    };
    page.0[4088..].copy_from_slice(&number.to_ne_bytes());
    page
}

fn is_intact(page: &Page) -> bool {
    let number = u64::from_ne_bytes(page.0[4088..].try_into().expect("8 bytes"));
    page.0 == tagged(number).0
}

/// Entries that threads pass to each other: entry and page number, or 0. Who takes one out of its
/// cell owns a reference to it.
struct Shared {
    space: VirtualSwap<MmapPlatform>,
    cells: Vec<AtomicU64>,
    ram: (&'static RamBacking, BackingId),
    /// Two devices, of which one may go while the other has room for all.
    devices: [AtomicU8; 2],
    attached: Mutex<[&'static TestDevice; 2]>,
    written_back: AtomicUsize,
    swapoffs: AtomicUsize,
    stop: AtomicBool,
}

fn pack(entry: SwapEntry, number: u64) -> u64 {
    u64::from(entry.raw()) << 32 | number
}

fn unpack(cell: u64) -> Option<(SwapEntry, u64)> {
    Some((SwapEntry::from_raw((cell >> 32) as u32)?, cell & 0xffff_ffff))
}

impl Shared {
    fn new() -> Self {
        let space = VirtualSwap::new(MmapPlatform, Limits::NONE);
        space.set_pool_limit(256 << 10);
        let ram = RamBacking::new(200_000);
        let attached = [Form::Pages, Form::Objects].map(|form| TestDevice::of(form, SLOTS));
        Self {
            ram: (ram, space.add_backing(ram).expect("room")),
            devices: attached.map(|device| space.add_backing(device).expect("room").raw().into()),
            attached: Mutex::new(attached),
            space,
            cells: (0..CELLS).map(|_| AtomicU64::new(0)).collect(),
            written_back: AtomicUsize::new(0),
            swapoffs: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// Puts an entry into a cell, and frees what was there.
    fn put(&self, cell: usize, entry: SwapEntry, number: u64) {
        let old = self.cells[cell].swap(pack(entry, number), Ordering::AcqRel);
        if let Some((old, _)) = unpack(old) {
            self.space.free(old);
        }
    }

    fn verify(&self, worker: &mut Worker, entry: SwapEntry, number: u64) {
        let mut page = Page::ZERO;
        self.space.load(worker, entry, &mut page).expect("we hold a reference");
        assert!(page.0 == tagged(number).0, "{entry:?} is not page {number}");
    }

    fn step(&self, worker: &mut Worker, random: &mut Random) {
        let cell = random.below(CELLS);
        match random.below(8) {
            0..3 => {
                let number = random.next() & 0xffff_ffff;
                let page = tagged(number);
                let entry = self.space.swap_out(worker, GroupId::ROOT, &page).expect("room");
                self.put(cell, entry, number);
            }
            3 => {
                // A stale look: the entry may be freed and used anew at any time, but what comes
                // out is some page as it was stored.
                let seen = self.cells[cell].load(Ordering::Acquire);
                if let Some((entry, _)) = unpack(seen) {
                    let mut page = Page::ZERO;
                    match self.space.load(worker, entry, &mut page) {
                        Ok(_) => assert!(is_intact(&page), "a torn page from {entry:?}"),
                        Err(LoadError::NoEntry | LoadError::Resident) => {}
                        Err(error) => panic!("{entry:?}: {error}"),
                    }
                }
            }
            action => {
                let taken = self.cells[cell].swap(0, Ordering::AcqRel);
                if let Some((entry, number)) = unpack(taken) {
                    self.use_entry(worker, random, action, entry, number);
                }
            }
        }
    }

    /// Does something with a reference of ours, and ends with it in a cell or freed.
    fn use_entry(
        &self,
        worker: &mut Worker,
        random: &mut Random,
        action: usize,
        entry: SwapEntry,
        number: u64,
    ) {
        self.verify(worker, entry, number);
        match action {
            4 => {
                for _ in 0..random.below(12) {
                    self.space.dup(entry).expect("live");
                    self.put(random.below(CELLS), entry, number);
                }
            }
            5 => {
                // As a fault does it: one of those who share the entry gets to read it for good.
                if self.space.cache_add(entry).is_ok() {
                    self.verify(worker, entry, number);
                    self.space.cache_remove(entry).expect("we added it, and it has a backing");
                }
            }
            6 => {
                let targets = [
                    Target::Pool,
                    Target::Backing(self.ram.1),
                    Target::Backing(self.device(random)),
                ];
                let _ = self.space.transfer(worker, entry, targets[random.below(3)]);
                self.verify(worker, entry, number);
            }
            _ => {
                self.space.free(entry);
                return;
            }
        }
        self.put(random.below(CELLS), entry, number);
    }

    /// One of the devices, which may be on its way out.
    fn device(&self, random: &mut Random) -> BackingId {
        BackingId::from_raw(self.devices[random.below(2)].load(Ordering::Relaxed))
    }

    /// Empties a device while everybody goes on, forgets it, and adds another one.
    fn swapoff_and_on(&self, worker: &mut Worker, number: usize) {
        let id = BackingId::from_raw(self.devices[number].load(Ordering::Relaxed));
        self.space.set_backing_state(id, BackingState::Draining).expect("known");
        // What was stored while it was closed is behind the walk.
        while self.space.remove_backing(id).is_err() {
            let mut from = Some(Cursor::START);
            while let Some(cursor) = from {
                let done = self.space.rehome(worker, id, cursor, 20).expect("known");
                assert_eq!(done.failed, 0, "the other device has room");
                from = done.next;
            }
        }
        let mut attached = self.attached.lock().expect("no thread failed");
        assert_eq!(attached[number].used(), 0);
        let form = [Form::Pages, Form::Objects][self.swapoffs.load(Ordering::Relaxed) % 2];
        attached[number] = TestDevice::of(form, SLOTS);
        let id = self.space.add_backing(attached[number]).expect("room");
        self.devices[number].store(id.raw(), Ordering::Relaxed);
        self.swapoffs.fetch_add(1, Ordering::Relaxed);
    }

    /// What goes on in the background of a real system.
    fn housekeep(&self) {
        let mut worker = self.space.worker(CodecKind::Zstd(1)).expect("memory");
        let mut random = Random::new(99);
        while !self.stop.load(Ordering::Relaxed) {
            match random.below(6) {
                0 => {
                    self.space.compact(&mut worker, 1 << 20);
                }
                1 => {
                    let codec = CodecKind::Zstd(-1);
                    let done = self.space.recompress(&mut worker, Cursor::START, 100, codec);
                    done.expect("memory");
                }
                2 => {
                    self.ram.0.set_capacity(random.below(300_000) as u64);
                    let done = self.space.rehome(&mut worker, self.ram.1, Cursor::START, 100);
                    done.expect("known");
                }
                3 => {
                    let id =
                        if random.below(2) == 0 { self.ram.1 } else { self.device(&mut random) };
                    let mut buffer = vec![0; 8 * PAGE_SIZE];
                    let slots = Cursor::START..Cursor::END;
                    let done =
                        self.space.write_back(&mut worker, id, slots, &mut buffer, |object| {
                            object.entry.raw() % 3 == random.below(3) as u32
                        });
                    self.written_back.fetch_add(done.expect("known").written, Ordering::Relaxed);
                }
                4 => self.swapoff_and_on(&mut worker, random.below(2)),
                _ => self.space.set_pool_limit((64 << 10) + random.below(1 << 20)),
            }
            let fresh = self.space.worker(CodecKind::Lz4).expect("memory");
            self.space.retire(std::mem::replace(&mut worker, fresh));
        }
        self.space.retire(worker);
    }
}

#[test]
fn threads_that_share_entries_read_what_was_stored() {
    let long = std::env::var_os("VSWAP_TEST_LONG").is_some();
    let shared = Shared::new();
    thread::scope(|scope| {
        let keeper = scope.spawn(|| shared.housekeep());
        let workers: Vec<_> = (0..THREADS)
            .map(|seed| {
                let shared = &shared;
                scope.spawn(move || {
                    let mut worker = shared.space.worker(CodecKind::Lz4).expect("memory");
                    let mut random = Random::new(seed);
                    for _ in 0..STEPS * if long { 50 } else { 1 } {
                        shared.step(&mut worker, &mut random);
                    }
                    shared.space.retire(worker);
                })
            })
            .collect();
        let done: Vec<_> = workers.into_iter().map(|worker| worker.join().is_ok()).collect();
        shared.stop.store(true, Ordering::Relaxed);
        keeper.join().expect("the housekeeper did not fail");
        assert!(done.into_iter().all(|done| done), "a thread failed");
        assert!(shared.written_back.load(Ordering::Relaxed) > 0);
        assert!(shared.swapoffs.load(Ordering::Relaxed) > 0);
    });
    shared.space.check();
    let mut worker = shared.space.worker(CodecKind::Lz4).expect("memory");
    for cell in &shared.cells {
        if let Some((entry, number)) = unpack(cell.load(Ordering::Relaxed)) {
            shared.verify(&mut worker, entry, number);
            shared.space.free(entry);
        }
    }
    shared.space.retire(worker);
    shared.space.check();
    let usage = shared.space.usage();
    assert_eq!((usage.live_slots, usage.clusters, usage.payload), (0, 0, 0));
    assert_eq!((usage.external, usage.device, usage.pool_memory), (0, 0, 0));
}
